"""The write-ahead log's thread: many writes in, one sync for all that wait, then one callback.

    loop thread          submit  submit  submit submit           submit
    writer thread                [write+sync]  [write+sync of 2]  ...
    on_durable                              1                 3

The thread is the log's only user, so the order of `submit` is the order on disk.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue

from lockd.disk.errors import DataDirError, DiskFullError, LogClosedError, unreachable
from lockd.disk.files import Files, OsFiles
from lockd.disk.record import Identity, LogWrite, SnapshotMark
from lockd.disk.recovery import Recovered
from lockd.disk.segments import NOBODY, SEGMENT_BYTES, SegmentLog, create_log, open_log
from lockd.ids import InstanceId, NodeId

__all__ = [
    "DataDirError",
    "Identity",
    "LogClosedError",
    "LogWrite",
    "Recovered",
    "SnapshotMark",
    "Wal",
    "create_from_snapshot",
    "open_data_dir",
]

FULL_RETRY_S = 1.0
"""How long a write waits for room before it is tried again (SAFETY D4)."""

GROUP_BYTES_MAX = 1024 * 1024
"""A group takes no further write once its payloads reach this; a sync of 1 MiB takes about 1 ms."""


def open_data_dir(
    path: Path | str,
    *,
    node_id: NodeId,
    draw_instance: Callable[[], InstanceId],
    founding: Mapping[NodeId, str] = NOBODY,
    segment_bytes: int = SEGMENT_BYTES,
) -> tuple[Recovered, "Wal"]:
    """Lock the data directory (made if need be), recover it, and get it ready for writes.

    What is returned is durable. The lock is held until `Wal.close`. Raises CorruptData if the
    log is damaged (SAFETY D3), DataDirError with one clear line if the directory is in use,
    another node's, or can't be read or written.
    """
    return open_wal(
        OsFiles(Path(path)),
        node_id=node_id,
        founding=founding,
        draw_instance=draw_instance,
        segment_bytes=segment_bytes,
    )


def create_from_snapshot(
    path: Path | str, *, identity: Identity, address: str, snapshot: Iterable[bytes]
) -> None:
    """Make a data directory whose log rests on a snapshot, durably; a start goes on from there.

    `snapshot` has the file's bytes in any pieces, and is of `identity`'s cluster and incarnation;
    `address` is where the node is dialled. Raises DataDirError if the directory holds a log or can't
    be written, CorruptData if the bytes are not a whole snapshot. Cut short, it leaves a directory
    that no node starts from, and on which it can be called again.
    """
    files = OsFiles(Path(path))
    try:
        create_log(files, identity=identity, address=address, snapshot=snapshot)
    except OSError as error:
        raise unreachable(files.path(""), error) from error
    finally:
        files.close()


def open_wal(
    files: Files,
    *,
    node_id: NodeId,
    draw_instance: Callable[[], InstanceId],
    founding: Mapping[NodeId, str] = NOBODY,
    segment_bytes: int = SEGMENT_BYTES,
) -> tuple[Recovered, "Wal"]:
    """As `open_data_dir`, over any `Files`; they are closed with the log, or if opening fails."""
    ahead = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lockd-wal-ahead")
    try:
        recovered, log = open_log(
            files,
            node_id=node_id,
            founding=founding,
            draw_instance=draw_instance,
            ahead=ahead,
            segment_bytes=segment_bytes,
        )
    except BaseException as error:
        ahead.shutdown()
        files.close()
        if isinstance(error, OSError):
            raise unreachable(files.path(""), error) from error
        raise
    return recovered, Wal(log, ahead)


class Wal:
    """Writes in FIFO order on a thread of its own, and tells when they are durable.

    The first error of a write or a sync is the last thing that happens (SAFETY D1): `on_failure`
    is called once, nothing is called durable after it, and `submit` refuses. The owner ends the
    process: after a failed sync the kernel may show bytes that the disk does not have.

    A full disk is no such error (D4): what could not be written waits, and all that is submitted
    after it, until there is room.
    """

    def __init__(self, log: SegmentLog, ahead: ThreadPoolExecutor) -> None:
        self.snapshots = log.snapshots
        self._log = log
        self._ahead = ahead
        self._queue: SimpleQueue[LogWrite | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._refusing = False
        self._closing = threading.Event()

    def start(
        self,
        on_durable: Callable[[int], None],
        on_failure: Callable[[BaseException], None],
        on_full: Callable[[bool], None],
    ) -> None:
        """Begin to write. All are called on the writer thread.

        `on_durable(ticket)`: this write and all that were submitted before it are on disk.
        `on_full(is_full)`: from now on the disk has no room for what waits; or it has again.
        """
        assert self._thread is None, "started twice"
        self._thread = threading.Thread(
            target=self._run, args=(on_durable, on_failure, on_full), name="lockd-wal", daemon=True
        )
        self._thread.start()

    def submit(self, write: LogWrite) -> None:
        """Queue a write; any thread. Raises LogClosedError after `close` or a failure.

        A write that is accepted while a failure happens is never called durable.
        """
        if self._refusing:
            raise LogClosedError("the log takes no more writes")
        self._queue.put(write)

    def close(self) -> None:
        """Write what was submitted, end the thread, unlock the directory. Calls after the first do nothing.

        On a full disk it is tried once more. Not to be called from the callbacks.
        """
        if self._closing.is_set():
            return
        self._refusing = True
        self._closing.set()
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()
        self._log.close()
        self._ahead.shutdown()

    def _run(
        self,
        on_durable: Callable[[int], None],
        on_failure: Callable[[BaseException], None],
        on_full: Callable[[bool], None],
    ) -> None:
        try:
            for group in iter(self._take_group, []):
                if not self._write_when_there_is_room(group, on_full):
                    return
                on_durable(group[-1].ticket)
        except Exception as error:  # noqa: BLE001 - the thread's one boundary: the owner ends the process
            self._refusing = True
            on_failure(error)

    def _write_when_there_is_room(self, group: Sequence[LogWrite], on_full: Callable[[bool], None]) -> bool:
        """Write the group; False if there was no room for it until the log was closed (SAFETY D4)."""
        told = is_full = False
        while True:
            was_closing = self._closing.is_set()
            try:
                self._log.write(group)
                is_full = False
            except DiskFullError:
                is_full = True
            if is_full != told:
                on_full(is_full)
                told = is_full
            if not is_full or was_closing:
                return not is_full
            self._closing.wait(FULL_RETRY_S)

    def _take_group(self) -> list[LogWrite]:
        """Wait for a write and take along all that wait, up to the limit; empty when closing."""
        group: list[LogWrite] = []
        taken_bytes = 0
        write = self._queue.get()
        while write is not None:
            group.append(write)
            taken_bytes += sum(map(len, write.append.payloads)) if write.append else 0
            if taken_bytes >= GROUP_BYTES_MAX:
                break
            try:
                write = self._queue.get_nowait()
            except Empty:
                break
        if group and write is None:
            # Closing: this group first, then the end.
            self._queue.put(None)
        return group
