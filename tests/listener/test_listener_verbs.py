"""Every verb through a real socket: its reply under RESP2 and RESP3, as PRODUCT has it."""

import asyncio
import uuid

from lockd.protocol.verbs import VERBS
from tests.listener.harness import Failure, Run, as_map, run_on_loops, serving
from tests.listener.single import CLUSTER, INCARNATION

GRANT_FIELDS = {
    "status", "lock", "session", "token", "fence", "cluster", "incarnation", "mode", "fencing", "revision",
    "ttl_ms", "repeat", "limit", "weight",
}  # fmt: skip


@run_on_loops()
def test_hello_tells_whose_node_this_is(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            flat = await client.ask("HELLO")
            assert isinstance(flat, list)
            assert as_map(flat)["proto"] == 2
            found = await client.ask("hello", "3", "SETNAME", "me")
            assert found["cluster"] == CLUSTER
            assert found["incarnation"] == INCARNATION
            assert (found["node"], found["proto"], found["protocol"], found["server"]) == (1, 3, 1, "lockd")
            assert await client.ask("CLIENT", "GETNAME") == "me"
            assert as_map(await client.ask("HELLO", 2))["proto"] == 2
            assert isinstance(await client.ask("CLUSTER.STATUS"), list)

    run(main())


@run_on_loops()
def test_the_commands_of_any_redis_client_are_answered(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            assert await client.ask("PING") == "PONG"
            assert await client.ask("ping", "hi") == "hi"
            assert await client.ask("CLIENT", "SETINFO", "LIB-NAME", "x y") == "OK"
            assert await client.ask("CLIENT", "GETNAME") is None
            assert await client.ask("client", "setname", "n") == "OK"
            assert await client.ask("CLIENT", "GETNAME") == "n"
            assert await client.ask("CLIENT", "ID") == 1
            assert await client.ask("SELECT", 0) == "OK"
            assert "lockd_version:0" in await client.ask("INFO")
            assert "term:1" not in await client.ask("INFO", "server")
            assert await client.ask("COMMAND", "COUNT") == len(VERBS)
            assert len(await client.ask("COMMAND")) == len(VERBS)
            assert (await client.ask("COMMAND", "INFO", "lock.release", "nope"))[0][0] == "lock.release"
            assert "lock.acquire" in as_map(await client.ask("COMMAND", "DOCS"))
            assert await client.ask("QUIT") == "OK"
            assert await client.is_closed()

    run(main())


@run_on_loops()
def test_a_lock_in_a_session_from_grant_to_release(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            for resp in (2, 3):
                client = await served.client(resp=resp)
                opened = as_map(
                    await client.ask("SESSION.OPEN", 10_000, "NAME", "billing", "META", '{"a": 1}')
                )
                assert set(opened) == {"session", "ttl_ms"}
                assert opened["ttl_ms"] == 10_000
                session = opened["session"]
                reply = await client.ask("LOCK.ACQUIRE", "k", "SESSION", session, "OWNER", "t1", "REQUEST", 1)
                assert isinstance(reply, dict if resp == 3 else list)
                grant = as_map(reply)
                assert set(grant) == GRANT_FIELDS
                assert grant["status"] == "granted"
                assert (grant["mode"], grant["fencing"]) == ("exclusive", 1)
                assert grant["fence"] == f"{CLUSTER}/{INCARNATION}/{grant['token']}"
                again = as_map(
                    await client.ask("LOCK.ACQUIRE", "k", "SESSION", session, "OWNER", "t1", "REQUEST", 1)
                )
                assert again == grant | {"repeat": 1}  # G3
                view = as_map(await client.ask("LOCK.INSPECT", "k"))
                assert (view["status"], view["mode"], view["queue_length"]) == ("held", "exclusive", 0)
                holder = as_map(view["holders"][0])
                assert (holder["name"], holder["owner"], holder["token"]) == ("billing", "t1", grant["token"])
                assert session not in str(view)  # a session's id is its user's secret
                renewed = as_map(await client.ask("SESSION.KEEPALIVE", session))
                assert renewed == {"ttl_ms": 10_000, "ended": []}
                release = ("LOCK.RELEASE", "k", grant["token"], "SESSION", session)
                assert await client.ask(*release) == 1
                assert await client.ask(*release) == 0  # G7
                assert as_map(await client.ask("LOCK.INSPECT", "k", "STALE"))["status"] == "free"
                assert await client.ask("SESSION.CLOSE", session) == 1
                assert await client.ask("SESSION.CLOSE", session) == 0
                assert (await client.refused("SESSION.KEEPALIVE", session)).startswith("NOSESSION ")

    run(main())


@run_on_loops()
def test_a_ttl_makes_a_private_session(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client(resp=3)
            request = uuid.uuid4()
            grant = await client.ask("LOCK.ACQUIRE", "k", "TTL", 5000, "REQUEST", request)
            assert grant["ttl_ms"] == 5000
            again = await client.ask("LOCK.ACQUIRE", "k", "TTL", 5000, "REQUEST", request)
            assert (again["token"], again["session"]) == (grant["token"], grant["session"])  # G3
            assert await client.ask("LOCK.RELEASE", "k", grant["token"], "SESSION", grant["session"]) == 1
            unnamed = await client.ask("LOCK.ACQUIRE", "k", "TTL", 5000)
            assert unnamed["token"] > grant["token"]

    run(main())


@run_on_loops()
def test_busy_names_the_holder(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            session = await served.session(client, 10_000, "NAME", "billing")
            await client.ask("LOCK.ACQUIRE", "k", "SESSION", session)
            text = await client.refused("LOCK.ACQUIRE", "k", "TTL", 5000)
            assert text.startswith("BUSY ")
            assert "billing" in text

    run(main())


@run_on_loops()
def test_a_wait_ends_with_the_grant_or_its_time(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            holder, waiter, late = [await served.client() for _ in range(3)]
            grant = as_map(await holder.ask("LOCK.ACQUIRE", "k", "TTL", 60_000))
            waiter.send("LOCK.ACQUIRE", "k", "TTL", 60_000, "WAIT", "FOREVER")
            await served.until(lambda: served.node.machine.inspect("k").queue_length == 1)
            late.send("LOCK.ACQUIRE", "k", "TTL", 60_000, "WAIT", 500)
            await served.until(lambda: served.node.machine.inspect("k").queue_length == 2)
            served.node.advance(501)
            timed_out = await late.reply()
            assert isinstance(timed_out, Failure)
            assert str(timed_out).startswith("TIMEOUT ")
            await holder.ask("LOCK.RELEASE", "k", grant["token"], "SESSION", grant["session"])
            assert as_map(await waiter.reply())["token"] > grant["token"]

    run(main())


@run_on_loops()
def test_cancel_withdraws_a_wait(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            holder, waiter = [await served.client() for _ in range(2)]
            await holder.ask("LOCK.ACQUIRE", "k", "TTL", 60_000)
            session = await served.session(holder)
            waiter.send("LOCK.ACQUIRE", "k", "SESSION", session, "REQUEST", 7, "WAIT", 5000)
            await served.until(lambda: served.node.machine.inspect("k").queue_length == 1)
            assert await holder.ask("LOCK.CANCEL", "k", "SESSION", session, "REQUEST", 7) == 1
            assert isinstance(await waiter.reply(), Failure)
            request = uuid.uuid4()
            waiter.send("LOCK.ACQUIRE", "k", "TTL", 5000, "REQUEST", request, "WAIT", 5000)
            await served.until(lambda: served.node.machine.inspect("k").queue_length == 1)
            assert await holder.ask("LOCK.CANCEL", "k", "REQUEST", request) == 1
            assert isinstance(await waiter.reply(), Failure)

    run(main())


@run_on_loops()
def test_notify_queues_and_pushes(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            holder, waiter = await served.client(), await served.client(resp=3)
            grant = as_map(await holder.ask("LOCK.ACQUIRE", "k", "TTL", 60_000))
            session = await served.session(waiter)
            ask = ("LOCK.ACQUIRE", "k", "SESSION", session, "WAIT", 5000, "NOTIFY", "REQUEST")
            queued = await waiter.ask(*ask, 1, "OWNER", "a")
            assert (queued["status"], queued["position"], queued["request"]) == ("queued", 0, 1)
            assert (await waiter.ask(*ask, 2, "OWNER", "b"))["position"] == 1
            assert await waiter.ask("PING") == "PONG"  # nothing is held up
            await holder.ask("LOCK.RELEASE", "k", grant["token"], "SESSION", grant["session"])
            kind, pushed = await waiter.reply()
            assert kind == "lock.granted"
            assert set(pushed) == GRANT_FIELDS | {"request"}
            assert (pushed["request"], pushed["repeat"]) == (1, 1)  # K1: it waited
            served.node.advance(5001)
            kind, pushed = await waiter.reply()
            assert (kind, pushed["request"], pushed["code"]) == ("lock.timeout", 2, "TIMEOUT")
            assert "NOTIFY needs RESP3" in await holder.refused("LOCK.ACQUIRE", "k", "TTL", 5000, "NOTIFY")
            free = await waiter.ask("LOCK.ACQUIRE", "free", "SESSION", session, "WAIT", 5000, "NOTIFY")
            assert free["status"] == "granted"

    run(main())


@run_on_loops()
def test_list_pages_by_name(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client(resp=3)
            for name in ("a:2", "a:1", "b:1", "a:3"):
                await client.ask("LOCK.ACQUIRE", name, "TTL", 5000)
            page = await client.ask("LOCK.LIST", "PREFIX", "a:", "COUNT", 2)
            assert [entry["lock"] for entry in page["locks"]] == ["a:1", "a:2"]
            assert page["next"] == "a:2"
            rest = await client.ask("LOCK.LIST", "PREFIX", "a:", "COUNT", 2, "AFTER", page["next"])
            assert [entry["lock"] for entry in rest["locks"]] == ["a:3"]
            assert rest["next"] is None
            assert rest["revision"] == 4

    run(main())


@run_on_loops()
def test_cluster_status_shows_members(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client(resp=3)
            status = await client.ask("CLUSTER.STATUS")
            assert (status["cluster"], status["role"], status["leader"]) == (CLUSTER, "leader", 1)
            assert [member["client"] for member in status["members"]] == ["client:1"]

    run(main())


@run_on_loops()
def test_without_a_leader_nothing_is_granted_or_read(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client(resp=3)
            served.node.unavailable = True
            for words in (["LOCK.ACQUIRE", "k", "TTL", 5000], ["LOCK.INSPECT", "k"], ["LOCK.LIST"]):
                assert (await client.refused(*words)).startswith("UNAVAILABLE ")
            assert (await client.ask("LOCK.INSPECT", "k", "STALE"))["status"] == "free"
            assert (await client.ask("CLUSTER.STATUS"))["leader"] == 0

    run(main())


@run_on_loops()
def test_stopping_answers_what_is_due_and_closes(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            idle, busy = await served.client(), await served.client()
            served.node.hold_back()
            busy.send("SESSION.OPEN", 5000)
            await served.until(lambda: served.node.pending)
            stopping = asyncio.get_running_loop().create_task(served.listener.stop())
            assert await idle.is_closed()
            served.node.let_go()
            assert "session" in as_map(await busy.reply())
            assert await busy.is_closed()
            await stopping

    run(main())
