"""`S3Fence`: the two verbs for a bucket, reading, and the sweeping of what was never committed."""

import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from lockd.errors import OutcomeUnknown, Rejected, StaleToken, Unavailable
from lockd.ids import Fence
from lockd_storage.fencing import (
    INSTALL_SECONDS,
    Floor,
    HeldLease,
    Mark,
    check_deadline,
    judge_install,
    judge_write,
    lock_of,
    presented_fence,
    resource_of,
    writing_fence,
)
from lockd_storage.records import plain_name
from lockd_storage.rejects import told
from lockd_storage.s3.mark_object import MarkObject, decode
from lockd_storage.s3.probe import probe_once
from lockd_storage.s3.requests import Bucket, Put
from lockd_storage.s3.writing import S3Changes, Snapshot

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

ADAPTER = "s3"
COMMIT_TRIES = 30
PAUSE_SECONDS_MIN = 0.005
PAUSE_SECONDS_MAX = 0.25

_DATA_KEY = re.compile(r"[0-9a-f]{8}-([0-9]+)/[0-9a-f]{32}")


class _Stored(NamedTuple):
    content: MarkObject
    etag: str


class S3Fence:
    """The marks under one prefix of a bucket. A `FencePort`; safe to share between threads.

    `client` is a boto3 client for S3; its own time-outs and retries bound each request. `prefix` should
    end in "/". `cluster` pins the lockd cluster whose leases are taken; without it the first install of
    each resource does. Each verb raises NotFenceable for a store that does not do what a fence needs,
    with what to do: no such bucket, no right, conditions that are ignored.
    """

    def __init__(
        self, client: "S3Client", bucket: str, *, prefix: str = "", cluster: str | None = None
    ) -> None:
        self._bucket = Bucket(client, bucket)
        self._prefix = prefix
        self._cluster = cluster

    def install(
        self, lease: HeldLease, resource: str | None = None, *, timeout: float = INSTALL_SECONDS
    ) -> Mark:
        """Make the lease's token the mark of `resource`. See `FencePort.install`.

        Does not wait for older blocks: they fail at their end. Unavailable when others changed the mark
        for all of `timeout` seconds. The first one of a client probes the store. Also raises CorruptData
        for a mark that can't be read.
        """
        name = resource_of(lease, resource)
        give_up_at = time.monotonic() + timeout
        with told(ADAPTER, name):
            fence = presented_fence(lease, resource=name, cluster=self._cluster)
            check_deadline(lease)
            probe_once(self._bucket, f"{self._prefix}probe")
            in_doubt = False
            while True:
                with _left_open(name, in_doubt):
                    stored = self._read(name)
                    before = None if stored is None else stored.content.mark
                mark = judge_install(
                    before, floor=Floor(), resource=name, lock=lock_of(lease, name), fence=fence
                )
                if mark == before:
                    return mark
                content = MarkObject(mark) if stored is None else stored.content.installed(mark)
                etag = None if stored is None else stored.etag
                match self._bucket.put_if(self.key(name), content.encode(), etag=etag):
                    case Put.DONE:
                        return mark
                    case Put.IN_DOUBT:
                        in_doubt = True
                with _left_open(name, in_doubt):
                    if time.monotonic() >= give_up_at:
                        raise Unavailable(
                            f"the mark of resource {name!r} was changed for {timeout:g} s by others"
                        )

    def mark(self, resource: str) -> Mark | None:
        """See `FencePort.mark`."""
        stored = self._read(resource)
        return None if stored is None else stored.content.mark

    @contextmanager
    def write(self, lease: HeldLease, resource: str | None = None) -> Iterator[S3Changes]:
        """Yields `S3Changes`: put(name, data), delete(name), body. See `FencePort.write`.

        The mark is compared when the block begins, and again by the store in the step that makes all of
        its changes seen. Leaving the block raises StaleToken when someone newer has installed meanwhile;
        OutcomeUnknown when the reply to that step was lost, and it can't be found out whether it was
        applied; Unavailable when nothing was.
        """
        name = resource_of(lease, resource)
        with told(ADAPTER, name):
            fence = writing_fence(lease, resource=name, cluster=self._cluster)
            stored = self._compared(name, fence)
            check_deadline(lease)
        folder = f"{self._data_prefix(name)}{fence.incarnation}-{fence.token}/"
        changes = S3Changes(self._bucket, folder, Snapshot(self._bucket, stored.content))
        yield changes
        if changes.end():
            with told(ADAPTER, name):
                self._commit(name, fence, changes, stored)

    def read(self, resource: str) -> Snapshot | None:
        """What is committed under a resource now; None where nothing was ever installed."""
        stored = self._read(resource)
        return None if stored is None else Snapshot(self._bucket, stored.content)

    def marks(self, prefix: str = "") -> list[Mark]:
        """The marks of all resources that begin so, by resource. Reads each of the bucket's marks."""
        found = []
        for key in self._bucket.keys(f"{self._prefix}marks/"):
            stored = self._read_key(key, resource=None)
            if stored is not None and stored.content.mark.resource.startswith(prefix):
                found.append(stored.content.mark)
        return sorted(found, key=lambda mark: mark.resource)

    def sweep(self, resource: str) -> int:
        """Delete what older holders uploaded and never committed, or what was replaced; how many it was.

        At any time, beside any writer: kept is what the mark lists, and all of its own token and of
        newer ones, since a block of theirs may be under way. A mark is never deleted.
        """
        stored = self._read(resource)
        if stored is None:
            return 0
        listed = set(stored.content.keys.values())
        folder = self._data_prefix(resource)
        garbage = []
        for key in self._bucket.keys(folder):
            ours = _DATA_KEY.fullmatch(key.removeprefix(folder))
            # An older token commits nothing any more, so what it has not committed stays unlisted.
            if ours and int(ours[1]) < stored.content.mark.token and key not in listed:
                garbage.append(key)
        self._bucket.delete(garbage)
        return len(garbage)

    def key(self, resource: str) -> str:
        """The key of a resource's mark, for bucket policies and for people."""
        return f"{self._prefix}marks/{plain_name(resource)}"

    def _commit(self, resource: str, fence: Fence, changes: S3Changes, stored: _Stored) -> None:
        in_doubt = False
        pause = PAUSE_SECONDS_MIN
        for _ in range(COMMIT_TRIES):
            after = changes.applied_to(stored.content)
            match self._bucket.put_if(self.key(resource), after.encode(), etag=stored.etag):
                case Put.DONE:
                    return
                case Put.IN_DOUBT:
                    in_doubt = True
            with _left_open(resource, in_doubt):
                found = self._read(resource)
                if found is not None and changes.seen_in(found.content):
                    return
                stored = _judged(found, resource, fence)
            # The mark moved under the same token, or an answer was lost. If the lost one arrives late,
            # its condition fails: it has the ETag of a content that never comes back.
            time.sleep(random.uniform(0, pause))  # noqa: S311  spreads writers, hides nothing
            pause = min(2 * pause, PAUSE_SECONDS_MAX)
        with _left_open(resource, in_doubt):
            raise Unavailable(
                f"the mark of resource {resource!r} was changed by other blocks {COMMIT_TRIES} times in a row"
            )

    def _compared(self, resource: str, fence: Fence) -> _Stored:
        return _judged(self._read(resource), resource, fence)

    def _read(self, resource: str) -> _Stored | None:
        return self._read_key(self.key(resource), resource=resource)

    def _read_key(self, key: str, *, resource: str | None) -> _Stored | None:
        found = self._bucket.get(key)
        if found is None:
            return None
        return _Stored(decode(found.data, where=self._bucket.where(key), resource=resource), found.etag)

    def _data_prefix(self, resource: str) -> str:
        return f"{self._prefix}data/{plain_name(resource)}/"


def _judged(stored: _Stored | None, resource: str, fence: Fence) -> _Stored:
    judge_write(None if stored is None else stored.content.mark, resource=resource, fence=fence)
    assert stored is not None
    return stored


@contextmanager
def _left_open(resource: str, in_doubt: bool) -> Iterator[None]:  # noqa: FBT001  a fact, no choice
    """Once an answer was lost, a refusal no longer means that nothing was written (SAFETY S9)."""
    try:
        yield
    except (Rejected, StaleToken, Unavailable) as error:
        if in_doubt:
            raise OutcomeUnknown(
                f"the answer to a change of resource {resource!r} was lost; it may have been applied: {error}"
            ) from error
        raise
