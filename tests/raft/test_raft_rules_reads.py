"""SAFETY C6: reads by ReadIndex, confirmed by a quorum in a round begun after the request."""

import pytest

from lockd.ids import NodeId
from lockd.raft.messages import Heartbeat, Message
from lockd.raft.node import NotLeader, RaftNode, ReadReady, Role
from tests.raft.network import Network
from tests.raft.single import (
    ELECTION_TICKS,
    ack_from,
    append_from,
    finish,
    heartbeat_reply_from,
    joint_leader,
    make_leader,
    make_node,
    propose,
    readies,
    ready_leader,
    settle,
    step,
    tick,
)


def confirmed(node: RaftNode) -> list[ReadReady]:
    found: list[ReadReady] = []
    for ready in readies(node):
        found += ready.reads
        finish(node, ready)
    return found


def begun(node: RaftNode) -> list[int]:
    """Begin the round that was joined; return the sequences its heartbeats carry."""
    return [message.read_sequence for message in settle(node) if isinstance(message, Heartbeat)]


def test_c6_a_read_is_confirmed_by_a_quorum_at_the_commit_index_of_its_round() -> None:
    node = ready_leader(1, 2, 3, 4, 5)
    sequence = node.read_index()
    assert begun(node) == [sequence] * 4
    node.step(heartbeat_reply_from(2, 1, sequence))
    assert confirmed(node) == []
    node.step(heartbeat_reply_from(2, 1, sequence))
    assert confirmed(node) == [], "one voter counts once"
    node.step(heartbeat_reply_from(3, 1, sequence))
    assert confirmed(node) == [ReadReady(sequence, node.commit_index)]


def test_c6_in_joint_mode_a_read_needs_a_quorum_of_both_halves() -> None:
    """T3 rests on it: the outgoing half could have elected another leader meanwhile."""
    node = joint_leader()
    step(node, *(ack_from(peer, 1, 1) for peer in (2, 3, 4)))
    sequence = node.read_index()
    begun(node)
    node.step(heartbeat_reply_from(2, 1, sequence))
    node.step(heartbeat_reply_from(3, 1, sequence))
    assert confirmed(node) == [], "the outgoing half is 3, 4 and 5, and 3 alone has answered"
    node.step(heartbeat_reply_from(5, 1, sequence))
    assert confirmed(node) == [ReadReady(sequence, node.commit_index)]


def test_c6_only_a_leader_takes_reads() -> None:
    node = make_node()
    with pytest.raises(NotLeader):
        node.read_index()


def test_c6_no_read_before_an_entry_of_the_own_term_is_committed() -> None:
    """etcd#7331, tikv#6340, tikv#9239: a new leader's commit index may lag behind what its predecessor
    acknowledged; a read served from it is stale."""
    node = make_node([1, 1], term=1)
    make_leader(node)
    assert node.commit_index == 0
    sequence = node.read_index()
    assert begun(node) == []
    tick(node)
    step(node, heartbeat_reply_from(2, 2, sequence), heartbeat_reply_from(3, 2, sequence))
    assert confirmed(node) == []
    step(node, ack_from(2, 2, 3))
    node.step(heartbeat_reply_from(3, 2, sequence))
    assert confirmed(node) == [ReadReady(sequence, node.commit_index)]
    assert node.commit_index == 3


def test_c6_an_answer_to_an_earlier_round_does_not_confirm_a_later_read() -> None:
    """etcd#20418: a retried read reused its context, and late answers confirmed it on an old leader."""
    node = ready_leader()
    first = node.read_index()
    begun(node)
    second = node.read_index()
    begun(node)
    assert second > first
    node.step(heartbeat_reply_from(2, 1, first))
    assert [round_.sequence for round_ in confirmed(node)] == [first]
    node.step(heartbeat_reply_from(3, 1, first))
    assert confirmed(node) == []
    node.step(heartbeat_reply_from(3, 1, second))
    assert [round_.sequence for round_ in confirmed(node)] == [second]


def test_c6_an_answer_counts_for_all_rounds_up_to_its_own() -> None:
    node = ready_leader()
    sequences = []
    for _ in range(3):
        sequences.append(node.read_index())
        begun(node)
    node.step(heartbeat_reply_from(2, 1, sequences[1]))
    assert [round_.sequence for round_ in confirmed(node)] == sequences[:2]


def test_c6_answers_without_a_round_of_another_term_or_from_the_future_do_not_count() -> None:
    node = ready_leader()
    sequence = node.read_index()
    begun(node)
    for answer in (
        heartbeat_reply_from(2, 1, 0),
        heartbeat_reply_from(2, 0, sequence),
        heartbeat_reply_from(2, 1, sequence + 1),
    ):
        node.step(answer)
    assert confirmed(node) == []


def test_c6_a_read_that_comes_while_a_round_is_under_way_begins_another() -> None:
    node = ready_leader()
    early = node.read_index()
    begun(node)
    late = node.read_index()
    assert late != early


def test_c6_reads_that_come_before_a_round_begins_share_it() -> None:
    node = ready_leader()
    assert len({node.read_index() for _ in range(1000)}) == 1
    assert len(begun(node)) == 2, "one heartbeat for each follower"


def test_c6_lost_rounds_are_carried_by_the_next_heartbeat() -> None:
    node = ready_leader()
    sequence = node.read_index()
    begun(node)
    assert [m.read_sequence for m in tick(node) if isinstance(m, Heartbeat)] == [sequence] * 2


def test_c6_a_single_voter_is_its_own_quorum() -> None:
    network = Network(1)
    node = network.elect(1)
    sequence = node.read_index()
    network.settle()
    assert network.reads[NodeId(1)] == [ReadReady(sequence, node.commit_index)]


@pytest.mark.parametrize("how", ["higher term", "no quorum"])
def test_c6_with_its_leadership_a_node_drops_all_rounds(how: str) -> None:
    node = ready_leader()
    node.read_index()
    begun(node)
    node.read_index()
    if how == "higher term":
        node.step(append_from(2, 2, prev=(1, 1)))
    else:
        for _ in range(2 * ELECTION_TICKS):
            node.tick()
    assert node.role is not Role.LEADER
    (ready, *_) = readies(node)
    assert ready.reads_dropped
    assert ready.reads == ()
    node.step(heartbeat_reply_from(2, 1, 1))
    assert confirmed(node) == []


def test_c6_a_later_office_of_the_same_node_answers_no_earlier_round() -> None:
    network = Network(3)
    node = network.elect(1)
    network.cut = {(NodeId(2), NodeId(1)), (NodeId(3), NodeId(1))}
    asked = node.read_index()
    network.settle()
    network.heal()
    network.elect(2)
    network.elect(1)
    network.beat(2)
    assert network.reads[NodeId(1)] == []
    later = node.read_index()
    network.settle()
    assert [round_.sequence for round_ in network.reads[NodeId(1)]] == [later]
    assert later > asked


def test_c6_a_leader_that_was_replaced_while_it_slept_confirms_nothing() -> None:
    """A Python process can be paused between any two lines: no clock stands for the round."""
    network = Network(3)
    old = network.elect(1)
    before: list[Message] = []
    network.isolate(1)
    network.elect(2)
    network.propose(b"newer")
    network.settle()
    # Node 1 wakes without having seen a tick, and is asked.
    assert old.role is Role.LEADER
    old.read_index()
    network.pump(1)
    for message in [*before, *network.in_flight]:
        network.hand(message)
    network.settle()
    assert network.reads[NodeId(1)] == []
    network.heal()
    network.beat(2)
    assert network.reads[NodeId(1)] == []
    assert network.reads_dropped[NodeId(1)] == 1


def test_c6_a_round_covers_what_was_committed_when_it_was_asked_for() -> None:
    node = ready_leader()
    index = propose(node)
    settle(node)
    step(node, ack_from(2, 1, index))
    sequence = node.read_index()
    begun(node)
    node.step(heartbeat_reply_from(3, 1, sequence))
    (round_,) = confirmed(node)
    assert round_.index >= index
