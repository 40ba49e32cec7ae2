"""The Redis adapters with a journal: one list for each resource, beside its mark."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import redis
import redis.asyncio

from lockd_storage import HeldLease, Mark
from lockd_storage.fencing import INSTALL_SECONDS
from lockd_storage.redis import AsyncRedisFence, RedisFence
from lockd_storage.redis.batch import Batch
from tests.servers.valkey import ValkeyServer


class RedisStore:
    """An open write here is a batch that has not been sent, so it holds up nobody."""

    def __init__(self, client: "redis.Redis", fence: "RedisFence | BlockingFence") -> None:
        self.client = client
        self.fence = fence

    def pinned(self, cluster: str) -> "RedisFence":
        return RedisFence(self.client, cluster=cluster)

    def add(self, handle: Batch, lease: HeldLease) -> None:
        handle.rpush(handle.key("journal"), lease.token)

    def lines(self) -> list[int]:
        """Those of each resource in order, the resources in the order of their names."""
        client: Any = self.client
        decode = client.get_encoder().decode
        keys = [decode(key, force=True) for key in client.keys("*:journal")]
        resources = sorted(key[1 : -len("}:journal")] for key in keys)
        return [int(line) for name in resources for line in client.lrange(f"{{{name}}}:journal", 0, -1)]


class BlockingFence:
    """An `AsyncRedisFence` on an event loop of its own, for a suite that does not await."""

    def __init__(self, server: ValkeyServer, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = redis.asyncio.Redis(port=server.port, **options)
        self._fence = AsyncRedisFence(self._client)

    def install(
        self, lease: HeldLease, resource: str | None = None, *, timeout: float = INSTALL_SECONDS
    ) -> Mark:
        mark: Mark = self._result(self._fence.install(lease, resource, timeout=timeout))
        return mark

    def mark(self, resource: str) -> Mark | None:
        mark: Mark | None = self._result(self._fence.mark(resource))
        return mark

    @contextmanager
    def write(self, lease: HeldLease, resource: str | None = None) -> Iterator[Batch]:
        block = self._fence.write(lease, resource)
        batch = self._result(block.__aenter__())
        try:
            yield batch
        except BaseException as error:
            if not self._result(block.__aexit__(type(error), error, error.__traceback__)):
                raise
        else:
            self._result(block.__aexit__(None, None, None))

    def close(self) -> None:
        self._result(self._client.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _result(self, awaited: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(awaited, self._loop).result()


@contextmanager
def redis_store(server: ValkeyServer, **options: Any) -> Iterator[RedisStore]:
    """An emptied server and a client with these options."""
    server.reset()
    with server.client(**options) as client:
        yield RedisStore(client, RedisFence(client))


@contextmanager
def async_redis_store(server: ValkeyServer, **options: Any) -> Iterator[RedisStore]:
    """The same through `redis.asyncio`."""
    server.reset()
    fence = BlockingFence(server, **options)
    try:
        with server.client() as client:
            yield RedisStore(client, fence)
    finally:
        fence.close()
