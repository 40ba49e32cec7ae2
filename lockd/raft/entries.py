"""What the Raft log is made of.

An entry is (index, term, kind, payload). The log keeps no object per entry: runs of entries
travel as `EntryRun`, parallel tuples with one first index. The payload is opaque to Raft
but for configuration entries.
"""

import enum
from dataclasses import dataclass

from lockd.ids import LogIndex, NodeId, Term


class EntryKind(enum.IntEnum):
    """What a payload holds. The numbers are on disk and on the wire."""

    NOOP = 0
    """Empty: a new leader's first entry (§5.4.2, §8)."""
    COMMANDS = 1
    """A batch of lock commands, see lockd.locks.codec."""
    CONFIGURATION = 2
    """A membership change, applied to Raft when it is applied (SAFETY C7)."""


@dataclass(frozen=True, slots=True)
class EntryRun:
    """Consecutive entries: entry i has index `first + i`. An empty run has `first` = next index."""

    first: LogIndex
    terms: tuple[Term, ...]
    kinds: tuple[EntryKind, ...]
    payloads: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.terms)

    @property
    def last(self) -> LogIndex:
        """Index of the last entry; `first - 1` when empty."""
        return LogIndex(self.first + len(self.terms) - 1)


@dataclass(frozen=True, slots=True)
class HardState:
    """What must be on disk before any message that depends on it leaves (§5.1, SAFETY D2).

    `commit` tells which entries can be applied again at a restart. It may lag behind what was
    committed, but never behind what this node knew when it wrote its last entries: with those
    goes every membership change that they rest on (SAFETY C7).
    """

    term: Term
    voted_for: NodeId
    commit: LogIndex


@dataclass(frozen=True, slots=True)
class Configuration:
    """The members: `voters` decide; in joint mode `voters_outgoing` must agree too (§6).

    Tuples are sorted and without repeats. Learners receive the log and have no vote;
    `learners_next` are outgoing voters that become learners when the joint mode is left, which
    with `auto_leave` the leader does by itself.
    """

    voters: tuple[NodeId, ...]
    voters_outgoing: tuple[NodeId, ...] = ()
    learners: tuple[NodeId, ...] = ()
    learners_next: tuple[NodeId, ...] = ()
    auto_leave: bool = False

    @property
    def members(self) -> tuple[NodeId, ...]:
        """Everyone who receives the log, sorted."""
        return tuple(sorted({*self.voters, *self.voters_outgoing, *self.learners}))

    @property
    def is_joint(self) -> bool:
        return bool(self.voters_outgoing)


@dataclass(frozen=True, slots=True)
class SnapshotMeta:
    """What a snapshot stands for: all entries up to `index`, whose term is `term` (§7, SAFETY C9)."""

    index: LogIndex
    term: Term
    configuration: Configuration
    """As of `index`."""
