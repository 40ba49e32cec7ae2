"""SAFETY C3, and the log against a disk that remembers: nothing agreed is cut, nothing goes back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockd.errors import CorruptData
from lockd.ids import LogIndex, Term
from lockd.raft.entries import EntryKind, EntryRun
from lockd.raft.log import Log
from lockd.raft.messages import AppendEntries
from tests.raft.network import Network
from tests.raft.single import (
    ack_from,
    append_from,
    heartbeat_from,
    make_leader,
    make_node,
    propose,
    refusal_from,
    run_of,
    settle,
    step,
    terms_of,
)


def test_c3_figure_8_an_old_entry_on_a_majority_is_not_committed_by_counting() -> None:
    """§5.4.2, Figure 8 (logcabin#44), from (c) on: entry 2 of term 2 is on a majority under the
    leader of term 4, which must not commit it, as node 5 is then elected (d) and overwrites it."""
    network = Network(5, logs={1: [1, 2], 2: [1, 2], 3: [1, 2], 4: [1], 5: [1, 3]}, term=3)
    leader = network.elect(1, keep=lambda message: not isinstance(message, AppendEntries))
    assert leader.term == 4
    for peer in (2, 3):
        step(leader, ack_from(peer, 4, 2))
    assert leader.commit_index == 0
    network.crash(1)
    network.elect(5)
    assert terms_of(network.node(2)) == [1, 3, 5]
    network.restart(1)
    network.beat(2)
    assert terms_of(network.node(1)) == [1, 3, 5]


def test_c3_figure_8_an_old_entry_is_committed_along_with_one_of_the_own_term() -> None:
    """§5.4.2, Figure 8 (e)."""
    network = Network(5, logs={1: [1, 2], 2: [1, 2], 3: [1], 4: [1], 5: [1, 3]}, term=3)
    leader = network.elect(1, keep=lambda message: message.receiver != 5)
    assert leader.commit_index == 3
    network.crash(1)
    with pytest.raises(AssertionError, match="did not vote for it"):
        network.elect(5)


def test_c3_a_late_or_repeated_append_truncates_nothing() -> None:
    """PySyncObj 0.3.17: entries 2 to 6 were acknowledged, a repeat of 2 alone cut 3 to 6."""
    node = make_node([1], term=1)
    step(node, append_from(2, 1, prev=(1, 1), terms=[1] * 5))
    for late in (
        append_from(2, 1, prev=(1, 1), terms=[1]),
        append_from(2, 1, prev=(3, 1)),
        append_from(2, 1, terms=[1, 1]),
    ):
        step(node, late)
        assert terms_of(node) == [1] * 6
        assert node.log.persisted_index == 6


def test_c3_a_late_ack_moves_neither_match_index_nor_commit_index_back() -> None:
    """PySyncObj#166, #167."""
    node = make_node()
    make_leader(node)
    for _ in range(4):
        propose(node)
    settle(node)
    step(node, ack_from(2, 1, 5))
    for late in (3, 1, 0, 5):
        step(node, ack_from(2, 1, late))
        assert (node.progress[node.configuration.voters[1]].match_index, node.commit_index) == (5, 5)


def test_c3_a_late_refusal_moves_match_index_not_back() -> None:
    """openraft#1501: a delayed conflict was read as a log that had shrunk."""
    node = make_node()
    make_leader(node)
    for _ in range(4):
        propose(node)
    settle(node)
    step(node, ack_from(2, 1, 4))
    progress = node.progress[node.configuration.voters[1]]
    step(node, refusal_from(2, 1, 3, (0, 0)), refusal_from(2, 1, 0, (0, 0)))
    assert (progress.match_index, progress.next_index) == (4, 6)
    step(node, refusal_from(2, 1, 5, (0, 0)))
    assert progress.match_index == 4
    assert progress.next_index > progress.match_index, "etcd-io/raft#149"


def test_c3_an_ack_from_another_term_does_not_count() -> None:
    """PySyncObj 0.3.17: acks carried no term, one old ack moved the commit index by four."""
    node = make_node([1, 1, 1], term=1)
    make_leader(node)
    assert node.term == 2
    step(node, ack_from(2, 1, 4), ack_from(3, 1, 4))
    assert node.commit_index == 0


def test_c3_an_ack_beyond_the_leaders_log_does_not_count() -> None:
    node = make_node()
    make_leader(node)
    step(node, ack_from(2, 1, 2**40), ack_from(3, 1, 2**40))
    assert node.commit_index == 0


def test_c3_a_repeated_heartbeat_moves_commit_index_not_back() -> None:
    node = make_node([1, 1, 1], term=1)
    step(node, heartbeat_from(2, 1, commit=3))
    step(node, heartbeat_from(2, 1, commit=1), append_from(2, 1, terms=[1], commit=1))
    assert node.commit_index == 3


def test_c3_a_leader_that_contradicts_a_committed_entry_stops_the_node() -> None:
    log = Log.from_run(run_of(1, [1, 1]))
    with pytest.raises(CorruptData, match="contradicts the committed entry of term 1"):
        log.merge(run_of(2, [2]), commit_index=LogIndex(2))


def test_c3_two_leaders_in_a_term_stop_the_node() -> None:
    """Figure 3, election safety: going on would make the damage worse."""
    follower = make_node()
    step(follower, heartbeat_from(2, 1))
    with pytest.raises(CorruptData, match="nodes 2 and 3 both lead term 1"):
        follower.step(append_from(3, 1))
    leader = make_node()
    make_leader(leader)
    with pytest.raises(CorruptData, match="nodes 1 and 3 both lead term 1"):
        leader.step(heartbeat_from(3, 1))


def test_the_log_refuses_no_index_it_has_and_every_other() -> None:
    log = Log.from_run(run_of(5, [2, 3]), base_term=Term(2))
    assert [log.base, log.last_index, log.last_term] == [4, 6, 3]
    assert [log.term_at(LogIndex(i)) for i in (4, 5, 6)] == [2, 2, 3]
    for index in (3, 7):
        assert not log.matches(LogIndex(index), Term(2))
        with pytest.raises(IndexError):
            log.term_at(LogIndex(index))
    assert log.largest_index_within(LogIndex(2), Term(9)) == (4, 2)


def test_a_slice_fits_its_bytes_and_has_at_least_one_entry() -> None:
    log = Log()
    for size in (5, 5, 50, 5):
        log.append(Term(1), EntryKind.COMMANDS, bytes(size))
    one, last = LogIndex(1), log.last_index
    assert [len(log.slice(one, last, room)) for room in (0, 5, 9, 10, 59, 60, 64, 65, 999)] == [
        1, 1, 1, 2, 2, 3, 3, 4, 4,
    ]  # fmt: skip
    assert len(log.slice(LogIndex(3), last, 1)) == 1
    assert len(log.slice(one, LogIndex(0), 100)) == 0
    assert log.slice(LogIndex(5), last, 100) == EntryRun(LogIndex(5), (), (), ())


terms_lists = st.lists(st.integers(1, 4), max_size=8).map(sorted)


@settings(deadline=None)
@given(ours=terms_lists, index=st.integers(0, 12), term=st.integers(0, 5))
def test_the_hint_is_the_largest_index_that_may_agree(ours: list[int], index: int, term: int) -> None:
    log = Log.from_run(run_of(1, ours))
    found, found_term = log.largest_index_within(LogIndex(index), Term(term))
    possible = [i for i in range(1, min(index, len(ours)) + 1) if ours[i - 1] <= term]
    assert found == max(possible, default=0)
    assert found_term == (ours[found - 1] if found else 0)


@settings(deadline=None)
@given(ours=terms_lists, theirs=terms_lists, prev=st.integers(0, 8))
def test_a_merge_gives_the_leaders_entries_and_keeps_what_agrees(
    ours: list[int], theirs: list[int], prev: int
) -> None:
    """Figure 2, AppendEntries, steps 3 and 4, against the definition."""
    prev = min(prev, len(ours), len(theirs))
    theirs = [*ours[:prev], *(max(term, ours[prev - 1] if prev else 1) for term in theirs[prev:])]
    log = Log.from_run(run_of(1, ours))
    last = log.merge(run_of(prev + 1, theirs[prev:]), commit_index=LogIndex(0))
    log.check_invariants()
    assert last == len(theirs)
    agree = all(a == b for a, b in zip(ours, theirs, strict=False))
    expected = ours if agree and len(ours) > len(theirs) else theirs
    assert [log.term_at(LogIndex(i)) for i in range(1, log.last_index + 1)] == expected
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    assert log.persisted_index == (len(ours) if same is None else same)


@settings(max_examples=200, deadline=None)
@given(
    actions=st.lists(
        st.one_of(
            st.tuples(st.just("merge"), st.integers(0, 6), st.integers(1, 3)),
            st.just(("take", 0, 0)),
            st.just(("sync", 0, 0)),
        ),
        max_size=30,
    )
)
def test_c2_what_counts_as_persisted_is_what_a_crash_would_bring_back(
    actions: list[tuple[str, int, int]],
) -> None:
    """The watermark against a model disk that does its writes in order, late, under conflicts
    that reuse terms and indexes (the ABA race among them)."""
    log = Log()
    stored: list[bytes] = []
    under_way: list[EntryRun] = []
    for number, (action, position, count) in enumerate(actions):
        if action == "merge":
            keep = min(position, log.last_index)
            # Terms repeat on purpose: payloads tell the entries apart.
            prior = log.term_at(LogIndex(keep))
            run = EntryRun(
                LogIndex(keep + 1),
                (Term(max(prior, number % 3 + 1)),) * count,
                (EntryKind.COMMANDS,) * count,
                tuple(f"{number}/{i}".encode() for i in range(count)),
            )
            log.merge(run, commit_index=LogIndex(0))
        elif action == "take":
            run = log.take_unwritten()
            if run.terms:
                under_way.append(run)
        elif under_way:
            run = under_way.pop(0)
            stored[run.first - 1 :] = run.payloads
            log.acknowledge_write(run.terms[-1], run.last)
        log.check_invariants()
        persisted = log.slice(LogIndex(1), log.persisted_index, 10**9).payloads
        # Writes under way may yet cut the disk, but only above what is vouched for.
        assert tuple(stored[: len(persisted)]) == persisted
        assert all(run.first > log.persisted_index for run in under_way)
