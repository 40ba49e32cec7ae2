"""A snapshot of the state without stopping the loop: a forked child writes what it sees (SAFETY C9).

The child shares the parent's memory as it was at the fork, so what it writes is the state between
two entries, however long that takes; the parent goes on at once. The child runs a few calls that
take no lock another thread of the parent might have held (no logging, no event loop) and ends
without any of the parent's cleaning up. It gives back all that it inherited but its file: a child
that outlives its parent must not keep ports or the lock on the data directory.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import stat
import warnings
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import TypeVar

from lockd.disk.errors import DataDirError, DiskFullError
from lockd.disk.snapshot_file import SnapshotHeader, StoredSnapshot, encode_snapshot
from lockd.disk.snapshots import PartialSnapshot, SnapshotReader, SnapshotStore
from lockd.errors import CorruptData
from lockd.ids import LogIndex, Term

log = logging.getLogger(__name__)

T = TypeVar("T")

_EXIT_FAILED = 1
_EXIT_FULL = 2
_REASONS = {_EXIT_FAILED: "its writer has failed", _EXIT_FULL: "the disk is full"}


class ForkingSnapshots:
    """The snapshot files of a node, on its event loop. Implements lockd.server.snapshots.SnapshotFiles."""

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store
        self._tasks: set[asyncio.Task[None]] = set()
        self._child = 0

    def take(
        self,
        header: SnapshotHeader,
        body: Callable[[], Iterator[bytes]],
        on_taken: Callable[[StoredSnapshot | None], None],
    ) -> None:
        self._write("taken", header, body, PartialSnapshot.finish, on_taken)

    def back_up(
        self,
        header: SnapshotHeader,
        body: Callable[[], Iterator[bytes]],
        on_ready: Callable[[SnapshotReader | None], None],
    ) -> None:
        self._write("backup", header, body, lambda partial: partial.detach()[1], on_ready)

    def begin(self) -> PartialSnapshot:
        return self._store.begin("received")

    def finish(self, partial: PartialSnapshot, on_finished: Callable[[StoredSnapshot | None], None]) -> None:
        self._watch(self._complete(partial, PartialSnapshot.finish, on_finished))

    def open(self, index: LogIndex, term: Term) -> SnapshotReader:
        return self._store.open(index, term)

    def load(self, index: LogIndex, term: Term) -> tuple[StoredSnapshot, bytes]:
        return self._store.load(index, term)

    async def stop(self) -> None:
        """Give up the snapshot that is being written, and wait until nothing is."""
        if self._child:
            os.kill(self._child, signal.SIGKILL)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _watch(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name="snapshot")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            report = {"message": "a snapshot has failed", "exception": error}
            task.get_loop().call_exception_handler(report)

    def _write(
        self,
        label: str,
        header: SnapshotHeader,
        body: Callable[[], Iterator[bytes]],
        complete: Callable[[PartialSnapshot], T],
        on_done: Callable[[T | None], None],
    ) -> None:
        try:
            partial = self._store.begin(label)
            child = _fork_to_write(partial, encode_snapshot(header, body()))
        except OSError as error:
            log.error("cannot take a snapshot: %s", error)  # noqa: TRY400 - one line says it
            on_done(None)
        else:
            self._watch(self._await_child(child, partial, complete, on_done))

    async def _await_child(
        self,
        child: int,
        partial: PartialSnapshot,
        complete: Callable[[PartialSnapshot], T],
        on_done: Callable[[T | None], None],
    ) -> None:
        self._child = child
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        self._child = 0
        if status != 0:
            reason = _REASONS.get(os.waitstatus_to_exitcode(status), f"its writer ended with status {status}")
            log.error("cannot take a snapshot: %s; the next is tried after more log", reason)
            partial.discard()
            on_done(None)
            return
        await self._complete(partial, complete, on_done)

    async def _complete(
        self,
        partial: PartialSnapshot,
        complete: Callable[[PartialSnapshot], T],
        on_done: Callable[[T | None], None],
    ) -> None:
        try:
            done = await asyncio.to_thread(complete, partial)
        except (CorruptData, DataDirError, DiskFullError) as error:
            log.error("a snapshot can't be used: %s", error)  # noqa: TRY400 - one line says it
            on_done(None)
        else:
            if isinstance(done, StoredSnapshot):
                log.info("snapshot of entry %d is on disk, %d bytes", done.header.meta.index, done.file_bytes)
            on_done(done)


def _fork_to_write(partial: PartialSnapshot, pieces: Iterable[bytes]) -> int:
    """Write the pieces in a child; returns its process id. It exits 0 when all is written."""
    with warnings.catch_warnings():
        # Python 3.12 warns that a child of a process with threads may deadlock: on a lock that one
        # of them holds. This child takes none; what malloc holds is released by the C library.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    status = _EXIT_FAILED
    try:
        _leave_the_parent()
        for piece in pieces:
            partial.append(piece)
        status = 0
    except DiskFullError:
        status = _EXIT_FULL
    finally:
        os._exit(status)


def _leave_the_parent() -> None:
    """Keep of what was inherited only memory and files: no connection, no port, no lock, no handler."""
    gc.disable()  # a collection would touch, and so copy, every page of the parent's objects
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, not paths
        with contextlib.suppress(OSError):  # one of them was the listing itself
            mode = os.fstat(int(name)).st_mode
            if stat.S_ISSOCK(mode) or stat.S_ISDIR(mode):
                os.close(int(name))
    os.nice(5)
