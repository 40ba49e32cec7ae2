"""redis-py's connections, each request sent once.

redis-py's own `execute_command` sends a command again when its reply is lost, which would apply a
write twice. So connections are taken from the client's pool, and spoken to directly.
"""

from typing import Any, TypeVar

from redis import Redis
from redis.cluster import RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from lockd_storage.redis.core import Request, Steps
from lockd_storage.redis.routes import FAILURES, Go, Refresh, routed

T = TypeVar("T")


class Links:
    """The connections of one client, which may be a cluster's."""

    def __init__(self, client: Redis | RedisCluster) -> None:
        if not isinstance(client, Redis | RedisCluster):
            raise TypeError(
                f"a redis.Redis or a redis.cluster.RedisCluster is needed, not {type(client).__module__}."
                f"{type(client).__name__}. AsyncRedisFence is for those of redis.asyncio"
            )
        self._client = client
        self._sharded = isinstance(client, RedisCluster)

    def run(self, key: bytes, steps: Steps[T]) -> T:
        """Run all steps of a verb at the primary that has `key`. Raises as `routed`."""
        link = _Link(self._client, key)
        route = routed(steps, sharded=self._sharded)
        try:
            step = next(route)
            while True:
                try:
                    reply = link.do(step)
                except FAILURES as error:
                    step = route.throw(error)
                else:
                    step = route.send(reply)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            link.close()


class _Link:
    """One connection, taken from its pool for the length of a verb."""

    def __init__(self, client: Redis | RedisCluster, key: bytes) -> None:
        self._client: Any = client  # redis-py's own methods are largely untyped
        self._sharded = isinstance(client, RedisCluster)
        self._key = key
        self._pool: Any = None
        self._connection: Any = None

    def do(self, step: Go | Request | Refresh) -> Any:
        if isinstance(step, Request):
            return self._ask(step)
        if isinstance(step, Go):
            self.close()
            self._pool = self._pool_at(step.address)
            self._connection = self._pool.get_connection()
        else:
            self._client.nodes_manager.initialize()
        return None

    def close(self) -> None:
        """Give the connection back to its pool."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            self._pool.release(connection)

    def _ask(self, request: Request) -> Any:
        connection = self._connection
        try:
            connection.send_command(*request.words)
            return connection.read_response(disable_decoding=not request.decode)
        except ResponseError:
            raise
        except BaseException:
            # The reply may still come: nobody else may read it as theirs.
            connection.disconnect()
            raise

    def _pool_at(self, address: tuple[str, int] | None) -> Any:
        if not self._sharded:
            return self._client.connection_pool
        if address is None:
            node = self._client.get_node_from_key(self._key)
        else:
            node = self._client.get_node(*address)
        if node is None:
            raise RedisConnectionError(f"the cluster names no such node: {address or self._key!r}")
        return self._client.get_redis_connection(node).connection_pool
