"""SAFETY C10: everything is bounded; and flow control: nothing lost stops the flow for ever."""

import pytest

from lockd.ids import LogIndex, NodeId
from lockd.raft.entries import EntryKind
from lockd.raft.membership import encode_change
from lockd.raft.messages import AppendEntries, Heartbeat, Message
from lockd.raft.node import RaftConfig, RaftNode, Role, TooMuchUncommitted
from lockd.raft.progress import Pace
from tests.raft.network import Network
from tests.raft.single import (
    ELECTION_TICKS,
    ack_from,
    change_of,
    heartbeat_reply_from,
    make_leader,
    make_node,
    propose,
    readies,
    ready_leader,
    refusal_from,
    settle,
    step,
    tick,
)


def make_flowing_leader(config: RaftConfig | None = None) -> RaftNode:
    """Return a leader of term 1 whose two followers have its no-op and get entries ahead of acks."""
    node = ready_leader(config=config)
    assert all(node.progress[NodeId(peer)].pace is Pace.REPLICATE for peer in (2, 3))
    return node


def appends_to(peer: int, sent: list[Message]) -> list[AppendEntries]:
    return [m for m in sent if isinstance(m, AppendEntries) and m.receiver == peer]


def propose_each(node: RaftNode, count: int, payload: bytes = b"x") -> list[Message]:
    """Propose one by one, each in a turn of its own."""
    sent: list[Message] = []
    for _ in range(count):
        propose(node, payload)
        sent += settle(node)
    return sent


def test_proposals_are_pipelined() -> None:
    """Thesis §10.2.1: next_index moves on when an append is sent, not when it is acknowledged."""
    node = make_flowing_leader()
    sent = appends_to(2, propose_each(node, 5))
    assert [message.prev_log_index for message in sent] == [1, 2, 3, 4, 5]


def test_proposals_of_one_turn_share_an_append() -> None:
    node = make_flowing_leader()
    for _ in range(100):
        propose(node)
    (message,) = appends_to(2, settle(node))
    assert len(message.entries) == 100


def test_c10_appends_in_flight_are_limited_by_count() -> None:
    node = make_flowing_leader(RaftConfig(NodeId(1), inflight_appends_max=3))
    sent = propose_each(node, 10)
    assert len(appends_to(2, sent)) == 3
    # An ack frees its place, and what waited goes in one message.
    (message,) = appends_to(2, step(node, ack_from(2, 1, 2)))
    assert (message.prev_log_index, len(message.entries)) == (4, 7)
    assert appends_to(2, step(node, ack_from(2, 1, 2))) == []


def test_c10_appends_in_flight_are_limited_by_bytes() -> None:
    node = make_flowing_leader(RaftConfig(NodeId(1), inflight_bytes_max=250))
    sent = propose_each(node, 10, bytes(100))
    assert len(appends_to(2, sent)) == 3
    assert appends_to(2, step(node, ack_from(2, 1, 4))) != []


def test_c10_one_append_is_limited_by_bytes() -> None:
    node = make_flowing_leader(RaftConfig(NodeId(1), append_bytes_max=250))
    for _ in range(5):
        propose(node, bytes(100))
    propose(node, bytes(1000))
    assert [len(m.entries) for m in appends_to(2, settle(node))] == [2, 2, 1, 1]


def test_c10_the_uncommitted_tail_is_limited_by_bytes() -> None:
    node = make_flowing_leader(RaftConfig(NodeId(1), uncommitted_bytes_max=250))
    propose(node, bytes(100))
    propose(node, bytes(100))
    settle(node)
    last = node.log.last_index
    with pytest.raises(TooMuchUncommitted):
        propose(node, bytes(100))
    assert node.log.last_index == last
    step(node, ack_from(2, 1, 2))
    propose(node, bytes(100))


def test_c10_a_single_payload_over_the_limit_passes_alone() -> None:
    node = make_flowing_leader(RaftConfig(NodeId(1), uncommitted_bytes_max=250))
    propose(node, bytes(1000))
    with pytest.raises(TooMuchUncommitted):
        propose(node, b"x")


def test_c10_a_new_leader_counts_the_tail_it_inherits() -> None:
    node = make_node([1, 1, 1], config=RaftConfig(NodeId(1), uncommitted_bytes_max=10))
    make_leader(node)
    with pytest.raises(TooMuchUncommitted):
        propose(node, b"xx")


def test_c10_entries_to_apply_come_in_limited_portions() -> None:
    node = make_node(config=RaftConfig(NodeId(1), apply_bytes_max=25), voters=(1,))
    tick(node, 2 * ELECTION_TICKS)
    assert node.role is Role.LEADER
    for _ in range(7):
        propose(node, bytes(10))
    (first,) = readies(node)
    node.persisted(first.append.terms[-1], first.append.last)
    assert [len(ready.committed) for ready in readies(node)] == [2, 2, 2, 1]


def test_c10_read_rounds_under_way_are_limited_and_reads_wait() -> None:
    node = make_flowing_leader(RaftConfig(NodeId(1), read_rounds_max=2))
    sequences = []
    for _ in range(5):
        sequences.append(node.read_index())
        settle(node)
    assert sequences == [1, 2, 3, 3, 3]
    node.step(heartbeat_reply_from(2, 1, 2))
    (ready, *_) = readies(node)
    assert [round_.sequence for round_ in ready.reads] == [1, 2]
    assert [m.read_sequence for m in ready.send_now if isinstance(m, Heartbeat)] == [3, 3]


def test_a_probed_follower_gets_one_append_until_it_answers() -> None:
    node = make_node()
    sent = make_leader(node)
    assert len(appends_to(2, sent)) == 1
    assert appends_to(2, propose_each(node, 5)) == []
    sent = step(node, ack_from(2, 1, 1))
    assert [len(message.entries) for message in appends_to(2, sent)] == [5]


def test_an_answered_heartbeat_sends_a_lost_probe_again() -> None:
    node = make_node()
    make_leader(node)
    assert appends_to(2, tick(node)) == []
    (again,) = appends_to(2, step(node, heartbeat_reply_from(2, 1)))
    assert (again.prev_log_index, len(again.entries)) == (0, 1)
    assert appends_to(2, step(node, heartbeat_reply_from(2, 1))) == [], "once for each heartbeat"


def test_an_answered_heartbeat_opens_a_full_window_whose_messages_were_lost() -> None:
    node = make_flowing_leader(RaftConfig(NodeId(1), inflight_appends_max=2))
    propose_each(node, 4)
    tick(node)
    (probe,) = appends_to(2, step(node, heartbeat_reply_from(2, 1)))
    assert (probe.prev_log_index, len(probe.entries)) == (3, 0)
    sent = appends_to(2, step(node, refusal_from(2, 1, 3, (1, 1))))
    assert (sent[0].prev_log_index, len(sent[0].entries)) == (1, 4)


def test_lost_appends_are_found_by_the_next_one() -> None:
    node = make_flowing_leader()
    propose_each(node, 3)
    propose(node)
    settle(node)
    (retry,) = appends_to(2, step(node, refusal_from(2, 1, 4, (1, 1))))
    assert (retry.prev_log_index, len(retry.entries)) == (1, 4)


def test_a_repeated_refusal_of_a_probe_changes_nothing() -> None:
    node = make_node([1] * 5, term=1)
    make_leader(node)
    refusal = refusal_from(2, 2, 5, (3, 1))
    (retry,) = appends_to(2, step(node, refusal))
    assert retry.prev_log_index == 3
    assert appends_to(2, step(node, refusal, refusal_from(2, 2, 4, (0, 0)))) == []
    assert node.progress[NodeId(2)].next_index == 4


def test_a_follower_that_was_silent_for_an_election_timeout_is_probed() -> None:
    node = make_flowing_leader()
    for _ in range(2 * ELECTION_TICKS):
        tick(node)
        step(node, heartbeat_reply_from(3, 1))
    silent = node.progress[NodeId(2)]
    assert (silent.pace, silent.active) == (Pace.PROBE, False)
    sent = appends_to(2, propose_each(node, 20))
    assert len(sent) == 1
    step(node, heartbeat_reply_from(2, 1), ack_from(2, 1, 1))
    assert silent.pace is Pace.REPLICATE


def test_a_follower_that_comes_back_gets_all_it_missed() -> None:
    network = Network(3)
    network.elect(1)
    network.isolate(3)
    for number in range(200):
        network.propose(b"%d" % number)
        network.settle()
        if number % 10 == 0:
            network.beat()
    network.heal()
    network.beat(2)
    assert network.commands(3) == [b"%d" % number for number in range(200)]


def test_a_follower_that_lost_its_unsynced_tail_gets_it_again() -> None:
    """The leader's next_index runs ahead; its match_index is what disks acknowledged."""
    network = Network(3)
    leader = network.elect(1)
    network.slow_disks.add(NodeId(3))
    network.propose_numbers(5)
    progress = leader.progress[NodeId(3)]
    assert (progress.match_index, progress.next_index) == (1, 7)
    network.crash(3)
    network.restart(3)
    assert network.node(3).log.last_index == 1
    network.slow_disks.clear()
    network.beat(2)
    assert network.commands(3) == [b"%d" % number for number in range(5)]


def test_followers_learn_of_a_commit_without_waiting_for_a_heartbeat() -> None:
    network = Network(3)
    network.elect(1)
    network.propose(b"x")
    network.settle()
    assert [network.commands(node_id) for node_id in (1, 2, 3)] == [[b"x"]] * 3


def test_a_steady_flow_makes_no_message_for_nothing() -> None:
    network = Network(3)
    network.elect(1)
    network.beat()
    count = 0

    def counting(_: Message) -> bool:
        nonlocal count
        count += 1
        return True

    network.settle(counting)
    assert count == 0
    network.propose(b"x")
    network.settle(counting)
    # To each follower: the entry and its ack, the new commit index and the answer to that.
    assert count == 8


def test_proposals_of_every_kind_are_carried() -> None:
    network = Network(3)
    leader = network.elect(1)
    leader.propose(EntryKind.CONFIGURATION, encode_change(change_of("u2")))
    network.settle()
    assert network.agreed[-1] == (1, EntryKind.CONFIGURATION, encode_change(change_of("u2")))
    assert leader.commit_index == LogIndex(2)
