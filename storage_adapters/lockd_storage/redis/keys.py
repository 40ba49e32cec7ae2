"""How a resource, its mark and the keys that it guards are named, so that they share a cluster's slot."""

from binascii import crc_hqx
from functools import cache

from lockd_storage.errors import OutsideFence

MARK_SUFFIX = b":lockd-fence"
FLOOR_KEY = b"lockd-fence-floor"
SLOTS = 16_384


def tag_of(resource: str) -> bytes:
    """The hash tag of a resource: its name in UTF-8, with `}` as `%7D` and `%` as `%25`.

    A tag ends at the first closing brace, so that one can't be part of it. Different names have
    different tags.
    """
    return resource.encode().replace(b"%", b"%25").replace(b"}", b"%7D")


def resource_named(tag: bytes) -> str:
    """The resource of a tag."""
    return tag.replace(b"%7D", b"}").replace(b"%25", b"%").decode()


def tagged_key(resource: str, rest: str) -> str:
    """A key that resource guards: `{orders}:rest`. Only names with `%` or `}` need this function."""
    return f"{{{tag_of(resource).decode()}}}:{rest}"


def mark_key(tag: bytes) -> bytes:
    """Where the mark of a tag's resource is kept: a hash with the fields `lock` and `fence`."""
    return b"{" + tag + b"}" + MARK_SUFFIX


def hashed_part(key: bytes) -> bytes:
    """The part of a key that decides its slot: between its first braces, if something is there."""
    opening = key.find(b"{")
    closing = key.find(b"}", opening + 1)
    return key[opening + 1 : closing] if opening >= 0 and closing > opening + 1 else key


def check_key(key: bytes, tag: bytes, resource: str) -> None:
    """Raise OutsideFence for a key that the resource's fence does not guard.

    Checked for a single server too: the same program must work when it becomes a cluster.
    """
    if hashed_part(key) != tag:
        wanted = tag.decode()
        raise OutsideFence(
            f"key {key[:80]!r} is not guarded by resource {resource!r}: name it {wanted!r} or"
            f" '{{{wanted}}}:...', so that it is kept beside the mark",
            resource=resource,
        )
    if key.endswith(MARK_SUFFIX) and key == mark_key(tag):
        raise OutsideFence(f"key {key[:80]!r} is the mark itself: only install moves it", resource=resource)


def slot_of(key: bytes) -> int:
    """A key's slot, 0 to 16383."""
    return crc_hqx(hashed_part(key), 0) % SLOTS


@cache
def cluster_floor_keys() -> tuple[bytes, ...]:
    """One floor key for each slot, by slot.

    A script of a cluster sees one slot, and the floor must be read in the step that installs. The
    number in the name is the smallest that falls into the slot. Takes about 0.1 s, once.
    """
    found: dict[int, bytes] = {}
    number = 0
    while len(found) < SLOTS:
        digits = b"%d" % number
        found.setdefault(crc_hqx(digits, 0) % SLOTS, digits)
        number += 1
    return tuple(FLOOR_KEY + b":{" + found[slot] + b"}" for slot in range(SLOTS))
