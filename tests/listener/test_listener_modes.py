"""Every way to hold a lock, over real sockets: modes, semaphores, several at once, metadata, breaking."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from lockd.locks.commands import AcquireAll, RequestOrphaned
from lockd.passwords import hash_password
from lockd.server.auth import Users
from tests.listener.harness import Client, Run, Serving, as_map, run_on_loops, serving

UUID = "6e0d56a2-93a4-4a8f-8ad3-0123456789ab"


def facts(refusal: str) -> Any:
    """What a refusal says after its text."""
    return json.loads(refusal.rpartition(" | ")[2])


async def holder_and(served: Serving, *options: object, resp: int = 2) -> tuple[Client, str, dict[str, Any]]:
    """A client that holds k as the options say; its session and grant."""
    client = await served.client(resp=resp)
    session = await served.session(client)
    return client, session, as_map(await client.ask("LOCK.ACQUIRE", "k", "SESSION", session, *options))


@run_on_loops()
@pytest.mark.parametrize("resp", [2, 3])
def test_readers_share_and_a_writer_waits(run: Run, resp: int) -> None:
    async def main() -> None:
        async with serving() as served:
            client, session, first = await holder_and(served, "MODE", "shared", resp=resp)
            assert (first["mode"], first["fencing"], first["limit"], first["weight"]) == ("shared", 1, 0, 1)
            other, other_session, second = await holder_and(served, "MODE", "SHARED", "OWNER", "o", resp=resp)
            assert second["token"] > first["token"]
            view = as_map(await client.ask("LOCK.INSPECT", "k"))
            assert (view["mode"], view["limit"], view["used"], view["delay_ms"]) == ("shared", 0, 0, 0)
            holders = [as_map(found) for found in view["holders"]]
            assert [(found["mode"], found["weight"], found["ending"]) for found in holders] == [
                ("shared", 1, ""),
                ("shared", 1, ""),
            ]
            assert (await client.refused("LOCK.ACQUIRE", "k", "SESSION", session)).startswith("BUSY ")
            assert await client.ask("LOCK.RELEASE", "k", first["token"], "SESSION", session) == 1
            assert await other.ask("LOCK.RELEASE", "k", second["token"], "SESSION", other_session) == 1
            writer = as_map(await client.ask("LOCK.ACQUIRE", "k", "SESSION", session))
            assert writer["mode"] == "exclusive"

    run(main())


@run_on_loops()
def test_a_semaphore_counts_units_and_fences_nothing(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client, session, grant = await holder_and(served, "LIMIT", 3, "WEIGHT", 2)
            assert (grant["mode"], grant["fencing"], grant["limit"], grant["weight"]) == (
                "semaphore",
                0,
                3,
                2,
            )
            again = ("LOCK.ACQUIRE", "k", "SESSION", session, "LIMIT", 3)
            assert (await client.refused(*again, "WEIGHT", 2)).startswith("BUSY ")
            assert as_map(await client.ask(*again))["weight"] == 1
            view = as_map(await client.ask("LOCK.INSPECT", "k"))
            assert (view["mode"], view["limit"], view["used"]) == ("semaphore", 3, 3)
            mismatch = await client.refused("LOCK.ACQUIRE", "k", "SESSION", session, "LIMIT", 4)
            assert mismatch.startswith("MISMATCH ")
            assert "3" in mismatch
            assert "4" in mismatch

    run(main())


@run_on_loops()
def test_several_locks_under_one_token(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client(resp=3)
            session = await served.session(client)
            ask = ("LOCK.ACQUIREALL", "SESSION", session, "META", "[1]", "REQUEST")
            grant = await client.ask(*ask, 1, 3, "b", "c", "a")
            assert (grant["lock"], grant["locks"], grant["mode"]) == ("a", ["a", "b", "c"], "exclusive")
            again = await client.ask(*ask, 1, 3, "a", "b", "c")
            assert again == grant | {"repeat": 1}  # G3
            view = await client.ask("LOCK.INSPECT", "b")
            assert view["holders"][0]["token"] == grant["token"]
            busy = await client.refused("LOCK.ACQUIREALL", "SESSION", session, 2, "c", "z")
            assert busy.startswith("BUSY ")
            assert facts(busy)["lock"] == "c"
            assert await client.ask("LOCK.RELEASE", "b", grant["token"], "SESSION", session) == 1
            assert await client.ask("LOCK.RELEASEALL", grant["token"], "SESSION", session) == 2
            assert await client.ask("LOCK.RELEASEALL", grant["token"], "SESSION", session) == 0  # G7
            assert (await client.ask("LOCK.LIST"))["locks"] == []

    run(main())


@run_on_loops()
def test_several_locks_can_be_waited_for_with_a_push(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            holder, session, grant = await holder_and(served)
            waiter = await served.client(resp=3)
            waiting = await served.session(waiter)
            ask = ("LOCK.ACQUIREALL", "SESSION", waiting, "WAIT", 5000, "NOTIFY", "REQUEST", 1)
            queued = await waiter.ask(*ask, 2, "z", "k")
            assert (queued["status"], queued["lock"]) == ("queued", "k")
            queue = await waiter.ask("LOCK.QUEUE", "z")
            assert [(found["position"], found["locks"]) for found in queue["waiters"]] == [(0, ["k", "z"])]
            assert await holder.ask("LOCK.RELEASE", "k", grant["token"], "SESSION", session) == 1
            kind, pushed = await waiter.reply()
            assert (kind, pushed["locks"], pushed["request"]) == ("lock.granted", ["k", "z"], 1)

    run(main())


@run_on_loops()
def test_g4_a_wait_for_several_locks_goes_with_its_connection(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            await holder_and(served)
            waiter = await served.client()
            session = await served.session(waiter, 5_000)
            waiter.send("LOCK.ACQUIREALL", "SESSION", session, "WAIT", "FOREVER", 2, "a", "k")
            await served.until(lambda: served.node.machine.inspect("k").queue_length == 1)
            waiter.abort()
            await served.until(lambda: served.node.gone == [2])
            await served.until(lambda: not served.node.pending)
            served.node.advance(5_001)
            views = [served.node.machine.inspect(name) for name in "ak"]
            assert [view.queue_length for view in views] == [0, 0]

    run(main())


@run_on_loops()
def test_g4_several_locks_whose_grant_reached_nobody_are_given_back(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            session = await served.session(client, 5_000)
            served.node.hold_back(AcquireAll)
            client.send("LOCK.ACQUIREALL", "SESSION", session, 2, "b", "a")
            await served.until(lambda: served.node.pending)
            client.abort()
            await served.until(lambda: served.node.gone == [1])
            served.node.let_go()
            await served.until(lambda: served.node.orphaned())
            assert served.node.orphaned() == [RequestOrphaned("a", 1)]
            await served.until(lambda: not served.node.pending)
            served.node.advance(5_001)
            assert served.node.machine.locks() == []

    run(main())


@run_on_loops()
def test_notify_for_several_locks_needs_resp3(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            session = await served.session(client)
            refusal = await client.refused("LOCK.ACQUIREALL", "SESSION", session, "WAIT", 1, "NOTIFY", 1, "k")
            assert refusal == "ERR NOTIFY needs RESP3: send HELLO 3 first"

    run(main())


@run_on_loops()
def test_resp2_is_not_gone_back_to_while_pushes_are_due(run: Run) -> None:
    """P6: they would stand where answers are expected."""

    async def main() -> None:
        async with serving() as served:
            client = await served.client(resp=3)
            await client.ask("LOCK.WATCH", "")
            assert (await client.refused("HELLO", 2)).startswith("ERR RESP2 has no pushes")
            assert await client.ask("LOCK.UNWATCH") == 1
            assert as_map(await client.ask("HELLO", 2))["proto"] == 2

    run(main())


@run_on_loops()
def test_a_refusal_tells_who_holds_it(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client(resp=3)
            session = await served.session(client, 10_000, "NAME", "billing")
            meta = '{"job": "né\t\\u0041\x7f", "at": [1, 𝄞]}'.replace("𝄞", '"𝄞"').replace("\t", "")
            await client.ask("LOCK.ACQUIRE", "k", "SESSION", session, "OWNER", "o", "META", meta)
            served.node.advance(1500)
            busy = await client.refused("LOCK.ACQUIRE", "k", "TTL", 5000)
            assert busy.isascii()
            assert facts(busy) == {
                "lock": "k",
                "holder": "billing",
                "owner": "o",
                "meta": json.loads(meta),
                "held_ms": 1500,
                "queue_length": 0,
            }
            queued = await client.ask("LOCK.ACQUIRE", "k", "TTL", 5000, "WAIT", 100, "NOTIFY")
            assert queued["status"] == "queued"
            blocked = await served.client()
            blocked.send("LOCK.ACQUIRE", "k", "TTL", 5000, "WAIT", 200)
            await served.until(lambda: served.node.machine.inspect("k").queue_length == 2)
            served.node.advance(1000)
            kind, ended = await client.reply()
            assert kind == "lock.timeout"
            assert (ended["code"], ended["holder"], ended["owner"]) == ("TIMEOUT", "billing", "o")
            assert (ended["meta"], ended["held_ms"], ended["queue_length"]) == (meta, 2500, 1)
            timeout = facts(str(await blocked.reply()))
            assert (timeout["holder"], timeout["held_ms"], timeout["queue_length"]) == ("billing", 2500, 0)

    run(main())


@run_on_loops()
def test_p6_no_name_breaks_out_of_a_refusal(run: Run) -> None:
    """Whatever a lock, an owner or metadata has in it, the facts are what follows the last bar."""

    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            name = 'k | {"lock": "other"} | é\U0001d11e\\'
            session = await served.session(client, 10_000, "NAME", 'n" | {')
            meta = json.dumps({"a | {": " | {\\", "\x7f": "\u2028"}, ensure_ascii=False)
            options = ("SESSION", session, "OWNER", "o | {", "META", meta)
            await client.ask("LOCK.ACQUIRE", name, *options)
            busy = await client.refused("LOCK.ACQUIRE", name, "TTL", 5000)
            found = facts(busy)
            assert (found["lock"], found["holder"], found["owner"]) == (name, 'n" | {', "o | {")
            assert found["meta"] == json.loads(meta)

    run(main())


@run_on_loops()
def test_a_queue_is_shown_in_order(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client, session, _ = await holder_and(served, resp=3)
            ask = (
                "LOCK.ACQUIRE",
                "k",
                "SESSION",
                session,
                "WAIT",
                "FOREVER",
                "NOTIFY",
                "META",
                "[7]",
                "OWNER",
            )
            for owner in ("x", "y", "z"):
                await client.ask(*ask, owner, "MODE", "shared")
            served.node.advance(40)
            queue = await client.ask("LOCK.QUEUE", "k", "COUNT", 2)
            assert (queue["lock"], queue["queue_length"], queue["revision"]) == ("k", 3, 1)
            assert [found["owner"] for found in queue["waiters"]] == ["x", "y"]
            assert queue["waiters"][1] == {
                "position": 1,
                "session": 1,
                "name": "",
                "owner": "y",
                "mode": "shared",
                "weight": 1,
                "waiting_ms": 40,
                "meta": "[7]",
                "locks": ["k"],
            }
            assert (await client.ask("LOCK.QUEUE", "free"))["waiters"] == []

    run(main())


@run_on_loops()
def test_sessions_are_shown_by_their_numbers(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client, session, _ = await holder_and(served, resp=3)
            await client.ask("LOCK.ACQUIRE", "other", "TTL", 5000)
            named = await served.session(client, 20_000, "NAME", "n", "META", "[1]")
            await client.ask("LOCK.ACQUIRE", "k", "SESSION", named, "WAIT", 9000, "NOTIFY")
            page = await client.ask("SESSION.LIST")
            assert page["next"] is None
            assert [found["session"] for found in page["sessions"]] == [1, 2, 3]
            assert [found["private"] for found in page["sessions"]] == [0, 1, 0]
            assert page["sessions"][2] == {
                "session": 3,
                "name": "n",
                "user": "default",
                "ttl_ms": 20_000,
                "held": 0,
                "waiting": 1,
                "meta": "[1]",
                "private": 0,
            }
            assert session not in str(page)
            first = await client.ask("SESSION.LIST", "COUNT", 2)
            assert first["next"] == 2
            rest = await client.ask("SESSION.LIST", "COUNT", 2, "AFTER", 2)
            assert [found["session"] for found in rest["sessions"]] == [3]

    run(main())


@run_on_loops()
def test_the_locks_of_one_session(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client, session, _ = await holder_and(served, resp=3)
            other = await served.session(client)
            await client.ask("LOCK.ACQUIRE", "k", "SESSION", other, "WAIT", 9000, "NOTIFY")
            await client.ask("LOCK.ACQUIREALL", "SESSION", other, 2, "a", "z")
            listed = await client.ask("LOCK.LIST", "SESSION", other)
            assert [found["lock"] for found in listed["locks"]] == ["a", "k", "z"]
            listed = await client.ask("LOCK.LIST", "SESSION", session)
            assert [found["lock"] for found in listed["locks"]] == ["k"]
            assert (await client.refused("LOCK.LIST", "SESSION", "0" * 32)).startswith("NOSESSION ")

    run(main())


@run_on_loops()
def test_a_token_is_current_superseded_or_free(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client, session, grant = await holder_and(served)
            assert await client.ask("LOCK.VALIDATE", "k", grant["token"]) == "current"
            await client.ask("LOCK.RELEASE", "k", grant["token"], "SESSION", session)
            assert await client.ask("LOCK.VALIDATE", "k", grant["token"]) == "free"
            await client.ask("LOCK.ACQUIRE", "k", "SESSION", session)
            assert await client.ask("LOCK.VALIDATE", "k", grant["token"]) == "superseded"

    run(main())


@run_on_loops()
def test_a_grant_shows_other_metadata(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client, session, grant = await holder_and(served, "META", '"a"')
            change = ("LOCK.META", "k", grant["token"], "SESSION", session)
            assert await client.ask(*change, '{"leader": "b"}') == 1
            view = as_map(await client.ask("LOCK.INSPECT", "k"))
            assert as_map(view["holders"][0])["meta"] == '{"leader": "b"}'
            await client.ask("LOCK.RELEASE", "k", grant["token"], "SESSION", session)
            assert await client.ask(*change, "1") == 0

    run(main())


@run_on_loops()
@pytest.mark.parametrize("resp", [2, 3])
def test_k7_a_broken_grant_is_told_with_the_keepalives_and_passed_on_when_acknowledged(
    run: Run, resp: int
) -> None:
    async def main() -> None:
        async with serving() as served:
            client, session, grant = await holder_and(served, resp=resp)
            waiter = await served.client(resp=3)
            waiting = await served.session(waiter)
            await waiter.ask("LOCK.ACQUIRE", "k", "SESSION", waiting, "WAIT", "FOREVER", "NOTIFY")
            assert await waiter.ask("LOCK.BREAK", "k", grant["token"], "REASON", "it is stuck") == 1
            assert await waiter.ask("LOCK.BREAK", "k", grant["token"], "REASON", "it is stuck") == 0
            view = as_map(await client.ask("LOCK.INSPECT", "k"))
            assert as_map(view["holders"][0])["ending"] == "broken: it is stuck"
            told = [[1, "k", grant["token"], "broken: it is stuck"]]
            for _ in range(2):
                renewed = as_map(await client.ask("SESSION.KEEPALIVE", session))
                assert renewed == {"ttl_ms": 10_000, "ended": told}
            renewed = as_map(await client.ask("SESSION.KEEPALIVE", session, "ACK", 1))
            assert renewed == {"ttl_ms": 10_000, "ended": []}
            kind, pushed = await waiter.reply()
            assert kind == "lock.granted"
            assert pushed["token"] > grant["token"]
            gone = await client.refused("SESSION.KEEPALIVE", "0" * 32, "ACK", 1)
            assert gone.startswith("NOSESSION ")

    run(main())


@run_on_loops()
def test_p1_now_passes_it_on_at_once(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client, session, grant = await holder_and(served)
            assert await client.ask("LOCK.BREAK", "k", grant["token"], "REASON", "r", "NOW") == 1
            assert as_map(await client.ask("LOCK.INSPECT", "k"))["status"] == "free"
            renewed = as_map(await client.ask("SESSION.KEEPALIVE", session))
            assert renewed["ended"] == [[1, "k", grant["token"], "broken: r"]]

    run(main())


@run_on_loops()
def test_maxhold_ends_a_grant_that_is_renewed(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client, session, grant = await holder_and(served, "MAXHOLD", 2000)
            served.node.advance(1999)
            assert as_map(await client.ask("SESSION.KEEPALIVE", session))["ended"] == []
            served.node.advance(1)
            renewed = as_map(await client.ask("SESSION.KEEPALIVE", session))
            assert renewed["ended"] == [[1, "k", grant["token"], "max_hold"]]

    run(main())


@run_on_loops()
def test_a_delay_keeps_the_lock_after_an_abnormal_end_alone(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client, session, grant = await holder_and(served, "DELAY", 5000)
            await client.ask("LOCK.RELEASE", "k", grant["token"], "SESSION", session)
            again = as_map(await client.ask("LOCK.ACQUIRE", "k", "SESSION", session, "DELAY", 5000))
            await client.ask("LOCK.BREAK", "k", again["token"], "REASON", "r", "NOW")
            view = as_map(await client.ask("LOCK.INSPECT", "k"))
            assert (view["status"], view["delay_ms"]) == ("free", 5000)
            assert (await client.refused("LOCK.ACQUIRE", "k", "SESSION", session)).startswith("BUSY ")
            served.node.advance(5000)
            assert as_map(await client.ask("LOCK.ACQUIRE", "k", "SESSION", session))["status"] == "granted"

    run(main())


@pytest.fixture
def users(tmp_path: Path) -> Users:
    roles = {"app": ["lock"], "ops": ["operator"], "sheriff": ["break"]}
    path = tmp_path / "auth.toml"
    path.write_text(
        "".join(
            f'[users.{name}]\npassword_scrypt = "{hash_password(name)}"\nroles = {has}\n'
            for name, has in roles.items()
        )
    )
    return Users.load(path)


@run_on_loops()
def test_g11_breaking_needs_its_role_and_is_logged(
    run: Run, users: Users, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serving(users=users) as served:
            app, ops, sheriff = [await served.client() for _ in range(3)]
            for client, name in ((app, "app"), (ops, "ops"), (sheriff, "sheriff")):
                assert await client.ask("AUTH", name, name) == "OK"
            session = await served.session(app)
            grant = as_map(await app.ask("LOCK.ACQUIRE", "k", "SESSION", session))
            breaks = ("LOCK.BREAK", "k", grant["token"], "REASON", "pager went off", "NOW")
            for client, name in ((app, "app"), (ops, "ops")):
                refusal = f"NOPERM user '{name}' needs the role break"
                assert await client.refused(*breaks) == refusal
            for looks in (["LOCK.QUEUE", "k"], ["LOCK.VALIDATE", "k", 1], ["SESSION.LIST"]):
                await ops.ask(*looks)
                assert (await sheriff.refused(*looks)).startswith("NOPERM ")
            assert await sheriff.ask(*breaks) == 1
            view = as_map(await app.ask("LOCK.INSPECT", "k"))
            assert view["status"] == "free"

    with caplog.at_level(logging.WARNING, logger="lockd.server.locking"):
        run(main())
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "user 'sheriff' breaks lock 'k', token 1, now: pager went off"
    assert lines[1] == "user 'sheriff' has asked to break lock 'k', token 1, now: done"
    assert len(lines) == 2
