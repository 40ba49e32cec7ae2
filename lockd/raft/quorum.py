"""Majorities, single and joint (§5.2, §5.3, §6).

In joint mode every decision needs a majority of the incoming and of the outgoing voters; with
no outgoing voters the rule is the plain majority. The same arithmetic answers three questions:
which log index is committed, which ReadIndex round is confirmed, and how a vote stands.
"""

import enum
from collections.abc import Mapping, Sequence
from typing import Final

from lockd.ids import NodeId

UNBOUNDED: Final = 2**64 - 1
"""What a majority of nobody has acknowledged: it never holds the other half back."""


class VoteResult(enum.Enum):
    PENDING = enum.auto()
    LOST = enum.auto()
    WON = enum.auto()


def acknowledged_by_quorum(
    voters: Sequence[NodeId], outgoing: Sequence[NodeId], acknowledged: Mapping[NodeId, int]
) -> int:
    """Return the largest number that a quorum has acknowledged, each voter its own or a larger one.

    A voter missing from `acknowledged` counts as 0. `UNBOUNDED` when there are no voters at all.
    """
    return min(_majority_number(voters, acknowledged), _majority_number(outgoing, acknowledged))


def vote_result(
    voters: Sequence[NodeId], outgoing: Sequence[NodeId], votes: Mapping[NodeId, bool]
) -> VoteResult:
    """Tell how an election stands; `votes` has each voter's answer at most once (SAFETY C4).

    Answers of others than voters don't count. Nobody's majority is won.
    """
    results = (_majority_vote(voters, votes), _majority_vote(outgoing, votes))
    if VoteResult.LOST in results:
        return VoteResult.LOST
    return VoteResult.PENDING if VoteResult.PENDING in results else VoteResult.WON


def _majority_number(voters: Sequence[NodeId], acknowledged: Mapping[NodeId, int]) -> int:
    if not voters:
        return UNBOUNDED
    numbers = sorted(acknowledged.get(voter, 0) for voter in voters)
    return numbers[(len(numbers) - 1) // 2]


def _majority_vote(voters: Sequence[NodeId], votes: Mapping[NodeId, bool]) -> VoteResult:
    needed = len(voters) // 2 + 1
    if not voters or sum(votes.get(voter, False) for voter in voters) >= needed:
        return VoteResult.WON
    could_still_grant = sum(votes.get(voter, True) for voter in voters)
    return VoteResult.PENDING if could_still_grant >= needed else VoteResult.LOST
