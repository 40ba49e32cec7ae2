"""As `links`, for `redis.asyncio`, whose cluster client keeps a node's connections in the node."""

from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from lockd_storage.redis.core import Request, Steps
from lockd_storage.redis.routes import FAILURES, Go, Refresh, routed

T = TypeVar("T")


class AsyncLinks:
    """The connections of one client, which may be a cluster's."""

    def __init__(self, client: Redis | RedisCluster) -> None:
        if not isinstance(client, Redis | RedisCluster):
            raise TypeError(
                f"a Redis or a RedisCluster of redis.asyncio is needed, not {type(client).__module__}."
                f"{type(client).__name__}. RedisFence is for those of redis"
            )
        self._client = client
        self._sharded = isinstance(client, RedisCluster)

    async def run(self, key: bytes, steps: Steps[T]) -> T:
        """Run all steps of a verb at the primary that has `key`. Raises as `routed`.

        A cancelled run closes its connection: what it sent may have been applied.
        """
        link = _Link(self._client, key)
        route = routed(steps, sharded=self._sharded)
        try:
            step = next(route)
            while True:
                try:
                    reply = await link.do(step)
                except FAILURES as error:
                    step = route.throw(error)
                else:
                    step = route.send(reply)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            await link.close()


class _Link:
    """One connection, taken from its pool or its node for the length of a verb."""

    def __init__(self, client: Redis | RedisCluster, key: bytes) -> None:
        self._client: Any = client  # redis-py's own methods are largely untyped
        self._sharded = isinstance(client, RedisCluster)
        self._key = key
        self._node: ClusterNode | None = None
        self._connection: Any = None

    async def do(self, step: Go | Request | Refresh) -> Any:
        if isinstance(step, Request):
            return await self._ask(step)
        if isinstance(step, Go):
            await self.close()
            await self._connect(step.address)
        else:
            await self._client.nodes_manager.initialize()
        return None

    async def close(self) -> None:
        """Give the connection back."""
        if self._connection is None:
            return
        connection, self._connection = self._connection, None
        if self._node is not None:
            self._node.release(connection)
        else:
            await self._client.connection_pool.release(connection)

    async def _ask(self, request: Request) -> Any:
        connection = self._connection
        try:
            await connection.send_command(*request.words)
            return await connection.read_response(disable_decoding=not request.decode)
        except ResponseError:
            raise
        except BaseException:
            # The reply may still come: nobody else may read it as theirs.
            await connection.disconnect(nowait=True)
            raise

    async def _connect(self, address: tuple[str, int] | None) -> None:
        if self._sharded:
            await self._client.initialize()
            if address is None:
                self._node = self._client.get_node_from_key(self._key.decode())
            else:
                self._node = self._client.get_node(*address)
            if self._node is None:
                raise RedisConnectionError(f"the cluster names no such node: {address or self._key!r}")
            self._connection = self._node.acquire_connection()
        else:
            self._connection = await self._client.connection_pool.get_connection()
        # Nothing should be there to be read. What the server closed while it was idle looks so too, and
        # redis-py itself takes that for a notice, which RESP3 may bring.
        connection = self._connection
        peek = getattr(connection, "can_read", None) or connection.can_read_destructive  # redis-py < 8
        if connection.is_connected and await peek():
            await connection.disconnect(nowait=True)
        await connection.connect()
