"""LOCK.WATCH over real sockets: pushes in order, from where it was left, and an end for who is too slow."""

import asyncio
import socket

from lockd.server.connection import ConnectionLimits
from tests.listener.harness import Client, Run, run_on_loops, serving


@run_on_loops()
def test_what_happens_to_a_lock_is_pushed(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            watcher, holder = await served.client(resp=3), await served.client()
            assert await watcher.ask("LOCK.WATCH", "k") == {"prefix": "k", "revision": 0}
            assert await watcher.ask("LOCK.WATCH", "other") == {"prefix": "other", "revision": 0}
            session = await served.session(holder, 10_000, "NAME", "n")
            await holder.ask("LOCK.ACQUIRE", "x", "SESSION", session)
            await holder.ask("LOCK.ACQUIRE", "k1", "SESSION", session, "OWNER", "o", "META", "[1]")
            await holder.ask("LOCK.META", "k1", 2, "SESSION", session, "[2]")
            await holder.ask("LOCK.BREAK", "k1", 2, "REASON", "r")
            await holder.ask("SESSION.CLOSE", session)
            told = await watcher.replies(4)
            assert [kind for kind, _ in told] == ["lock.event"] * 4
            assert told[0][1] == {
                "revision": 2,
                "event": "acquired",
                "lock": "k1",
                "token": 2,
                "mode": "exclusive",
                "session": 1,
                "name": "n",
                "owner": "o",
                "meta": "[1]",
                "reason": "",
            }
            assert [(event["event"], event["meta"], event["reason"]) for _, event in told[1:]] == [
                ("meta", "[2]", ""),
                ("breaking", "[2]", "broken: r"),
                ("broken", "[2]", "broken: r"),
            ]
            assert session not in str(told)

    run(main())


@run_on_loops()
def test_a_watch_goes_on_from_what_was_listed(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client(resp=3)
            session = await served.session(client)
            for name in "abc":
                await client.ask("LOCK.ACQUIRE", name, "SESSION", session)
            listed = await client.ask("LOCK.LIST")
            await client.ask("SESSION.CLOSE", session)
            client.send("LOCK.WATCH", "", "FROM", listed["revision"])
            client.send("PING")
            replies = await client.replies(5)
            assert replies[0] == {"prefix": "", "revision": 3}
            assert "PONG" in replies
            events = [reply[1] for reply in replies if isinstance(reply, list)]
            assert [(event["revision"], event["event"], event["lock"]) for event in events] == [
                (4, "released", "a"),
                (5, "released", "b"),
                (6, "released", "c"),
            ]

    run(main())


@run_on_loops()
def test_what_a_watch_is_refused(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            old, client = await served.client(), await served.client(resp=3)
            assert await old.refused("LOCK.WATCH", "k") == "ERR LOCK.WATCH needs RESP3: send HELLO 3 first"
            await client.ask("LOCK.WATCH", "k")
            assert (await client.refused("LOCK.WATCH", "k")).startswith("ERR this connection watches 'k'")
            served.node.history.restart(9)
            kind, gone = await client.reply()
            assert (kind, gone["prefix"], gone["revision"]) == ("lock.gone", "k", 0)
            assert (await client.refused("LOCK.WATCH", "k", "FROM", 8)).startswith("GONE ")
            assert await client.ask("LOCK.UNWATCH") == 0

    run(main())


@run_on_loops()
def test_info_counts_watches_and_they_end_with_their_connection(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            watcher, client = await served.client(resp=3), await served.client()
            await watcher.ask("LOCK.WATCH", "a")
            await watcher.ask("LOCK.WATCH", "b")
            assert "watches:2\r\n" in await client.ask("INFO", "clients")
            watcher.abort()
            await served.until(lambda: served.listener.clients == 1)
            assert "watches:0\r\n" in await client.ask("INFO", "clients")
            assert "waiters:0\r\n" in await client.ask("INFO", "locks")

    run(main())


@run_on_loops()
def test_p6_a_watcher_that_does_not_read_costs_nobody_anything(run: Run) -> None:
    """Its output is bounded; when it reads again it is told that its watch is over, and can begin anew."""

    async def main() -> None:
        limits = ConnectionLimits(output_pause_bytes=16_384)
        async with serving(limits=limits) as served:
            narrow = socket.create_connection(("127.0.0.1", served.listener.port))
            narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            narrow.setblocking(False)
            slow = Client(*await asyncio.open_connection(sock=narrow, limit=65_536))
            served.clients.append(slow)
            client = await served.client()
            await slow.ask("HELLO", 3)
            await slow.ask("LOCK.WATCH", "")
            session = await served.session(client)
            meta = '"' + "x" * 4000 + '"'
            ((watch,),) = [known.values() for known in served.listener.service._watching._of_client.values()]
            token = 0
            while served.node.history.reaches(watch.cursor):
                for _ in range(200):
                    token += 1
                    client.send("LOCK.ACQUIRE", "k", "SESSION", session, "META", meta)
                    client.send("LOCK.RELEASE", "k", token, "SESSION", session)
                await client.replies(400)
            told = 0
            while True:
                kind, event = await slow.reply()
                if kind == "lock.gone":
                    break
                told += 1
                assert event["revision"] == told
            assert event["revision"] == told
            assert told < served.node.history.revision
            assert (await slow.ask("LOCK.WATCH", "", "FROM", served.node.history.revision))["prefix"] == ""

    run(main())
