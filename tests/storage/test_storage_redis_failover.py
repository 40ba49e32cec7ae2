"""A primary dies and a replica takes over (SAFETY S7): what WAIT covers, and what it does not.

The replica is behind a link that can stall, as when the network between two machines does.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from lockd.errors import StaleToken
from lockd_storage import NotDurable, NotFenceable, NotInstalled
from lockd_storage.redis import RedisFence, RedisUpkeep
from tests.servers.stalled_link import StalledLink, stalled_link
from tests.servers.valkey import Program, ValkeyServer, running_replica, running_valkey, wait_until
from tests.storage.leases import GivenLease
from tests.storage.redis_stores import BlockingFence

pytestmark = pytest.mark.valkey

SHORT_SECONDS = 0.3
MARK = "{orders}:lockd-fence"
OLD, NEW = GivenLease(33), GivenLease(34)


@pytest.fixture
def program() -> Program:
    return Program.VALKEY_9


ON_BOTH = pytest.mark.parametrize("program", [Program.VALKEY_9, Program.REDIS_6])


@pytest.fixture
def primary(program: Program) -> Iterator[ValkeyServer]:
    with running_valkey(program) as server:
        yield server


@pytest.fixture
def link(primary: ValkeyServer) -> Iterator[StalledLink]:
    with stalled_link(primary.port) as link:
        yield link


@pytest.fixture
def replica(link: StalledLink, program: Program) -> Iterator[ValkeyServer]:
    with running_replica(link.port, program) as server:
        yield server


def promote(server: ValkeyServer) -> None:
    with server.client() as client:
        client.replicaof("NO", "ONE")


def has_mark(server: ValkeyServer, lease: GivenLease) -> bool:
    with server.client() as client:
        return bool(client.hget(MARK, "fence") == lease.fence.encode())


def test_pitfall_10_a_mark_that_wait_counted_survives_the_primary(
    primary: ValkeyServer, replica: ValkeyServer
) -> None:
    with primary.client() as client:
        fence = RedisFence(client)  # counts the connected replica by itself
        fence.install(OLD)
        fence.of(OLD).set("orders", "33")
        fence.install(NEW)
    primary.kill()
    promote(replica)
    with replica.client() as client:
        fence = RedisFence(client)
        with pytest.raises(StaleToken):
            fence.of(OLD).set("orders", "stale")
        fence.of(NEW).set("orders", "34")


@ON_BOTH
def test_pitfall_10_an_install_that_the_replica_has_not_confirmed_is_not_handed_out(
    primary: ValkeyServer, link: StalledLink, replica: ValkeyServer
) -> None:
    """The failover that loses a mark: the newer holder is told, and the older one has the mark."""
    with primary.client() as client:
        fence = RedisFence(client)
        fence.install(OLD)
        link.stall()
        with pytest.raises(NotDurable, match="0 of 1 replicas have confirmed"):
            fence.install(NEW, timeout=SHORT_SECONDS)
    primary.kill()
    link.cut()
    promote(replica)
    with replica.client() as client:
        fence = RedisFence(client)
        fence.of(OLD).set("orders", "33")
        with pytest.raises(NotInstalled):
            fence.of(NEW).set("orders", "34")
        fence.install(NEW)
        with pytest.raises(StaleToken):
            fence.of(OLD).set("orders", "stale")


def test_s7_a_repeated_install_is_not_believed_before_the_replica_has_it(
    primary: ValkeyServer, link: StalledLink, replica: ValkeyServer
) -> None:
    """On another connection, which has written nothing yet: WAIT alone would return at once."""
    with primary.client() as first, primary.client() as second:
        RedisFence(first).install(OLD)
        link.stall()
        for client in (first, second):
            with pytest.raises(NotDurable):
                RedisFence(client).install(NEW, timeout=SHORT_SECONDS)
        link.flow()
        assert RedisFence(second).install(NEW).token == 34
    assert has_mark(replica, NEW)


def test_s7_the_same_under_asyncio(primary: ValkeyServer, link: StalledLink, replica: ValkeyServer) -> None:
    fence = BlockingFence(primary)
    try:
        fence.install(OLD)
        link.stall()
        for _ in range(2):
            with pytest.raises(NotDurable):
                fence.install(NEW, timeout=SHORT_SECONDS)
        link.flow()
        fence.install(NEW)
    finally:
        fence.close()
    assert has_mark(replica, NEW)


def test_s7_replicas_that_are_named_are_missed_when_they_are_not_there(primary: ValkeyServer) -> None:
    with primary.client() as client:
        RedisFence(client).install(OLD)  # as many as are connected: none
        with pytest.raises(NotDurable, match="0 of 1"):
            RedisFence(client, replicas=1).install(OLD, timeout=SHORT_SECONDS)
        RedisFence(client, replicas=0).install(OLD)


def test_what_remains_a_replica_that_was_not_counted_brings_an_older_mark_back(
    primary: ValkeyServer, link: StalledLink, replica: ValkeyServer
) -> None:
    """A known loss: more copies failed than `replicas` said. The newer holder learns it at its next write."""
    with primary.client() as client:
        fence = RedisFence(client, replicas=0)
        fence.install(OLD)
        wait_until(lambda: has_mark(replica, OLD))
        link.stall()
        fence.install(NEW)
        fence.of(NEW).set("orders", "34")
    primary.kill()
    link.cut()
    promote(replica)
    with replica.client() as client:
        fence = RedisFence(client)
        fence.of(OLD).set("orders", "a stale write that is taken")
        with pytest.raises(NotInstalled, match="the mark is 33"):
            fence.of(NEW).set("orders", "34")
        fence.install(NEW)
        with pytest.raises(StaleToken):
            fence.of(OLD).set("orders", "stale")


def test_what_remains_a_replica_that_restarts_empty_fails_closed(
    primary: ValkeyServer, program: Program
) -> None:
    """It had confirmed, was restarted without its data and was promoted: nobody writes until an install."""
    with primary.client() as client, running_replica(primary.port, program) as counted:
        RedisFence(client, replicas=1).install(NEW)
        counted.kill()
        with running_valkey(program) as restarted:
            promote(restarted)
            with restarted.client() as promoted:
                fence = RedisFence(promoted)
                for lease in (OLD, NEW):
                    with pytest.raises(NotInstalled):
                        fence.of(lease).set("orders", "x")


def test_pitfall_11_a_primary_restored_from_an_older_copy_needs_its_floor_raised(
    primary: ValkeyServer,
) -> None:
    """The mark of a copy lets its own holder in, and no other, until the floor is raised."""
    with primary.client() as client:
        fence = RedisFence(client)
        fence.install(OLD)
        older: Any = client.dump(MARK)
        fence.install(NEW)
        client.restore(MARK, 0, older, replace=True)
        fence.of(OLD).set("orders", "a stale write that is taken")
        change = RedisUpkeep(client).raise_floor(NEW.token)
        assert (change.before.token, change.after.token, change.removed) == (0, 34, 1)
        for lease in (OLD, NEW):
            with pytest.raises(NotInstalled):
                fence.of(lease).set("orders", "x")
            with pytest.raises(StaleToken):
                fence.install(lease)
        fence.install(GivenLease(35))


def test_s7_on_disk_means_appendonly() -> None:
    with running_valkey(appendonly="yes", appendfsync="everysec") as server, server.client() as client:
        RedisFence(client, confirm="disk").install(OLD)
        client.config_set("appendonly", "no")
        with pytest.raises(NotFenceable, match="appendonly yes"):
            RedisFence(client, confirm="disk").install(OLD)


@pytest.mark.parametrize("program", [Program.REDIS_6])
def test_s7_redis_before_7_2_can_not_confirm_on_disk(primary: ValkeyServer) -> None:
    with primary.client() as client, pytest.raises(NotFenceable, match=r"Redis 7\.2"):
        RedisFence(client, confirm="disk").install(OLD)
