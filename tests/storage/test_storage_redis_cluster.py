"""A cluster of three primaries: what is fenced shares the mark's slot, and writes find it when it moves."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import redis.asyncio.cluster
import redis.cluster

from lockd.errors import StaleToken, Unavailable
from lockd_storage import NotFenceable, NotInstalled, OutsideFence, WrongCluster
from lockd_storage.redis import AsyncRedisFence, RedisFence, RedisUpkeep, tagged_key
from lockd_storage.redis.keys import mark_key, slot_of, tag_of
from tests.servers.valkey import ValkeyServer, running_valkey_cluster
from tests.storage.leases import CLUSTER, INCARNATION, OTHER_CLUSTER, GivenLease

pytestmark = pytest.mark.valkey

NAMES = ["orders", "a}b", "invoices", "{x}"]
LEASE = GivenLease(33)


@pytest.fixture(scope="module")
def servers() -> Iterator[list[ValkeyServer]]:
    with running_valkey_cluster() as servers:
        yield servers


@pytest.fixture
def client(servers: list[ValkeyServer]) -> Iterator[Any]:
    for server in servers:
        server.reset()
    with redis.cluster.RedisCluster(host="127.0.0.1", port=servers[0].port) as client:
        yield client


def test_s7_tagged_keys_are_written_wherever_their_slot_is(client: Any) -> None:
    fence = RedisFence(client)
    assert len({client.get_node_from_key(mark_key(tag_of(name))).port for name in NAMES}) > 1
    for name in NAMES:
        old, new = GivenLease(33, lock=name), GivenLease(34, lock=name)
        fence.install(old)
        fence.of(old).set(tagged_key(name, "a"), "33")
        with fence.write(old) as batch:
            batch.set(batch.key("b"), "33")
            batch.rpush(batch.key("c"), "33")
        fence.script("return redis.call('INCR', KEYS[1])")(old, keys=[tagged_key(name, "d")])
        fence.install(new)
        with pytest.raises(StaleToken):
            fence.of(old).set(tagged_key(name, "a"), "stale")
        assert client.get(tagged_key(name, "a")) == b"33"


def test_s7_untagged_keys_never_reach_the_cluster_as_crossslot(client: Any) -> None:
    fence = RedisFence(client)
    fence.install(LEASE)
    with pytest.raises(OutsideFence, match="name it"):
        fence.of(LEASE).set("total", "1")
    with pytest.raises(OutsideFence), fence.write(LEASE) as batch:
        batch.delete("{orders}:a", "{invoices}:a")


def test_s7_a_client_of_one_node_is_told_what_it_needs(client: Any, servers: list[ValkeyServer]) -> None:
    RedisFence(client).install(LEASE)
    for server in servers:
        with server.client() as single, pytest.raises(NotFenceable, match="RedisCluster"):
            RedisFence(single).install(GivenLease(34))
    assert RedisFence(client).mark("orders") is not None


def move_slot(client: Any, servers: list[ValkeyServer], name: str) -> tuple[Any, Any]:
    """Begin to move a slot away from where it is. The two nodes' own clients: from, to."""
    slot = slot_of(mark_key(tag_of(name)))
    nodes: list[Any] = [server.client() for server in servers]
    port = client.get_node_from_key(mark_key(tag_of(name))).port
    at = next(number for number, server in enumerate(servers) if server.port == port)
    source, target = nodes[at], nodes[(at + 1) % len(nodes)]
    target.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", source.execute_command("CLUSTER MYID"))
    source.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", target.execute_command("CLUSTER MYID"))
    for other in nodes:
        if other not in (source, target):
            other.close()
    return source, target


def test_s9_while_and_after_a_slot_moves_each_write_is_applied_once(
    client: Any, servers: list[ValkeyServer]
) -> None:
    fence = RedisFence(client)
    fence.install(LEASE)
    orders = fence.of(LEASE)
    assert orders.incrby("orders") == 1
    slot = slot_of(b"orders")
    source, target = move_slot(client, servers, "orders")
    with source, target:
        port = target.connection_pool.connection_kwargs["port"]
        source.execute_command("MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS", "{orders}:lockd-fence")
        with pytest.raises(Unavailable):  # half of its keys are there
            orders.incrby("orders")
        source.execute_command("MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS", "orders")
        assert orders.incrby("orders") == 2  # ASK
        for node in (target, source):
            node.execute_command("CLUSTER SETSLOT", slot, "NODE", target.execute_command("CLUSTER MYID"))
        assert orders.incrby("orders") == 3  # MOVED
        assert fence.install(GivenLease(34)).token == 34
        assert target.get("orders") == b"3"

        async def scenario() -> None:
            async with redis.asyncio.cluster.RedisCluster(host="127.0.0.1", port=servers[0].port) as aclient:
                newer = GivenLease(35)
                afence = AsyncRedisFence(aclient)
                await afence.install(newer)
                await afence.of(newer).incrby("orders")

        asyncio.run(scenario())
        assert target.get("orders") == b"4"


def test_s2_the_floor_holds_in_every_slot(client: Any) -> None:
    fence, upkeep = RedisFence(client), RedisUpkeep(client)
    for name in NAMES:
        fence.install(GivenLease(33, lock=name))
    fence.install(GivenLease(40, lock="kept"))
    change = upkeep.raise_floor(34)
    assert (change.before.token, change.after.token, change.removed) == (0, 34, len(NAMES))
    assert upkeep.floor().token == 34
    assert [kept.mark.resource for kept in upkeep.marks()] == ["kept"]
    for name in [*NAMES, "never seen"]:
        with pytest.raises(StaleToken):
            fence.install(GivenLease(34, lock=name))
        with pytest.raises(NotInstalled):
            fence.of(GivenLease(33, lock=name)).set(tagged_key(name, "x"), "1")
        fence.install(GivenLease(35, lock=name))
    upkeep.adopt(f"{OTHER_CLUSTER}/{INCARNATION}/7")
    assert upkeep.marks() == []
    with pytest.raises(WrongCluster):
        fence.install(GivenLease(99, lock="never seen", cluster=CLUSTER))
    fence.install(GivenLease(8, lock="never seen", cluster=OTHER_CLUSTER))
