"""The folder `.lockd`: its names, its locks, and writing a small file so that it lasts.

For a resource there are `NAME.lock`, which whoever writes holds; `NAME.mark`; `NAME.staged`, where a
block that is under way keeps its files; and `NAME.commit`, the list of changes while several of them
happen. For all of them there are `MARKS.lock`, held for the instant in which a mark or the floor moves, and
`FLOOR`. A lock file is never removed: two processes could then each hold a lock on a file of that name.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

import msgspec

from lockd.errors import CorruptData, Unavailable
from lockd_storage.errors import NotFenceable
from lockd_storage.fencing import Floor, Mark
from lockd_storage.records import MarkRecord, plain_name, read_mark_record

FOLDER = ".lockd"
POLL_SECONDS_MIN = 0.0005
POLL_SECONDS_MAX = 0.02

# flock is kept by the client machine alone there, or comes and goes with a server.
NETWORK_FILE_SYSTEMS = frozenset(
    {"9p", "afs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2"}
    | {"smb2", "smb3", "smbfs"}
    | {f"fuse.{name}" for name in ("ceph", "gcsfuse", "glusterfs", "juicefs", "rclone", "s3fs", "sshfs")}
)


class Holding(IntEnum):
    """How a lock file is held."""

    SHARED = fcntl.LOCK_SH
    EXCLUSIVE = fcntl.LOCK_EX


class FenceFolder:
    """The folder of one protected directory. Raises NotFenceable for a directory that can't be fenced."""

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise NotFenceable(f"{directory} is not a directory")
        self.root = directory.resolve()
        self.path = self.root / FOLDER
        kind = file_system(_mounts(), self.root.stat().st_dev)
        if kind in NETWORK_FILE_SYSTEMS:
            raise NotFenceable(
                f"{directory} is on a network file system ({kind}): its locks do not hold between machines."
                " Use a local disk, or an object store with S3Fence"
            )

    def make(self) -> None:
        """Create the folder, unless it is there."""
        with explained(self.path):
            if not self.path.is_dir():
                self.path.mkdir(exist_ok=True)
                sync_directory(self.root)

    def lock_path(self, resource: str) -> Path:
        return self.path / f"{plain_name(resource)}.lock"

    def staged_path(self, resource: str) -> Path:
        return self.path / f"{plain_name(resource)}.staged"

    def commit_path(self, resource: str) -> Path:
        return self.path / f"{plain_name(resource)}.commit"

    @property
    def marks_lock_path(self) -> Path:
        # No resource has this name: theirs end in .lock too, but never hold a capital letter.
        return self.path / "MARKS.lock"

    @property
    def floor_path(self) -> Path:
        return self.path / "FLOOR"

    def read_mark(self, resource: str) -> Mark | None:
        """The mark of a resource. Raises CorruptData for one that can't be read."""
        path = self._mark_path(resource)
        text = _read(path)
        return None if text is None else read_mark_record(text, resource=resource, where=str(path))

    def write_mark(self, mark: Mark) -> None:
        replace_durably(self._mark_path(mark.resource), msgspec.json.encode(MarkRecord.of(mark)))

    def remove_mark(self, resource: str) -> None:
        self._mark_path(resource).unlink(missing_ok=True)

    def marks(self) -> list[Mark]:
        """All marks, by resource."""
        found = []
        for path in self.path.glob("*.mark"):
            text = _read(path)
            if text is not None:
                found.append(read_mark_record(text, where=str(path)))
        return sorted(found, key=lambda mark: mark.resource)

    def read_floor(self) -> Floor:
        text = _read(self.floor_path)
        if text is None:
            return Floor()
        try:
            return msgspec.json.decode(text, type=Floor)
        except msgspec.DecodeError as error:
            raise CorruptData(
                f"{self.floor_path} is not the floor of a fence ({error}): put it back from a copy"
            ) from error

    def write_floor(self, floor: Floor) -> None:
        replace_durably(self.floor_path, msgspec.json.encode(floor))

    def _mark_path(self, resource: str) -> Path:
        return self.path / f"{plain_name(resource)}.mark"


@contextmanager
def locked(path: Path, holding: Holding, *, give_up_at: float) -> Iterator[None]:
    """Hold a lock file, in this process and against others, until the block is left.

    Raises Unavailable at the monotonic time `give_up_at`, with the process that took the lock last.
    A process that was forked inside the block leaves the lock to its parent.
    """
    taker = os.getpid()
    with explained(path):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _take(file, path, holding, give_up_at)
        with explained(path):
            os.pwrite(file, f"{taker:<20}\n".encode(), 0)
        yield
    finally:
        if os.getpid() == taker:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough while a forked child has it too
        os.close(file)


def _take(file: int, path: Path, holding: Holding, give_up_at: float) -> None:
    # flock knows no time limit, and an alarm belongs to the main thread.
    pause = POLL_SECONDS_MIN
    while True:
        try:
            fcntl.flock(file, holding | fcntl.LOCK_NB)
        except BlockingIOError:
            left = give_up_at - time.monotonic()
            if left <= 0:
                taker = os.pread(file, 20, 0).decode(errors="replace").strip() or "unknown"
                raise Unavailable(
                    f"{path} is locked by another writer, or by one that is stopped: process {taker} took"
                    " it last. Nothing was written; it is freed when that process goes on or ends"
                ) from None
            time.sleep(min(pause, left))
            pause = min(2 * pause, POLL_SECONDS_MAX)
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise NotFenceable(f"{path}: this file system has no flock ({error.strerror})") from error
            raise
        else:
            return


def replace_durably(path: Path, data: bytes) -> None:
    """Make `data` what the file holds, wholly or not at all, and on the disk when this returns.

    For files that are written under a lock: the temporary name is always the same.
    """
    temporary = path.with_name(f"{path.name}.new")
    with temporary.open("wb") as file:
        file.write(data)
        sync(file.fileno())
    os.replace(temporary, path)  # noqa: PTH105  its calls are watched by the tests of a crash
    sync_directory(path.parent)


def sync(file: int) -> None:
    """Put what was written to a file on the disk."""
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync reaches the drive's cache only
        fcntl.fcntl(file, fcntl.F_FULLFSYNC)
    else:
        os.fsync(file)


def sync_directory(path: Path) -> None:
    """Put the names in a directory on the disk."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(directory)
    finally:
        os.close(directory)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Errors of the operating system as Unavailable: no room, no right, no such folder."""
    try:
        yield
    except OSError as error:
        raise Unavailable(f"{error.filename or path}: {error.strerror}. Nothing was written") from error


def file_system(mounts: str, device: int) -> str:
    """The type of the file system with that device number, from the text of mountinfo; "" if unknown."""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == number:
            return source.split()[0]
    return ""


def _mounts() -> str:
    mountinfo = Path("/proc/self/mountinfo")
    return mountinfo.read_text(errors="replace") if mountinfo.exists() else ""


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}. Nothing was written") from error
