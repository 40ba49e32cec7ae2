"""What the records up to some point of the stream amount to, but for the entries themselves."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lockd.disk.record import Addresses, Bindings, ClusterLearnt, Identity, Record, Seal, SegmentState
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

    def apply(self, record: Record) -> None:
        """Go on by one record. Raises ValueError where it can't follow what was before it."""
        match record:
            case EntryRun():
                if not 1 <= record.first <= self.last_index + 1:
                    raise ValueError(f"entries from {record.first} on do not follow entry {self.last_index}")
                self.last_index = record.last
                self.last_term = record.terms[-1]
            case HardState():
                if record.term < self.hard_state.term:
                    raise ValueError(f"term {record.term} follows term {self.hard_state.term}")
                self.hard_state = record
            case Bindings():
                self.bindings.update(record.bound)
            case Addresses():
                self.addresses.update(record.known)
            case ClusterLearnt():
                self.identity = replace(self.identity, cluster=record.cluster, incarnation=record.incarnation)
            case SegmentState():
                if record != self.snapshot(record.segment, record.segment_bytes):
                    raise ValueError("the state at the start of a segment differs from the log before it")
            case Seal():
                pass

    def snapshot(self, segment: int, segment_bytes: int) -> SegmentState:
        """The first record of a segment that starts here."""
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
