"""What the log raises, besides the operating system's OSError."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath

from lockd.errors import CorruptData

_WHAT_TO_DO = (
    "Its node has promised more than is left here, so it must not start from this. Leave the directory as "
    "it is. If the other nodes have a leader, remove this node's id and join a new node under a new id with "
    "an empty directory; if there is none, or this is a cluster of one, restore the newest backup."
)
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class DamagedFile(CorruptData):
    """A file of the data directory is damaged at `offset`, in bytes, by what was `found` there."""

    def __init__(self, name: str, offset: int, found: str) -> None:
        super().__init__(f"{name}: damaged at offset {offset}: {found}. {_WHAT_TO_DO}")
        self.name = name
        self.offset = offset
        self.found = found


def unusable(name: str, offset: int, found: str, what_to_do: str) -> CorruptData:
    """A file that no node rests on is damaged: where, by what was `found` there, and what to do."""
    return CorruptData(f"{name}: damaged at offset {offset}: {found}. {what_to_do}")


def damaged(name: str, offset: int, found: str) -> DamagedFile:
    """The refusal to start: which file, where, what was found, and what to do (SAFETY D3)."""
    return DamagedFile(name, offset, found)


class DataDirError(Exception):
    """The data directory can't be used as it is, and nothing on it is damaged.

    In use by another process, another node's, not a directory, no permission, or written by a
    newer version. The message is one line for the person who started the node.
    """


def unreachable(directory: str, error: OSError) -> DataDirError:
    """The operating system refused: what, and for which file of the directory if that is known."""
    is_known = isinstance(error.filename, str)
    what = PurePath(directory, error.filename) if is_known else f"data directory {directory}"
    return DataDirError(f"{what}: {error.strerror or error}")


class DiskFullError(OSError):
    """There was no room, and no sync was asked for: the same write can be tried again (SAFETY D4)."""


class LogClosedError(Exception):
    """The write was refused: the log is closing, or an earlier write or sync failed (SAFETY D1)."""


@contextmanager
def room_needed() -> Iterator[None]:
    """Tell a lack of room (of the disk, or of the quota) from every other error.

    For steps that can be repeated as a whole: what they have written counts for nothing yet.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise DiskFullError(error.errno, error.strerror, error.filename) from error
        raise
