"""`RedisFence`: install, write and read under a lease, for programs without an event loop."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redis import Redis
from redis.cluster import RedisCluster

from lockd_storage.fencing import INSTALL_SECONDS, HeldLease, Mark
from lockd_storage.redis import core
from lockd_storage.redis.batch import Batch
from lockd_storage.redis.core import Confirm, Grant
from lockd_storage.redis.keys import mark_key, tag_of
from lockd_storage.redis.links import Links
from lockd_storage.redis.scripts import Script, fenced_script
from lockd_storage.redis.setup import Setup
from lockd_storage.redis.verbs import Command, FencedCommands, Key, Value
from lockd_storage.rejects import told

ADAPTER = "redis"


class RedisFence:
    """The marks in one server, in a primary with replicas, or in a cluster. A `FencePort`.

    `cluster` pins the lockd cluster whose leases are taken; without it the first install of each
    resource does. `replicas` is how many replicas must confirm an install: say how many could be
    promoted. Without it those count that the primary sees once it has the mark, so one that has lost
    touch is not waited for. `confirm="disk"` waits until they, and the primary, have it on disk (Redis
    7.2, Valkey). Cheap to make, safe to share between threads. The client stays the caller's to close.
    """

    def __init__(
        self,
        client: Redis | RedisCluster,
        *,
        cluster: str | None = None,
        replicas: int | None = None,
        confirm: Confirm = "memory",
    ) -> None:
        self._links = Links(client)
        self._setup = Setup(client, cluster, replicas, confirm, sharded=isinstance(client, RedisCluster))

    def install(
        self, lease: HeldLease, resource: str | None = None, *, timeout: float = INSTALL_SECONDS
    ) -> Mark:
        """Make the lease's token the mark of `resource`. See `FencePort.install`.

        Nothing is waited for but the replicas: a write of an older holder either ran before, or is
        refused. Raises also NotDurable when fewer replicas than asked for have confirmed it in `timeout`
        seconds, and NotFenceable when the server is set to evict any key.
        """
        with told(ADAPTER, resource or lease.lock):
            grant = core.installing(lease, resource, self._setup.cluster)
            return self._links.run(grant.mark_key, self._setup.install(grant, timeout=timeout))

    def mark(self, resource: str) -> Mark | None:
        """See `FencePort.mark`."""
        return self._links.run(mark_key(tag_of(resource)), core.read_mark(resource))

    def of(self, lease: HeldLease, resource: str | None = None) -> "FencedRedis":
        """Commands that run at once, each held to the lease. A shared lease may read. Cheap; keep it."""
        with told(ADAPTER, resource or lease.lock):
            grant = core.reading(lease, resource, self._setup.cluster)
            return FencedRedis(self._links, grant, self._setup)

    @contextmanager
    def write(self, lease: HeldLease, resource: str | None = None) -> Iterator[Batch]:
        """A batch whose commands are applied in one step when the block ends, all or none.

        Nothing is sent when the block raises. Raises on leaving StaleToken, NotInstalled, WrongCluster,
        LeaseLost, redis's ResponseError for a key of the wrong type, Unavailable, and OutcomeUnknown when
        the reply was lost: it may have been applied, and is not sent again.
        """
        with told(ADAPTER, resource or lease.lock):
            grant = core.writing(lease, resource, self._setup.cluster)
        batch = Batch(grant.resource, self._setup.encode, check=grant.check_key)
        yield batch
        with told(ADAPTER, grant.resource):
            self._links.run(grant.mark_key, core.batch(grant, batch))

    def script(self, source: str) -> "FencedScript":
        """A Lua script of your own with the check in front of it, in one step.

            close = fence.script("return redis.call('SET', KEYS[1], ARGV[1])")
            close(lease, keys=["{orders}:state"], args=["closed"])

        As in any Redis script, what it wrote before an error of its own stays.
        """
        return FencedScript(self._links, fenced_script(source), self._setup)


class FencedRedis(FencedCommands):
    """Commands of one lease at one resource. What `RedisFence.of` gives."""

    def __init__(self, links: Links, grant: Grant, setup: Setup) -> None:
        super().__init__(grant.resource, setup.encode)
        self._links = links
        self._grant = grant

    def _do(self, command: Command) -> Any:
        grant = self._grant
        with told(ADAPTER, grant.resource):
            if not command.reads:
                core.may_write(grant)
            return self._links.run(grant.mark_key, core.command(grant, command))


class FencedScript:
    """A user's script behind the check. What `RedisFence.script` gives."""

    def __init__(self, links: Links, script: Script, setup: Setup) -> None:
        self._links = links
        self._script = script
        self._setup = setup

    def __call__(
        self,
        lease: HeldLease,
        *,
        keys: Sequence[Key] = (),
        args: Sequence[Value] = (),
        resource: str | None = None,
    ) -> Any:
        """Run it under a lease. Replies as redis-py's `eval` does. Raises as `RedisFence.write`."""
        with told(ADAPTER, resource or lease.lock):
            grant = core.writing(lease, resource, self._setup.cluster)
            encode = self._setup.encode
            steps = core.own_script(grant, self._script, tuple(map(encode, keys)), tuple(map(encode, args)))
            return self._links.run(grant.mark_key, steps)
