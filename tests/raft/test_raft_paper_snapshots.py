"""What the extended Raft paper says of log compaction and InstallSnapshot (§7), claim by claim."""

import pytest

from lockd.ids import NO_NODE, LogIndex, NodeId, Term
from lockd.raft.entries import EntryKind, HardState, SnapshotMeta
from lockd.raft.log import Log
from lockd.raft.messages import AppendEntries, AppendEntriesReply, InstallSnapshot, Message
from lockd.raft.node import RaftConfig, RaftNode, Role
from tests.raft.network import Network
from tests.raft.single import (
    LATEST,
    ack_from,
    append_from,
    change_of,
    configuration_of,
    finish,
    latest,
    make_candidate,
    make_leader,
    make_node,
    readies,
    refusal_from,
    run_of,
    settle,
    snapshot_from,
    step,
    tick,
    vote_from,
    vote_request,
)


def meta_of(index: int, term: int) -> SnapshotMeta:
    return SnapshotMeta(LogIndex(index), Term(term), configuration_of())


def compacted(node: RaftNode, index: int) -> RaftNode:
    """Have the node take a snapshot at `index` and drop the log up to it."""
    meta = meta_of(index, node.log.term_at(LogIndex(index)))
    node.snapshot_taken(meta)
    node.compact(meta.index)
    node.check_invariants()
    return node


def applied_node(terms: list[int], *, term: int | None = None) -> RaftNode:
    node = make_node(terms, term=term, commit=len(terms))
    settle(node)
    assert node.last_applied == len(terms)
    return node


def test_7_the_log_is_discarded_up_to_the_last_included_index() -> None:
    node = compacted(applied_node([1, 1, 2, 3]), 3)
    assert (node.log.base, node.log.last_index) == (3, 4)
    with pytest.raises(IndexError):
        node.log.term_at(LogIndex(2))


def test_7_the_last_included_term_is_kept_for_the_consistency_check() -> None:
    """§7: they "are preserved to support the AppendEntries consistency check for the first log
    entry following the snapshot, since that entry needs a previous log index and term"."""
    node = compacted(applied_node([1, 1, 2]), 3)
    (reply,) = step(node, append_from(2, 3, prev=(3, 2), terms=[3]))
    assert reply == ack_from(1, 3, 4, receiver=2)


def test_7_an_empty_log_votes_by_its_snapshot() -> None:
    """§5.4.1 holds for a log of which only the snapshot is left."""
    node = compacted(applied_node([1, 1, 2], term=3), 3)
    (refused,) = step(node, vote_request(2, 4, last=(2, 2)))
    assert refused == vote_from(1, 4, granted=False, receiver=2, commit=(3, 2))
    (granted,) = step(node, vote_request(2, 4, last=(3, 2)))
    assert granted == vote_from(1, 4, receiver=2)
    sent = make_candidate(node)
    assert sent == [vote_request(1, 5, last=(3, 2), commit=(3, 2), receiver=peer) for peer in (2, 3)]


def test_7_the_latest_configuration_is_in_the_snapshot() -> None:
    """§7: "the snapshot also includes the latest configuration in the log as of last included index";
    a restart begins with it."""
    network = Network(3)
    network.elect(1)
    network.join(4)
    network.change(change_of("v4"))
    network.settle()
    network.beat(2)
    for node_id in network.ids:
        assert network.take_snapshot(node_id).configuration.voters == (1, 2, 3, 4)
        network.crash(node_id)
    for node_id in network.ids:
        assert network.restart(node_id).configuration.voters == (1, 2, 3, 4)
    network.crash(1)
    network.crash(2)
    network.tick(3, LATEST)
    network.settle()
    assert network.role(3) is not Role.LEADER, "two of four elect nobody"
    network.restart(2)
    network.tick(3, LATEST)
    network.settle()
    assert network.role(3) is Role.LEADER


def test_7_a_leader_sends_its_snapshot_when_it_has_discarded_the_next_entry() -> None:
    """§7: "This happens when the leader has already discarded the next log entry that it needs to
    send to a follower"."""
    node = applied_node([1, 1, 1])
    make_leader(node)
    step(node, ack_from(2, 2, 4))
    compacted(node, 3)
    sent = step(node, refusal_from(3, 2, 3, (2, 1)))
    assert sent == [InstallSnapshot(NodeId(1), NodeId(3), Term(2), meta_of(3, 1))]


def test_7_entries_that_are_still_there_are_sent_as_entries() -> None:
    node = applied_node([1, 1, 1])
    make_leader(node)
    step(node, ack_from(2, 2, 4))
    node.snapshot_taken(meta_of(3, 1))
    node.compact(LogIndex(1))
    (sent,) = step(node, refusal_from(3, 2, 3, (1, 1)))
    assert isinstance(sent, AppendEntries)
    assert (sent.prev_log_index, len(sent.entries)) == (1, 3)


def test_7_a_follower_that_lacks_all_of_it_takes_the_snapshot_in_place_of_its_log() -> None:
    """§7: "Usually the snapshot will contain new information [...]. In this case, the follower
    discards its entire log"."""
    node = make_node([1, 1])
    node.step(snapshot_from(2, 3, (9, 2), configuration=configuration_of((1, 2))))
    (ready,) = readies(node)
    assert ready.snapshot is not None
    assert (ready.snapshot.index, ready.append.first, len(ready.append)) == (9, 10, 0)
    assert ready.hard_state == HardState(Term(3), NO_NODE, LogIndex(9))
    assert ready.must_sync
    assert finish(node, ready) == [ack_from(1, 3, 9, receiver=2)]
    assert (node.log.base, node.log.last_index, node.log.last_term) == (9, 9, 2)
    assert (node.commit_index, node.last_applied, node.leader_id) == (9, 9, 2)
    assert node.configuration == configuration_of((1, 2))
    assert node.snapshot == ready.snapshot
    assert step(node, append_from(2, 3, prev=(9, 2), terms=[3])) == [ack_from(1, 3, 10, receiver=2)]


def test_7_the_commit_index_goes_to_disk_with_the_snapshot() -> None:
    node = make_node([1], term=3)
    node.step(snapshot_from(2, 3, (9, 2)))
    (ready,) = readies(node)
    assert ready.hard_state == HardState(Term(3), NO_NODE, LogIndex(9))


def test_7_uncommitted_entries_that_conflict_with_the_snapshot_are_gone() -> None:
    """§7: its log "is all superseded by the snapshot and may possibly have uncommitted entries that
    conflict with the snapshot"."""
    node = make_node([1, 1, 1, 1], commit=1)
    settle(node)
    step(node, snapshot_from(2, 3, (3, 2)))
    assert (node.log.base, node.log.last_index, node.log.last_term) == (3, 3, 2)


def test_7_entries_that_follow_the_snapshot_are_kept() -> None:
    """§7: "If instead the follower receives a snapshot that describes a prefix of its log [...],
    entries following the snapshot are still valid and must be retained". Nothing is installed:
    the entries that the snapshot stands for are there, and are now known to be committed."""
    node = make_node([1, 1, 2, 2], commit=1)
    settle(node)
    node.step(snapshot_from(2, 3, (3, 2)))
    found = readies(node)
    assert [ready.snapshot for ready in found] == [None]
    assert found[0].committed.terms == (1, 2)
    assert finish(node, found[0]) == [ack_from(1, 3, 3, receiver=2)]
    assert (node.log.base, node.log.last_index, node.commit_index) == (0, 4, 3)


@pytest.mark.parametrize("at", [(1, 1), (2, 1)])
def test_7_a_late_or_repeated_snapshot_changes_nothing(at: tuple[int, int]) -> None:
    """Its answer says how far this node is, so that the leader goes on from there."""
    node = applied_node([1, 1, 1])
    step(node, append_from(2, 2, prev=(3, 1), terms=[2]))
    assert step(node, snapshot_from(2, 2, at)) == [ack_from(1, 2, 3, receiver=2)]
    assert (node.log.base, node.log.last_index) == (0, 4)
    assert node.snapshot is None


def test_7_a_snapshot_of_an_old_term_is_refused() -> None:
    """Figure 13: "Reply immediately if term < currentTerm"."""
    node = make_node([1], term=5)
    (reply,) = step(node, snapshot_from(2, 4, (9, 2)))
    assert isinstance(reply, AppendEntriesReply)
    assert (reply.term, reply.success) == (5, False)
    assert node.log.last_index == 1


@pytest.mark.parametrize("term", [1, 2])
def test_7_a_snapshot_is_a_sign_of_a_leader(term: int) -> None:
    node = make_node()
    make_candidate(node)
    step(node, snapshot_from(3, term, (4, 1)))
    assert (node.role, node.term, node.leader_id) == (Role.FOLLOWER, term, 3)
    assert tick(node, LATEST - 1) == []


def test_7_c9_the_answer_leaves_when_the_snapshot_is_on_disk() -> None:
    """A crash before that leaves all as it was: whole or not at all."""
    network = Network(3)
    network.elect(1)
    network.isolate(3)
    network.propose_numbers(5)
    network.take_snapshot(1)
    network.heal()
    sent: list[InstallSnapshot] = []

    def catch(message: Message) -> bool:
        if isinstance(message, InstallSnapshot):
            sent.append(message)
        return not isinstance(message, InstallSnapshot)

    network.tick(1)
    network.settle(catch)
    network.slow_disks.add(NodeId(3))
    network.hand(sent[0])
    network.pump(3)
    assert network.node(3).last_applied == 6, "the state machine may run ahead of the disk"
    assert not any(isinstance(message, AppendEntriesReply) for message in network.in_flight)
    network.crash(3)
    node = network.restart(3)
    assert (node.log.base, node.log.last_index, node.last_applied) == (0, 1, 0)
    network.slow_disks.clear()
    network.node(1).report_snapshot_failed(NodeId(3))
    network.beat(2)
    assert network.commands(3) == [b"%d" % number for number in range(5)]


def test_7_a_slow_or_new_follower_is_brought_up_to_date_by_snapshot_and_entries() -> None:
    """§7: "an exceptionally slow follower or a new server joining the cluster"."""
    network = Network(3)
    leader = network.elect(1)
    network.isolate(3)
    bodies = [b"%d" % number for number in range(40)]
    for body in bodies:
        network.propose(body)
        network.settle()
        if body == b"29":
            network.take_snapshot(1, keep=3)
    network.join(4)
    network.change(change_of("l4"))
    network.heal()
    network.beat(3)
    assert network.installed == {3: 1, 4: 1}
    assert [network.commands(i) for i in (3, 4)] == [bodies, bodies]
    assert network.node(3).log.base == 31
    assert leader.progress[NodeId(3)].match_index == leader.log.last_index
    # From here on they are as good as any.
    network.crash(1)
    assert network.elect(3).is_leader_ready


def test_7_a_node_starts_from_its_snapshot_and_the_log_after_it() -> None:
    network = Network(3)
    network.elect(1)
    for number in range(10):
        network.propose(b"%d" % number)
        network.settle()
        if number == 6:
            network.take_snapshot(1, keep=2)
    for node_id in network.ids:
        network.crash(node_id)
    node = network.restart(1)
    assert (node.log.base, node.last_applied, node.log.last_index) == (6, 8, 11)
    network.restart(2)
    network.elect(1)
    assert network.commands(1) == [b"%d" % number for number in range(10)]
    # What it has it can give: node 3 comes back with an empty disk's worth of log.
    network.restart(3)
    network.beat(2)
    assert network.applied[NodeId(3)] == network.agreed


def test_7_a_snapshot_of_a_node_that_lacks_entries_stands_for_nothing() -> None:
    """A snapshot is taken of what is applied, and the log is dropped no further than that."""
    node = make_node([1, 1, 1], commit=2)
    settle(node)
    with pytest.raises(AssertionError):
        node.snapshot_taken(meta_of(3, 1))
    with pytest.raises(AssertionError):
        node.compact(LogIndex(1))
    node.snapshot_taken(meta_of(2, 1))
    with pytest.raises(AssertionError):
        node.compact(LogIndex(3))


def test_7_a_node_whose_log_begins_late_knows_where_its_state_begins() -> None:
    """The log may begin before the snapshot, for slow followers: what is applied is not applied again."""
    node = RaftNode(
        RaftConfig(NodeId(1)),
        configuration=configuration_of(),
        hard_state=HardState(Term(2), NO_NODE, LogIndex(7)),
        log=Log.from_run(run_of(4, [1, 2, 2, 2, 2]), base_term=Term(1)),
        draw=latest,
        applied=LogIndex(6),
    )
    (ready,) = readies(node)
    assert (ready.committed.first, ready.committed.last) == (7, 7)
    assert ready.committed.kinds == (EntryKind.COMMANDS,)
