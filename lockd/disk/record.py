"""What the body of a batch says: records, one after the other, each with a kind and a length.

    SegmentState   first in every segment: all that is needed of the segments before it
    HardState      term, vote and commit index (§5.1, SAFETY D2)
    SnapshotMark   the snapshot that stands for all entries up to its index (§7); second in a segment
                   that was begun after it
    EntryRun       entries; what the log had at or after the first one is gone (§5.3)
    Bindings       node ids bound to instances (C8)
    Founders       who the cluster began with, where that was learnt by joining it
    Addresses      where nodes are to be dialled: known before any entry is applied
    ClusterLearnt  the cluster that this directory belongs to
    Seal           last in a full segment: the next one's number and size

Numbers are little-endian. Entries are stored by column, so that a start reads terms and lengths
of a run with one call each.
"""

import enum
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lockd.disk.errors import DataDirError
from lockd.ids import ClusterId, Incarnation, InstanceId, LogIndex, NodeId, Term, is_hex_id
from lockd.raft.entries import EntryKind, EntryRun, HardState


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose log this is (SAFETY C8). `cluster` and `incarnation` are "" until they are learnt."""

    node_id: NodeId
    instance: InstanceId
    cluster: ClusterId
    incarnation: Incarnation
    founders: tuple[NodeId, ...] = ()
    """The voters that the cluster began with, sorted: the configuration before the first entry."""


@dataclass(frozen=True, slots=True)
class SnapshotMark:
    """From here on the snapshot of that index and term is what a start begins with (SAFETY C9).

    Its file is durable before the mark is written. `resets`: it was received from a leader, and
    the log is empty after it: what it had at or before `index`, and all that it had after, is gone.
    """

    index: LogIndex
    term: Term
    resets: bool


@dataclass(frozen=True, slots=True)
class LogWrite:
    """One request of the driver, on disk as a whole or not at all.

    `append` replaces whatever the log has at or after `append.first`; an empty run does nothing.
    `snapshot` comes before `append`.
    """

    ticket: int
    hard_state: HardState | None = None
    append: EntryRun | None = None
    bindings: tuple[tuple[NodeId, InstanceId], ...] = ()
    cluster: tuple[ClusterId, Incarnation] | None = None
    addresses: tuple[tuple[NodeId, str], ...] = ()
    founders: tuple[NodeId, ...] = ()
    snapshot: SnapshotMark | None = None


@dataclass(frozen=True, slots=True)
class SegmentState:
    """The state before a segment's first write. `last_index` 0 and `last_term` 0: no entries.

    The snapshot that was in force is told by a mark after it.
    """

    identity: Identity
    segment: int
    segment_bytes: int
    hard_state: HardState
    last_index: LogIndex
    last_term: Term
    bindings: tuple[tuple[NodeId, InstanceId], ...]
    addresses: tuple[tuple[NodeId, str], ...]


@dataclass(frozen=True, slots=True)
class Bindings:
    bound: tuple[tuple[NodeId, InstanceId], ...]


@dataclass(frozen=True, slots=True)
class Addresses:
    known: tuple[tuple[NodeId, str], ...]


@dataclass(frozen=True, slots=True)
class ClusterLearnt:
    cluster: ClusterId
    incarnation: Incarnation


@dataclass(frozen=True, slots=True)
class Founders:
    """Who the cluster began with, as a node is told that joins it."""

    voters: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class Seal:
    next_segment: int
    next_segment_bytes: int


Record = (
    SegmentState
    | HardState
    | SnapshotMark
    | EntryRun
    | Bindings
    | Addresses
    | ClusterLearnt
    | Founders
    | Seal
)


class _Kind(enum.IntEnum):
    SEGMENT_STATE = 1
    HARD_STATE = 2
    ENTRIES = 3
    BINDINGS = 4
    CLUSTER = 5
    SEAL = 6
    ADDRESSES = 7
    SNAPSHOT_MARK = 8
    FOUNDERS = 9


_FRAME = struct.Struct("<BI")
_HARD_STATE = struct.Struct("<QIQ")
_RUN = struct.Struct("<QI")
_BINDING = struct.Struct("<I16s")
_ADDRESS = struct.Struct("<IH")
_COUNT = struct.Struct("<I")
_CLUSTER = struct.Struct("<?16s4s")
_SEAL = struct.Struct("<QQ")
_MARK = struct.Struct("<QQ?")
_STATE = struct.Struct("<I16sQQQQ")

_ENTRY_KINDS = {int(kind): kind for kind in EntryKind}


def records_of(write: LogWrite) -> Iterator[Record]:
    """The records that one write adds to the stream, in the order in which they are replayed."""
    if write.cluster is not None:
        yield ClusterLearnt(*write.cluster)
    if write.founders:
        yield Founders(write.founders)
    if write.bindings:
        yield Bindings(write.bindings)
    if write.addresses:
        yield Addresses(write.addresses)
    if write.snapshot is not None:
        yield write.snapshot
    if write.append:
        yield write.append
    if write.hard_state is not None:
        yield write.hard_state


def encode_records(records: Sequence[Record]) -> bytes:
    """The body of a batch."""
    parts: list[bytes] = []
    for record in records:
        kind, content = _encode(record)
        parts += (_FRAME.pack(kind, len(content)), content)
    return b"".join(parts)


def decode_records(body: bytes) -> Iterator[Record]:
    """Read a body whose checksum holds.

    Raises DataDirError for a kind of record or entry that this version does not know, and
    ValueError or struct.error for a body that no version writes.
    """
    at = 0
    while at < len(body):
        kind, length = _FRAME.unpack_from(body, at)
        at += _FRAME.size
        content = body[at : at + length]
        if len(content) != length:
            raise ValueError(f"a record of {length} bytes ends with the body after {len(content)}")
        yield _decode(kind, content)
        at += length


def _encode(record: Record) -> tuple[_Kind, bytes]:
    match record:
        case EntryRun():
            return _Kind.ENTRIES, _encode_entries(record)
        case HardState():
            return _Kind.HARD_STATE, _HARD_STATE.pack(record.term, record.voted_for, record.commit)
        case SnapshotMark():
            return _Kind.SNAPSHOT_MARK, _MARK.pack(record.index, record.term, record.resets)
        case Founders():
            return _Kind.FOUNDERS, b"".join(_COUNT.pack(node) for node in record.voters)
        case Bindings():
            return _Kind.BINDINGS, _encode_bindings(record.bound)
        case Addresses():
            return _Kind.ADDRESSES, _encode_addresses(record.known)
        case ClusterLearnt():
            return _Kind.CLUSTER, _encode_cluster(record.cluster, record.incarnation)
        case Seal():
            return _Kind.SEAL, _SEAL.pack(record.next_segment, record.next_segment_bytes)
        case SegmentState():
            return _Kind.SEGMENT_STATE, _encode_state(record)


def _decode(kind: int, content: bytes) -> Record:
    match kind:
        case _Kind.ENTRIES:
            return _decode_entries(content)
        case _Kind.HARD_STATE:
            return _hard_state(*_HARD_STATE.unpack(content))
        case _Kind.SNAPSHOT_MARK:
            return _decode_mark(content)
        case _Kind.BINDINGS:
            return Bindings(_decode_bindings(content))
        case _Kind.FOUNDERS:
            return Founders(tuple(NodeId(node) for (node,) in _COUNT.iter_unpack(content)))
        case _Kind.ADDRESSES:
            return Addresses(_decode_addresses(content))
        case _Kind.CLUSTER:
            return ClusterLearnt(*_decode_cluster(content))
        case _Kind.SEAL:
            return Seal(*_SEAL.unpack(content))
        case _Kind.SEGMENT_STATE:
            return _decode_state(content)
        case _:
            raise DataDirError(f"record of unknown kind {kind}: start the version of lockd that wrote it")


def _encode_entries(run: EntryRun) -> bytes:
    count = len(run)
    return b"".join(
        (
            _RUN.pack(run.first, count),
            struct.pack(f"<{count}Q", *run.terms),
            bytes(run.kinds),
            struct.pack(f"<{count}I", *map(len, run.payloads)),
            *run.payloads,
        )
    )


def _decode_entries(content: bytes) -> EntryRun:
    first, count = _RUN.unpack_from(content)
    at = _RUN.size
    terms = struct.unpack_from(f"<{count}Q", content, at)
    at += 8 * count
    kinds = content[at : at + count]
    at += count
    lengths = struct.unpack_from(f"<{count}I", content, at)
    at += 4 * count
    if at + sum(lengths) != len(content):
        raise ValueError(f"{count} entries of {sum(lengths)} bytes do not fill {len(content) - at}")
    unknown = set(kinds) - _ENTRY_KINDS.keys()
    if unknown:
        raise DataDirError(f"entry of unknown kind {min(unknown)}: start the version of lockd that wrote it")
    payloads = []
    for length in lengths:
        payloads.append(content[at : at + length])
        at += length
    return EntryRun(LogIndex(first), terms, tuple(_ENTRY_KINDS[kind] for kind in kinds), tuple(payloads))


def _decode_mark(content: bytes) -> SnapshotMark:
    index, term, resets = _MARK.unpack(content)
    return SnapshotMark(LogIndex(index), Term(term), resets)


def _encode_bindings(bound: Sequence[tuple[NodeId, InstanceId]]) -> bytes:
    return b"".join(_BINDING.pack(node, _hex_bytes(instance, 16)) for node, instance in bound)


def _decode_bindings(content: bytes) -> tuple[tuple[NodeId, InstanceId], ...]:
    pairs = _BINDING.iter_unpack(content)
    return tuple((NodeId(node), InstanceId(instance.hex())) for node, instance in pairs)


def _encode_addresses(known: Sequence[tuple[NodeId, str]]) -> bytes:
    texts = [(node, address.encode()) for node, address in known]
    return b"".join(_ADDRESS.pack(node, len(text)) + text for node, text in texts)


def _decode_addresses(content: bytes) -> tuple[tuple[NodeId, str], ...]:
    known = []
    at = 0
    while at < len(content):
        node, length = _ADDRESS.unpack_from(content, at)
        at += _ADDRESS.size
        known.append((NodeId(node), content[at : at + length].decode()))
        at += length
    if at != len(content):
        raise ValueError(f"an address ends {at - len(content)} bytes after its record")
    return tuple(known)


def _encode_cluster(cluster: ClusterId, incarnation: Incarnation) -> bytes:
    if not cluster and not incarnation:
        return bytes(_CLUSTER.size)
    return _CLUSTER.pack(True, _hex_bytes(cluster, 16), _hex_bytes(incarnation, 4))  # noqa: FBT003 - a field


def _decode_cluster(content: bytes) -> tuple[ClusterId, Incarnation]:
    known, cluster, incarnation = _CLUSTER.unpack(content)
    if not known:
        return ClusterId(""), Incarnation("")
    return ClusterId(cluster.hex()), Incarnation(incarnation.hex())


def _encode_state(state: SegmentState) -> bytes:
    identity = state.identity
    numbers = (state.segment, state.segment_bytes, state.last_index, state.last_term)
    hard = state.hard_state
    return b"".join(
        (
            _STATE.pack(identity.node_id, _hex_bytes(identity.instance, 16), *numbers),
            _encode_cluster(identity.cluster, identity.incarnation),
            _HARD_STATE.pack(hard.term, hard.voted_for, hard.commit),
            _COUNT.pack(len(identity.founders)),
            *(_COUNT.pack(node) for node in identity.founders),
            _COUNT.pack(len(state.bindings)),
            _encode_bindings(state.bindings),
            _encode_addresses(state.addresses),
        )
    )


def _decode_state(content: bytes) -> SegmentState:
    node, instance, segment, segment_bytes, last_index, last_term = _STATE.unpack_from(content)
    cluster_at = _STATE.size
    hard_at = cluster_at + _CLUSTER.size
    founders_at = hard_at + _HARD_STATE.size + _COUNT.size
    count_at = founders_at + _COUNT.unpack_from(content, founders_at - _COUNT.size)[0] * _COUNT.size
    founders = tuple(NodeId(founder) for (founder,) in _COUNT.iter_unpack(content[founders_at:count_at]))
    bindings_at = count_at + _COUNT.size
    addresses_at = bindings_at + _COUNT.unpack_from(content, count_at)[0] * _BINDING.size
    cluster, incarnation = _decode_cluster(content[cluster_at:hard_at])
    return SegmentState(
        identity=Identity(NodeId(node), InstanceId(instance.hex()), cluster, incarnation, founders),
        segment=segment,
        segment_bytes=segment_bytes,
        hard_state=_hard_state(*_HARD_STATE.unpack_from(content, hard_at)),
        last_index=LogIndex(last_index),
        last_term=Term(last_term),
        bindings=_decode_bindings(content[bindings_at:addresses_at]),
        addresses=_decode_addresses(content[addresses_at:]),
    )


def _hex_bytes(text: str, count: int) -> bytes:
    """struct would pad or cut an id of another length without a word."""
    if not is_hex_id(text, 2 * count):
        raise ValueError(f"{text[:40]!r} is not an id of {2 * count} lower-case hex digits")
    return bytes.fromhex(text)


def _hard_state(term: int, voted_for: int, commit: int) -> HardState:
    return HardState(Term(term), NodeId(voted_for), LogIndex(commit))
