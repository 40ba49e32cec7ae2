"""What leaves a node before its disk has what the message promises: nothing (SAFETY C2, C8, D1)."""

from lockd.ids import InstanceId, LogIndex, NodeId, Term
from lockd.locks.commands import OpenSession, Outcome, SessionOpened
from lockd.raft.codec import encode_message
from lockd.raft.messages import AppendEntries, AppendEntriesReply, RequestVote, RequestVoteReply
from lockd.server import frames
from tests.server.cluster import TTL_MS, Cluster

OPENED: list[Outcome] = [SessionOpened("s", TTL_MS)]


def led_by(node: int, *, size: int = 3) -> Cluster:
    cluster = Cluster(size)
    cluster.elect(node)
    return cluster


def open_at(cluster: Cluster, node: int) -> list[Outcome]:
    return cluster.ask(node, OpenSession(TTL_MS, "", ""), session="s")


def stall(cluster: Cluster, *nodes: int) -> None:
    for node in nodes:
        cluster[node].disk_stalls = True


def unstall(cluster: Cluster, node: int) -> None:
    cluster[node].disk_stalls = False
    cluster.settle()


def test_d1_nothing_is_answered_before_a_quorum_has_it_on_disk() -> None:
    cluster = led_by(1)
    stall(cluster, 2, 3)
    outcomes = [open_at(cluster, 1), open_at(cluster, 2)]
    cluster.tick(3)
    assert outcomes == [[], []]
    unstall(cluster, 3)
    assert outcomes[0] == OPENED
    unstall(cluster, 2)
    assert outcomes == [OPENED, OPENED]


def test_d1_a_single_node_answers_after_its_own_disk() -> None:
    cluster = led_by(1, size=1)
    stall(cluster, 1)
    outcomes = open_at(cluster, 1)
    cluster.tick(3)
    assert outcomes == []
    unstall(cluster, 1)
    assert outcomes == OPENED


def test_c2_the_leaders_own_copy_counts_when_its_disk_has_it() -> None:
    cluster = led_by(1)
    stall(cluster, 1, 3)
    committed = cluster[1].driver.raft.commit_index
    open_at(cluster, 1)
    cluster.tick(3)
    assert cluster[1].driver.raft.commit_index == committed
    unstall(cluster, 1)
    assert cluster[1].driver.raft.commit_index > committed


def test_d1_what_is_committed_is_applied_and_answered_from_the_own_disk_alone() -> None:
    cluster = led_by(1)
    stall(cluster, 1)
    outcomes = open_at(cluster, 1)
    cluster.tick(3)
    assert cluster[2].driver.machine.stats.sessions == 1
    assert outcomes == []
    unstall(cluster, 1)
    assert outcomes == OPENED


def test_c2_an_append_is_acknowledged_after_the_disk_has_it_also_when_it_is_repeated() -> None:
    """The repeat asks for no write of its own; its ack waits for the one before it all the same."""
    cluster = led_by(1)
    stall(cluster, 2)
    durable = cluster[2].driver.raft.log.last_index
    open_at(cluster, 1)
    cluster.settle()
    appends = [message for message in cluster.messages(1, AppendEntries) if message.entries]
    repeated = next(message for message in reversed(appends) if message.receiver == 2)
    for _ in range(2):
        cluster[2].driver.on_frame(NodeId(1), frames.Raft(encode_message(repeated)))
    cluster.tick(2)
    assert cluster[2].driver.raft.log.last_index > durable
    acknowledged = [message.match_index for message in cluster.messages(2, AppendEntriesReply)]
    assert max(acknowledged) == durable
    unstall(cluster, 2)
    acknowledged = [message.match_index for message in cluster.messages(2, AppendEntriesReply)]
    assert max(acknowledged) > durable


def test_c2_a_candidate_asks_for_votes_and_counts_its_own_after_its_disk_has_the_term() -> None:
    cluster = Cluster(1)
    stall(cluster, 1)
    cluster.tick(40)
    assert not cluster[1].leads()
    unstall(cluster, 1)
    assert cluster[1].leads()

    cluster = Cluster()
    stall(cluster, 1)
    for _ in range(25):
        cluster[1].driver.tick()
        cluster.settle()
    assert [message.pre_vote for message in cluster.messages(1, RequestVote)].count(False) == 0
    unstall(cluster, 1)
    assert [message.pre_vote for message in cluster.messages(1, RequestVote)].count(False) == 2


def vote_request(candidate: int, voter: int, *, term: int) -> frames.Frame:
    message = RequestVote(
        NodeId(candidate), NodeId(voter), Term(term), LogIndex(99), Term(term - 1), pre_vote=False
    )
    return frames.Raft(encode_message(message))


def test_c2_a_vote_leaves_after_the_disk_has_it_and_outlives_the_power() -> None:
    cluster = Cluster()
    stall(cluster, 2)
    cluster[2].driver.on_frame(NodeId(1), vote_request(1, 2, term=7))
    cluster.settle(only=(2,))
    assert cluster.messages(2, RequestVoteReply) == []
    cluster[2].disk_stalls = False
    cluster.settle(only=(2,))
    assert [reply.granted for reply in cluster.messages(2, RequestVoteReply)] == [True]
    cluster[2].restart()
    cluster.sent.clear()
    cluster[2].driver.on_frame(NodeId(3), vote_request(3, 2, term=7))
    cluster.settle(only=(2,))
    assert [reply.granted for reply in cluster.messages(2, RequestVoteReply)] == [False], "one vote a term"


def test_p3_what_was_answered_survives_the_power_loss_of_all() -> None:
    cluster = led_by(1)
    outcomes = open_at(cluster, 2)
    cluster.settle()
    assert outcomes == OPENED
    for member in cluster.members.values():
        member.restart()
    assert cluster[3].driver.machine.stats.sessions == 0, "nothing is applied before it is known as committed"
    cluster.elect(3)
    cluster.tick()
    assert [member.driver.machine.stats.sessions for member in cluster.members.values()] == [1, 1, 1]


def test_c8_a_peer_is_bound_once_the_disk_has_it() -> None:
    cluster = Cluster()
    stall(cluster, 1)
    bound: list[str] = []
    cluster[1].driver.bind_peer(NodeId(2), InstanceId("b" * 32), lambda: bound.append("2"))
    cluster.settle()
    assert bound == []
    unstall(cluster, 1)
    assert bound == ["2"]
    assert cluster[1].recover().bindings == {2: "b" * 32}


def test_c8_the_clusters_identity_and_the_members_addresses_are_known_before_the_log_is_applied() -> None:
    cluster = led_by(1)
    cluster.settle()
    for member in cluster.members.values():
        member.restart()
        assert member.driver.identity.cluster == "c" * 32
        assert member.driver.identity.incarnation == "0000000a"
        assert member.driver.addresses == {node: f"node{node}:7421" for node in (1, 2, 3)}
