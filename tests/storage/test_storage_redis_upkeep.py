"""The operator's verbs on a single server (SAFETY S2); tests of a cluster's are with the cluster."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from lockd.errors import OutcomeUnknown, StaleToken, Unavailable
from lockd.ids import ClusterId
from lockd.testing.ports import free_port
from lockd_storage import NotDurable, NotInstalled, WrongCluster
from lockd_storage.fencing import Floor
from lockd_storage.redis import RedisFence, RedisUpkeep
from tests.servers.proxy import lossy_proxy
from tests.servers.valkey import ValkeyServer
from tests.storage.leases import CLUSTER, INCARNATION, OTHER_CLUSTER, GivenLease


@pytest.fixture(params=[False, True], ids=["bytes", "text"])
def client(redis_server: ValkeyServer, request: pytest.FixtureRequest) -> Iterator[Any]:
    with redis_server.client(decode_responses=request.param) as client:
        yield client


def test_marks_are_listed_by_prefix_with_the_time_of_their_install(client: Any) -> None:
    fence, upkeep = RedisFence(client), RedisUpkeep(client)
    for name in ("b", "a*b", "a[b", "a}b", "a%7Db", "axb", "a", "é-1"):
        fence.install(GivenLease(33, lock=name))
    client.set("{a}:other", "x")
    assert [kept.mark.resource for kept in upkeep.marks("a")] == ["a", "a%7Db", "a*b", "a[b", "axb", "a}b"]
    assert [kept.mark.resource for kept in upkeep.marks("a*")] == ["a*b"]
    assert len(upkeep.marks()) == 8
    (kept,) = upkeep.marks("é-")
    assert kept.mark == fence.mark("é-1")
    assert kept.installed_at is not None
    assert abs(datetime.now(UTC) - kept.installed_at) < timedelta(minutes=5)


def test_s2_raising_the_floor_removes_what_it_refuses_and_refuses_it_for_ever(client: Any) -> None:
    fence, upkeep = RedisFence(client), RedisUpkeep(client)
    for token, name in ((33, "orders"), (34, "invoices"), (40, "kept")):
        fence.install(GivenLease(token, lock=name))
    change = upkeep.raise_floor(34)
    assert (change.before, change.after, change.removed) == (Floor(0), Floor(34), 2)
    with pytest.raises(NotInstalled):
        fence.of(GivenLease(34, lock="invoices")).set("invoices", "x")
    with pytest.raises(StaleToken) as refused:
        fence.install(GivenLease(34, lock="new"))
    assert refused.value.mark == 34
    fence.of(GivenLease(40, lock="kept")).set("kept", "x")
    fence.install(GivenLease(35, lock="new"))
    assert upkeep.raise_floor(1).after == Floor(34) == upkeep.floor()


def test_pitfall_14_purged_marks_do_not_let_an_older_token_in_again(client: Any) -> None:
    fence, upkeep = RedisFence(client), RedisUpkeep(client)
    for token, name in ((33, "orders:1"), (50, "orders:2"), (34, "fresh")):
        fence.install(GivenLease(token, lock=name))
    long_ago = int((datetime.now(UTC) - timedelta(days=9)).timestamp())
    for name in ("orders:1", "orders:2"):
        client.hset(f"{{{name}}}:lockd-fence", "at", long_ago)
    assert upkeep.purge(timedelta(days=8), prefix="invoices").removed == 0
    change = upkeep.purge(timedelta(days=8))
    assert (change.after.token, change.removed) == (50, 2)
    for name in ("orders:1", "orders:2", "never seen"):
        with pytest.raises(StaleToken):
            fence.install(GivenLease(50, lock=name))
    fence.of(GivenLease(34, lock="fresh")).set("fresh", "x")  # it stays, and is as good as before


def test_a_floor_is_not_raised_over_marks_of_several_clusters(client: Any) -> None:
    RedisFence(client).install(GivenLease(33))
    RedisFence(client).install(GivenLease(33, lock="theirs", cluster=OTHER_CLUSTER))
    with pytest.raises(WrongCluster, match="adopt"):
        RedisUpkeep(client).purge(timedelta(0))


def test_s2_after_a_move_only_the_new_cluster_installs(client: Any) -> None:
    fence, upkeep = RedisFence(client), RedisUpkeep(client)
    fence.install(GivenLease(1000))
    upkeep.raise_floor(500)
    change = upkeep.adopt(f"{OTHER_CLUSTER}/{INCARNATION}/7")
    assert (change.after, change.removed) == (Floor(7, ClusterId(OTHER_CLUSTER)), 1)
    with pytest.raises(WrongCluster, match="belongs to cluster"):
        fence.install(GivenLease(2000, lock="new", cluster=CLUSTER))
    with pytest.raises(StaleToken):
        fence.install(GivenLease(7, lock="new", cluster=OTHER_CLUSTER))
    fence.install(GivenLease(8, cluster=OTHER_CLUSTER))
    again = upkeep.adopt(f"{OTHER_CLUSTER}/{INCARNATION}/7")
    assert (again.before, again.removed) == (again.after, 0)


@pytest.mark.parametrize("token", [0, -1, 2**53 - 1])
def test_a_floor_that_would_shut_out_everybody_is_refused(client: Any, token: int) -> None:
    with pytest.raises(ValueError, match="floor"):
        RedisUpkeep(client).raise_floor(token)


def test_a_floor_that_replicas_do_not_confirm_says_so(client: Any) -> None:
    with pytest.raises(NotDurable, match="the floor"):
        RedisUpkeep(client, replicas=1).raise_floor(9, timeout=0.05)


def test_s9_a_verb_whose_reply_is_lost_may_be_called_again(client: Any, redis_server: ValkeyServer) -> None:
    RedisFence(client).install(GivenLease(33))
    with (
        lossy_proxy(redis_server.port) as proxy,
        redis.Redis(port=proxy.port, retry=Retry(NoBackoff(), 0)) as through,
    ):
        upkeep = RedisUpkeep(through)
        proxy.lose = b"EVAL"
        with pytest.raises(OutcomeUnknown, match="again"):
            upkeep.raise_floor(34)
        proxy.lose = None
        assert upkeep.raise_floor(34).removed == 1


def test_nobody_there_is_unavailable() -> None:
    with redis.Redis(port=free_port(), retry=Retry(NoBackoff(), 0)) as client, pytest.raises(Unavailable):
        RedisUpkeep(client).marks()
