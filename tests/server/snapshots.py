"""The snapshot files of a simulated node: written at once, without a child process."""

from collections.abc import Callable, Iterator

from lockd.disk.errors import DataDirError, DiskFullError
from lockd.disk.snapshot_file import SnapshotHeader, StoredSnapshot, encode_snapshot
from lockd.disk.snapshots import PartialSnapshot, SnapshotReader, SnapshotStore
from lockd.errors import CorruptData
from lockd.ids import LogIndex, Term
from lockd.locks.machine import LockMachine
from lockd.server.recovering import machine_of


class DirectSnapshots:
    """The twin of ForkingSnapshots over a simulated disk. `later` puts off what takes its time."""

    def __init__(
        self, store: Callable[[], SnapshotStore], later: Callable[[Callable[[], None]], None]
    ) -> None:
        self._store = store
        self._later = later
        self.found_no_room: list[DiskFullError] = []

    def take(
        self,
        header: SnapshotHeader,
        body: Callable[[], Iterator[bytes]],
        on_taken: Callable[[StoredSnapshot | None], None],
    ) -> None:
        try:
            partial = self._store().begin("taken")
            for piece in encode_snapshot(header, body()):
                partial.append(piece)
        except DiskFullError:
            self._later(lambda: on_taken(None))
        else:
            self.finish(partial, on_taken)

    def back_up(
        self,
        header: SnapshotHeader,
        body: Callable[[], Iterator[bytes]],
        on_ready: Callable[[SnapshotReader | None], None],
    ) -> None:
        partial = self._store().begin("backup")
        for piece in encode_snapshot(header, body()):
            partial.append(piece)
        self._later(lambda: on_ready(partial.detach()[1]))

    def begin(self) -> PartialSnapshot:
        return self._store().begin("received")

    def no_room(self, error: DiskFullError) -> None:
        self.found_no_room.append(error)

    def finish(self, partial: PartialSnapshot, on_finished: Callable[[StoredSnapshot | None], None]) -> None:
        def now() -> None:
            try:
                stored = partial.finish()
            except (CorruptData, DataDirError, DiskFullError):
                on_finished(None)
            else:
                on_finished(stored)

        self._later(now)

    def open(self, index: LogIndex, term: Term) -> SnapshotReader:
        return self._store().open(index, term)

    def load(self, index: LogIndex, term: Term) -> tuple[StoredSnapshot, LockMachine]:
        stored, state = self._store().load(index, term)
        return stored, machine_of(stored, state)
