"""A snapshot of the state without stopping the loop: a forked child writes what it sees (SAFETY C9).

The child shares the parent's memory as it was at the fork, so what it writes is the state between
two entries, however long that takes; the parent goes on at once. The child runs a few calls that
take no lock another thread of the parent might have held (no logging, no event loop) and ends
without any of the parent's cleaning up. It gives back the connections, ports and directories that it
inherited: a child that outlives its parent must not keep the lock on the data directory. What went
wrong it says through a pipe, whose end is also how the parent hears of the child's.
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
from typing import NamedTuple, TypeVar

from lockd.disk.errors import DataDirError, DiskFullError
from lockd.disk.snapshot_file import SnapshotHeader, StoredSnapshot, encode_snapshot
from lockd.disk.snapshots import PartialSnapshot, SnapshotReader, SnapshotStore
from lockd.errors import CorruptData
from lockd.ids import LogIndex, Term
from lockd.locks.machine import LockMachine
from lockd.server.recovering import machine_of

log = logging.getLogger(__name__)

T = TypeVar("T")

_EXIT_FAILED = 1
_REASON_BYTES_MAX = 4096
"""What a pipe takes for certain, also when nobody reads it yet."""
_DESCRIPTORS = "/dev/fd"
"""Lists this process's open files, on Linux and elsewhere."""


class _Writer(NamedTuple):
    """A child that writes a snapshot."""

    process: int
    pipe: int
    """Gives the reason if it fails, and ends with it."""


class ForkingSnapshots:
    """The snapshot files of a node, on its event loop. Implements lockd.server.snapshots.SnapshotFiles."""

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store
        self._tasks: set[asyncio.Task[None]] = set()
        self._writer: _Writer | None = None
        self._received: tuple[StoredSnapshot, LockMachine] | None = None
        self._told_of_no_room = False
        self._stopping = False

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

    def no_room(self, error: DiskFullError) -> None:
        if not self._told_of_no_room:  # it comes again and again
            self._told_of_no_room = True
            log.error("no room for the snapshot that the leader sends, so this node stays behind: %s", error)

    def finish(self, partial: PartialSnapshot, on_finished: Callable[[StoredSnapshot | None], None]) -> None:
        self._told_of_no_room = False
        self._watch(self._finish_and_decode(partial, on_finished))

    def open(self, index: LogIndex, term: Term) -> SnapshotReader:
        return self._store.open(index, term)

    def load(self, index: LogIndex, term: Term) -> tuple[StoredSnapshot, LockMachine]:
        assert self._received is not None, "only while its arrival is told"
        meta = self._received[0].header.meta
        assert (meta.index, meta.term) == (index, term), "another one has arrived"
        return self._received

    async def stop(self) -> None:
        """Give up the snapshot that is being written, and wait until nothing is. Begins no other."""
        self._stopping = True
        if self._writer is not None:
            os.kill(self._writer.process, signal.SIGKILL)
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
        if self._stopping:
            on_done(None)
            return
        try:
            partial = self._store.begin(label)
        except OSError as error:
            log.error("cannot take a snapshot: %s", error)  # noqa: TRY400 - one line says it
            on_done(None)
            return
        try:
            writer = self._writer = _fork_to_write(partial, encode_snapshot(header, body()))
        except OSError as error:
            log.error("cannot take a snapshot: no process for it: %s", error)  # noqa: TRY400 - as above
            partial.discard()
            on_done(None)
        else:
            self._watch(self._await_writer(writer, partial, complete, on_done))

    async def _await_writer(
        self,
        writer: _Writer,
        partial: PartialSnapshot,
        complete: Callable[[PartialSnapshot], T],
        on_done: Callable[[T | None], None],
    ) -> None:
        reason = await asyncio.to_thread(_read_to_the_end, writer.pipe)
        # Its files are closed, so it is gone but for its status. To ask for that gives its number
        # free: here, where `stop` can't be about to kill whoever has it next.
        _, status = os.waitpid(writer.process, 0)  # noqa: ASYNC222 - returns at once
        self._writer = None
        if status == 0:
            on_done(await self._completed(partial, complete))
            return
        if not self._stopping:
            why = reason or _how_it_ended(status)
            log.error("cannot take a snapshot: %s; the next is tried after more log", why)
        partial.discard()
        on_done(None)

    async def _completed(
        self, partial: PartialSnapshot, complete: Callable[[PartialSnapshot], T]
    ) -> T | None:
        """Its outcome, on a thread; None if that is a file that is thrown away."""
        try:
            done = await asyncio.to_thread(complete, partial)
        except (CorruptData, DataDirError, DiskFullError) as error:
            log.error("a snapshot can't be used: %s", error)  # noqa: TRY400 - one line says it
            return None
        if isinstance(done, StoredSnapshot):
            log.info("snapshot of entry %d is on disk, %d bytes", done.header.meta.index, done.file_bytes)
        return done

    async def _finish_and_decode(
        self, partial: PartialSnapshot, on_finished: Callable[[StoredSnapshot | None], None]
    ) -> None:
        stored = await self._completed(partial, PartialSnapshot.finish)
        if stored is not None:
            self._received = stored, await asyncio.to_thread(self._decode, stored)
        on_finished(stored)
        self._received = None

    def _decode(self, stored: StoredSnapshot) -> LockMachine:
        """On a thread: it takes seconds for a state of many locks, and the loop must go on electing.

        What it makes is handed over whole, so nothing is shared. Without collections meanwhile, each of
        which would hold the loop up for as long as it takes to look at all that is there already.
        """
        meta = stored.header.meta
        gc.disable()
        try:
            machine = machine_of(*self._store.load(meta.index, meta.term))
            # To and fro puts all objects among the old ones. As young as they are, the next collection,
            # of the young ones, would look at every one of them.
            gc.freeze()
            gc.unfreeze()
        finally:
            gc.enable()
        return machine


def _fork_to_write(partial: PartialSnapshot, pieces: Iterable[bytes]) -> _Writer:
    """Write the pieces in a child. It exits 0 when all is written."""
    reading, writing = os.pipe()
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns that a child of a process with threads may deadlock: on a lock that one
            # of them holds. This child takes none; what malloc holds is released by the C library.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        raise
    if child:
        os.close(writing)
        return _Writer(child, reading)
    status = _EXIT_FAILED
    try:
        _leave_the_parent()
        for piece in pieces:
            partial.append(piece)
        status = 0
    except DiskFullError:
        os.write(writing, b"the disk is full")
    except BaseException as error:  # noqa: BLE001 - the boundary of this process: the parent logs it
        reason = f"its writer has failed: {type(error).__name__}: {error}"
        os.write(writing, reason.encode(errors="replace")[:_REASON_BYTES_MAX])
    finally:
        os._exit(status)


def _leave_the_parent() -> None:
    """Keep of what was inherited only memory and files: no connection, no port, no lock, no handler."""
    gc.disable()  # a collection would touch, and so copy, every page of the parent's objects
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    for name in os.listdir(_DESCRIPTORS):  # noqa: PTH208 - numbers, not paths
        with contextlib.suppress(OSError):  # one of them was the listing itself
            mode = os.fstat(int(name)).st_mode
            if stat.S_ISSOCK(mode) or stat.S_ISDIR(mode):
                os.close(int(name))
    os.nice(5)


def _read_to_the_end(pipe: int) -> str:
    """What the child has to say; returns when it has ended, however it did."""
    with open(pipe, "rb") as reading:
        return reading.read().decode(errors="replace")


def _how_it_ended(status: int) -> str:
    """For a child that could not say it; `status` is waitpid's."""
    code = os.waitstatus_to_exitcode(status)
    return f"its writer was ended by signal {-code}" if code < 0 else f"its writer exited with status {code}"
