"""Writes, and a model of what a log must hold after them: lists and a dict, no bytes."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from lockd.disk.files import Files
from lockd.disk.record import Identity, LogWrite, SnapshotMark
from lockd.disk.recovery import Recovered
from lockd.disk.snapshot_file import SnapshotHeader, StoredSnapshot, encode_snapshot
from lockd.disk.snapshots import SnapshotStore
from lockd.ids import NO_NODE, ClusterId, Incarnation, InstanceId, LogIndex, NodeId, Term
from lockd.raft.entries import Configuration, EntryKind, EntryRun, HardState, SnapshotMeta

NODE = NodeId(1)
INSTANCE = InstanceId("a1" * 16)
CLUSTER = ClusterId("c0" * 16)
INCARNATION = Incarnation("1234abcd")


def draw_instance() -> InstanceId:
    return INSTANCE


def hard_state(term: int, voted_for: int = 0, commit: int = 0) -> HardState:
    return HardState(Term(term), NodeId(voted_for), LogIndex(commit))


def run(first: int, *payloads: bytes, term: int = 1) -> EntryRun:
    count = len(payloads)
    return EntryRun(LogIndex(first), (Term(term),) * count, (EntryKind.COMMANDS,) * count, payloads)


def segments_of(files: Files) -> list[tuple[str, bytes]]:
    return [(name, files.read(name)) for name in files.names() if name.endswith(".log")]


@dataclass
class Model:
    """What recovery must bring back after the writes given to `apply`."""

    identity: Identity = field(
        default_factory=lambda: Identity(NODE, INSTANCE, ClusterId(""), Incarnation(""))
    )
    hard_state: HardState = field(default_factory=lambda: HardState(Term(0), NO_NODE, LogIndex(0)))
    entries: list[tuple[Term, EntryKind, bytes] | None] = field(default_factory=list)
    """None: not in the log any more, or never."""
    snapshot: SnapshotMark | None = None
    bindings: dict[NodeId, InstanceId] = field(default_factory=dict)
    addresses: dict[NodeId, str] = field(default_factory=dict)

    def apply(self, writes: Iterable[LogWrite]) -> "Model":
        """The model after these writes as well; this one stays as it is."""
        after = replace(
            self, entries=list(self.entries), bindings=dict(self.bindings), addresses=dict(self.addresses)
        )
        for write in writes:
            if write.snapshot:
                after.snapshot = replace(write.snapshot, resets=False)
                if write.snapshot.resets:
                    base = (write.snapshot.term, EntryKind.NOOP, b"in the snapshot")
                    after.entries = [None] * (write.snapshot.index - 1) + [base]
            if write.append:
                added = zip(write.append.terms, write.append.kinds, write.append.payloads, strict=True)
                after.entries[write.append.first - 1 :] = list(added)
            after.hard_state = write.hard_state or after.hard_state
            after.bindings |= dict(write.bindings)
            after.addresses |= dict(write.addresses)
            if write.cluster:
                after.identity = Identity(NODE, INSTANCE, *write.cluster)
        return after

    def matches(self, recovered: Recovered) -> bool:
        entries = recovered.entries
        return (
            self.identity == recovered.identity
            and self.hard_state == recovered.hard_state
            and self.entries[entries.first - 1 :]
            == list(zip(entries.terms, entries.kinds, entries.payloads, strict=True))
            and self._matches_base(recovered, LogIndex(entries.first - 1))
            and self.bindings == recovered.bindings
            and self.addresses == recovered.addresses
        )

    def _matches_base(self, recovered: Recovered, base: LogIndex) -> bool:
        if self.snapshot is None or recovered.snapshot is None:
            nothing = (self.snapshot, recovered.snapshot) == (None, None)
            return nothing and (base, recovered.base_term) == (0, 0)
        meta = recovered.snapshot.header.meta
        before = self.entries[base - 1] if base else (Term(0),)
        return (
            (meta.index, meta.term) == (self.snapshot.index, self.snapshot.term)
            and recovered.state == state_at(meta.index)
            and base <= meta.index
            and before is not None
            and recovered.base_term == before[0]
        )


def draw_writes(rng: random.Random, model: Model, ticket: int, count: int) -> list[LogWrite]:
    """`count` writes of every sort that can follow `model`, some with payloads of zeros."""
    writes: list[LogWrite] = []
    for number in range(ticket, ticket + count):
        last = len(model.entries)
        term = model.hard_state.term + rng.randrange(2)
        covered = model.snapshot.index if model.snapshot else 0
        first = last + 1 if rng.random() < 0.8 else rng.randint(covered + 1, last + 1)
        payloads = [bytes(rng.randrange(900)) if rng.random() < 0.5 else rng.randbytes(rng.randrange(300))]
        hard = hard_state(term, rng.randrange(4), rng.randrange(last + 1))
        appended = run(first, *payloads * rng.randrange(3), term=max(term, 1))
        peer = NodeId(rng.randint(2, 5))
        write = LogWrite(
            number,
            hard_state=hard if rng.random() < 0.6 else None,
            append=appended if rng.random() < 0.8 else None,
            bindings=((peer, InstanceId(rng.randbytes(16).hex())),) if rng.random() < 0.2 else (),
            addresses=((peer, f"peer-{rng.randrange(9)}.example:7421"),) if rng.random() < 0.1 else (),
            cluster=(CLUSTER, INCARNATION) if rng.random() < 0.1 else None,
        )
        writes.append(write)
        model = model.apply([write])
    return writes


def header(index: int, term: int = 1, *, cluster: ClusterId = CLUSTER) -> SnapshotHeader:
    meta = SnapshotMeta(LogIndex(index), Term(term), Configuration((NODE, NodeId(2)), learners=(NodeId(5),)))
    addresses = ((NODE, "one.example:7421"), (NodeId(2), "two.example:7421"))
    return SnapshotHeader(meta, cluster, INCARNATION, addresses, 1_800_000_000)


def state_at(index: int) -> bytes:
    """The body of the snapshots that a Model expects."""
    return b"state at %d" % index


def store(snapshots: SnapshotStore, of: SnapshotHeader, *body: bytes, label: str = "taken") -> StoredSnapshot:
    """Make a snapshot's file as a node does, whole and under its name."""
    partial = snapshots.begin(label)
    for data in encode_snapshot(of, body):
        partial.append(data)
    return partial.finish()


def mark(index: int, term: int = 1, *, resets: bool = False) -> SnapshotMark:
    return SnapshotMark(LogIndex(index), Term(term), resets)
