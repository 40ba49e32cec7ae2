"""The log as a row of segments: open it, write a group to it, go on to the next segment.

No queue and no waiting for company here: a call returns when its bytes are durable. The steps,
and what a crash between them leaves:

    create   zeros and content under a temporary name, sync, rename, sync the directory: a file
             that has a segment's name is complete, whenever the power went
    write    one batch, sync: the batch is whole, torn or absent
    rotate   seal, sync; the next segment's state, sync: the next one is empty, torn or has its state
    open     the last batch and the zeros after it are written once more, then synced: what was read
             may have been in the page cache alone, because the process was killed between write and
             sync, or because a sync failed and the kernel then took the pages for clean
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import replace

from lockd.disk.batch import SECTOR_BYTES, Place, batch_bytes, encode_batch
from lockd.disk.errors import DataDirError
from lockd.disk.files import Files
from lockd.disk.record import Identity, LogWrite, Seal, encode_records, records_of
from lockd.disk.recovery import LogImage, Recovered, read_log, segment_name, segment_number
from lockd.disk.stream import StreamState
from lockd.ids import ClusterId, Incarnation, InstanceId, NodeId

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
        identity = Identity(node_id, draw_instance(), ClusterId(""), Incarnation(""), tuple(sorted(founding)))
        segments = [_begin_first_segment(files, identity, founding, segment_bytes)]

    image = read_log((files.path(name), files.read(name)) for name in segments)
    owner = image.recovered.identity.node_id
    if owner != node_id:
        raise DataDirError(f"{files.path('')} holds the data of node {owner}, and this is node {node_id}")
    _settle(files, image)
    log = SegmentLog(files, image, ahead=ahead, segment_bytes=segment_bytes)
    return replace(image.recovered, fresh=fresh), log


class SegmentLog:
    """The open log of one data directory, to be called by one thread at a time.

    The segment after the current one is made by `ahead`, so that going on to it costs two short
    syncs and no zeroing.
    """

    def __init__(self, files: Files, image: LogImage, *, ahead: Executor, segment_bytes: int) -> None:
        """Go on where a log that `open_log` has settled ends."""
        self._files = files
        self._stream = image.stream
        self._batches = image.batches
        self._ahead = ahead
        self._segment_bytes = segment_bytes
        self._segment = image.tail.segment
        self._capacity = image.tail_segment_bytes
        self._offset = image.tail.offset
        self._file = files.open(segment_name(self._segment))
        if self._offset == 0:
            self._write_state()
        self._next = self._make_next() if image.prepared_bytes is None else _done(image.prepared_bytes)

    def write(self, group: Sequence[LogWrite]) -> None:
        """Make all of `group` durable as one batch: after a crash all of it is there, or nothing.

        After OSError nothing is known about the group, and the log must not be used again (D1).
        Raises ValueError, with nothing written, for entries or a term that can't follow.
        """
        records = [record for write in group for record in records_of(write)]
        body = encode_records(records)
        if self._offset + batch_bytes(len(body)) + _SEAL_BYTES > self._capacity:
            self._rotate(batch_bytes(len(body)))
        for record in records:
            self._stream.apply(record)
        self._write_batch(body)

    def close(self) -> None:
        """Let go of the files. Does not raise, also after a failed write."""
        wait([self._next])
        self._file.close()
        self._files.close()

    def _rotate(self, group_bytes: int) -> None:
        """Seal this segment and go on to the next, with room for its state, the group and a seal."""
        needed = batch_bytes(len(self._encoded_state())) + group_bytes + _SEAL_BYTES
        capacity = self._next.result()
        if capacity < needed:
            capacity = _create_segment(self._files, self._segment + 1, needed)
        self._write_batch(encode_records([Seal(self._segment + 1, capacity)]))
        self._file.close()

        self._segment += 1
        self._capacity = capacity
        self._offset = 0
        self._file = self._files.open(segment_name(self._segment))
        self._write_state()
        # Not before the state is durable: recovery takes an empty segment before another for damage.
        self._next = self._make_next()

    def _encoded_state(self) -> bytes:
        return encode_records([self._stream.snapshot(self._segment, self._capacity)])

    def _write_state(self) -> None:
        self._write_batch(self._encoded_state())

    def _write_batch(self, body: bytes) -> None:
        instance = "" if self._offset == 0 else self._stream.identity.instance
        place = Place(instance, self._segment, self._offset // SECTOR_BYTES)
        batch = encode_batch(body, place=place, number=self._batches + 1)
        self._file.write_at(self._offset, batch)
        self._file.sync()
        self._offset += len(batch)
        self._batches += 1

    def _make_next(self) -> Future[int]:
        return self._ahead.submit(_create_segment, self._files, self._segment + 1, self._segment_bytes)


def _begin_first_segment(
    files: Files, identity: Identity, founding: Mapping[NodeId, str], segment_bytes: int
) -> str:
    state = StreamState.empty(identity, founding).snapshot(1, segment_bytes)
    batch = encode_batch(encode_records([state]), place=Place("", 1, 0), number=1)
    _create_segment(files, 1, segment_bytes, batch)
    return segment_name(1)


def _create_segment(files: Files, number: int, segment_bytes: int, first_batch: bytes = b"") -> int:
    """Make a zeroed segment under its name, durably; returns its size."""
    name = segment_name(number)
    file = files.create(name + _UNFINISHED_SUFFIX)
    try:
        file.write_at(0, bytes(segment_bytes))
        if first_batch:
            file.write_at(0, first_batch)
        file.sync()
    finally:
        file.close()
    files.rename(name + _UNFINISHED_SUFFIX, name)
    files.sync_directory()
    return segment_bytes


def _settle(files: Files, image: LogImage) -> None:
    """Make durable what was read, and erase what a torn batch left, so that it can't come back."""
    last, batch = image.last_batch
    zeros = bytes(image.tail_segment_bytes - image.tail.offset)
    for spot, content in ((last, batch), (image.tail, zeros)):
        file = files.open(segment_name(spot.segment))
        try:
            file.write_at(spot.offset, content)
            file.sync()
        finally:
            file.close()
    files.sync_directory()


def _done(segment_bytes: int) -> Future[int]:
    future: Future[int] = Future()
    future.set_result(segment_bytes)
    return future
