"""A mark as bytes, and a resource as a name, for stores that keep a mark as a file or an object.

The forms only grow: what this version wrote, every later one reads.
"""

from hashlib import sha256
from string import ascii_lowercase, digits

import msgspec

from lockd.errors import CorruptData
from lockd.ids import Fence
from lockd_storage.fencing import Mark

NAME_BYTES_MAX = 180
"""Leaves room for an ending within the 255 bytes that file systems allow."""

_PLAIN = frozenset((ascii_lowercase + digits + "-_.").encode())


class MarkRecord(msgspec.Struct, frozen=True):
    """A mark as it is written down, in JSON."""

    resource: str
    lock: str
    fence: str

    @classmethod
    def of(cls, mark: Mark) -> "MarkRecord":
        return cls(mark.resource, mark.lock, str(mark.fence))

    def check(self, resource: str) -> None:
        """Raises ValueError when this is another resource's."""
        if self.resource != resource:
            raise ValueError(f"it is the mark of {self.resource[:40]!r}")

    def mark(self) -> Mark:
        """Raises ValueError when the fence is none."""
        return Mark(self.resource, self.lock, Fence.parse(self.fence))


def read_mark_record(text: bytes, *, where: str, resource: str | None = None) -> Mark:
    """The mark that was written as `text`: that of `resource`, if one is given.

    Raises CorruptData for anything else, since what stands in a mark's place decides who may write.
    """
    try:
        record = msgspec.json.decode(text, type=MarkRecord)
        if resource is not None:
            record.check(resource)
        return record.mark()
    except (msgspec.DecodeError, ValueError) as error:
        raise damaged(where, error) from error


def damaged(where: str, error: Exception) -> CorruptData:
    """The error for a mark that can't be read: nobody may write until a person has looked."""
    return CorruptData(
        f"{where} is not the mark that belongs there ({error}). Nothing is written under it until it is put"
        " back from a copy. Without one, end every process that holds its lock, then remove it and"
        " install anew"
    )


def plain_name(resource: str) -> str:
    """A file name or object key of at most NAME_BYTES_MAX ASCII characters for any resource.

    Two resources never share one, also where upper and lower case are the same: all but a-z, 0-9, `-`,
    `_` and `.` is written as %xx. A long name is cut, and ends in `~` and its SHA-256.
    """
    encoded = resource.encode()
    name = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in encoded)
    if name.startswith("."):
        name = "%2e" + name[1:]
    if len(name) <= NAME_BYTES_MAX:
        return name
    digest = sha256(encoded).hexdigest()
    return f"{name[: NAME_BYTES_MAX - len(digest) - 1]}~{digest}"
