"""`RedisUpkeep`: the operator's verbs on the marks of a server or a cluster.

Redis has no step over keys that are not named in advance, so a verb is several: first the floor, in each
slot of a cluster, then the marks that it refuses, each compared again as it goes. From the floor on no
mark at or under it is made, so that one pass over the keys finds all. A verb that is broken off has done
part of its work and no harm: call it again. While slots of a cluster are being moved a mark can be
missed: call it again afterwards.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from redis import Redis
from redis.cluster import RedisCluster
from redis.exceptions import RedisError

from lockd.errors import Unavailable
from lockd.ids import Fence
from lockd_storage.errors import WrongCluster
from lockd_storage.fencing import Floor, Mark
from lockd_storage.redis import core, scripts
from lockd_storage.redis.core import Request, Steps
from lockd_storage.redis.keys import (
    FLOOR_KEY,
    MARK_SUFFIX,
    cluster_floor_keys,
    mark_key,
    resource_named,
    slot_of,
    tag_of,
)
from lockd_storage.redis.links import Links
from lockd_storage.redis.refusals import Lost, explain
from lockd_storage.redis.stored import stored_floor, stored_mark
from lockd_storage.upkeep import UPKEEP_SECONDS, FloorChange, KeptMark, adopted, floor_token, raised

SCAN_COUNT = 1000
FLOOR = "the floor"


class RedisUpkeep:
    """See `UpkeepPort`. Cheap to make; the client stays the caller's to close.

    A floor that a cluster's nodes do not agree on yet is told as the lowest. `replicas` is as for
    `RedisFence`: a floor that fewer have confirmed within `timeout` raises NotDurable. Writes are single
    steps here, so nobody is waited for otherwise.
    """

    def __init__(self, client: Redis | RedisCluster, *, replicas: int | None = None) -> None:
        self._client: Any = client  # redis-py's own methods are largely untyped
        self._links = Links(client)
        self._sharded = isinstance(client, RedisCluster)
        self._replicas = replicas

    def marks(self, prefix: str = "") -> list[KeptMark]:
        """See `UpkeepPort.marks`."""
        kept = (self._links.run(key, _kept(key)) for key in self._mark_keys(prefix))
        return sorted((mark for mark in kept if mark is not None), key=lambda found: found.mark.resource)

    def floor(self) -> Floor:
        """See `UpkeepPort.floor`."""
        floors = [self._links.run(key, _read_floor(key)) for key in self._floor_keys()]
        return min(floors, key=lambda floor: floor.token)

    def raise_floor(self, token: int, *, timeout: float = UPKEEP_SECONDS) -> FloorChange:
        """See `UpkeepPort.raise_floor`."""
        token = floor_token(token)
        before, after = self._move_floor(lambda floor: raised(floor, token), timeout)
        return FloorChange(before, after, self._purge())

    def purge(
        self, older_than: timedelta, *, prefix: str = "", timeout: float = UPKEEP_SECONDS
    ) -> FloorChange:
        """See `UpkeepPort.purge`. The age is by the clocks of this machine and the server's."""
        every = self.marks()
        if len(clusters := sorted({kept.mark.fence.cluster for kept in every})) > 1:
            raise WrongCluster(
                f"the marks are of several clusters ({', '.join(clusters)}), and the floor is one number:"
                " adopt the cluster that is to stay first",
                resource="",
            )
        limit = datetime.now(UTC) - older_than
        idle = [
            kept.mark
            for kept in every
            if kept.mark.resource.startswith(prefix)
            and kept.installed_at is not None
            and kept.installed_at < limit
        ]
        highest = max((mark.token for mark in idle), default=0)
        before, after = self._move_floor(lambda floor: raised(floor, highest), timeout)
        return FloorChange(before, after, sum(self._purge_one(mark) for mark in idle))

    def adopt(self, fence: str, *, timeout: float = UPKEEP_SECONDS) -> FloorChange:
        """See `UpkeepPort.adopt`."""
        new = Fence.parse(fence)
        floor_token(new.token)
        has_own = any(kept.mark.fence.cluster == new.cluster for kept in self.marks())
        before, after = self._move_floor(lambda floor: adopted(floor, new, has_own_marks=has_own), timeout)
        return FloorChange(before, after, self._purge())

    def _move_floor(self, change: Callable[[Floor], Floor], timeout: float) -> tuple[Floor, Floor]:
        """The lowest floor before, and the floor that every slot has now, where the replicas have it too."""
        moved = [self._links.run(key, _move_floor(key, change)) for key in self._floor_keys()]
        for key in self._a_floor_key_of_each_primary():
            self._links.run(key, self._confirm(key, timeout))
        return min((pair[0] for pair in moved), key=_token), min((pair[1] for pair in moved), key=_token)

    def _confirm(self, key: bytes, timeout: float) -> Steps[None]:
        """Write the floor once more and wait: who has that has all that this server was sent before."""
        try:
            replicas = self._replicas
            if replicas is None:
                replicas = yield from core.connected_replicas()
            if replicas:
                yield from _move_floor(key, lambda floor: floor)
            yield from core.confirmed(
                FLOOR, resource="", replicas=replicas, confirm="memory", timeout=timeout
            )
        except RedisError as error:
            explain(error, FLOOR, None, lost=Lost.UPKEEP)

    def _purge(self) -> int:
        """Remove every mark that the floor refuses."""
        return sum(
            self._links.run(key, _purge(key, self._floor_key(key), b"")) for key in self._mark_keys("")
        )

    def _purge_one(self, mark: Mark) -> int:
        key = mark_key(tag_of(mark.resource))
        return self._links.run(key, _purge(key, self._floor_key(key), str(mark.fence).encode()))

    def _floor_key(self, key: bytes) -> bytes:
        return cluster_floor_keys()[slot_of(key)] if self._sharded else FLOOR_KEY

    def _floor_keys(self) -> tuple[bytes, ...]:
        return cluster_floor_keys() if self._sharded else (FLOOR_KEY,)

    def _a_floor_key_of_each_primary(self) -> list[bytes]:
        if not self._sharded:
            return [FLOOR_KEY]
        return list({self._client.get_node_from_key(key).name: key for key in self._floor_keys()}.values())

    def _mark_keys(self, prefix: str) -> Iterator[bytes]:
        """All marks' keys, from all primaries."""
        pattern = b"{" + _literally(tag_of(prefix)) + b"*}" + MARK_SUFFIX
        try:
            for key in self._client.scan_iter(match=pattern, count=SCAN_COUNT):
                yield key if isinstance(key, bytes) else self._client.get_encoder().encode(key)
        except (RedisError, OSError) as error:
            raise Unavailable(f"the marks can't be listed: {error}") from error


def _kept(key: bytes) -> Steps[KeptMark | None]:
    resource = resource_named(key[1 : -len(MARK_SUFFIX) - 1])
    try:
        lock, fence, at = yield Request((b"HMGET", key, b"lock", b"fence", b"at"))
    except RedisError as error:
        explain(error, resource, None, lost=Lost.READ)
    mark = stored_mark(resource, lock, fence)
    return (
        None if mark is None else KeptMark(mark, None if at is None else datetime.fromtimestamp(int(at), UTC))
    )


def _read_floor(key: bytes) -> Steps[Floor]:
    try:
        return stored_floor(*(yield Request((b"HMGET", key, b"token", b"cluster"))))
    except RedisError as error:
        explain(error, FLOOR, None, lost=Lost.READ)


def _move_floor(key: bytes, change: Callable[[Floor], Floor]) -> Steps[tuple[Floor, Floor]]:
    try:
        while True:
            token, cluster = yield Request((b"HMGET", key, b"token", b"cluster"))
            before = stored_floor(token, cluster)
            after = change(before)
            arguments = (token or b"", cluster or b"", str(after.token), after.cluster or "")
            if (yield from core.run(scripts.MOVE_FLOOR, (key,), arguments)):
                return before, after
    except RedisError as error:
        explain(error, FLOOR, None, lost=Lost.UPKEEP)


def _purge(key: bytes, floor_key: bytes, fence: bytes) -> Steps[int]:
    try:
        return int((yield from core.run(scripts.PURGE, (key, floor_key), (fence,))))
    except RedisError as error:
        explain(error, FLOOR, None, lost=Lost.UPKEEP)


def _token(floor: Floor) -> int:
    return floor.token


def _literally(text: bytes) -> bytes:
    """A pattern for SCAN that matches exactly this."""
    return b"".join(b"\\" + bytes([byte]) if byte in b"*?[]\\^-" else bytes([byte]) for byte in text)
