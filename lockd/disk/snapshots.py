"""The snapshots of a data directory: taken, received, loaded, removed (§7, SAFETY C9).

A file is written once, under a name that says that it is unfinished. It gets its own name when it
has been synced and read back. So what has the name is whole: if it does not match its checksums,
that is damage.
"""

from contextlib import suppress

from lockd.disk.batch import DamageError
from lockd.disk.errors import DataDirError, DiskFullError, damaged, room_needed, unusable
from lockd.disk.files import BlockFile, Files
from lockd.disk.snapshot_file import SnapshotFileReader, StoredSnapshot
from lockd.ids import LogIndex, Term

_PREFIX = "snapshot-"
_SUFFIX = ".snap"
_UNFINISHED_SUFFIX = ".new"
_NAME_DIGITS = 16

_THROWN_AWAY = "The file is thrown away; it has to be taken or sent again from its beginning."


def snapshot_name(index: LogIndex, term: Term) -> str:
    return f"{_PREFIX}{index:0{_NAME_DIGITS}}-{term:0{_NAME_DIGITS}}{_SUFFIX}"


def snapshot_of(name: str) -> tuple[LogIndex, Term] | None:
    """The index and term in a snapshot's file name, None for any other file."""
    index, _, term = name.removeprefix(_PREFIX).removesuffix(_SUFFIX).partition("-")
    if not (index.isascii() and index.isdigit() and term.isascii() and term.isdigit()):
        return None
    found = LogIndex(int(index)), Term(int(term))
    return found if name == snapshot_name(*found) else None


def is_unfinished(name: str) -> bool:
    """Tell whether it is the name of a snapshot that was being taken or received."""
    return name.startswith(_PREFIX) and name.endswith(_UNFINISHED_SUFFIX)


class PartialSnapshot:
    """A file being taken or received. A child process that inherited it may append in our stead."""

    def __init__(self, files: Files, name: str) -> None:
        self._files = files
        self._name = name
        with room_needed():
            self._file = files.create(name)
        self.received_bytes = 0
        """What this process has appended."""

    def append(self, data: bytes) -> None:
        """Raises DiskFullError, or another OSError: `discard` it then."""
        with room_needed():
            self._file.write_at(self.received_bytes, data)
        self.received_bytes += len(data)

    def finish(self) -> StoredSnapshot:
        """Sync the file, read all of it back, and give it its name, durably.

        Raises, having discarded it, CorruptData when it is not a whole snapshot, DataDirError when a
        newer version wrote it, and DiskFullError. Another OSError, when it could not be made durable,
        ends the node (SAFETY D1).
        """
        try:
            with room_needed():
                self._file.sync()
            stored = self._checked()
            meta = stored.header.meta
            with room_needed():
                self._files.rename(self._name, snapshot_name(meta.index, meta.term))
        except DiskFullError:
            self.discard()
            raise
        self._files.sync_directory()
        self._file.close()
        return stored

    def detach(self) -> tuple[StoredSnapshot, "SnapshotReader"]:
        """Read all of it back and take its name away: it lasts until the reader is closed.

        For a backup, on which no log rests. Raises CorruptData, having discarded it, when it is not a
        whole snapshot.
        """
        stored = self._checked()
        self._files.remove(self._name)
        return stored, SnapshotReader(self._file)

    def _checked(self) -> StoredSnapshot:
        try:
            return SnapshotFileReader(self._file.read_at, self._file.size(), self._name).check()
        except (DamageError, DataDirError) as error:
            self.discard()
            if isinstance(error, DamageError):
                path = self._files.path(self._name)
                raise unusable(path, error.offset, error.found, _THROWN_AWAY) from error
            raise

    def discard(self) -> None:
        """Close and remove it."""
        self._file.close()
        with suppress(FileNotFoundError):
            self._files.remove(self._name)


class SnapshotReader:
    """The bytes of one file, to be streamed; readable also after the file is removed."""

    def __init__(self, file: BlockFile) -> None:
        self._file = file
        self.size = file.size()

    def read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes; fewer only at the end."""
        return self._file.read_at(offset, count)

    def close(self) -> None:
        self._file.close()


class SnapshotStore:
    """The snapshots of one data directory. Calls for different files may come from different threads."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def begin(self, label: str) -> PartialSnapshot:
        """One unfinished file per label, such as "taken" and "received"; replaces the one that was there.

        Raises DiskFullError, or another OSError.
        """
        return PartialSnapshot(self._files, f"{_PREFIX}{label}{_UNFINISHED_SUFFIX}")

    def open(self, index: LogIndex, term: Term) -> SnapshotReader:
        """Raises FileNotFoundError when there is no such snapshot, or a newer one has replaced it."""
        return SnapshotReader(self._files.open_to_read(snapshot_name(index, term)))

    def has(self, index: LogIndex, term: Term) -> bool:
        return snapshot_name(index, term) in self._files.names()

    def load(self, index: LogIndex, term: Term) -> tuple[StoredSnapshot, bytes]:
        """Read the snapshot that the log rests on. Raises CorruptData if it is damaged or not there."""
        name = snapshot_name(index, term)
        path = self._files.path(name)
        try:
            file = self._files.open_to_read(name)
        except FileNotFoundError as error:
            raise damaged(path, 0, "the log rests on this snapshot, and it is missing") from error
        try:
            stored, body = SnapshotFileReader(file.read_at, file.size(), path).whole()
        except DamageError as damage:
            raise damaged(path, damage.offset, damage.found) from damage
        finally:
            file.close()
        meta = stored.header.meta
        if (meta.index, meta.term) != (index, term):
            raise damaged(path, 0, f"it is the snapshot of entry {meta.index} of term {meta.term}")
        return stored, body

    def remove_before(self, index: LogIndex) -> None:
        """Remove the snapshots of earlier entries; durable with the next sync of the directory.

        Later ones stay: one may have got its name whose mark is not yet in the log.
        """
        for name in self._files.names():
            found = snapshot_of(name)
            if found is not None and found[0] < index:
                self._files.remove(name)

    def remove_all_but(self, kept: tuple[LogIndex, Term] | None) -> None:
        """At a start: what no mark names, and what is unfinished, belongs to no one."""
        for name in self._files.names():
            found = snapshot_of(name)
            if is_unfinished(name) or (found is not None and found != kept):
                self._files.remove(name)
