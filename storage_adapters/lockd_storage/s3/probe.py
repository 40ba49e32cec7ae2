"""Does this store keep to the conditions that a fence is made of? Some take any PUT (SAFETY S8)."""

from threading import Lock
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from lockd.errors import Unavailable
from lockd_storage.errors import NotFenceable
from lockd_storage.s3.requests import Bucket, Found, Put

TRIES = 10

_probed: WeakKeyDictionary[Any, set[tuple[str, str]]] = WeakKeyDictionary()
_probing = Lock()


def probe_once(bucket: Bucket, key: str) -> None:
    """Probe, unless this process has done so with this client, bucket and key, and was content."""
    with _probing:
        passed = _probed.setdefault(bucket.client, set())
        if (bucket.name, key) not in passed:
            probe(bucket, key)
            passed.add((bucket.name, key))


def probe(bucket: Bucket, key: str) -> None:
    """Change the object `key` as a fence does, and try what must fail.

    Several processes may do so at once. Raises NotFenceable, Unavailable.
    """
    old = _move(bucket, key)
    for etag, header in ((old.etag, "If-Match"), (None, "If-None-Match")):
        match bucket.put_if(key, _content(), etag=etag):
            case Put.DONE:
                raise NotFenceable(
                    f"the store of {bucket.where(key)} ignores {header}: it took a PUT whose condition did"
                    " not hold, so nothing can be fenced there. AWS S3 keeps to it, and so do recent"
                    " versions of most other stores"
                )
            case Put.IN_DOUBT:
                raise Unavailable(f"{bucket.where(key)}: no clear answer to a conditional PUT; try again")


def _move(bucket: Bucket, key: str) -> Found:
    """Replace the object's content, and return what it was: its ETag must not be taken again."""
    for _ in range(TRIES):
        found = bucket.get(key)
        put = bucket.put_if(key, _content(), etag=None if found is None else found.etag)
        if found is not None and put is Put.DONE:
            return found
    raise Unavailable(f"{bucket.where(key)} can't be changed on a condition, or others do so all the time")


def _content() -> bytes:
    return f"lockd tests here whether this store keeps to If-Match: {uuid4().hex}\n".encode()
