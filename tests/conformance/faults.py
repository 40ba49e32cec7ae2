"""Deliberate faults in the core, each put in for as long as a context lasts.

They show that the comparison is not vacuous: with any of them in place the data must object.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from lockd.ids import NO_NODE, LogIndex, NodeId, Term
from lockd.raft import election, membership, quorum, replication
from lockd.raft.entries import Configuration
from lockd.raft.log import Log
from lockd.raft.messages import Message, RequestVote, RequestVoteReply
from lockd.raft.node import RaftNode
from lockd.raft.progress import Progress
from lockd.raft.quorum import VoteResult
from lockd.raft.state import RaftState, Role

_admit = RaftNode._admit
_restore = RaftState.restore
_acknowledge_write = Log.acknowledge_write
_majority_vote = quorum._majority_vote


def _advance_commit_of_any_term(state: RaftState) -> None:
    configuration = state.configuration
    matched = {peer: progress.match_index for peer, progress in state.progress.items()}
    index = quorum.acknowledged_by_quorum(configuration.voters, configuration.voters_outgoing, matched)
    state.commit_to(LogIndex(index))


def _commit_with_one_ack_less(voters: Sequence[NodeId], acknowledged: Mapping[NodeId, int]) -> int:
    if not voters:
        return quorum.UNBOUNDED
    numbers = sorted(acknowledged.get(voter, 0) for voter in voters)
    return numbers[len(numbers) // 2]


def _commit_with_one_ack_more(voters: Sequence[NodeId], acknowledged: Mapping[NodeId, int]) -> int:
    if not voters:
        return quorum.UNBOUNDED
    return min(acknowledged.get(voter, 0) for voter in voters)


def _count_each_vote_twice(voters: Sequence[NodeId], votes: Mapping[NodeId, bool]) -> VoteResult:
    if 2 * sum(votes.get(voter, False) for voter in voters) >= len(voters) // 2 + 1:
        return VoteResult.WON
    return _majority_vote(voters, votes)


def _decide_by_the_incoming_half(
    voters: Sequence[NodeId], _outgoing: Sequence[NodeId], votes: Mapping[NodeId, bool]
) -> VoteResult:
    return _majority_vote(voters, votes)


def _admit_old_terms(raft: RaftNode, message: Message) -> bool:
    return True if message.term < raft.term else _admit(raft, message)


def _vote_for_a_shorter_log(_log: Log, _index: LogIndex, _term: Term) -> bool:
    return True


def _vote_for_everyone(state: RaftState, request: RequestVote) -> None:
    state.voted_for, state.leader_id = NO_NODE, NO_NODE
    if request.term > state.term and not request.pre_vote:
        state.term = request.term
    state.voted_for = NO_NODE if request.pre_vote else request.sender
    state.send(
        RequestVoteReply(state.node_id, request.sender, request.term, granted=True, pre_vote=request.pre_vote)
    )


def _match_anything(log: Log, index: LogIndex, _term: Term) -> bool:
    return log.base <= index <= log.last_index


def _never_match(log: Log, index: LogIndex, _term: Term) -> bool:
    return index == log.base


def _restore_without_configuration(state: RaftState, snapshot: Any) -> None:
    _restore(state, replace(snapshot, configuration=state.configuration))


def _nothing(*_arguments: Any) -> None:
    pass


def _leave_joint_to_the_outgoing(configuration: Configuration) -> Configuration:
    return Configuration(configuration.voters_outgoing, learners=configuration.learners)


def _forget_to_ack_own_write(log: Log, term: Term, index: LogIndex) -> bool:
    _acknowledge_write(log, term, index)
    return False


def _tick_leader_for_ever(state: RaftState) -> None:
    state.election_elapsed += 1


def _campaign_as_anyone(state: RaftState) -> None:
    if state.role is not Role.LEADER:
        election._start_election(state, transfer=False)


FAULTS: Final[dict[str, tuple[object, str, Callable[..., Any]]]] = {
    "an entry of an earlier term is committed by counting (§5.4.2, C3)": (
        replication,
        "advance_commit",
        _advance_commit_of_any_term,
    ),
    "one acknowledgement too few commits (§5.3)": (quorum, "_majority_number", _commit_with_one_ack_less),
    "everyone must acknowledge before it commits (§5.3)": (
        quorum,
        "_majority_number",
        _commit_with_one_ack_more,
    ),
    "each vote is counted twice (§5.2, C4)": (quorum, "_majority_vote", _count_each_vote_twice),
    "the outgoing half has no vote (§6, C7)": (quorum, "vote_result", _decide_by_the_incoming_half),
    "messages of old terms are taken (§5.1, C4)": (RaftNode, "_admit", _admit_old_terms),
    "a shorter log gets the vote (§5.4.1)": (Log, "is_up_to_date", _vote_for_a_shorter_log),
    "everyone gets the vote (§5.2)": (election, "handle_request_vote", _vote_for_everyone),
    "appends are taken without agreement (§5.3)": (Log, "matches", _match_anything),
    "a follower never agrees (§5.3)": (Log, "matches", _never_match),
    "a snapshot's configuration is dropped (§7, C9)": (RaftState, "restore", _restore_without_configuration),
    "a joint mode is never left by itself (§6, C7)": (replication, "leave_joint_if_due", _nothing),
    "leaving a joint mode undoes the change (§6, C7)": (
        membership,
        "leave_joint",
        _leave_joint_to_the_outgoing,
    ),
    "the leader's own disk does not count (C2)": (Log, "acknowledge_write", _forget_to_ack_own_write),
    "a leader that hears nobody goes on (§6.2 of the thesis, C5)": (
        election,
        "tick_leader",
        _tick_leader_for_ever,
    ),
    "who has no vote stands for election (C7)": (election, "campaign", _campaign_as_anyone),
    "leadership is not handed over (§3.10 of the thesis)": (election, "handle_timeout_now", _nothing),
    "a refused append is not answered by an earlier one (§5.3)": (
        Progress,
        "refused",
        lambda *_: False,
    ),
}


@contextmanager
def fault(name: str) -> Iterator[None]:
    """Put one fault into the core, wherever its victim is known by name, until the context ends."""
    owner, attribute, faulty = FAULTS[name]
    sound = getattr(owner, attribute)
    modules = [
        module
        for module_name, module in sys.modules.items()
        if module_name.startswith(("lockd.raft", "tests.conformance")) and module_name != __name__
    ]
    users = [owner, *(m for m in modules if m is not owner and getattr(m, attribute, None) is sound)]
    for user in users:
        setattr(user, attribute, faulty)
    try:
        yield
    finally:
        for user in users:
            setattr(user, attribute, sound)
