"""`RedisUpkeep`: the operator's verbs on the marks of a server or a cluster.

Redis has no step over keys that are not named in advance, so a verb is several: first the floor, in each
slot of a cluster, then the marks that it refuses, each compared again as it goes. From the floor on no
mark at or under it is made, so that one pass over the keys finds all. A verb that is broken off has done
part of its work and no harm: call it again. While slots of a cluster are being moved a mark can be
missed: call it again afterwards.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, NoReturn

from redis import Redis
from redis.cluster import RedisCluster
from redis.exceptions import AskError, RedisError

from lockd.errors import Unavailable
from lockd.ids import Fence
from lockd_storage.errors import WrongCluster
from lockd_storage.fencing import Floor
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

AT_ONCE = 1000
FLOOR = "the floor"

Asked = tuple[bytes, tuple[Any, ...]]
"""A command's key, and its words."""


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
        keys = list(self._mark_keys(prefix))
        replies = self._ask((key, ("HMGET", key, "lock", "fence", "at")) for key in keys)
        kept = (_kept(key, reply) for key, reply in zip(keys, replies, strict=True))
        return sorted((mark for mark in kept if mark is not None), key=lambda found: found.mark.resource)

    def floor(self) -> Floor:
        """See `UpkeepPort.floor`."""
        return min(self._floors(self._floor_keys()), key=_token)

    def raise_floor(self, token: int, *, timeout: float = UPKEEP_SECONDS) -> FloorChange:
        """See `UpkeepPort.raise_floor`."""
        token = floor_token(token)
        before, after = self._move_floor(lambda floor: raised(floor, token), timeout)
        return FloorChange(before, after, self._purge((key, b"") for key in self._mark_keys("")))

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
        seen = ((mark_key(tag_of(mark.resource)), str(mark.fence).encode()) for mark in idle)
        return FloorChange(before, after, self._purge(seen))

    def adopt(self, fence: str, *, timeout: float = UPKEEP_SECONDS) -> FloorChange:
        """See `UpkeepPort.adopt`."""
        new = Fence.parse(fence)
        floor_token(new.token)
        has_own = any(kept.mark.fence.cluster == new.cluster for kept in self.marks())
        before, after = self._move_floor(lambda floor: adopted(floor, new, has_own_marks=has_own), timeout)
        return FloorChange(before, after, self._purge((key, b"") for key in self._mark_keys("")))

    def _floors(self, keys: Sequence[bytes]) -> list[Floor]:
        replies = self._ask((key, ("HMGET", key, "token", "cluster")) for key in keys)
        return [stored_floor(token, cluster) for token, cluster in replies]

    def _move_floor(self, change: Callable[[Floor], Floor], timeout: float) -> tuple[Floor, Floor]:
        """The lowest floor before, and the one that every slot has now, confirmed by the replicas."""
        keys: Sequence[bytes] = self._floor_keys()
        moves: dict[bytes, tuple[Floor, Floor]] = {}
        while keys:
            for key, before in zip(keys, self._floors(keys), strict=True):
                moves[key] = before, change(before)
            moved = self._ask((key, _floor_move(key, *moves[key])) for key in keys)
            keys = [key for key, done in zip(keys, moved, strict=True) if not done]
        for key in self._a_floor_key_of_each_primary():
            self._links.run(key, self._confirm(key, timeout))
        before = min((move[0] for move in moves.values()), key=_token)
        return before, min((move[1] for move in moves.values()), key=_token)

    def _confirm(self, key: bytes, timeout: float) -> Steps[None]:
        """Write once more and wait: a replica that has that has all that its primary was sent before."""
        try:
            replicas = self._replicas
            if replicas != 0:
                yield Request((b"HINCRBY", key, b"confirmed", 1))
            if replicas is None:
                replicas = yield from core.connected_replicas()
            yield from core.confirmed(
                FLOOR, resource="", replicas=replicas, confirm="memory", timeout=timeout
            )
        except RedisError as error:
            explain(error, FLOOR, None, lost=Lost.UPKEEP)

    def _purge(self, marks: Iterable[tuple[bytes, bytes]]) -> int:
        """Remove those of the marks, with the fence that was seen or any, that the floor refuses."""
        words = (
            (key, ("EVAL", scripts.PURGE.source, 2, key, self._floor_key(key), fence)) for key, fence in marks
        )
        return sum(self._ask(words))

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
            for key in self._client.scan_iter(match=pattern, count=AT_ONCE):
                yield self._bytes(key)
        except (RedisError, OSError) as error:
            raise Unavailable(f"the marks can't be listed: {error}") from error

    def _ask(self, asked: Iterable[Asked]) -> Iterator[Any]:
        """The replies, in order. Each of the commands may be repeated."""
        left = iter(asked)
        while part := list(islice(left, AT_ONCE)):
            replies: dict[bytes, Any] = {}
            for client, of_node in self._by_node(part):
                try:
                    with client.pipeline(transaction=False) as pipeline:
                        for _, words in of_node:
                            pipeline.execute_command(*words)
                        replies |= zip((key for key, _ in of_node), pipeline.execute(), strict=True)
                except RedisError as error:
                    self._explain(error)
            yield from (self._bytes(replies[key]) for key, _ in part)

    def _by_node(self, part: list[Asked]) -> Iterable[tuple[Any, list[Asked]]]:
        """The client of each node, with what is its to answer."""
        if not self._sharded:
            return [(self._client, part)]
        nodes: dict[str, tuple[Any, list[Asked]]] = {}
        for key, words in part:
            node = self._client.get_node_from_key(key)
            client = self._client.get_redis_connection(node)
            nodes.setdefault(node.name, (client, []))[1].append((key, words))
        return nodes.values()

    def _explain(self, error: RedisError) -> NoReturn:
        if self._sharded and isinstance(error, AskError):
            self._client.nodes_manager.initialize()
            raise Unavailable("the cluster is moving slots: call again") from error
        explain(error, FLOOR, None, lost=Lost.UPKEEP)

    def _bytes(self, reply: Any) -> Any:
        """Undo what the client was set up to decode."""
        if isinstance(reply, list):
            return [self._bytes(part) for part in reply]
        return self._client.get_encoder().encode(reply) if isinstance(reply, str) else reply


def _kept(key: bytes, stored: list[bytes | None]) -> KeptMark | None:
    resource = resource_named(key[1 : -len(MARK_SUFFIX) - 1])
    lock, fence, at = stored
    mark = stored_mark(resource, lock, fence)
    return (
        None if mark is None else KeptMark(mark, None if at is None else datetime.fromtimestamp(int(at), UTC))
    )


def _floor_move(key: bytes, before: Floor, after: Floor) -> tuple[Any, ...]:
    stood = (str(before.token) if before.token else "", before.cluster or "")
    return "EVAL", scripts.MOVE_FLOOR.source, 1, key, *stood, str(after.token), after.cluster or ""


def _token(floor: Floor) -> int:
    return floor.token


def _literally(text: bytes) -> bytes:
    """A pattern for SCAN that matches exactly this."""
    return b"".join(b"\\" + bytes([byte]) if byte in b"*?[]\\^-" else bytes([byte]) for byte in text)
