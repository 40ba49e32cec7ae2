"""A disk in memory that keeps only what was synced: the twin of lockd.disk.files.OsFiles.

What the process sees and what the disk has are kept apart. A write is pending until its file is
synced; a name until the directory is. When the power goes, each pending write is kept whole, lost,
cut at a byte, or kept sector by sector; each pending name is kept or lost. A sync that fails does
what Linux does: the process goes on seeing the bytes, and no later sync writes them.

`SimulatedLog` is a node's log on such a disk, without threads, for simulations.
"""

import enum
import errno
import os
import random
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import NamedTuple, ParamSpec, TypeVar

from lockd.disk.batch import SECTOR_BYTES
from lockd.disk.errors import DiskFullError
from lockd.disk.record import LogWrite
from lockd.disk.recovery import Recovered
from lockd.disk.segments import NOBODY, SegmentLog, open_log
from lockd.disk.snapshots import SnapshotStore
from lockd.ids import InstanceId, NodeId

P = ParamSpec("P")
T = TypeVar("T")


class PowerLossError(Exception):
    """The power went during this step."""


class Tear(enum.Enum):
    """What becomes of a write that was pending when the power went."""

    KEPT = enum.auto()
    LOST = enum.auto()
    CUT_AT_A_BYTE = enum.auto()
    SOME_SECTORS = enum.auto()


class Operation(enum.Enum):
    """What a process asks of the disk; each is one step."""

    CREATE = enum.auto()
    WRITE = enum.auto()
    SYNC = enum.auto()
    RENAME = enum.auto()
    REMOVE = enum.auto()
    SYNC_DIRECTORY = enum.auto()


class Fault(NamedTuple):
    """From step `at` on, every operation of those kinds fails; a write when half of it is done."""

    at: int
    kinds: frozenset[Operation]
    error: int


class MemoryFile:
    """An open file of `MemoryFiles`."""

    def __init__(self, disk: "MemoryFiles") -> None:
        self._disk = disk
        self.seen = bytearray()
        self.durable = bytearray()
        self.pending: list[tuple[int, bytes]] = []

    def write_at(self, offset: int, content: bytes) -> None:
        if self._disk.is_full and offset + len(content) > len(self.seen):
            raise OSError(errno.ENOSPC, "No space left on device")
        fault = self._disk.due(Operation.WRITE)
        written = bytes(content[: len(content) // 2] if fault else content)
        put(self.seen, offset, written)
        self.pending.append((offset, written))
        if fault:
            raise fault
        self._disk.step(Operation.WRITE)

    def read_at(self, offset: int, count: int) -> bytes:
        return bytes(self.seen[offset : offset + count])

    def size(self) -> int:
        return len(self.seen)

    def sync(self) -> None:
        fault = self._disk.due(Operation.SYNC)
        self._disk.step(Operation.SYNC)
        pending, self.pending = self.pending, []
        if self._disk.syncs_fail:
            raise OSError(errno.EIO, "Input/output error")
        if fault:
            raise fault
        for offset, content in pending:
            put(self.durable, offset, content)

    def close(self) -> None:
        pass

    def lose_power(self, rng: random.Random) -> None:
        for offset, content in self.pending:
            tear(self.durable, offset, content, rng)
        self.pending.clear()
        self.seen = bytearray(self.durable)


class MemoryFiles:
    """A directory of files in memory; `history` has the steps that were taken.

    Set `power_lasts` to a number of further steps, and the one after them raises PowerLossError,
    half done. Then `lose_power` makes the disk what it is when the power is back. Set `fault`, and
    operations fail, until it is None again.
    """

    def __init__(self) -> None:
        self.history: list[Operation] = []
        self.fault: Fault | None = None
        self.power_lasts: int | None = None
        self.syncs_fail = False
        self.is_full = False
        self._seen: dict[str, MemoryFile] = {}
        self._durable: dict[str, MemoryFile] = {}
        self._pending: list[Callable[[dict[str, MemoryFile]], None]] = []

    def path(self, name: str) -> str:
        return f"memory/{name}"

    def names(self) -> list[str]:
        return sorted(self._seen)

    def create(self, name: str) -> MemoryFile:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        file = self.new_file()
        self._change(Operation.CREATE, lambda names: names.update({name: file}))
        return file

    def new_file(self) -> MemoryFile:
        return MemoryFile(self)

    def open(self, name: str) -> MemoryFile:
        return self._file(name)

    def open_to_read(self, name: str) -> MemoryFile:
        return self._file(name)

    def read(self, name: str) -> bytes:
        return bytes(self._file(name).seen)

    def rename(self, name: str, new_name: str) -> None:
        file = self._file(name)

        def apply(names: dict[str, MemoryFile]) -> None:
            names.pop(name, None)
            names[new_name] = file

        self._change(Operation.RENAME, apply)

    def remove(self, name: str) -> None:
        self._file(name)

        def apply(names: dict[str, MemoryFile]) -> None:
            names.pop(name, None)

        self._change(Operation.REMOVE, apply)

    def sync_directory(self) -> None:
        fault = self.due(Operation.SYNC_DIRECTORY)
        self.step(Operation.SYNC_DIRECTORY)
        if fault:
            raise fault
        self._pending.clear()
        self._durable = dict(self._seen)

    def close(self) -> None:
        pass

    @property
    def steps(self) -> int:
        return len(self.history)

    def due(self, operation: Operation) -> OSError | None:
        """The error that this operation is to fail with, if any."""
        fault = self.fault
        if fault is None or operation not in fault.kinds or len(self.history) < fault.at:
            return None
        return OSError(fault.error, os.strerror(fault.error))

    def step(self, operation: Operation) -> None:
        self.history.append(operation)
        if self.power_lasts is not None:
            self.power_lasts -= 1
            if self.power_lasts < 0:
                raise PowerLossError

    def lose_power(self, rng: random.Random) -> None:
        """What was pending is torn as `rng` decides; the rest is as it was last synced."""
        for change in self._pending:
            if rng.random() < 0.5:
                change(self._durable)
        self._pending.clear()
        self._seen = dict(self._durable)
        for file in self._durable.values():
            file.lose_power(rng)
        self.power_lasts = None

    def _file(self, name: str) -> MemoryFile:
        if name not in self._seen:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", name)
        return self._seen[name]

    def _change(self, operation: Operation, change: Callable[[dict[str, MemoryFile]], None]) -> None:
        fault = self.due(operation)
        if fault:
            raise fault
        change(self._seen)
        self._pending.append(change)
        self.step(operation)


class Inline(Executor):
    """Does the work at once, so that steps have one order. An OSError goes to who asks for the result."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except OSError as error:
            future.set_exception(error)
        return future


class SimulatedLog:
    """One node's log on a `MemoryFiles` disk: the production code, less its thread.

    submit, submit, sync -> the highest ticket, now durable. A snapshot is made in `snapshots`, and
    counts once a write with its mark is durable. `crash` gives what the node starts
    with after the power went at a moment of `rng`'s choice: everything of the last `sync`, and
    perhaps what was submitted since.
    """

    def __init__(
        self,
        node_id: NodeId,
        draw_instance: Callable[[], InstanceId],
        *,
        founding: Mapping[NodeId, str] = NOBODY,
        segment_bytes: int = 16 * 1024,
    ) -> None:
        self.disk = MemoryFiles()
        self._node_id = node_id
        self._draw_instance = draw_instance
        self._founding = founding
        self._segment_bytes = segment_bytes
        self._waiting: list[LogWrite] = []
        self._under_way: list[LogWrite] = []
        self.recovered, self._log = self._open()

    @property
    def snapshots(self) -> SnapshotStore:
        return self._log.snapshots

    def submit(self, write: LogWrite) -> None:
        self._waiting.append(write)

    def sync(self) -> int | None:
        """Write and sync what waits, as one group; None when nothing does.

        None on a full disk too: then the next call tries the same group again (SAFETY D4).
        """
        if not self._under_way:
            self._under_way, self._waiting = self._waiting, []
        if not self._under_way:
            return None
        try:
            self._log.write(self._under_way)
        except DiskFullError:
            return None
        except OSError:  # the process ends: it writes nothing more (D1)
            self._under_way.clear()
            self._waiting.clear()
            raise
        group, self._under_way = self._under_way, []
        return group[-1].ticket

    def crash(self, rng: random.Random) -> Recovered:
        """Lose the power in the midst of writing what waits, then start again."""
        self.disk.power_lasts = rng.randrange(8)
        with suppress(PowerLossError, OSError):
            self.sync()
        self._waiting.clear()
        self._under_way.clear()
        self.disk.lose_power(rng)
        return self.reopen()

    def reopen(self) -> Recovered:
        """Start from what the disk holds. Raises CorruptData if that is damaged."""
        self.recovered, self._log = self._open()
        return self.recovered

    @property
    def finds_no_room(self) -> bool:
        """Whether the last sync left a group that a full disk had no room for."""
        return bool(self._under_way)

    def _open(self) -> tuple[Recovered, SegmentLog]:
        return open_log(
            self.disk,
            node_id=self._node_id,
            draw_instance=self._draw_instance,
            founding=self._founding,
            ahead=Inline(),
            segment_bytes=self._segment_bytes,
        )


def put(target: bytearray, offset: int, content: bytes) -> None:
    if len(target) < offset:
        target.extend(bytes(offset - len(target)))
    target[offset : offset + len(content)] = content


def tear(target: bytearray, offset: int, content: bytes, rng: random.Random) -> None:
    match rng.choice(list(Tear)):
        case Tear.KEPT:
            put(target, offset, content)
        case Tear.LOST:
            pass
        case Tear.CUT_AT_A_BYTE:
            put(target, offset, content[: rng.randrange(len(content) + 1)])
        case Tear.SOME_SECTORS:
            for at in range(0, len(content), SECTOR_BYTES):
                if rng.random() < 0.5:
                    put(target, offset + at, content[at : at + SECTOR_BYTES])
