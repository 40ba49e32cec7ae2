"""What one block changes, and what a reader finds: `S3Changes` and `Snapshot`."""

from typing import IO
from uuid import uuid4

from lockd.errors import Unavailable
from lockd_storage.errors import NotFenceable
from lockd_storage.fencing import Mark
from lockd_storage.s3.mark_object import MarkObject
from lockd_storage.s3.requests import Bucket


class Snapshot:
    """What was committed under a resource at one moment: its objects by name, and its body."""

    def __init__(self, bucket: Bucket, content: MarkObject) -> None:
        self._bucket = bucket
        self._content = content

    @property
    def mark(self) -> Mark:
        """The mark at that moment."""
        return self._content.mark

    @property
    def body(self) -> bytes:
        """What is kept in the mark's own object; empty until a block sets it."""
        return self._content.body

    def names(self) -> list[str]:
        """The names of all objects, sorted."""
        return sorted(self._content.keys)

    def key(self, name: str) -> str:
        """The key of an object in the bucket, for tools that read it themselves. Raises KeyError."""
        return self._content.keys[name]

    def get(self, name: str) -> bytes:
        """An object's content. Raises KeyError for an unknown name.

        Raises Unavailable when it was replaced since, and then swept: read the resource again.
        """
        key = self.key(name)
        found = self._bucket.get(key)
        if found is None:
            raise Unavailable(
                f"{self._bucket.where(key)} is gone: {name!r} was replaced since this was read, and swept."
                " Read again"
            )
        return found.data


class S3Changes:
    """The changes of one block: yielded by `S3Fence.write`, seen all at once when the block has ended."""

    def __init__(self, bucket: Bucket, folder: str, before: Snapshot) -> None:
        self.before = before
        """What was there when the block began."""
        self.commit_id = uuid4().hex
        self._bucket = bucket
        self._folder = folder
        self._keys: dict[str, str | None] = {}
        self._body: bytes | None = None
        self._has_ended = False

    def put(self, name: str, data: bytes | IO[bytes]) -> None:
        """Upload an object, to be seen under this name: bytes, or a file open for reading, up to 5 GB.

        Raises Unavailable, NotFenceable; nothing has changed then.
        """
        self._refuse_late()
        if not name:
            raise ValueError("an object's name is not empty")
        name.encode()  # one that is no UTF-8 can't be listed: ValueError
        key = f"{self._folder}{uuid4().hex}"
        self._bucket.put(key, data)
        self._keys[name] = key

    def delete(self, name: str) -> None:
        """Let there be no object of this name."""
        self._refuse_late()
        self._keys[name] = None

    @property
    def body(self) -> bytes:
        """What the mark's own object holds beside the mark; set it to replace it.

        Every install and every commit sends it again, so it should be small.
        """
        return self.before.body if self._body is None else self._body

    @body.setter
    def body(self, data: bytes) -> None:
        self._refuse_late()
        self._body = bytes(memoryview(data))  # of a number, bytes() would make so many zeros

    def end(self) -> bool:
        """Take no more changes. Whether there is anything to commit."""
        self._has_ended = True
        return bool(self._keys) or self._body is not None

    def applied_to(self, content: MarkObject) -> MarkObject:
        """The mark's object after this block, given the one before it."""
        return content.committed(self.commit_id, self._keys, self._body)

    def _refuse_late(self) -> None:
        if self._has_ended:
            raise NotFenceable("the block that these changes are of has ended: nothing is changed any more")

    def seen_in(self, content: MarkObject) -> bool:
        """Whether a mark's object shows that this block was committed, by itself or under what came after."""
        ours = {key for key in self._keys.values() if key is not None}
        return content.commit == self.commit_id or not ours.isdisjoint(content.keys.values())
