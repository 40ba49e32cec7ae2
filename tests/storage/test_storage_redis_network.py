"""Lost replies, dead connections and servers that are away: what the caller may conclude (SAFETY S9)."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from lockd.errors import OutcomeUnknown, StaleToken, Unavailable
from lockd.testing.ports import free_port
from lockd_storage.redis import AsyncRedisFence, RedisFence
from tests.servers.proxy import LossyProxy, lossy_proxy
from tests.servers.valkey import ValkeyServer, running_replica, running_valkey, wait_until
from tests.storage.leases import GivenLease

pytestmark = pytest.mark.valkey

IMPATIENT_SECONDS = 0.2
LEASE = GivenLease(33)


@pytest.fixture
def server(redis_server: ValkeyServer) -> ValkeyServer:
    """A server where LEASE is installed."""
    with redis_server.client() as client:
        RedisFence(client).install(LEASE)
    return redis_server


@pytest.fixture
def direct(server: ValkeyServer) -> Iterator[Any]:
    with server.client() as client:
        yield client


@pytest.fixture
def proxy(server: ValkeyServer) -> Iterator[LossyProxy]:
    with lossy_proxy(server.port) as proxy:
        yield proxy


def through(port: int, **options: Any) -> "redis.Redis":
    """A client that would send everything again, thrice: as redis-py does by default, without its pauses."""
    return redis.Redis(port=port, retry=Retry(NoBackoff(), 3), **options)


def incr_at_once(fence: RedisFence) -> None:
    fence.of(LEASE).incrby("orders")


def incr_in_a_batch(fence: RedisFence) -> None:
    with fence.write(LEASE) as batch:
        batch.incrby("orders")


def incr_in_a_script(fence: RedisFence) -> None:
    fence.script("return redis.call('INCR', KEYS[1])")(LEASE, keys=["orders"])


INCREMENTS = pytest.mark.parametrize("incr", [incr_at_once, incr_in_a_batch, incr_in_a_script])


@INCREMENTS
def test_s9_a_write_whose_reply_is_lost_is_unknown_and_applied_once(
    direct: Any, proxy: LossyProxy, incr: Callable[[RedisFence], None]
) -> None:
    with through(proxy.port) as client:
        fence = RedisFence(client)
        incr(fence)  # the server knows the script from here on
        proxy.lose = b"EVALSHA"
        with pytest.raises(OutcomeUnknown, match="may have been applied"):
            incr(fence)
        assert int(direct.get("orders")) == 2
        proxy.lose = None
        incr(fence)
    assert int(direct.get("orders")) == 3


def test_s9_why_redis_pys_own_retries_are_not_used_a_plain_increment_counts_twice(
    direct: Any, proxy: LossyProxy
) -> None:
    with through(proxy.port) as client:
        proxy.lose = b"INCRBY"
        with pytest.raises(redis.ConnectionError):
            client.incrby("orders")
    assert int(direct.get("orders")) > 1


def test_s9_the_same_for_asyncio(direct: Any, proxy: LossyProxy) -> None:
    async def scenario() -> None:
        async with redis.asyncio.Redis(port=proxy.port) as client:
            fence = AsyncRedisFence(client)
            script = fence.script("return redis.call('INCR', KEYS[1])")
            await fence.of(LEASE).incrby("orders")
            await script(LEASE, keys=["orders"])
            proxy.lose = b"EVALSHA"
            with pytest.raises(OutcomeUnknown):
                await fence.of(LEASE).incrby("orders")
            with pytest.raises(OutcomeUnknown):
                await script(LEASE, keys=["orders"])

    asyncio.run(scenario())
    assert int(direct.get("orders")) == 4


def test_s1_an_install_whose_reply_is_lost_is_installed_again(direct: Any, proxy: LossyProxy) -> None:
    with through(proxy.port) as client:
        fence = RedisFence(client)
        proxy.lose = b"EVALSHA"
        with pytest.raises(OutcomeUnknown, match="install again"):
            fence.install(GivenLease(34))
        proxy.lose = None
        assert fence.install(GivenLease(34)).token == 34
    with pytest.raises(StaleToken):
        incr_at_once(RedisFence(direct))


def test_a_read_whose_reply_is_lost_may_be_asked_again(direct: Any, proxy: LossyProxy) -> None:
    direct.set("orders", "1")
    with through(proxy.port) as client:
        fence = RedisFence(client)
        assert fence.of(LEASE).get("orders") == b"1"
        proxy.lose = b"EVALSHA"
        with pytest.raises(Unavailable):
            fence.of(LEASE).get("orders")
        proxy.lose = b"HMGET"
        with pytest.raises(Unavailable):
            fence.mark("orders")


@INCREMENTS
def test_pitfall_23_a_reply_that_takes_too_long_is_unknown_and_is_never_read_by_another(
    server: ValkeyServer, direct: Any, incr: Callable[[RedisFence], None]
) -> None:
    """The server hangs. What it was sent is carried out once it goes on."""
    with through(server.port, socket_timeout=IMPATIENT_SECONDS, max_connections=1) as client:
        fence = RedisFence(client)
        incr(fence)
        server.pause()
        try:
            with pytest.raises(OutcomeUnknown):
                incr(fence)
        finally:
            server.resume()
        wait_until(lambda: int(direct.get("orders")) == 2)
        assert fence.of(LEASE).exists("orders", "{orders}:none") == 1
        assert int(direct.get("orders")) == 2


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_connection_that_died_while_idle_is_replaced_before_anything_is_sent(
    server: ValkeyServer, direct: Any, protocol: int
) -> None:
    with through(server.port, protocol=protocol) as client:
        fence = RedisFence(client)
        for expected in range(1, 4):
            incr_at_once(fence)
            assert int(direct.get("orders")) == expected
            for connection in direct.client_list():
                if connection["id"] != str(direct.client_id()):
                    direct.client_kill_filter(_id=connection["id"])


def test_a_connection_that_died_while_idle_is_replaced_under_asyncio(
    server: ValkeyServer, direct: Any
) -> None:
    async def scenario() -> None:
        async with redis.asyncio.Redis(port=server.port) as client:
            orders = AsyncRedisFence(client).of(LEASE)
            for _ in range(3):
                await orders.incrby("orders")
                for connection in direct.client_list():
                    if connection["id"] != str(direct.client_id()):
                        direct.client_kill_filter(_id=connection["id"])
                idle: Any = client.connection_pool._available_connections[0]
                async with asyncio.timeout(10):
                    await idle._reader.read()  # until the loop has seen the end of it

    asyncio.run(scenario())
    assert int(direct.get("orders")) == 3


def test_a_cancelled_write_leaves_no_reply_for_the_next(server: ValkeyServer, direct: Any) -> None:
    async def scenario() -> None:
        async with redis.asyncio.Redis(port=server.port, max_connections=1) as client:
            orders = AsyncRedisFence(client).of(LEASE)
            await orders.incrby("orders")
            server.pause()
            try:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(orders.incrby("orders"), IMPATIENT_SECONDS)
            finally:
                server.resume()
            assert await orders.exists("{orders}:none") == 0

    asyncio.run(scenario())
    wait_until(lambda: int(direct.get("orders")) == 2)


class Interrupted(redis.Connection):
    """A connection that a signal interrupts between a request and its reply."""

    armed = False

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        if Interrupted.armed:
            Interrupted.armed = False
            raise KeyboardInterrupt
        return super().read_response(*arguments, **options)


class AsyncInterrupted(redis.asyncio.Connection):
    """The same, as a cancellation."""

    armed = False

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        if AsyncInterrupted.armed:
            AsyncInterrupted.armed = False
            raise asyncio.CancelledError
        return await super().read_response(*arguments, **options)


def test_an_interrupted_write_leaves_no_reply_for_the_next(server: ValkeyServer) -> None:
    pool = redis.ConnectionPool(connection_class=Interrupted, port=server.port, max_connections=1)
    with redis.Redis.from_pool(pool) as client:
        orders = RedisFence(client).of(LEASE)
        assert orders.incrby("orders", 7) == 7
        Interrupted.armed = True
        with pytest.raises(KeyboardInterrupt):
            orders.incrby("orders", 7)
        assert orders.exists("{orders}:none") == 0


def test_a_write_that_is_cancelled_between_request_and_reply_leaves_none(server: ValkeyServer) -> None:
    async def scenario() -> None:
        pool = redis.asyncio.ConnectionPool(
            connection_class=AsyncInterrupted, port=server.port, max_connections=1
        )
        async with redis.asyncio.Redis.from_pool(pool) as client:
            orders = AsyncRedisFence(client).of(LEASE)
            assert await orders.incrby("orders", 7) == 7
            AsyncInterrupted.armed = True
            server.pause()  # so that the reply is not there yet when the next looks
            try:
                with pytest.raises(asyncio.CancelledError):
                    await orders.incrby("orders", 7)
                following = asyncio.create_task(orders.exists("{orders}:none"))
                await asyncio.sleep(0)
            finally:
                server.resume()
            assert await following == 0

    asyncio.run(scenario())


def test_nobody_there_is_unavailable() -> None:
    with redis.Redis(port=free_port(), retry=Retry(NoBackoff(), 0)) as client:
        fence = RedisFence(client)
        verbs: list[Callable[[], Any]] = [
            lambda: fence.install(LEASE),
            lambda: incr_at_once(fence),
            lambda: fence.mark("orders"),
        ]
        for verb in verbs:
            with pytest.raises(Unavailable, match="can't be reached"):
                verb()


def test_pitfall_25_a_replica_takes_no_install_and_no_write(valkey_server: ValkeyServer) -> None:
    valkey_server.reset()
    with (
        valkey_server.client() as primary,
        running_replica(valkey_server.port) as replica,
        replica.client() as client,
    ):
        RedisFence(primary).install(LEASE)
        wait_until(lambda: client.exists("{orders}:lockd-fence") == 1)
        with pytest.raises(Unavailable, match="read only"):
            RedisFence(client).install(GivenLease(34))
        with pytest.raises(Unavailable, match="read only"):
            incr_at_once(RedisFence(client))


def test_a_server_that_may_not_write_for_lack_of_replicas_is_unavailable() -> None:
    with (
        running_valkey(min_replicas_to_write="1") as server,
        server.client() as client,
        pytest.raises(Unavailable, match=r"NOREPLICAS|replicas"),
    ):
        RedisFence(client).install(LEASE)


def test_a_pool_that_is_used_up_is_unavailable(server: ValkeyServer) -> None:
    with through(server.port, max_connections=1) as client:
        pool: Any = client.connection_pool
        taken = pool.get_connection()
        with pytest.raises(Unavailable, match="pool is used up"):
            incr_at_once(RedisFence(client))
        pool.release(taken)
        incr_at_once(RedisFence(client))
