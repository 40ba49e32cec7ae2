"""From the bytes of all segments to the state they hold, or to CorruptData. Pure.

    segment 1              segment 2              segment 3         segment 4
    state, batches, seal | state, batches, seal | state, batches, end | all zero (made ahead)

The log ends in the one segment that has no seal. Only the segment made ahead may follow that,
and it must be untouched: it is written to only after the seal before it is on disk. A segment
that is missing, cut short or empty where there was one is therefore seen.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from lockd.disk.batch import (
    SECTOR_BYTES,
    DamageError,
    End,
    Place,
    decode_batch,
    first_nonzero_sector,
)
from lockd.disk.record import Identity, Seal, SegmentState, decode_records
from lockd.disk.stream import StreamState
from lockd.errors import CorruptData
from lockd.ids import InstanceId, LogIndex, NodeId, Term
from lockd.raft.entries import EntryKind, EntryRun, HardState

_SUFFIX = ".log"
_NAME_DIGITS = 16

_WHAT_TO_DO = (
    "This node has promised more than is left here, so it does not start. Leave the directory as it is. "
    "In a cluster, remove this node's id and join a new node under a new id with an empty directory; "
    "a cluster of one is restored from a backup."
)


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a node knows when it starts. `fresh`: the directory was created just now.

    `addresses` are the founding members', and later ones as the node learnt them.
    """

    identity: Identity
    hard_state: HardState
    entries: EntryRun
    bindings: dict[NodeId, InstanceId]
    addresses: dict[NodeId, str]
    fresh: bool


@dataclass(frozen=True, slots=True)
class Spot:
    """A stretch of a segment; `offset` in bytes from its start."""

    name: str
    segment: int
    offset: int


@dataclass(frozen=True, slots=True)
class LogImage:
    """All that the writer needs to go on where the log ends.

    `tail` is where the next batch goes; `torn` tells that bytes of an unfinished batch lie there.
    `last_batch` is the place and content of the last complete one. `prepared_bytes` is the size of
    the untouched segment after the tail's, None if there is none.
    """

    recovered: Recovered
    stream: StreamState
    batches: int
    last_batch: tuple[Spot, bytes]
    tail: Spot
    tail_segment_bytes: int
    torn: bool
    prepared_bytes: int | None


def segment_name(number: int) -> str:
    return f"{number:0{_NAME_DIGITS}}{_SUFFIX}"


def segment_number(name: str) -> int | None:
    """The number in a segment's file name (with or without folders), None for any other file."""
    digits = name.rpartition("/")[2].removesuffix(_SUFFIX)
    number = int(digits) if digits.isascii() and digits.isdigit() else 0
    return number if number > 0 and name.endswith(segment_name(number)) else None


def recover(segments: Iterable[tuple[str, bytes]]) -> Recovered:
    """The state in (file name, whole content) pairs in the order of their numbers, at least one.

    Raises CorruptData (SAFETY D3), and DataDirError if a newer version wrote them.
    """
    return read_log(segments).recovered


def read_log(segments: Iterable[tuple[str, bytes]]) -> LogImage:
    """As `recover`, with where and how the log goes on. One segment at a time is held in memory."""
    reader = _Reader()
    for name, content in segments:
        reader.read_segment(name, content)
    return reader.image()


class _Reader:
    def __init__(self) -> None:
        self._stream: StreamState | None = None
        self._terms: list[Term] = []
        self._kinds: list[EntryKind] = []
        self._payloads: list[bytes] = []
        self._batches = 0
        self._segment = 0
        self._seal: Seal | None = None
        self._last_batch: tuple[Spot, bytes] | None = None
        self._tail: Spot | None = None
        self._tail_segment_bytes = 0
        self._torn = False
        self._prepared: tuple[str, int] | None = None

    def read_segment(self, name: str, content: bytes) -> None:
        number = segment_number(name)
        if number != self._segment + 1:
            raise _corrupt(name, 0, f"segment {self._segment + 1} is missing before it")
        self._segment = number
        if len(content) < SECTOR_BYTES or len(content) % SECTOR_BYTES:
            raise _corrupt(name, len(content), "the file has been cut short")
        if self._tail is not None:
            self._check_untouched(name, content, self._tail)
            self._prepared = (name, len(content))
            return
        if self._seal is not None and self._seal.next_segment_bytes != len(content):
            raise _corrupt(name, 0, f"{len(content)} bytes long instead of {self._seal.next_segment_bytes}")
        try:
            self._read_batches(name, content)
        except DamageError as damage:
            raise _corrupt(name, damage.offset, damage.found) from damage

    def image(self) -> LogImage:
        if self._stream is None or self._last_batch is None:
            raise ValueError("there is no segment to read")
        if self._tail is None:
            spot, batch = self._last_batch
            missing = f"segment {self._segment + 1}, which follows from here on, is missing"
            raise _corrupt(spot.name, spot.offset + len(batch), missing)
        entries = EntryRun(LogIndex(1), tuple(self._terms), tuple(self._kinds), tuple(self._payloads))
        return LogImage(
            recovered=Recovered(
                identity=self._stream.identity,
                hard_state=self._stream.hard_state,
                entries=entries,
                bindings=dict(self._stream.bindings),
                addresses=dict(self._stream.addresses),
                fresh=False,
            ),
            stream=self._stream,
            batches=self._batches,
            last_batch=self._last_batch,
            tail=self._tail,
            tail_segment_bytes=self._tail_segment_bytes,
            torn=self._torn,
            prepared_bytes=self._prepared[1] if self._prepared else None,
        )

    def _read_batches(self, name: str, content: bytes) -> None:
        """Replay one segment up to its seal or to the end of the log."""
        sector = 0
        while sector * SECTOR_BYTES < len(content):
            offset = sector * SECTOR_BYTES
            instance = self._stream.identity.instance if self._stream and sector else ""
            place = Place(instance, self._segment, sector)
            read = decode_batch(content, place=place, number=self._batches + 1)
            if isinstance(read, End):
                self._torn = read.torn
                break
            self._batches += 1
            sector = read.end_sector
            end = sector * SECTOR_BYTES
            self._last_batch = (Spot(name, self._segment, offset), content[offset:end])
            self._seal = self._replay(name, offset, read.body, segment_bytes=len(content))
            if self._seal is not None:
                beyond = first_nonzero_sector(content, end)
                if beyond is not None:
                    raise DamageError(beyond, "data stands after the end of a full segment")
                return
        if self._stream is None:
            # The first segment got its name only after its first batch was on disk.
            raise DamageError(0, "the log's first batch is missing")
        self._tail = Spot(name, self._segment, sector * SECTOR_BYTES)
        self._tail_segment_bytes = len(content)

    def _replay(self, name: str, offset: int, body: bytes, *, segment_bytes: int) -> Seal | None:
        """Take over what a batch says; returns the seal if it is the segment's last."""
        seal = None
        try:
            for record in decode_records(body):
                if self._stream is None:
                    if not isinstance(record, SegmentState):
                        raise ValueError("the log does not start with a state")
                    self._stream = StreamState.of(record)
                self._stream.apply(record)
                if isinstance(record, SegmentState):
                    self._check_place(record, segment_bytes)
                if isinstance(record, EntryRun):
                    self._append(record)
                elif isinstance(record, Seal):
                    seal = record
        except (ValueError, struct.error) as error:
            raise _corrupt(name, offset, f"a batch whose checksum holds makes no sense: {error}") from error
        return seal

    def _append(self, run: EntryRun) -> None:
        """§5.3: entries from `run.first` on are replaced. The stream has checked for gaps."""
        kept = run.first - 1
        del self._terms[kept:], self._kinds[kept:], self._payloads[kept:]
        self._terms += run.terms
        self._kinds += run.kinds
        self._payloads += run.payloads

    def _check_place(self, state: SegmentState, segment_bytes: int) -> None:
        if (state.segment, state.segment_bytes) != (self._segment, segment_bytes):
            says = f"segment {state.segment} of {state.segment_bytes} bytes"
            raise DamageError(0, f"{says} starts here, and the file has {segment_bytes}")

    def _check_untouched(self, name: str, content: bytes, tail: Spot) -> None:
        """The log has ended at `tail`; only the next segment, made ahead and all zero, may follow."""
        written = first_nonzero_sector(content)
        if written is not None:
            end = f"{tail.name} ends at offset {tail.offset} without naming a next segment"
            raise _corrupt(name, written, f"there is data here, and {end}")
        if tail.offset == 0 or self._prepared is not None:
            # A segment is made ahead only when the one before it has its first batch on disk.
            raise _corrupt(
                self._prepared[0] if self._prepared else tail.name,
                0,
                f"the file is all zero, and {name} exists",
            )


def _corrupt(name: str, offset: int, found: str) -> CorruptData:
    return CorruptData(f"{name}: damaged at offset {offset}: {found}. {_WHAT_TO_DO}")
