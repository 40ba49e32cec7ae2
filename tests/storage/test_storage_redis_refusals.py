"""What a fence for Redis is given by mistake, and which node's replicas it counts (SAFETY S7)."""

from collections.abc import Generator
from contextlib import suppress
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.exceptions import MovedError

from lockd_storage import NotFenceable
from lockd_storage.redis import AsyncRedisFence, RedisFence, RedisUpkeep, core
from lockd_storage.redis.core import Request
from lockd_storage.redis.keys import FLOOR_KEY
from lockd_storage.redis.routes import Go, Refresh, routed
from tests.servers.valkey import ValkeyServer
from tests.storage.leases import GivenLease

LEASE = GivenLease(33)


@pytest.mark.parametrize(
    ("fence", "client", "needed"),
    [
        (RedisFence, redis.asyncio.Redis(), "AsyncRedisFence is for those"),
        (RedisUpkeep, redis.asyncio.Redis(), "a redis.Redis or"),
        (AsyncRedisFence, redis.Redis(), "RedisFence is for those"),
        (RedisFence, "redis://localhost", "not builtins.str"),
    ],
)
def test_a_client_of_another_kind_is_refused_at_once(fence: Any, client: Any, needed: str) -> None:
    with pytest.raises(TypeError, match=needed):
        fence(client)


@pytest.mark.valkey
def test_what_is_kept_of_a_block_that_has_ended_takes_nothing(redis_server: ValkeyServer) -> None:
    with redis_server.client() as client:
        fence = RedisFence(client)
        fence.install(LEASE)
        with fence.write(LEASE) as batch:
            batch.set("orders", "1")
        with pytest.raises(NotFenceable, match="has ended"):
            batch.set("orders", "2")
        assert batch.replies == [True]
        assert client.get("orders") == b"1"


def node(facts: str, script: Any) -> Generator[Any, Request | None, None]:
    """What a node of a cluster replies: to INFO these facts, to a script this, to WAIT what was asked for."""
    reply: Any = None
    while True:
        request = yield reply
        assert request is not None
        match request.words[0]:
            case b"INFO":
                reply = facts.encode()
            case b"WAIT":
                reply = request.words[1]
            case _:
                reply = script


def test_s7_the_replicas_are_counted_at_the_node_that_has_the_mark() -> None:
    """The client's map of the cluster is old: it asks a node that has no replicas and no longer the slot."""
    policy = "maxmemory_policy:noeviction\r\n"
    nodes = {
        None: node(f"{policy}connected_slaves:0", MovedError("0 127.0.0.1:2")),
        ("127.0.0.1", 2): node(f"{policy}connected_slaves:2", [1, None, None, None, None]),
    }
    for each in nodes.values():
        next(each)
    grant = core.installing(LEASE, None, None)
    steps = core.install(grant, floor_key=FLOOR_KEY, replicas=None, confirm="memory", timeout=1)
    route = routed(steps, sharded=True)
    waited_for: list[Any] = []
    step = next(route)
    here = None
    with suppress(StopIteration):
        while True:
            reply: Any = None
            match step:
                case Go(address):
                    here = address
                case Refresh():
                    pass
                case Request(words):
                    reply = nodes[here].send(step)
                    if words[0] == b"WAIT":
                        waited_for.append((here, words[1]))
            step = route.throw(reply) if isinstance(reply, Exception) else route.send(reply)
    assert waited_for == [(("127.0.0.1", 2), 2)]
