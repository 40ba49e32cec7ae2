"""What the extended Raft paper says of log replication and commitment (§5.3, §5.4.2, §8), claim by claim."""

import itertools

import pytest

from lockd.errors import CorruptData
from lockd.raft.entries import EntryKind
from lockd.raft.messages import AppendEntries, AppendEntriesReply, Heartbeat
from lockd.raft.node import RaftNode, Role
from tests.raft.network import Network
from tests.raft.single import (
    ack_from,
    append_from,
    finish,
    heartbeat_from,
    make_leader,
    make_node,
    propose,
    readies,
    refusal_from,
    run_of,
    settle,
    step,
    terms_of,
)


def make_committing_leader(voters: int = 3) -> RaftNode:
    """Return a leader of term 1 whose first entry, the no-op at 1, everyone has and knows committed."""
    node = make_node(voters=range(1, voters + 1))
    make_leader(node)
    step(node, *(ack_from(peer, 1, 1) for peer in range(2, voters + 1)))
    assert node.commit_index == 1
    return node


def test_5_3_a_leader_appends_a_proposal_and_sends_it_to_all_in_parallel() -> None:
    """§5.3: "The leader appends the command to its log as a new entry, then issues AppendEntries
    RPCs in parallel to each of the other servers"; with the index and term of the entry before."""
    node = make_committing_leader()
    assert node.propose(EntryKind.COMMANDS, b"2.1") == (1, 2)
    (ready,) = readies(node)
    assert ready.append == run_of(2, [1])
    expected = [append_from(1, 1, prev=(1, 1), terms=[1], commit=1, receiver=peer) for peer in (2, 3)]
    assert list(ready.send_now) == expected


def test_5_3_an_entry_is_committed_and_applied_once_a_majority_has_it() -> None:
    """§5.3: "A log entry is committed once the leader that created the entry has replicated it on
    a majority of the servers"; the news goes along with later appends."""
    node = make_committing_leader()
    propose(node, b"2.1")
    settle(node)
    node.step(ack_from(2, 1, 2))
    (ready,) = readies(node)
    assert ready.committed == run_of(2, [1])
    assert node.commit_index == 2
    appends = [message for message in ready.send_now if isinstance(message, AppendEntries)]
    assert {(message.receiver, message.commit_index) for message in appends} == {(2, 2), (3, 2)}


@pytest.mark.parametrize("voters", [1, 3, 5])
def test_5_3_a_majority_is_more_than_half_of_all(voters: int) -> None:
    others = range(2, voters + 1)
    for count in range(voters):
        for acking in itertools.combinations(others, count):
            node = Network(1).elect(1) if voters == 1 else make_committing_leader(voters)
            index = propose(node)
            settle(node)
            step(node, *(ack_from(peer, 1, index) for peer in acking))
            assert (node.commit_index == index) == (len(acking) + 1 > voters // 2)


@pytest.mark.parametrize("terms", [[2], [1, 2], [1, 1, 2]])
def test_5_3_committing_an_entry_commits_all_before_it(terms: list[int]) -> None:
    """§5.3: "This also commits all preceding entries in the leader's log, including entries
    created by previous leaders"."""
    node = make_node(terms)
    make_leader(node)
    assert node.term == 3
    last = propose(node)
    settle(node)
    node.step(ack_from(2, 3, last))
    (ready,) = readies(node)
    assert ready.committed.first == 1
    assert list(ready.committed.terms) == [*terms, 3, 3]


@pytest.mark.parametrize(
    ("terms", "commit"), [([1], 1), ([1, 1], 1), ([1, 1], 2), ([1, 1, 1], 2), ([1, 1, 1], 9)]
)
def test_5_3_a_follower_applies_what_it_learns_is_committed(terms: list[int], commit: int) -> None:
    """§5.3: "Once a follower learns that a log entry is committed, it applies the entry to its
    local state machine (in log order)", and no further than the entries it was just sent."""
    node = make_node()
    node.step(append_from(2, 1, terms=terms, commit=commit))
    first, *rest = readies(node)
    assert not first.committed.terms, "not before its own disk has it"
    assert rest == []
    finish(node, first)
    (ready,) = readies(node)
    assert ready.committed == run_of(1, terms[:commit])


def test_5_3_a_follower_commits_no_further_than_it_was_shown_to_agree() -> None:
    """Figure 2: "set commitIndex = min(leaderCommit, index of last new entry)"; what lies beyond
    may be an old leader's."""
    node = make_node([1, 1, 1], term=2)
    step(node, append_from(2, 2, prev=(1, 1), commit=3))
    assert node.commit_index == 1
    step(node, append_from(2, 2, prev=(1, 1), terms=[1], commit=3))
    assert node.commit_index == 2


def test_c3_a_late_append_vouches_for_no_more_than_what_is_committed() -> None:
    """What follows in the log may be an earlier leader's: the sender has not shown that it agrees."""
    node = make_node([1, 1, 1], term=2, commit=2)
    for terms in ([], [1]):
        (reply,) = step(node, append_from(2, 2, prev=(1, 1), terms=terms))
        assert reply == ack_from(1, 2, 2, receiver=2)


@pytest.mark.parametrize(
    ("prev", "hint"),
    [
        ((3, 3), (2, 2)),  # no entry there
        ((2, 1), (1, 1)),  # another term there: nothing of a later term can agree
        ((2, 3), (2, 2)),  # a later term there: what we have may agree
        ((9, 9), (2, 2)),
    ],
)
def test_5_3_a_follower_refuses_entries_that_do_not_follow_its_own(
    prev: tuple[int, int], hint: tuple[int, int]
) -> None:
    """§5.3: "If the follower does not find an entry in its log with the same index and term, then
    it refuses the new entries", and says from where the leader may try."""
    node = make_node([1, 2], term=9)
    (reply,) = step(node, append_from(2, 9, prev=prev, terms=[9]))
    assert reply == refusal_from(1, 9, prev[0], hint, receiver=2)
    assert terms_of(node) == [1, 2]


@pytest.mark.parametrize(
    ("prev", "sent", "result", "written"),
    [
        ((2, 2), [3], [1, 2, 3], (3, [3])),
        ((1, 1), [3, 4], [1, 3, 4], (2, [3, 4])),
        ((0, 0), [1], [1, 2], None),
        ((0, 0), [3], [3], (1, [3])),
        ((0, 0), [1, 2], [1, 2], None),
        ((1, 1), [], [1, 2], None),
    ],
)
def test_5_3_a_follower_keeps_what_agrees_and_replaces_what_conflicts(
    prev: tuple[int, int],
    sent: list[int],
    result: list[int],
    written: tuple[int, list[int]] | None,
) -> None:
    """Figure 2: "If an existing entry conflicts with a new one (same index but different terms),
    delete the existing entry and all that follow it. Append any new entries not already in the log"."""
    node = make_node([1, 2], term=4)
    node.step(append_from(2, 4, prev=prev, terms=sent))
    (ready,) = readies(node)
    assert terms_of(node) == result
    if written is None:
        assert not ready.append.terms
    else:
        assert ready.append == run_of(*written)
    assert finish(node, ready) == [ack_from(1, 4, prev[0] + len(sent), receiver=2)]


FIGURE_7_LEADER = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]
FIGURE_7 = {
    "a": [1, 1, 1, 4, 4, 5, 5, 6, 6],
    "b": [1, 1, 1, 4],
    "c": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
    "d": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
    "e": [1, 1, 1, 4, 4, 4, 4],
    "f": [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
}


@pytest.mark.parametrize("name", FIGURE_7)
def test_5_3_figure_7_the_leader_makes_every_log_like_its_own(name: str) -> None:
    """§5.3: "the leader handles inconsistencies by forcing the followers' logs to duplicate its
    own". Each term that differs costs at most one refusal."""
    network = Network(3, logs={1: FIGURE_7_LEADER, 2: FIGURE_7[name], 3: []}, term=7)
    refusals = 0

    def count(message: object) -> bool:
        nonlocal refusals
        refusals += isinstance(message, AppendEntriesReply) and message.sender == 2 and not message.success
        return True

    # The follower votes for the leader only if its own log is not ahead; the third one always does.
    network.elect(1, keep=count)
    assert terms_of(network.node(1)) == [*FIGURE_7_LEADER, 8]
    for peer in (2, 3):
        assert terms_of(network.node(peer)) == [*FIGURE_7_LEADER, 8]
        assert network.node(peer).commit_index == 11
    assert refusals <= len(set(FIGURE_7[name]) ^ set(FIGURE_7_LEADER)) + 1


def test_5_3_a_leader_retries_where_the_follower_may_agree() -> None:
    """§5.3: "the leader can decrement nextIndex to bypass all of the conflicting entries in that
    term", using both logs."""
    node = make_node([1, 1, 3, 3, 5], term=5)
    make_leader(node)
    sent = step(node, refusal_from(2, 6, 5, (5, 4)))
    # The follower's term 4 is none of ours; the last of ours that may agree is 4, of term 3.
    assert isinstance(sent[0], AppendEntries)
    assert (sent[0].prev_log_index, sent[0].prev_log_term) == (4, 3)
    sent = step(node, refusal_from(2, 6, 4, (3, 2)))
    assert isinstance(sent[0], AppendEntries)
    assert (sent[0].prev_log_index, sent[0].prev_log_term) == (2, 1)


def test_5_4_2_only_entries_of_the_own_term_are_committed_by_counting() -> None:
    """§5.4.2, Figure 8; SAFETY C3."""
    node = make_node([1, 2], term=2)
    make_leader(node)
    last = propose(node)
    settle(node)
    assert (node.term, last) == (3, 4)
    for index, committed in ((1, 0), (2, 0), (3, 3), (4, 4)):
        step(node, ack_from(2, 3, index))
        assert node.commit_index == committed


def test_8_a_new_leader_starts_its_term_with_an_empty_entry() -> None:
    """§8: "each leader commit[s] a blank no-op entry into the log at the start of its term"."""
    node = make_node([1])
    sent = make_leader(node)
    appends = [message for message in sent if isinstance(message, AppendEntries)]
    assert [message.receiver for message in appends] == [2, 3]
    for message in appends:
        assert (message.prev_log_index, message.entries.terms) == (1, (2,))
        assert message.entries.kinds == (EntryKind.NOOP,)
    assert not node.is_leader_ready
    step(node, ack_from(3, 2, 2))
    assert node.is_leader_ready


def test_5_3_state_machine_safety_no_committed_entry_is_cut() -> None:
    """Figure 3: a leader that contradicts a committed entry shows that data was lost somewhere."""
    node = make_node([1, 2], term=2)
    step(node, append_from(2, 2, prev=(2, 2), commit=2))
    before = terms_of(node)
    assert step(node, append_from(2, 2, prev=(0, 0), terms=[1])) == [ack_from(1, 2, 2, receiver=2)]
    with pytest.raises(CorruptData, match="ends at 2"):
        node.step(heartbeat_from(2, 2, commit=3))
    assert terms_of(node) == before


def test_6_2_a_leader_heartbeat_carries_no_commit_that_the_follower_may_lack() -> None:
    """A heartbeat has no log position to check, so its commit index is cut to match_index."""
    node = make_committing_leader()
    propose(node)
    settle(node)
    step(node, ack_from(2, 1, 2))
    node.tick()
    beats = {m.receiver: m.commit_index for m in settle(node) if isinstance(m, Heartbeat)}
    assert beats == {2: 2, 3: 1}
    assert node.role is Role.LEADER
