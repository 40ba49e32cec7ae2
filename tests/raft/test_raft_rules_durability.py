"""SAFETY C1 and C2: a function of its inputs, and nothing promised before the disk has it."""

import random

import pytest

from lockd.errors import CorruptData
from lockd.ids import NO_NODE, LogIndex, NodeId, Term
from lockd.raft.entries import EntryKind, HardState
from lockd.raft.messages import AppendEntries, Heartbeat, Message, RequestVote, RequestVoteReply
from lockd.raft.node import NotLeader, RaftConfig, Role
from tests.raft.network import Network
from tests.raft.single import (
    LATEST,
    ack_from,
    append_from,
    finish,
    heartbeat_from,
    make_leader,
    make_node,
    pre_vote_from,
    propose,
    readies,
    ready_leader,
    run_of,
    settle,
    step,
    tick,
    vote_from,
    vote_request,
)


def test_c1_the_same_inputs_give_the_same_outputs() -> None:
    def history(seed: int) -> list[object]:
        source = random.Random(seed)
        network = Network(3, draw=source.randint)
        seen: list[object] = []
        for _ in range(200):
            for node_id in network.ids:
                network.tick(node_id)
                seen += network.in_flight
            network.settle()
            if network.leader() is not None and source.random() < 0.3:
                network.propose(b"x")
            if source.random() < 0.05:
                victim = source.choice(network.ids)
                network.crash(victim)
                network.restart(victim)
        assert len(network.leaders) > 1
        return [*seen, network.agreed, network.leaders]

    assert history(3) == history(3)
    assert history(3) != history(4)


def test_c1_a_leader_stamps_entries_only_with_the_term_it_leads() -> None:
    """hashicorp/raft#695: a heartbeat moved the term between two lines of the leader's loop."""
    node = make_node()
    make_leader(node)
    node.step(heartbeat_from(2, 7))
    with pytest.raises(NotLeader) as refused:
        node.propose(EntryKind.COMMANDS, b"x")
    assert refused.value.leader_id == 2
    assert node.log.last_term == 1


def test_c2_a_vote_leaves_after_it_is_on_disk() -> None:
    node = make_node()
    node.step(vote_request(2, 1))
    (ready,) = readies(node)
    assert ready.hard_state == HardState(Term(1), NodeId(2), LogIndex(0))
    assert ready.must_sync
    assert ready.send_now == ()
    assert ready.send_after_durable == (vote_from(1, 1, receiver=2),)


def test_c2_an_append_is_acknowledged_after_it_is_on_disk() -> None:
    node = make_node(term=1)
    node.step(append_from(2, 1, terms=[1, 1]))
    (ready,) = readies(node)
    assert ready.append == run_of(1, [1, 1])
    assert ready.must_sync
    assert ready.send_now == ()
    assert ready.send_after_durable == (ack_from(1, 1, 2, receiver=2),)


def test_c2_a_repeated_append_is_not_acknowledged_ahead_of_the_first_ones_write() -> None:
    node = make_node(term=1)
    node.step(append_from(2, 1, terms=[1]))
    (first,) = readies(node)
    node.step(append_from(2, 1, terms=[1]))
    (second,) = readies(node)
    assert not second.must_sync
    assert second.send_now == ()
    assert second.send_after_durable == first.send_after_durable


def test_c2_a_candidate_asks_for_votes_after_its_term_and_own_vote_are_on_disk() -> None:
    node = make_node()
    sent = tick(node, LATEST)
    assert [type(message) for message in sent] == [RequestVote, RequestVote]
    node.step(pre_vote_from(2, 1))
    (ready,) = readies(node)
    assert ready.hard_state == HardState(Term(1), NodeId(1), LogIndex(0))
    assert ready.send_now == ()
    assert [message.receiver for message in ready.send_after_durable] == [1, 2, 3]


def test_c2_the_own_vote_counts_when_it_is_on_disk() -> None:
    node = make_node()
    tick(node, LATEST)
    node.step(pre_vote_from(2, 1))
    (ready,) = readies(node)
    node.step(vote_from(2, 1))
    before = node.role
    finish(node, ready)
    assert (before, node.role) == (Role.CANDIDATE, Role.LEADER)


def test_c2_a_leader_sends_entries_before_its_own_disk_has_them() -> None:
    """Thesis §10.2.1: the leader writes in parallel with its followers."""
    node = ready_leader()
    propose(node)
    (ready,) = readies(node)
    assert [type(message) for message in ready.send_now] == [AppendEntries, AppendEntries]
    assert ready.append.first == 2


def test_c2_the_leaders_copy_counts_when_its_own_disk_has_it() -> None:
    node = ready_leader()
    propose(node)
    (ready,) = readies(node)
    node.step(ack_from(2, 1, 2))
    assert node.commit_index == 1
    finish(node, ready)
    assert node.commit_index == 2


def test_c2_others_may_commit_what_the_leaders_disk_does_not_have_but_it_does_not_apply_it() -> None:
    node = ready_leader()
    propose(node)
    (ready,) = readies(node)
    node.step(ack_from(2, 1, 2))
    node.step(ack_from(3, 1, 2))
    assert node.commit_index == 2
    assert all(not later.committed.terms for later in readies(node))
    finish(node, ready)
    (after,) = readies(node)
    assert after.committed.first == 2


def test_c2_a_single_voter_commits_after_its_own_sync() -> None:
    """etcd#14370: a single member acknowledged before its own fsync."""
    network = Network(1)
    node = network.elect(1)
    network.slow_disks.add(NodeId(1))
    index = network.propose(b"x")
    network.settle()
    assert node.commit_index == index - 1
    assert network.commands(1) == []
    network.sync(1)
    network.settle()
    assert node.commit_index == index
    assert network.commands(1) == [b"x"]


@pytest.mark.parametrize("acknowledgement", [(1, 2), (2, 1), (1, 3), (9, 9), (0, 0)])
def test_c2_a_storage_ack_that_matches_no_write_is_dropped(acknowledgement: tuple[int, int]) -> None:
    node = make_node(term=1)
    node.step(append_from(2, 1, terms=[1]))
    readies(node)
    node.persisted(Term(acknowledgement[0]), LogIndex(acknowledgement[1]))
    assert node.log.persisted_index == 0
    node.persisted(Term(1), LogIndex(1))
    assert node.log.persisted_index == 1


def test_c2_the_append_aba_race() -> None:
    """etcd-io/raft, async_storage_writes_append_aba_race: entry 1·t1 is written, overwritten by
    1·t2 and that by 1·t1 again. The first write's ack must not vouch for the third: at that
    moment a crash would bring back 1·t2."""
    node = make_node()
    writes = []
    for leader, term, entry_term in ((2, 1, 1), (3, 2, 2), (2, 3, 1)):
        node.step(append_from(leader, term, terms=[entry_term], commit=0))
        writes += readies(node)
    assert [ready.append.terms for ready in writes] == [(1,), (2,), (1,)]
    for ready, durable in zip(writes, (0, 0, 1), strict=True):
        finish(node, ready)
        assert node.log.persisted_index == durable


def test_c2_a_crash_between_two_writes_never_acknowledges_the_lost_one() -> None:
    network = Network(3)
    leader = network.elect(1)
    network.slow_disks.add(NodeId(2))
    network.isolate(3)
    lost = network.propose(b"x")
    network.settle()
    assert leader.commit_index == lost - 1
    network.crash(2)
    network.restart(2)
    network.slow_disks.clear()
    assert network.node(2).log.last_index == lost - 1
    network.beat(3)
    assert leader.commit_index == lost
    assert network.commands(2) == [b"x"]


def test_c2_a_vote_for_a_longer_log_does_not_elect_a_later_life_with_a_shorter_one() -> None:
    """The reason why a candidate's requests wait for its disk, see RaftState.send.

    E is committed by nodes 2, 3 and 4. Node 1 has it in memory only, stands with it and crashes.
    It comes back without E and without its term, and gets late copies of all that was answered to its
    first life, beside the honest votes of node 5, which lacks E too.
    """
    network = Network(5)
    network.elect(2)
    network.slow_disks.add(NodeId(1))
    network.isolate(5)
    network.propose(b"E")
    network.settle()
    assert network.commands(2) == [b"E"]
    network.crash(2)
    answers: list[Message] = []

    def record(message: Message) -> bool:
        if message.receiver == 1:
            answers.append(message)
        return True

    for other in (3, 4, 5):
        network.tick(other, 10)
    network.tick(1, LATEST)
    network.settle(record)
    assert (network.role(1), network.node(1).term) == (Role.CANDIDATE, 2)
    network.crash(1)
    restarted = network.restart(1)
    assert (restarted.term, restarted.log.last_index) == (1, 1)
    network.slow_disks.clear()
    network.heal()
    network.tick(1, LATEST)
    for _ in range(2):
        network.settle(lambda message: {message.sender, message.receiver} == {1, 5})
        for answer in answers:
            network.hand(answer)
    assert restarted.role is Role.CANDIDATE, "node 5 and the late pre-votes made it stand"


def test_d2_term_and_vote_survive_a_restart() -> None:
    """PySyncObj#202: term and vote were forgotten, and committed data was overwritten."""
    network = Network(3)
    network.elect(1)
    network.crash(2)
    voter = network.restart(2)
    assert voter.term == 1
    assert step(voter, vote_request(3, 1, receiver=2, last=(9, 9))) == [
        vote_from(2, 1, granted=False, receiver=3)
    ]


def test_a_commit_index_alone_is_not_worth_a_sync() -> None:
    node = make_node([1, 1], term=1)
    node.step(heartbeat_from(2, 1, commit=2))
    (ready,) = readies(node)
    assert ready.hard_state is None
    assert not ready.must_sync
    finish(node, ready)
    node.step(append_from(2, 1, prev=(2, 1), terms=[1], commit=2))
    (ready,) = readies(node)
    assert ready.hard_state == HardState(Term(1), NO_NODE, LogIndex(2))


def test_nothing_new_is_no_ready() -> None:
    node = make_node([1], term=1)
    assert node.ready() is None
    node.tick()
    assert node.ready() is None


@pytest.mark.parametrize(
    ("terms", "term", "commit", "message"),
    [([1], 1, 2, "entry 2 was committed"), ([1, 3], 2, 0, "ends in term 3")],
)
def test_d3_a_disk_that_contradicts_itself_is_refused(
    terms: list[int], term: int, commit: int, message: str
) -> None:
    with pytest.raises(CorruptData, match=message):
        make_node(terms, term=term, commit=commit)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="no node"):
        RaftConfig(NO_NODE)
    with pytest.raises(ValueError, match="more frequent"):
        RaftConfig(NodeId(1), election_ticks=2, heartbeat_ticks=2)
    with pytest.raises(ValueError, match="at least 1"):
        RaftConfig(NodeId(1), append_bytes_max=0)


def test_messages_for_another_node_are_ignored() -> None:
    node = make_node()
    assert step(node, append_from(2, 9, receiver=3), vote_request(2, 9, receiver=3)) == []
    assert node.term == 0


def test_replies_and_heartbeats_know_their_list() -> None:
    """Votes and acks wait for the disk; heartbeats and their answers promise nothing new."""
    node = make_node(term=1)
    node.step(heartbeat_from(2, 2))
    (ready,) = readies(node)
    assert [message.receiver for message in ready.send_now] == [2]
    leader = make_node()
    make_leader(leader)
    leader.tick()
    (ready,) = readies(leader)
    assert all(isinstance(message, Heartbeat) for message in ready.send_now)
    refused = make_node(term=5)
    refused.step(vote_request(2, 1))
    (ready,) = readies(refused)
    assert isinstance(ready.send_after_durable[0], RequestVoteReply)
    assert settle(refused) == []
