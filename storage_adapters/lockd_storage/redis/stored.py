"""Marks and floors as the server keeps them, and as values."""

from lockd.errors import CorruptData
from lockd.ids import ClusterId, Fence
from lockd_storage.fencing import Floor, Mark
from lockd_storage.redis.keys import mark_key, tag_of


def stored_mark(resource: str, lock: bytes | None, fence: bytes | None) -> Mark | None:
    """A mark as it is kept. Raises CorruptData when someone has written something else there."""
    if fence is None:
        return None
    try:
        return Mark(resource, (lock or b"").decode(), Fence.parse(fence.decode()))
    except ValueError as error:
        raise CorruptData(
            f"the hash {mark_key(tag_of(resource)).decode()!r} is not the mark of resource {resource!r}"
            f" ({error}). Nothing is written under it until it is deleted, and the holder has installed again"
        ) from error


def stored_floor(token: bytes | None, cluster: bytes | None) -> Floor:
    """The floor as it is kept."""
    return Floor(int(token or 0), None if cluster is None else ClusterId(cluster.decode()))
