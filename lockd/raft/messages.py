"""Raft's messages. One class each, all with sender, receiver and the sender's term (SAFETY C4).

| message | from → to | answers | section |
|---|---|---|---|
| RequestVote, RequestVoteReply | candidate → all voters | | §5.2, §5.4.1; pre-vote: thesis §9.6 |
| AppendEntries, AppendEntriesReply | leader → follower | | §5.3 |
| Heartbeat, HeartbeatReply | leader → follower | carries the ReadIndex round | §5.2, thesis §6.4 |
| InstallSnapshot | leader → follower | answered by AppendEntriesReply | §7 |
| TimeoutNow | leader → voter | asks for an election at once | thesis §3.10 |

Heartbeats are apart from appends, as in etcd: they carry no log position, only a commit index
that the follower is known to have, and the newest ReadIndex round.
"""

from dataclasses import dataclass
from typing import Final

from lockd.ids import LogIndex, NodeId, Term
from lockd.raft.entries import EntryRun, SnapshotMeta

_NO_INDEX: Final = LogIndex(0)
_NO_TERM: Final = Term(0)


@dataclass(frozen=True, slots=True)
class RequestVote:
    sender: NodeId
    receiver: NodeId
    term: Term
    """The term asked for; in a pre-vote the term the candidate would start, current + 1."""
    last_log_index: LogIndex
    last_log_term: Term
    pre_vote: bool
    transfer: bool = False
    """The leader asked for this election: vote even though a leader is known."""
    commit_index: LogIndex = _NO_INDEX
    """What the candidate knows to be committed, with its term: who refuses it may learn of that."""
    commit_term: Term = _NO_TERM


@dataclass(frozen=True, slots=True)
class RequestVoteReply:
    sender: NodeId
    receiver: NodeId
    term: Term
    granted: bool
    pre_vote: bool
    commit_index: LogIndex = _NO_INDEX
    """On refusal: what the voter knows to be committed, with its term, for the candidate to learn."""
    commit_term: Term = _NO_TERM


@dataclass(frozen=True, slots=True)
class AppendEntries:
    sender: NodeId
    receiver: NodeId
    term: Term
    prev_log_index: LogIndex
    prev_log_term: Term
    entries: EntryRun
    commit_index: LogIndex


@dataclass(frozen=True, slots=True)
class AppendEntriesReply:
    sender: NodeId
    receiver: NodeId
    term: Term
    success: bool
    match_index: LogIndex
    """On success: the last index known to agree and to be on the sender's disk. On refusal: 0."""
    rejected_index: LogIndex = _NO_INDEX
    """On refusal: the prev_log_index that was refused."""
    hint_index: LogIndex = _NO_INDEX
    """On refusal: the largest index at which the logs may agree, with its term, so that one
    refusal skips a whole divergent term (§5.3, last paragraph)."""
    hint_term: Term = _NO_TERM


@dataclass(frozen=True, slots=True)
class Heartbeat:
    sender: NodeId
    receiver: NodeId
    term: Term
    commit_index: LogIndex
    read_sequence: int = 0
    """The newest ReadIndex round open at the leader; 0 for none. Internal to the term (SAFETY C6)."""


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    sender: NodeId
    receiver: NodeId
    term: Term
    read_sequence: int = 0


@dataclass(frozen=True, slots=True)
class InstallSnapshot:
    """The log goes on from here: what was before it is in the snapshot.

    The state itself is not in the message. Its sender's owner streams the file, and the
    receiver's owner steps the message once it has the file whole and checked (SAFETY C9).
    """

    sender: NodeId
    receiver: NodeId
    term: Term
    snapshot: SnapshotMeta


@dataclass(frozen=True, slots=True)
class TimeoutNow:
    """Stand for election at once: the leader hands over to the receiver."""

    sender: NodeId
    receiver: NodeId
    term: Term


Message = (
    RequestVote
    | RequestVoteReply
    | AppendEntries
    | AppendEntriesReply
    | Heartbeat
    | HeartbeatReply
    | InstallSnapshot
    | TimeoutNow
)
