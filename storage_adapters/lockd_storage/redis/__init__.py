"""Fenced writes to Redis and Valkey, alone, with replicas or as a cluster.

The mark of resource `orders` is the hash `{orders}:lockd-fence`, and what it guards are the keys with
the same hash tag: `orders` itself, `{orders}:total` and so on. Check and write are one script, which the
server runs as one step.

    fence = RedisFence(client, replicas=2)                # AsyncRedisFence: the same, awaited
    with client.lock("orders") as lease:
        fence.install(lease)                              # before reading anything
        orders = fence.of(lease)
        orders.incrby("{orders}:total", 5)                # at once; StaleToken if someone newer has come
        with fence.write(lease) as batch:                 # in one step, at the end of the block
            batch.set("{orders}:state", "closed")
            batch.rpush("{orders}:log", "closed")

Tokens are compared as decimal strings: Lua's numbers are doubles (SAFETY S7). A write is sent once: when
its reply is lost the outcome is unknown, and the client library's own retries would write twice.

Best effort under failover. Redis replicates after it has answered, so a promoted replica may lack what
the primary had confirmed. `install` waits until `replicas` replicas have the mark, and raises NotDurable
when they don't confirm. That holds while the replica that is promoted is one of those that confirmed,
and has not lost its data since. Beyond that an older mark may come back: the older holder is let in
until the newer one writes, is refused as NotInstalled, and installs again. With all data gone the mark is
missing, and every write is refused. Writes themselves are not waited for.

Not prevented: whoever may run SET may write around the script, as no ACL can demand it.

WATCH, MULTI and EXEC pipelines are not offered: a batch or a script does the same in one round trip.

Start reading at `core`. `scripts` has the Lua, `keys` the names, `verbs` the commands; `fence` and `aio`
are the two faces, `upkeep` is for operators.
"""

try:
    import redis as _installed  # noqa: F401  the test is whether it can be imported
except ImportError as error:
    raise ImportError('lockd_storage.redis needs redis: pip install "lockd[redis]"') from error

from lockd_storage.redis.aio import AsyncRedisFence
from lockd_storage.redis.fence import RedisFence
from lockd_storage.redis.keys import tagged_key
from lockd_storage.redis.upkeep import RedisUpkeep

__all__ = ["AsyncRedisFence", "RedisFence", "RedisUpkeep", "tagged_key"]
