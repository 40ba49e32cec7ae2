"""The rule on real servers, Valkey 9 and Redis 6.2: what the contract suite does not ask of everyone."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count, product
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from lockd.errors import AccessDenied, CorruptData, LockdError, OutcomeUnknown, StaleToken, Unavailable
from lockd.ids import ClusterId, Fence
from lockd_storage import NotFenceable, NotInstalled, OutsideFence, WrongMode
from lockd_storage.fencing import Floor, Mark, judge_install
from lockd_storage.redis import AsyncRedisFence, RedisFence, scripts
from lockd_storage.redis.batch import Batch
from lockd_storage.redis.keys import (
    FLOOR_KEY,
    SLOTS,
    cluster_floor_keys,
    hashed_part,
    mark_key,
    resource_named,
    slot_of,
    tag_of,
    tagged_key,
)
from lockd_storage.rejects import REJECTS
from tests.servers.valkey import Program, ValkeyServer, running_valkey
from tests.storage.leases import CLUSTER, INCARNATION, OTHER_CLUSTER, OTHER_INCARNATION, GivenLease

MARK = "{orders}:lockd-fence"


@pytest.fixture(params=[False, True], ids=["bytes", "text"])
def client(redis_server: ValkeyServer, request: pytest.FixtureRequest) -> Iterator[Any]:
    with redis_server.client(decode_responses=request.param) as client:
        yield client


def apply(fence: RedisFence, queue: Callable[[Batch], Any]) -> None:
    """One batch under token 33."""
    with fence.write(GivenLease(33)) as batch:
        queue(batch)


def text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def test_pitfall_17_tokens_that_are_the_same_double_are_not_the_same_token(client: Any) -> None:
    """2**53 and 2**53 + 1 are one number to Lua. Above the highest token, so straight to the script."""
    assert client.eval("return tonumber(ARGV[1]) == tonumber(ARGV[2]) and 1 or 0", 0, 2**53, 2**53 + 1) == 1

    def install(token: int) -> int:
        keys = mark_key(b"orders"), FLOOR_KEY
        reply = client.eval(scripts.INSTALL.source, 2, *keys, "orders", CLUSTER, INCARNATION, str(token))
        return int(reply[0])

    assert install(2**53 + 1) == 1
    assert install(2**53) == 0
    assert text(client.hget(MARK, "fence")).endswith(f"/{2**53 + 1}")
    key, arguments = "{orders}:x", ("SET", "stale", f"{CLUSTER}/{INCARNATION}/{2**53}")
    with pytest.raises(redis.ResponseError, match="LFMARK"):
        client.eval(scripts.ONE_KEY.source, 2, key, MARK, *arguments)
    assert install(2**53 + 2) == 1


def test_pitfall_17_no_script_makes_a_number_of_a_token() -> None:
    sources = [value.source for value in vars(scripts).values() if isinstance(value, scripts.Script)]
    assert len(sources) >= 6
    assert not [source for source in sources if b"tonumber" in source]


def test_s2_the_install_script_decides_as_the_rule_does(client: Any) -> None:
    """Every mark, floor and newcomer of a small world, with numbers of 1, 2 and 16 digits."""
    tokens = (9, 10, 2**53 - 1)
    fences = [
        Fence.parse(f"{cluster}/{incarnation}/{token}")
        for token in tokens
        for cluster, incarnation in (
            (CLUSTER, INCARNATION),
            (CLUSTER, OTHER_INCARNATION),
            (OTHER_CLUSTER, INCARNATION),
        )
    ]
    marks = [None, *(Mark("orders", lock, fence) for fence in fences for lock in ("orders", "invoices"))]
    floors = [Floor(0), Floor(9), Floor(10), Floor(10, ClusterId(OTHER_CLUSTER))]
    pipeline = client.pipeline(transaction=False)
    expected: list[int] = []
    for mark, floor, fence in product(marks, floors, fences):
        pipeline.delete(MARK, FLOOR_KEY)
        if mark is not None:
            pipeline.hset(MARK, mapping={"lock": mark.lock, "fence": str(mark.fence)})
        if floor.token:
            pipeline.hset(FLOOR_KEY, "token", floor.token)
        if floor.cluster is not None:
            pipeline.hset(FLOOR_KEY, "cluster", floor.cluster)
        words = ("orders", fence.cluster, fence.incarnation, str(fence.token))
        pipeline.eval(scripts.INSTALL.source, 2, MARK, FLOOR_KEY, *words)
        try:
            judge_install(mark, floor=floor, resource="orders", lock="orders", fence=fence)
        except LockdError:
            expected.append(0)
        else:
            expected.append(1)
    decided = [reply[0] for reply in pipeline.execute() if isinstance(reply, list)]
    assert decided == expected
    assert {0, 1} == set(expected)


def test_pitfall_09_after_flushall_nothing_is_written_until_someone_installs(client: Any) -> None:
    fence, lease = RedisFence(client), GivenLease(33)
    fence.install(lease)
    orders = fence.of(lease)
    orders.set("orders", "open")
    client.flushall()
    with pytest.raises(NotInstalled):
        orders.set("orders", "closed")
    with pytest.raises(NotInstalled):
        orders.get("orders")
    assert client.dbsize() == 0
    fence.install(lease)
    orders.set("orders", "closed")


def test_s7_a_mark_never_expires(client: Any) -> None:
    fence, lease = RedisFence(client), GivenLease(33)
    fence.install(lease)
    client.expire(MARK, 100)
    fence.install(lease)
    assert client.ttl(MARK) == -1


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random", "allkeys-lfu"])
def test_s7_a_server_that_may_evict_marks_is_refused(client: Any, policy: str) -> None:
    client.config_set("maxmemory-policy", policy)
    try:
        with pytest.raises(NotFenceable, match=f"maxmemory-policy is {policy}"):
            RedisFence(client).install(GivenLease(33))
    finally:
        client.config_set("maxmemory-policy", "noeviction")
    assert client.exists(MARK) == 0


@pytest.mark.parametrize("program", [Program.VALKEY_9, Program.REDIS_6])
def test_s7_why_eviction_is_refused_a_mark_is_dropped_under_pressure(program: Program) -> None:
    lease = GivenLease(33)
    with running_valkey(program) as server, server.client() as client:
        fence = RedisFence(client)
        fence.install(lease)
        memory: Any = client.info("memory")
        client.config_set("maxmemory", memory["used_memory"] + 2_000_000)
        client.config_set("maxmemory-policy", "allkeys-lru")
        numbers = count()
        while client.exists(MARK):
            with suppress(redis.OutOfMemoryError):  # it may drop all it has before it refuses one
                client.set(f"filler:{next(numbers)}", "x" * 10_000)
        client.config_set("maxmemory", 0)
        with pytest.raises(NotInstalled):  # closed, at least
            fence.of(lease).set("orders", "x")


def test_a_full_server_is_unavailable_and_keeps_nothing_of_a_batch(client: Any) -> None:
    fence, lease = RedisFence(client), GivenLease(33)
    fence.install(lease)
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(Unavailable, match=r"OOM|maxmemory"):
            apply(fence, lambda batch: (batch.rpush("{orders}:a", "1"), batch.hset("{orders}:b", {"f": 1})))
        with pytest.raises(Unavailable):
            fence.of(lease).rpush("{orders}:c", "1")
        with pytest.raises(Unavailable):
            fence.install(GivenLease(34))
    finally:
        client.config_set("maxmemory", 0)
    assert [text(key) for key in client.keys("*")] == [MARK]


def test_what_the_methods_reply(client: Any) -> None:
    fence, lease = RedisFence(client), GivenLease(33)
    fence.install(lease)
    orders = fence.of(lease)
    one = client.get_encoder().decode(b"1")
    assert orders.set(orders.key("n"), 1, ex=100) is True
    assert orders.set(orders.key("n"), 2, nx=True) is None
    assert orders.set(orders.key("m"), 2, xx=True) is None
    assert orders.get(orders.key("n")) == one
    assert orders.incrby(orders.key("n"), 41) == 42
    assert (orders.persist(orders.key("n")), orders.expire(orders.key("n"), 50)) == (1, 1)
    assert orders.hset("{orders}:h", {"a": 1, "b": 2.5}) == 2
    assert orders.hget("{orders}:h", "a") == one
    assert len(orders.hgetall("{orders}:h")) == 2
    assert (orders.hdel("{orders}:h", "b"), list(orders.hgetall("{orders}:h").values())) == (1, [one])
    assert (orders.rpush("{orders}:l", "1", "2"), orders.lpush("{orders}:l", "0")) == (2, 3)
    assert orders.lrange("{orders}:l", 1, 1) == [one]
    assert (orders.sadd("{orders}:s", 1, 2), orders.srem("{orders}:s", 2)) == (2, 1)
    assert orders.smembers("{orders}:s") == {one}
    assert (orders.zadd("{orders}:z", {"a": 1.5}), orders.zrem("{orders}:z", "a")) == (1, 1)
    assert text(orders.xadd("{orders}:x", {"a": 1}, maxlen=10)).count("-") == 1
    assert orders.exists("{orders}:s", "{orders}:l", "orders") == 2
    assert orders.delete("{orders}:s", "{orders}:l", "orders") == 2


def test_a_batch_is_applied_whole_and_in_order(client: Any) -> None:
    fence, lease = RedisFence(client), GivenLease(33)
    fence.install(lease)
    with fence.write(lease) as batch:
        batch.set(batch.key("n"), 5, ex=100)
        batch.incrby(batch.key("n"), 2)
        batch.delete("{orders}:gone", "{orders}:gone too")
        batch.rpush("{orders}:gone", "now a list")
        batch.expire("{orders}:n", 50)
        assert client.keys("*") == [client.keys(MARK)[0]]
    assert batch.replies == [True, 7, 0, 0, 1, 1]
    assert 0 < client.ttl("{orders}:n") <= 50
    with fence.write(lease):
        pass


def test_a_block_that_raises_sends_nothing(client: Any) -> None:
    fence, lease = RedisFence(client), GivenLease(33)
    fence.install(lease)
    with pytest.raises(ZeroDivisionError), fence.write(lease) as batch:
        batch.set("orders", 1 / 0)
    assert client.exists("orders") == 0


@pytest.mark.parametrize("wrong", ["hash", "counter", "text", "large"])
def test_a_batch_in_which_one_command_can_not_work_writes_nothing(client: Any, wrong: str) -> None:
    fence, lease = RedisFence(client), GivenLease(33)
    fence.install(lease)
    client.set("{orders}:b", {"text": "abc", "large": "9" * 18}.get(wrong, "1"))
    if wrong == "counter":
        client.delete("{orders}:b")
        client.lpush("{orders}:b", "1")

    def write() -> None:
        with fence.write(lease) as batch:
            batch.set("{orders}:a", "written")
            if wrong == "hash":
                batch.hset("{orders}:b", {"f": 1})
            else:
                batch.incrby("{orders}:b")

    with pytest.raises(redis.ResponseError, match="nothing was written"):
        write()
    assert client.exists("{orders}:a") == 0


def test_a_batch_that_contradicts_itself_is_refused_when_it_is_made(client: Any) -> None:
    fence = RedisFence(client)
    key = "{orders}:a"
    with pytest.raises(ValueError, match="is a hash at this point"):
        apply(fence, lambda batch: (batch.hset(key, {"f": 1}), batch.sadd(key, "x")))
    with pytest.raises(ValueError, match="is a string at this point"):
        apply(fence, lambda batch: batch.set(key, "abc") or batch.incrby(key))
    with pytest.raises(ValueError, match="overflow"):
        apply(fence, lambda batch: (batch.incrby(key, 2**62), batch.incrby(key, 2**62)))


def test_one_write_to_a_key_of_another_type_is_the_servers_own_error(client: Any) -> None:
    fence, lease = RedisFence(client), GivenLease(33)
    fence.install(lease)
    client.lpush("orders", "1")
    with pytest.raises(redis.ResponseError, match=r"WRONGTYPE|wrong kind"):
        fence.of(lease).incrby("orders")


@pytest.mark.parametrize("key", ["total", "{invoices}:total", "x{orders", "{}orders", "{orders:42}:total"])
def test_keys_of_other_slots_are_refused_on_a_single_server_too(client: Any, key: str) -> None:
    fence, lease = RedisFence(client), GivenLease(33)
    fence.install(lease)
    script = fence.script("return 1")
    writes: list[Callable[[], Any]] = [
        lambda: fence.of(lease).set(key, "x"),
        lambda: fence.of(lease).delete("orders", key),
        lambda: script(lease, keys=[key]),
    ]
    for write in writes:
        with pytest.raises(OutsideFence, match=r"name it 'orders' or '\{orders\}:\.\.\.'"):
            write()
    with pytest.raises(OutsideFence), fence.write(lease) as batch:
        batch.set(key, "x")
    assert client.dbsize() == 1


def test_pitfall_14_the_mark_itself_is_not_written_through_its_own_fence(client: Any) -> None:
    fence, lease = RedisFence(client), GivenLease(33)
    fence.install(lease)
    with pytest.raises(OutsideFence, match="only install moves it"):
        fence.of(lease).delete(MARK)
    assert client.exists(MARK) == 1


def test_any_name_has_a_tag_of_its_own_and_its_keys_share_its_slot(client: Any) -> None:
    names = ["orders", "a}b", "a%7Db", "}", "{", "{}", "}{", "%", "a{b}c", "é}", "x" * 512, " \n"]
    assert len({tag_of(name) for name in names}) == len(names)
    for name in names:
        key = tagged_key(name, "total").encode()
        assert hashed_part(key) == hashed_part(mark_key(tag_of(name))) == tag_of(name)
        assert resource_named(tag_of(name)) == name
        fence, lease = RedisFence(client), GivenLease(33, lock=name)
        fence.install(lease)
        fence.of(lease).set(tagged_key(name, "total"), name)
        assert fence.mark(name) is not None


def test_every_slot_has_a_floor_key_of_its_own() -> None:
    keys = cluster_floor_keys()
    assert [slot_of(key) for key in keys] == list(range(SLOTS))
    assert slot_of(b"123456789") == 0x31C3  # of the cluster specification


def test_a_users_script_sees_its_own_keys_and_arguments_and_its_own_line_numbers(client: Any) -> None:
    fence, lease = RedisFence(client), GivenLease(33)
    fence.install(lease)
    show = fence.script("return {#KEYS, #ARGV, KEYS[1], ARGV[1]}")
    assert [text(word) for word in show(lease, keys=["orders"], args=[7])] == ["1", "1", "orders", "7"]
    assert [text(word) for word in show(lease)] == ["0", "0"]
    with pytest.raises(redis.ResponseError, match=r"user_script:\s?2"):
        fence.script("local a = 1\nreturn a.b.c")(lease)
    with pytest.raises(StaleToken):
        show(GivenLease(32))
    with pytest.raises(NotFenceable, match="#!"):
        fence.script("#!lua\nreturn 1")


def test_scripts_that_the_server_forgot_are_sent_again(client: Any) -> None:
    fence, lease = RedisFence(client), GivenLease(33)
    script = fence.script("return redis.call('INCR', KEYS[1])")
    fence.install(lease)
    for expected in (1, 3, 5):
        assert script(lease, keys=["orders"]) == expected
        client.script_flush()
        with fence.write(lease) as batch:
            batch.incrby("orders")
        client.script_flush()
        fence.install(lease)
        client.script_flush()


def test_a_user_with_few_rights(client: Any, redis_server: ValkeyServer) -> None:
    rights = (
        "~{orders}* ~orders ~lockd-fence-floor +evalsha +eval +info +wait +hget +hmget +hset +persist +time"
        " +type +set +get +incrby +exists"
    )
    client.execute_command("ACL", "SETUSER", "app", "on", ">secret", *rights.split())
    with redis_server.client(username="app", password="secret") as app:
        fence, lease = RedisFence(app), GivenLease(33)
        fence.install(lease)
        fence.of(lease).set("orders", "1")
        with pytest.raises(AccessDenied):
            fence.of(lease).delete("orders")
        if text(client.info("server")["redis_version"]) >= "7":
            with pytest.raises(AccessDenied, match="nothing was written"):
                apply(fence, lambda batch: (batch.incrby("orders"), batch.delete("orders")))
            assert text(client.get("orders")) == "1"
        else:  # such a server can't be asked beforehand
            with pytest.raises(OutcomeUnknown, match=r"command 2 of a batch .* had applied those before"):
                apply(fence, lambda batch: (batch.incrby("orders"), batch.delete("orders")))
            assert text(client.get("orders")) == "2"
    once = Retry(NoBackoff(), 0)
    with (
        redis_server.client(username="app", password="wrong", retry=once) as app,
        pytest.raises(AccessDenied),
    ):
        RedisFence(app).install(GivenLease(34))


def test_g10_a_shared_lease_reads_and_does_not_write(client: Any) -> None:
    fence = RedisFence(client)
    writer, reader = GivenLease(33), GivenLease(34, mode="shared")
    fence.install(writer)
    fence.of(writer).set("orders", "1")
    fence.install(reader)
    assert text(fence.of(reader).get("orders")) == "1"
    with pytest.raises(StaleToken):
        fence.of(writer).get("orders")
    with pytest.raises(WrongMode):
        fence.of(reader).set("orders", "2")
    with pytest.raises(WrongMode):
        fence.script("return 1")(reader)


def test_pitfall_27_every_refusal_is_counted_once(client: Any, redis_server: ValkeyServer) -> None:
    fence, stale = RedisFence(client), GivenLease(33)
    fence.install(GivenLease(34))
    counter = REJECTS.labels("redis", "orders", "stale")

    async def awaited() -> None:
        async with redis.asyncio.Redis(port=redis_server.port) as aclient:
            afence = AsyncRedisFence(aclient)
            with pytest.raises(StaleToken):
                await afence.install(stale)
            with pytest.raises(StaleToken):
                await afence.of(stale).set("orders", "x")
            with pytest.raises(StaleToken):
                await afence.script("return 1")(stale)
            with pytest.raises(StaleToken):
                async with afence.write(stale):
                    pass

    verbs: list[Callable[[], Any]] = [
        lambda: fence.install(stale),
        lambda: fence.of(stale).set("orders", "x"),
        lambda: fence.script("return 1")(stale),
        lambda: apply(fence, lambda batch: batch.set("orders", "x")),
    ]
    for verb in verbs:
        before = counter._value.get()
        with pytest.raises(StaleToken):
            verb()
        assert counter._value.get() == before + 1
    before = counter._value.get()
    asyncio.run(awaited())
    assert counter._value.get() == before + 4


def test_something_else_in_a_marks_place_is_reported_and_nothing_is_written(client: Any) -> None:
    fence, lease = RedisFence(client), GivenLease(33)
    client.hset(MARK, mapping={"lock": "orders", "fence": "rubbish"})
    for verb in (lambda: fence.mark("orders"), lambda: fence.of(lease).set("orders", "x")):
        with pytest.raises(CorruptData, match=r"\{orders\}:lockd-fence"):
            verb()
    assert client.exists("orders") == 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda orders: orders.expire("orders", 0), "time to live"),
        (lambda orders: orders.incrby("orders", 2**63), "64 bits"),
        (lambda orders: orders.rpush("orders"), "no values"),
        (lambda orders: orders.zadd("orders", {"a": float("nan")}), "NaN"),
        (lambda orders: orders.set("orders", "1", nx=True, xx=True), "exclude"),
        (lambda orders: orders.sadd("orders", *range(7001)), "7001 arguments"),
        (lambda orders: orders.delete(), "no keys"),
    ],
)
def test_arguments_that_no_server_would_take_are_refused_here(client: Any, call: Any, said: str) -> None:
    fence = RedisFence(client)
    with pytest.raises(ValueError, match=said):
        call(fence.of(GivenLease(33)))


def test_settings_that_make_no_sense_are_refused(client: Any) -> None:
    with pytest.raises(ValueError, match="replicas"):
        RedisFence(client, replicas=-1)
    with pytest.raises(ValueError, match="confirm"):
        RedisFence(client, confirm="paper")  # type: ignore[arg-type]
