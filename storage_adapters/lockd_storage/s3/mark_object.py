"""What a mark's object holds: the fence, the resource's objects, and a body of its own."""

from dataclasses import dataclass, field, replace

import msgspec

from lockd_storage.fencing import Mark
from lockd_storage.records import MarkRecord, damaged

FORMAT = 1


@dataclass(frozen=True, slots=True)
class MarkObject:
    """A mark with what was committed under it and under those before. A value; changes make a new one."""

    mark: Mark
    revision: int = 0
    """Counts the changes of this object, so that no content, and no ETag, comes back (no ABA)."""
    commit: str = ""
    """The block that committed last; installs leave it. How a block finds out that its reply was lost."""
    keys: dict[str, str] = field(default_factory=dict)
    """For each name, the key of its object."""
    body: bytes = b""

    def installed(self, mark: Mark) -> "MarkObject":
        """The same content under another mark."""
        return replace(self, mark=mark, revision=self.revision + 1)

    def committed(self, commit: str, changes: dict[str, str | None], body: bytes | None) -> "MarkObject":
        """With these names put (a key) or deleted (None), and another body unless that is None."""
        keys = {**self.keys, **changes}
        return replace(
            self,
            revision=self.revision + 1,
            commit=commit,
            keys={name: key for name, key in keys.items() if key is not None},
            body=self.body if body is None else body,
        )

    def encode(self) -> bytes:
        """One line of JSON, then the body."""
        head = _Head(FORMAT, MarkRecord.of(self.mark), self.revision, self.commit, self.keys)
        return msgspec.json.encode(head) + b"\n" + self.body


class _Head(msgspec.Struct, frozen=True):
    format: int
    mark: MarkRecord
    revision: int
    commit: str
    keys: dict[str, str]


def decode(text: bytes, *, where: str, resource: str | None = None) -> MarkObject:
    """The content of a mark's object. Raises CorruptData for anything that `encode` did not make."""
    line, _, body = text.partition(b"\n")
    try:
        head = msgspec.json.decode(line, type=_Head)
        if head.format != FORMAT:
            raise ValueError(f"its format is {head.format}, and this version knows {FORMAT}")
        if resource is not None:
            head.mark.check(resource)
        return MarkObject(head.mark.mark(), head.revision, head.commit, head.keys, body)
    except (msgspec.DecodeError, ValueError) as error:
        raise damaged(where, error) from error
