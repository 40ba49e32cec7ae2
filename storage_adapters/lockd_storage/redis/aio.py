"""`AsyncRedisFence`: the same for programs with an event loop."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from lockd_storage.fencing import INSTALL_SECONDS, HeldLease, Mark
from lockd_storage.redis import core
from lockd_storage.redis.alinks import AsyncLinks
from lockd_storage.redis.batch import Batch
from lockd_storage.redis.core import Confirm, Grant
from lockd_storage.redis.fence import ADAPTER
from lockd_storage.redis.keys import mark_key, tag_of
from lockd_storage.redis.scripts import Script, fenced_script
from lockd_storage.redis.setup import Setup
from lockd_storage.redis.verbs import Command, FencedCommands, Key, Value
from lockd_storage.rejects import told


class AsyncRedisFence:
    """`RedisFence` with its verbs awaited, for a `redis.asyncio` client. Settings are the same."""

    def __init__(
        self,
        client: Redis | RedisCluster,
        *,
        cluster: str | None = None,
        replicas: int | None = None,
        confirm: Confirm = "memory",
    ) -> None:
        self._links = AsyncLinks(client)
        self._setup = Setup(client, cluster, replicas, confirm, sharded=isinstance(client, RedisCluster))

    async def install(
        self,
        lease: HeldLease,
        resource: str | None = None,
        *,
        timeout: float = INSTALL_SECONDS,  # noqa: ASYNC109  it is the port's, and part of it is the server's
    ) -> Mark:
        """See `RedisFence.install`."""
        with told(ADAPTER, resource or lease.lock):
            grant = core.installing(lease, resource, self._setup.cluster)
            return await self._links.run(grant.mark_key, self._setup.install(grant, timeout=timeout))

    async def mark(self, resource: str) -> Mark | None:
        """See `FencePort.mark`."""
        return await self._links.run(mark_key(tag_of(resource)), core.read_mark(resource))

    def of(self, lease: HeldLease, resource: str | None = None) -> "AsyncFencedRedis":
        """See `RedisFence.of`. The commands are awaited, this is not."""
        with told(ADAPTER, resource or lease.lock):
            grant = core.reading(lease, resource, self._setup.cluster)
            return AsyncFencedRedis(self._links, grant, self._setup)

    @asynccontextmanager
    async def write(self, lease: HeldLease, resource: str | None = None) -> AsyncIterator[Batch]:
        """See `RedisFence.write`. The batch's methods queue, so they are not awaited."""
        with told(ADAPTER, resource or lease.lock):
            grant = core.writing(lease, resource, self._setup.cluster)
        batch = Batch(grant.resource, self._setup.encode, check=grant.check_key)
        yield batch
        with told(ADAPTER, grant.resource):
            await self._links.run(grant.mark_key, core.batch(grant, batch))

    def script(self, source: str) -> "AsyncFencedScript":
        """See `RedisFence.script`. What it gives is awaited when called."""
        return AsyncFencedScript(self._links, fenced_script(source), self._setup)


class AsyncFencedRedis(FencedCommands):
    """Commands of one lease at one resource, awaited. What `AsyncRedisFence.of` gives."""

    def __init__(self, links: AsyncLinks, grant: Grant, setup: Setup) -> None:
        super().__init__(grant.resource, setup.encode)
        self._links = links
        self._grant = grant

    async def _do(self, command: Command) -> Any:
        grant = self._grant
        with told(ADAPTER, grant.resource):
            if not command.reads:
                core.may_write(grant)
            return await self._links.run(grant.mark_key, core.command(grant, command))


class AsyncFencedScript:
    """A user's script behind the check. What `AsyncRedisFence.script` gives."""

    def __init__(self, links: AsyncLinks, script: Script, setup: Setup) -> None:
        self._links = links
        self._script = script
        self._setup = setup

    async def __call__(
        self,
        lease: HeldLease,
        *,
        keys: Sequence[Key] = (),
        args: Sequence[Value] = (),
        resource: str | None = None,
    ) -> Any:
        """See `FencedScript.__call__`."""
        with told(ADAPTER, resource or lease.lock):
            grant = core.writing(lease, resource, self._setup.cluster)
            encode = self._setup.encode
            steps = core.own_script(grant, self._script, tuple(map(encode, keys)), tuple(map(encode, args)))
            return await self._links.run(grant.mark_key, steps)
