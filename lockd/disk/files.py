"""The operating system's part: a flat directory of files that can be made durable.

`Files` and `BlockFile` are a port. `OsFiles` is the real one; the tests have a twin in memory
that loses what was not synced. What a caller may rely on is only this: after `sync` the file's
content is on disk; after `sync_directory` so are the names. Before that, any part of either may
or may not be, in any order, sector by sector.
"""

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from lockd.disk.errors import DataDirError


class BlockFile(Protocol):
    """One open file. All methods raise OSError."""

    def write_at(self, offset: int, content: bytes) -> None:
        """Write all of `content`; durable only after `sync`."""

    def read_at(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset` on: fewer only at the end of the file."""

    def size(self) -> int:
        """The file's length in bytes, as written so far."""

    def sync(self) -> None:
        """Return when content and size are on disk. After an error, what is there is unknown."""

    def close(self) -> None: ...


class Files(Protocol):
    """One directory, used by this process alone. All methods raise OSError."""

    def path(self, name: str) -> str:
        """The name as a person knows it, for messages."""

    def names(self) -> list[str]:
        """All names, sorted."""

    def create(self, name: str) -> BlockFile:
        """A new empty file. One that had this name is gone, and stays what it was where it is open."""

    def open(self, name: str) -> BlockFile:
        """An open file stays readable after its name is removed."""

    def open_to_read(self, name: str) -> BlockFile:
        """As `open`, also where nothing can be written; `write_at` and `sync` are not for it."""

    def read(self, name: str) -> bytes: ...

    def rename(self, name: str, new_name: str) -> None:
        """Replaces a file that has the new name, at once and as a whole."""

    def remove(self, name: str) -> None: ...

    def sync_directory(self) -> None:
        """Return when creations, renames and removals are on disk (SAFETY D2)."""

    def close(self) -> None:
        """Let another process use the directory."""


class OsFile:
    """A file of the operating system. Its errors name it."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path

    def write_at(self, offset: int, content: bytes) -> None:
        with self._named():
            written = os.pwrite(self._descriptor, content, offset)
            while written < len(content):
                written += os.pwrite(self._descriptor, memoryview(content)[written:], offset + written)

    def read_at(self, offset: int, count: int) -> bytes:
        with self._named():
            content = os.pread(self._descriptor, count, offset)
            while more := os.pread(self._descriptor, count - len(content), offset + len(content)):
                content += more
        return content

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def sync(self) -> None:
        with self._named():
            _flush(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Calls by descriptor don't say which file it was: whoever reads the log has to know."""
        try:
            yield
        except OSError as error:
            error.filename = str(self._path)
            raise


class OsFiles:
    """A locked directory of the operating system.

    The lock is on the directory itself (flock), so it leaves no file behind and ends with the
    process, however that ends.
    """

    def __init__(self, directory: Path) -> None:
        """Create the directory if it is not there, durably, and lock it.

        Raises DataDirError if another process has it, or it can't be created or opened.
        """
        self._directory = directory.absolute()
        try:
            _make_directory(directory)
            self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise DataDirError(f"data directory {directory}: {error.strerror}") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            if error.errno == errno.EWOULDBLOCK:
                raise DataDirError(
                    f"data directory {directory} is in use by another lockd process"
                ) from error
            raise DataDirError(f"data directory {directory} can't be locked: {error.strerror}") from error

    def path(self, name: str) -> str:
        return str(self._directory / name)

    def names(self) -> list[str]:
        return sorted(entry.name for entry in self._directory.iterdir())

    def create(self, name: str) -> OsFile:
        # Not O_TRUNC: an open file of that name would be cut short under whoever reads it.
        with suppress(FileNotFoundError):
            self.remove(name)
        return self._open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def open(self, name: str) -> OsFile:
        return self._open(name, os.O_RDWR)

    def open_to_read(self, name: str) -> OsFile:
        return self._open(name, os.O_RDONLY)

    def read(self, name: str) -> bytes:
        return (self._directory / name).read_bytes()

    def rename(self, name: str, new_name: str) -> None:
        os.rename(name, new_name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def remove(self, name: str) -> None:
        os.unlink(name, dir_fd=self._descriptor)

    def sync_directory(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def _open(self, name: str, flags: int) -> OsFile:
        descriptor = os.open(name, flags | os.O_CLOEXEC, 0o600, dir_fd=self._descriptor)
        return OsFile(descriptor, self._directory / name)


def _make_directory(directory: Path) -> None:
    """Create it and its parents; each new name is synced into the directory above it.

    Also that of the one which was there: a start that was killed may have made it, or somebody just now.
    """
    if directory.is_dir():
        with suppress(PermissionError):  # whoever may not list it has not made anything in it
            _sync_directory(directory.absolute().parent)
        return
    if directory.exists():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    parent = directory.absolute().parent
    _make_directory(parent)
    directory.mkdir(mode=0o700, exist_ok=True)
    _sync_directory(parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if sys.platform == "darwin":

    def _flush(descriptor: int) -> None:
        # P3: fsync on macOS leaves the drive's cache unflushed.
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)

else:

    def _flush(descriptor: int) -> None:
        os.fdatasync(descriptor)
