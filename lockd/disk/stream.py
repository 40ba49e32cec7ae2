"""What the records up to some point of the stream amount to, but for the entries themselves."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lockd.disk.record import (
    Addresses,
    Bindings,
    ClusterLearnt,
    Founders,
    Identity,
    Record,
    Seal,
    SegmentState,
    SnapshotMark,
)
from lockd.ids import NO_NODE, InstanceId, LogIndex, NodeId, Term
from lockd.raft.entries import EntryRun, HardState


@dataclass(slots=True)
class StreamState:
    """Reader and writer both keep one, so a new segment starts with what a start would find."""

    identity: Identity
    hard_state: HardState
    last_index: LogIndex
    last_term: Term
    bindings: dict[NodeId, InstanceId]
    addresses: dict[NodeId, str]
    mark: SnapshotMark | None = None
    """The snapshot in force."""
    starts: dict[int, LogIndex] = field(default_factory=dict)
    """By segment that was replayed: entries after this index are in that segment or later ones."""

    def apply(self, record: Record) -> None:
        """Go on by one record. Raises ValueError where it can't follow what was before it."""
        match record:
            case EntryRun():
                self._append(record)
            case HardState():
                if record.term < self.hard_state.term:
                    raise ValueError(f"term {record.term} follows term {self.hard_state.term}")
                self.hard_state = record
            case SnapshotMark():
                self._rest_on(record)
            case Founders():
                self.identity = replace(self.identity, founders=record.voters)
            case Bindings():
                self.bindings.update(record.bound)
            case Addresses():
                self.addresses.update(record.known)
            case ClusterLearnt():
                self.identity = replace(self.identity, cluster=record.cluster, incarnation=record.incarnation)
            case SegmentState():
                if record != self.at_segment(record.segment, record.segment_bytes):
                    raise ValueError("the state at the start of a segment differs from the log before it")
                self.starts[record.segment] = record.last_index
            case Seal():
                pass

    def opening(self, segment: int, segment_bytes: int) -> list[Record]:
        """The first batch of a segment that starts here: all that is needed of those before it."""
        mark = [] if self.mark is None else [self.mark]
        return [self.at_segment(segment, segment_bytes), *mark]

    def at_segment(self, segment: int, segment_bytes: int) -> SegmentState:
        """The state, were that segment to start here."""
        return SegmentState(
            identity=self.identity,
            segment=segment,
            segment_bytes=segment_bytes,
            hard_state=self.hard_state,
            last_index=self.last_index,
            last_term=self.last_term,
            bindings=tuple(sorted(self.bindings.items())),
            addresses=tuple(sorted(self.addresses.items())),
        )

    def forget_obsolete(self) -> list[int]:
        """Drop from `starts` the segments that no start needs any more; returns them, oldest first.

        At the start of the first one that is kept the log ended at or before the mark: all entries
        after the mark were written later, in it or behind it.
        """
        if self.mark is None:
            return []
        needed = max((n for n, end in self.starts.items() if end <= self.mark.index), default=0)
        obsolete = sorted(number for number in self.starts if number < needed)
        for number in obsolete:
            del self.starts[number]
        return obsolete

    def copy(self) -> "StreamState":
        """One that goes on by itself."""
        return replace(
            self,
            bindings=dict(self.bindings),
            addresses=dict(self.addresses),
            starts=dict(self.starts),
        )

    @classmethod
    def empty(cls, identity: Identity, founding: Mapping[NodeId, str]) -> "StreamState":
        hard_state = HardState(Term(0), NO_NODE, LogIndex(0))
        return cls(identity, hard_state, LogIndex(0), Term(0), {}, dict(founding))

    @classmethod
    def of(cls, state: SegmentState) -> "StreamState":
        return cls(
            state.identity,
            state.hard_state,
            state.last_index,
            state.last_term,
            dict(state.bindings),
            dict(state.addresses),
        )

    def _append(self, run: EntryRun) -> None:
        covered = self.mark.index if self.mark else 0
        if not covered < run.first <= self.last_index + 1:
            raise ValueError(
                f"entries from {run.first} on do not follow entry {self.last_index}, or the snapshot has them"
            )
        self.last_index = run.last
        self.last_term = run.terms[-1]

    def _rest_on(self, mark: SnapshotMark) -> None:
        if self.mark is not None and mark.index < self.mark.index:
            raise ValueError(f"a snapshot of entry {mark.index} follows one of entry {self.mark.index}")
        if mark.resets:
            self.last_index, self.last_term = mark.index, mark.term
            newest = max(self.starts, default=0)
            self.starts[newest] = min(self.starts[newest], mark.index)
        elif mark.index > self.last_index:
            raise ValueError(f"a snapshot of entry {mark.index} is beyond entry {self.last_index}")
        self.mark = replace(mark, resets=False)
