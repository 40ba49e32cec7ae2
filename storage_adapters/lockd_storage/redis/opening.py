"""The operator's verbs on the server or the cluster that a URL names, for the command `lockd fences`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.exceptions import RedisClusterException, RedisError
from redis.retry import Retry

from lockd_storage.redis.refusals import unreachable
from lockd_storage.redis.upkeep import RedisUpkeep


@contextmanager
def open_upkeep(url: str) -> Iterator[RedisUpkeep]:
    """A `RedisUpkeep` on `redis://user:password@host:port/db`, or `rediss://` for TLS; any node of a cluster.

    Replicas that are connected are waited for. Raises ValueError for what is not such a URL, Unavailable
    and AccessDenied when the server can't be asked. No message repeats the URL: it may hold a password.
    """
    with _client(url) as client:
        yield RedisUpkeep(client)


@contextmanager
def _client(url: str) -> Iterator[Any]:
    once = Retry(NoBackoff(), 0)  # a person waits for the answer, and can ask again
    try:
        single: Any = Redis.from_url(url, retry=once)
    except ValueError as error:
        raise ValueError(f"that is not a Redis URL: {error}") from error
    with single:
        try:
            is_cluster = bool(single.info("cluster").get("cluster_enabled"))
            client = RedisCluster.from_url(url) if is_cluster else single
        except (RedisError, RedisClusterException, OSError) as error:
            raise unreachable(error) from error
        with client:
            yield client
