"""SAFETY C9 and C10: snapshots in the flow of replication; a follower behind the log recovers on its own."""

import pytest

from lockd.ids import LogIndex, NodeId, Term
from lockd.raft.entries import HardState, SnapshotMeta
from lockd.raft.log import Log
from lockd.raft.messages import AppendEntries, AppendEntriesReply, Heartbeat, InstallSnapshot, Message
from lockd.raft.node import RaftConfig, RaftNode, Role
from lockd.raft.progress import Pace, Progress
from tests.raft.network import Network
from tests.raft.single import (
    ELECTION_TICKS,
    ack_from,
    append_from,
    configuration_of,
    finish,
    heartbeat_reply_from,
    latest,
    make_leader,
    make_node,
    propose,
    readies,
    refusal_from,
    settle,
    snapshot_from,
    step,
    tick,
)


def take(node: RaftNode, *, keep: int = 0) -> SnapshotMeta:
    """Have a snapshot of all that is applied, and drop the log but for `keep` entries before it."""
    index = node.last_applied
    meta = SnapshotMeta(index, node.log.term_at(index), node.configuration)
    node.snapshot_taken(meta)
    node.compact(LogIndex(index - keep))
    node.check_invariants()
    return meta


def leader_with_snapshot() -> RaftNode:
    """Return a leader of term 1 with nothing left but a snapshot at 3, of which node 3 was just sent one."""
    node = make_node()
    make_leader(node)
    propose(node)
    propose(node)
    settle(node)
    step(node, ack_from(2, 1, 3))
    meta = take(node)
    (sent,) = step(node, refusal_from(3, 1, 0, (0, 0)))
    assert sent == InstallSnapshot(NodeId(1), NodeId(3), Term(1), meta)
    return node


def tick_and_answer(node: RaftNode) -> list[Message]:
    """Let a heartbeat go out and node 3 answer it; return what node 3 is sent for that."""
    tick(node)
    return [m for m in step(node, heartbeat_reply_from(3, 1)) if m.receiver == 3]


def pace_of_3(node: RaftNode) -> tuple[Pace, int, int]:
    progress: Progress = node.progress[NodeId(3)]
    return progress.pace, progress.match_index, progress.next_index


def test_nothing_is_sent_while_a_snapshot_is_under_way() -> None:
    node = leader_with_snapshot()
    assert pace_of_3(node) == (Pace.SNAPSHOT, 0, 4)
    propose(node)
    assert [m for m in settle(node) if m.receiver == 3] == []
    for _ in range(3):
        assert tick_and_answer(node) == []
    # A refusal of an append of before it says nothing new.
    assert step(node, refusal_from(3, 1, 0, (0, 0))) == []
    assert pace_of_3(node)[0] is Pace.SNAPSHOT


def test_the_entries_after_it_follow_when_it_is_acknowledged() -> None:
    node = leader_with_snapshot()
    propose(node)
    settle(node)
    (sent,) = step(node, ack_from(3, 1, 3))
    assert isinstance(sent, AppendEntries)
    assert (sent.prev_log_index, sent.entries.last) == (3, 4)
    assert pace_of_3(node) == (Pace.REPLICATE, 3, 5)


def test_a_follower_that_was_further_than_the_snapshot_goes_on_from_there() -> None:
    """etcd-io/raft, snapshot_succeed_via_app_resp_behind: what counts is what it has."""
    node = leader_with_snapshot()
    propose(node)
    settle(node)
    step(node, ack_from(2, 1, 4), ack_from(3, 1, 4))
    assert pace_of_3(node) == (Pace.REPLICATE, 4, 5)


def test_a_follower_that_says_it_ends_before_the_log_is_sent_a_snapshot_at_once() -> None:
    """Its hint tells enough: no append is tried in between."""
    node = make_node([1, 1, 1, 1, 1], commit=5)
    settle(node)
    make_leader(node)
    meta = SnapshotMeta(LogIndex(3), Term(1), configuration_of())
    node.snapshot_taken(meta)
    node.compact(meta.index)
    sent = step(node, refusal_from(3, 2, 5, (1, 1)))
    assert sent == [InstallSnapshot(NodeId(1), NodeId(3), Term(2), meta)]


def test_an_ack_before_the_logs_beginning_does_not_end_it() -> None:
    node = leader_with_snapshot()
    assert step(node, ack_from(3, 1, 1)) == []
    assert pace_of_3(node) == (Pace.SNAPSHOT, 1, 4)


def test_a_snapshot_that_compaction_has_overtaken_is_followed_by_the_next() -> None:
    """Else the leader waits for an ack that it has had, and the follower for entries that are gone."""
    node = leader_with_snapshot()
    for _ in range(4):
        propose(node)
    settle(node)
    step(node, ack_from(2, 1, 7))
    newer = take(node)
    assert newer.index == 7
    assert step(node, ack_from(3, 1, 3)) == [InstallSnapshot(NodeId(1), NodeId(3), Term(1), newer)]
    assert pace_of_3(node) == (Pace.SNAPSHOT, 3, 8)
    step(node, ack_from(3, 1, 7))
    assert pace_of_3(node) == (Pace.REPLICATE, 7, 8)


def test_a_snapshot_that_did_not_arrive_is_sent_again_when_the_follower_is_heard() -> None:
    node = leader_with_snapshot()
    node.report_snapshot_failed(NodeId(3))
    assert settle(node) == []
    (again,) = tick_and_answer(node)
    assert isinstance(again, InstallSnapshot)
    assert pace_of_3(node)[0] is Pace.SNAPSHOT


def test_a_failure_that_is_reported_late_or_of_nobody_changes_nothing() -> None:
    node = leader_with_snapshot()
    step(node, ack_from(3, 1, 3))
    for peer in (2, 3, 9):
        node.report_snapshot_failed(NodeId(peer))
    assert pace_of_3(node) == (Pace.REPLICATE, 3, 4)
    follower = make_node()
    follower.report_snapshot_failed(NodeId(2))
    follower.report_unreachable(NodeId(2))


def test_an_unreachable_follower_is_probed_and_a_snapshot_goes_on() -> None:
    node = leader_with_snapshot()
    node.report_unreachable(NodeId(2))
    assert node.progress[NodeId(2)].pace is Pace.PROBE
    node.report_unreachable(NodeId(3))
    assert pace_of_3(node)[0] is Pace.SNAPSHOT


def test_a_silent_follower_is_sent_no_snapshot_until_it_is_heard() -> None:
    node = leader_with_snapshot()
    for _ in range(2 * ELECTION_TICKS):
        assert not any(isinstance(m, InstallSnapshot) for m in tick(node))
        step(node, heartbeat_reply_from(2, 1))
    assert pace_of_3(node)[0] is Pace.PROBE
    assert any(isinstance(m, InstallSnapshot) for m in tick_and_answer(node))


def test_a_leader_without_a_snapshot_at_hand_sends_none_and_does_not_spin() -> None:
    """A node whose log begins late is told of the snapshot by its owner; until then nothing can be sent."""
    started = RaftNode(
        RaftConfig(NodeId(1)),
        configuration=configuration_of(),
        hard_state=HardState(Term(1), NodeId(1), LogIndex(3)),
        log=Log(base=LogIndex(3), base_term=Term(1)),
        draw=latest,
    )
    make_leader(started)
    step(started, ack_from(2, 2, 4))
    assert step(started, refusal_from(3, 2, 3, (0, 0))) == []
    tick(started)
    assert step(started, heartbeat_reply_from(3, 2)) == []
    # One that ends before the log begins would leave a gap.
    started.snapshot_taken(SnapshotMeta(LogIndex(2), Term(1), configuration_of()))
    assert not any(isinstance(m, InstallSnapshot) for m in tick(started))
    started.snapshot_taken(SnapshotMeta(LogIndex(3), Term(1), configuration_of()))
    (sent,) = [
        message for message in tick(started) if message.receiver == 3 and not isinstance(message, Heartbeat)
    ]
    assert isinstance(sent, InstallSnapshot)


def test_c9_writes_that_were_under_way_vouch_for_nothing_after_a_snapshot() -> None:
    """SAFETY C2, the ABA race again: entry 5 of before is not the entry 5 that follows the snapshot."""
    node = make_node([1])
    node.step(append_from(2, 2, prev=(1, 1), terms=[2, 2, 2, 2]))
    (first,) = readies(node)
    node.step(snapshot_from(3, 3, (4, 3)))
    node.step(append_from(3, 3, prev=(4, 3), terms=[3]))
    (second,) = readies(node)
    assert second.snapshot is not None
    assert (second.append.first, second.append.terms) == (5, (3,))
    finish(node, first)
    assert node.log.persisted_index == 4
    answers = finish(node, second)
    assert node.log.persisted_index == 5
    assert answers == [ack_from(1, 3, 4, receiver=3), ack_from(1, 3, 5, receiver=3)]


def test_c9_entries_after_a_snapshot_are_applied_when_the_disk_has_both() -> None:
    node = make_node()
    node.step(snapshot_from(2, 3, (4, 3)))
    node.step(append_from(2, 3, prev=(4, 3), terms=[3], commit=5))
    (ready,) = readies(node)
    assert ready.committed.terms == ()
    finish(node, ready)
    (later,) = readies(node)
    assert (later.committed.first, later.committed.terms) == (5, (3,))


def test_c9_what_is_applied_late_does_not_take_the_state_back() -> None:
    """Entries were handed out before the snapshot came, and are reported after it."""
    node = make_node([1, 1], commit=2)
    (handed,) = readies(node)
    node.step(snapshot_from(2, 3, (9, 3)))
    readies(node)
    node.applied(handed.committed.last)
    assert node.last_applied == 9


def test_c9_a_snapshot_on_its_way_outlives_neither_term_nor_office() -> None:
    """A leader that is elected anew begins with an append, whatever it was sending before."""
    node = leader_with_snapshot()
    step(node, append_from(2, 2, prev=(3, 1)))
    assert node.role is Role.FOLLOWER
    make_leader(node)
    assert pace_of_3(node) == (Pace.PROBE, 0, 4)


@pytest.mark.parametrize("crashes", [0, 1, 3])
def test_a_follower_recovers_by_snapshot_however_often_it_crashes_on_the_way(crashes: int) -> None:
    network = Network(3)
    leader = network.elect(1)
    network.isolate(3)
    bodies = [b"%d" % number for number in range(30)]
    for body in bodies:
        network.propose(body)
        network.settle()
    network.take_snapshot(1)
    network.heal()
    for _ in range(crashes):
        network.slow_disks.add(NodeId(3))
        network.beat(2)
        network.crash(3)
        network.restart(3)
        leader.report_snapshot_failed(NodeId(3))
        network.slow_disks.clear()
    network.beat(3)
    assert network.commands(3) == bodies
    network.crash(3)
    network.restart(3)
    assert network.commands(3) == bodies, "it starts from what it was sent"


def test_a_follower_that_returns_after_many_snapshots_needs_the_newest_alone() -> None:
    network = Network(3)
    network.elect(1)
    network.isolate(3)
    for number in range(50):
        network.propose(b"%d" % number)
        network.settle()
        network.beat()
        if number % 10 == 9:
            network.take_snapshot(1, keep=2)
            network.take_snapshot(2)
    network.heal()
    network.beat(2)
    assert network.installed == {3: 1}
    assert network.applied[NodeId(3)] == network.agreed


def test_a_slow_follower_within_the_kept_log_needs_no_snapshot() -> None:
    network = Network(3)
    network.elect(1)
    network.isolate(3)
    network.propose_numbers(20)
    network.take_snapshot(1, keep=20)
    network.heal()
    network.beat(2)
    assert network.installed == {}
    assert network.applied[NodeId(3)] == network.agreed


def test_a_leader_that_changes_while_a_snapshot_is_under_way_does_not_lose_the_follower() -> None:
    network = Network(3)
    network.elect(1)
    network.isolate(3)
    network.propose_numbers(20)
    for node_id in (1, 2):
        network.take_snapshot(node_id)
    network.heal()
    held: list[Message] = []

    def hold(message: Message) -> bool:
        if isinstance(message, InstallSnapshot):
            held.append(message)
        return not isinstance(message, InstallSnapshot)

    network.tick(1)
    network.settle(hold)
    assert held
    network.elect(2)
    network.beat(2)
    assert network.applied[NodeId(3)] == network.agreed
    network.hand(held[0])
    network.settle()
    assert network.node(3).leader_id == 2, "the old leader's comes too late"


def test_c3_entries_that_the_snapshot_stands_for_are_never_asked_for_again() -> None:
    """An append from before the log's beginning is answered by what is committed."""
    node = make_node([1, 1, 1], commit=3)
    settle(node)
    take(node)
    assert step(node, append_from(2, 1, prev=(1, 1), terms=[1, 1])) == [ack_from(1, 1, 3, receiver=2)]
    assert step(node, append_from(2, 1, prev=(0, 0), terms=[1])) == [ack_from(1, 1, 3, receiver=2)]
    (refused,) = step(node, append_from(2, 1, prev=(9, 1), terms=[1]))
    assert isinstance(refused, AppendEntriesReply)
    assert (refused.success, refused.hint_index, refused.hint_term) == (False, 3, 1)
