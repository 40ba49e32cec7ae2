"""The log as a row of segments: open it, write a group to it, go on to the next segment.

No queue and no waiting for company here: a call returns when its bytes are durable. The steps,
and what a crash between them leaves:

    create   zeros and content under a temporary name, sync, rename, sync the directory: a file
             that has a segment's name is complete, whenever the power went
    write    one batch, sync: the batch is whole, torn or absent
    rotate   seal, sync; the next segment's state, sync: the next one is empty, torn or has its state
    compact  after a snapshot's mark is durable: the oldest segment removed, sync the directory, and
             so on: no gap between segments; then older snapshots. A start does what is left of it
    open     the last batch and the zeros after it are written once more, then synced: what was read
             may have been in the page cache alone, because the process was killed between write and
             sync, or because a sync failed and the kernel then took the pages for clean
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from lockd.disk.batch import SECTOR_BYTES, Place, batch_bytes, encode_batch
from lockd.disk.errors import DataDirError, DiskFullError, damaged, room_needed
from lockd.disk.files import Files
from lockd.disk.record import Identity, LogWrite, Seal, SnapshotMark, encode_records, records_of
from lockd.disk.recovery import LogImage, Recovered, read_log, segment_name, segment_number
from lockd.disk.snapshots import SnapshotStore, is_unfinished, snapshot_name, snapshot_of
from lockd.disk.stream import StreamState
from lockd.ids import NO_NODE, ClusterId, Incarnation, InstanceId, NodeId
from lockd.raft.entries import HardState

T = TypeVar("T")

SEGMENT_BYTES = 4 * 1024 * 1024
NOBODY: Mapping[NodeId, str] = {}
_UNFINISHED_SUFFIX = ".new"
_SEAL_BYTES = batch_bytes(len(encode_records([Seal(0, 0)])))


def open_log(
    files: Files,
    *,
    node_id: NodeId,
    draw_instance: Callable[[], InstanceId],
    founding: Mapping[NodeId, str] = NOBODY,
    ahead: Executor,
    segment_bytes: int = SEGMENT_BYTES,
) -> tuple[Recovered, "SegmentLog"]:
    """Read the log in `files`, or begin one where there is none; what is returned is durable.

    `founding` has the first members and their addresses for a new directory; an old one has its own.
    `segment_bytes` is the size of new segments, a multiple of 512. Raises CorruptData,
    DataDirError if the log is another node's or a newer version's, and OSError.
    """
    names = files.names()
    for name in names:
        if segment_number(name.removesuffix(_UNFINISHED_SUFFIX)) and name.endswith(_UNFINISHED_SUFFIX):
            files.remove(name)
    segments = [name for name in names if segment_number(name)]
    fresh = not segments
    if fresh:
        _refuse_snapshot_without_log(files)
        identity = Identity(node_id, draw_instance(), ClusterId(""), Incarnation(""), tuple(sorted(founding)))
        segments = [_begin_first_segment(files, StreamState.empty(identity, founding), segment_bytes)]

    image = read_log((files.path(name), files.read(name)) for name in segments)
    owner = image.recovered.identity.node_id
    if owner != node_id:
        raise DataDirError(f"{files.path('')} holds the data of node {owner}, and this is node {node_id}")
    recovered = with_snapshot(image, SnapshotStore(files), files)
    _settle(files, image)
    log = SegmentLog(files, image, ahead=ahead, segment_bytes=segment_bytes)
    return replace(recovered, fresh=fresh), log


def create_log(
    files: Files,
    *,
    identity: Identity,
    address: str,
    snapshot: Iterable[bytes],
    segment_bytes: int = SEGMENT_BYTES,
) -> None:
    """Begin a log that rests on a snapshot: on its file's bytes, as encode_snapshot gives them.

    `address` is where this node is dialled. The snapshot is of `identity`'s cluster and incarnation.
    Raises DataDirError if there is a log already, CorruptData if the bytes are not a whole snapshot,
    and OSError. Cut short, it leaves a directory that `open_log` refuses, and on which it can be
    called again.
    """
    if any(segment_number(name) for name in files.names()):
        raise DataDirError(f"{files.path('')} holds a log: restore into a directory that is new or empty")
    partial = SnapshotStore(files).begin("restored")
    for data in snapshot:
        partial.append(data)
    header = partial.finish().header
    if (header.cluster, header.incarnation) != (identity.cluster, identity.incarnation):
        raise ValueError("the snapshot is of another cluster or incarnation than the log that rests on it")

    meta = header.meta
    state = StreamState.empty(identity, {identity.node_id: address})
    state.hard_state = HardState(meta.term, NO_NODE, meta.index)
    state.last_index, state.last_term = meta.index, meta.term
    state.mark = SnapshotMark(meta.index, meta.term, resets=False)
    _begin_first_segment(files, state, segment_bytes)


class SegmentLog:
    """The open log of one data directory, to be called by one thread at a time.

    The segment after the current one is made by `ahead`, so that going on to it costs two short
    syncs and no zeroing. What a snapshot makes obsolete is removed there too.
    """

    def __init__(self, files: Files, image: LogImage, *, ahead: Executor, segment_bytes: int) -> None:
        """Go on where a log that `open_log` has settled ends."""
        self.snapshots = SnapshotStore(files)
        self._files = files
        self._stream = image.stream
        self._batches = image.batches
        self._ahead = ahead
        self._segment_bytes = segment_bytes
        self._segment = image.tail.segment
        self._capacity = image.tail_segment_bytes
        self._offset = image.tail.offset
        self._file = files.open(segment_name(self._segment))
        self._next: Future[int] = _done(image.prepared_bytes or 0)
        self._compaction: Future[None] = _done(None)
        if self._offset == 0:
            self._begin_segment()
        elif image.prepared_bytes is None:
            self._next = self._make_next()

    def write(self, group: Sequence[LogWrite]) -> None:
        """Make all of `group` durable as one batch: after a crash all of it is there, or nothing.

        After DiskFullError, and if the disk had no more trouble than that, call it again with the
        same group (SAFETY D4). After any other OSError nothing is known about the group, and the
        log must not be used again (D1). Raises ValueError, with nothing written, for a write that
        can't follow what is in the log, or that rests on a snapshot which is not there.
        """
        if self._compaction.done():
            self._compaction.result()
        if self._offset == 0:
            self._begin_segment()
        records = [record for write in group for record in records_of(write)]
        body = encode_records(records)
        if self._offset + batch_bytes(len(body)) + _SEAL_BYTES > self._capacity:
            self._seal_segment(batch_bytes(len(body)))
            self._begin_segment()
        after = self._stream.copy()
        for record in records:
            after.apply(record)
            if isinstance(record, SnapshotMark) and not self.snapshots.has(record.index, record.term):
                raise ValueError(f"{snapshot_name(record.index, record.term)} is not there")
        self._write_batch(body)
        marked = after.mark != self._stream.mark
        self._stream = after
        if marked:
            self._compact()

    def close(self) -> None:
        """Let go of the files. Does not raise, also after a failed write."""
        wait([self._next])
        wait([self._compaction])
        self._file.close()
        self._files.close()

    def _seal_segment(self, group_bytes: int) -> None:
        """Go on to the next segment, which has room for its opening, the group and a seal."""
        needed = batch_bytes(len(self._opening(self._segment + 1, 0))) + group_bytes + _SEAL_BYTES
        if self._next.done() and isinstance(self._next.exception(), DiskFullError):
            self._next = self._make_next()
        capacity = self._next.result()
        if capacity < needed:
            capacity = _create_segment(self._files, self._segment + 1, needed)
        self._write_batch(encode_records([Seal(self._segment + 1, capacity)]))
        self._file.close()
        self._segment += 1
        self._capacity = capacity
        self._offset = 0
        self._file = self._files.open(segment_name(self._segment))

    def _begin_segment(self) -> None:
        self._write_batch(self._opening(self._segment, self._capacity))
        self._stream.apply(self._stream.at_segment(self._segment, self._capacity))
        # Not before the state is durable: recovery takes an empty segment before another for damage.
        self._next = self._make_next()

    def _opening(self, segment: int, capacity: int) -> bytes:
        return encode_records(self._stream.opening(segment, capacity))

    def _write_batch(self, body: bytes) -> None:
        instance = "" if self._offset == 0 else self._stream.identity.instance
        place = Place(instance, self._segment, self._offset // SECTOR_BYTES)
        batch = encode_batch(body, place=place, number=self._batches + 1)
        with room_needed():
            self._file.write_at(self._offset, batch)
        self._file.sync()
        self._offset += len(batch)
        self._batches += 1

    def _make_next(self) -> Future[int]:
        return self._ahead.submit(_create_segment, self._files, self._segment + 1, self._segment_bytes)

    def _compact(self) -> None:
        self._compaction.result()
        obsolete = self._stream.forget_obsolete()
        self._compaction = self._ahead.submit(_remove_obsolete, self._files, obsolete, self._stream.mark)


def _refuse_snapshot_without_log(files: Files) -> None:
    """A restore was cut short, or the log was lost: to begin an empty log here would hide that."""
    for name in files.names():
        if is_unfinished(name) or snapshot_of(name) is not None:
            raise DataDirError(
                f"{files.path(name)}: there is a snapshot here and no log. If a restore was cut short, "
                "restore again; if the log was lost, leave the directory as it is and join a new node "
                "under a new id with an empty one"
            )


def with_snapshot(image: LogImage, snapshots: SnapshotStore, files: Files) -> Recovered:
    """Load the snapshot that the log rests on."""
    mark = image.stream.mark
    if mark is None:
        return image.recovered
    stored, body = snapshots.load(mark.index, mark.term)
    identity, header = image.recovered.identity, stored.header
    its_cluster = (header.cluster, header.incarnation)
    if identity.cluster and its_cluster != (identity.cluster, identity.incarnation):
        found = f"a snapshot of cluster {header.cluster}, incarnation {header.incarnation}, not of this one"
        raise damaged(files.path(snapshot_name(mark.index, mark.term)), 0, found)
    return replace(image.recovered, snapshot=stored, state=body)


def _remove_obsolete(files: Files, segments: Sequence[int], mark: SnapshotMark | None) -> None:
    """Segments in order, each removal synced before the next: what is left has no gap."""
    for number in segments:
        files.remove(segment_name(number))
        files.sync_directory()
    if mark is not None:
        SnapshotStore(files).remove_before(mark.index)
        files.sync_directory()


def _begin_first_segment(files: Files, state: StreamState, segment_bytes: int) -> str:
    batch = encode_batch(encode_records(state.opening(1, segment_bytes)), place=Place("", 1, 0), number=1)
    _create_segment(files, 1, segment_bytes, batch)
    return segment_name(1)


def _create_segment(files: Files, number: int, segment_bytes: int, first_batch: bytes = b"") -> int:
    """Make a zeroed segment under its name, durably; returns its size."""
    name = segment_name(number)
    try:
        with room_needed():
            _write_unfinished(files, name + _UNFINISHED_SUFFIX, segment_bytes, first_batch)
            files.rename(name + _UNFINISHED_SUFFIX, name)
    except DiskFullError:
        with suppress(OSError):
            files.remove(name + _UNFINISHED_SUFFIX)
        raise
    files.sync_directory()
    return segment_bytes


def _write_unfinished(files: Files, name: str, segment_bytes: int, first_batch: bytes) -> None:
    file = files.create(name)
    try:
        file.write_at(0, bytes(segment_bytes))
        if first_batch:
            file.write_at(0, first_batch)
        file.sync()
    finally:
        file.close()


def _settle(files: Files, image: LogImage) -> None:
    """Make durable what was read, erase what a torn batch left, so that it can't come back, and
    remove what is left of an earlier life."""
    last, batch = image.last_batch
    zeros = bytes(image.tail_segment_bytes - image.tail.offset)
    for spot, content in ((last, batch), (image.tail, zeros)):
        file = files.open(segment_name(spot.segment))
        try:
            with room_needed():
                file.write_at(spot.offset, content)
            file.sync()
        finally:
            file.close()
    files.sync_directory()
    mark = image.stream.mark
    _remove_obsolete(files, image.stream.forget_obsolete(), mark)
    SnapshotStore(files).remove_all_but((mark.index, mark.term) if mark else None)


def _done(result: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(result)
    return future
