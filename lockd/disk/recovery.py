"""From the bytes of all segments to the state they hold, or to CorruptData. Pure.

    segment 4              segment 5              segment 6         segment 7
    state, batches, seal | state, batches, seal | state, batches, end | all zero (made ahead)

The log ends in the one segment that has no seal. Only the segment made ahead may follow that,
and it must be untouched: it is written to only after the seal before it is on disk. A segment
that is missing, cut short or empty where there was one is therefore seen.

The first segments may be gone when a snapshot stands for what they held: when the log, at the
start of the first that is left, had not gone beyond the last snapshot mark that is found.
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
from lockd.disk.errors import DataDirError, damaged
from lockd.disk.record import Identity, Seal, SegmentState, SnapshotMark, decode_records
from lockd.disk.snapshot_file import StoredSnapshot
from lockd.disk.stream import StreamState
from lockd.ids import InstanceId, LogIndex, NodeId, Term
from lockd.raft.entries import EntryKind, EntryRun, HardState

_SUFFIX = ".log"
_NAME_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a node knows when it starts. `fresh`: the directory was created just now.

    `addresses` are the founding members', and later ones as the node learnt them. `entries` begin
    after entry `entries.first` - 1, the log's base, whose term is `base_term`. `state` is the body
    of `snapshot`, b"" without one; the base is at or before its index, for slow followers may still
    need entries that it stands for.
    """

    identity: Identity
    hard_state: HardState
    entries: EntryRun
    bindings: dict[NodeId, InstanceId]
    addresses: dict[NodeId, str]
    fresh: bool
    base_term: Term
    snapshot: StoredSnapshot | None
    state: bytes


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

    Less the snapshot, which is a file of its own. Raises CorruptData (SAFETY D3), and DataDirError
    if a newer version wrote them.
    """
    return read_log(segments).recovered


def read_log(segments: Iterable[tuple[str, bytes]]) -> LogImage:
    """As `recover`, with where and how the log goes on. One segment at a time is held in memory."""
    reader = LogReader()
    for name, content in segments:
        reader.read_segment(name, content)
    return reader.image()


@dataclass(frozen=True, slots=True)
class ReadSoFar:
    """What a log amounts to up to its end, or up to the first damage. `stream` is None before the
    first batch."""

    stream: StreamState | None
    entries: EntryRun
    base_term: Term


class LogReader:
    """Reads one segment after the other; when one is damaged, it has what was before that."""

    def __init__(self) -> None:
        self.batches_read = 0
        self.entries_read = 0
        """As they were written: those count too that were replaced later."""
        self._stream: StreamState | None = None
        self._base = LogIndex(0)
        self._base_term = Term(0)
        self._terms: list[Term] = []
        self._kinds: list[EntryKind] = []
        self._payloads: list[bytes] = []
        self._batches = 0
        self._segment = 0
        self._first: tuple[str, int] | None = None
        self._seal: Seal | None = None
        self._last_batch: tuple[Spot, bytes] | None = None
        self._tail: Spot | None = None
        self._tail_segment_bytes = 0
        self._torn = False
        self._prepared: tuple[str, int] | None = None

    def read_segment(self, name: str, content: bytes) -> None:
        number = segment_number(name)
        if number is None:
            raise ValueError(f"{name} is not the name of a segment")
        if self._first is None:
            self._first = (name, number)
        elif number != self._segment + 1:
            raise damaged(name, 0, f"segment {self._segment + 1} is missing before it")
        self._segment = number
        if len(content) < SECTOR_BYTES or len(content) % SECTOR_BYTES:
            raise damaged(name, len(content), "the file has been cut short")
        if self._tail is not None:
            self._check_untouched(name, content, self._tail)
            self._prepared = (name, len(content))
            return
        if self._seal is not None and self._seal.next_segment_bytes != len(content):
            raise damaged(name, 0, f"{len(content)} bytes long instead of {self._seal.next_segment_bytes}")
        try:
            self._read_batches(name, content)
        except DamageError as damage:
            raise damaged(name, damage.offset, damage.found) from damage
        except DataDirError as error:
            raise DataDirError(f"{name}: {error}") from error

    def image(self) -> LogImage:
        if self._stream is None or self._last_batch is None or self._first is None:
            raise ValueError("there is no segment to read")
        if self._tail is None:
            spot, batch = self._last_batch
            missing = f"segment {self._segment + 1}, which follows from here on, is missing"
            raise damaged(spot.name, spot.offset + len(batch), missing)
        self._check_base(self._stream.mark, *self._first)
        return LogImage(
            recovered=Recovered(
                identity=self._stream.identity,
                hard_state=self._stream.hard_state,
                entries=self.so_far().entries,
                bindings=dict(self._stream.bindings),
                addresses=dict(self._stream.addresses),
                fresh=False,
                base_term=self._base_term,
                snapshot=None,
                state=b"",
            ),
            stream=self._stream,
            batches=self._batches,
            last_batch=self._last_batch,
            tail=self._tail,
            tail_segment_bytes=self._tail_segment_bytes,
            torn=self._torn,
            prepared_bytes=self._prepared[1] if self._prepared else None,
        )

    def so_far(self) -> ReadSoFar:
        first = LogIndex(self._base + 1)
        entries = EntryRun(first, tuple(self._terms), tuple(self._kinds), tuple(self._payloads))
        return ReadSoFar(self._stream, entries, self._base_term)

    def _read_batches(self, name: str, content: bytes) -> None:
        """Replay one segment up to its seal or to the end of the log."""
        sector = 0
        while sector * SECTOR_BYTES < len(content):
            offset = sector * SECTOR_BYTES
            instance = self._stream.identity.instance if self._stream and sector else ""
            place = Place(instance, self._segment, sector)
            # Those before the first segment that is left can't be counted any more.
            due = self._batches + 1 if self._batches or self._segment == 1 else None
            read = decode_batch(content, place=place, number=due)
            if isinstance(read, End):
                self._torn = read.torn
                break
            self._batches = read.number
            self.batches_read += 1
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
                    self._base, self._base_term = record.last_index, record.last_term
                self._stream.apply(record)
                if isinstance(record, SegmentState):
                    self._check_place(record, segment_bytes)
                if isinstance(record, EntryRun):
                    self._append(record)
                elif isinstance(record, SnapshotMark) and record.resets:
                    self._restart_after(record.index, record.term)
                elif isinstance(record, Seal):
                    seal = record
        except (ValueError, struct.error) as error:
            raise damaged(name, offset, f"a batch whose checksum holds makes no sense: {error}") from error
        return seal

    def _append(self, run: EntryRun) -> None:
        """§5.3: entries from `run.first` on are replaced. The stream has checked for gaps."""
        self.entries_read += len(run)
        kept = run.first - 1 - self._base
        if kept < 0:
            # It replaces entries of segments that are gone, whose terms nobody knows any more: the
            # run's own first entry is the base. A snapshot stands for it, or `_check_base` refuses.
            self._restart_after(run.first, run.terms[0])
        skipped = int(kept < 0)
        kept = max(kept, 0)
        del self._terms[kept:], self._kinds[kept:], self._payloads[kept:]
        self._terms += run.terms[skipped:]
        self._kinds += run.kinds[skipped:]
        self._payloads += run.payloads[skipped:]

    def _restart_after(self, index: LogIndex, term: Term) -> None:
        self._base, self._base_term = index, term
        self._terms.clear()
        self._kinds.clear()
        self._payloads.clear()

    def _check_base(self, mark: SnapshotMark | None, first_name: str, first_segment: int) -> None:
        """Whether what is missing before the entries is what the snapshot stands for."""
        if self._base > (mark.index if mark else 0):
            raise damaged(first_name, 0, f"segment {first_segment - 1} is missing before it")
        if mark is None:
            return
        kept = mark.index - self._base
        term = self._terms[kept - 1] if kept else self._base_term
        if term != mark.term:
            says = f"the snapshot in force is of entry {mark.index} of term {mark.term}"
            raise damaged(first_name, 0, f"{says}, and that entry has term {term} from here on")

    def _check_place(self, state: SegmentState, segment_bytes: int) -> None:
        if (state.segment, state.segment_bytes) != (self._segment, segment_bytes):
            says = f"segment {state.segment} of {state.segment_bytes} bytes"
            raise DamageError(0, f"{says} starts here, and the file has {segment_bytes}")

    def _check_untouched(self, name: str, content: bytes, tail: Spot) -> None:
        """The log has ended at `tail`; only the next segment, made ahead and all zero, may follow."""
        written = first_nonzero_sector(content)
        if written is not None:
            end = f"{tail.name} ends at offset {tail.offset} without naming a next segment"
            raise damaged(name, written, f"there is data here, and {end}")
        if tail.offset == 0 or self._prepared is not None:
            # A segment is made ahead only when the one before it has its first batch on disk.
            raise damaged(
                self._prepared[0] if self._prepared else tail.name,
                0,
                f"the file is all zero, and {name} exists",
            )
