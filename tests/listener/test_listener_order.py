"""Pipelines: replies in order, commands of one kind together, and a wait that holds up what follows."""

import pytest

from lockd.locks.commands import Acquire, OpenSession, Release
from tests.listener.harness import Failure, Run, as_map, pack, run_on_loops, serving


@run_on_loops()
def test_log_commands_of_a_pipeline_share_an_entry(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            session = await served.session(client)
            client.write(b"".join(pack("LOCK.ACQUIRE", f"k{n}", "SESSION", session) for n in range(100)))
            grants = [as_map(reply) for reply in await client.replies(100)]
            assert [grant["lock"] for grant in grants] == [f"k{n}" for n in range(100)]
            assert [len(batch) for batch in served.node.batches] == [1, 100]

    run(main())


@run_on_loops()
def test_a_pipeline_larger_than_what_may_be_started_is_answered_whole(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            session = await served.session(client)
            client.write(b"".join(pack("LOCK.ACQUIRE", f"k{n}", "SESSION", session) for n in range(5000)))
            grants = [as_map(reply) for reply in await client.replies(5000)]
            assert [grant["lock"] for grant in grants] == [f"k{n}" for n in range(5000)]
            assert max(len(batch) for batch in served.node.batches) <= 1024

    run(main())


@run_on_loops()
def test_a_read_waits_for_the_writes_before_it(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client(resp=3)
            session = await served.session(client)
            served.node.hold_back()
            for command in (
                ["LOCK.ACQUIRE", "k", "SESSION", session],
                ["LOCK.INSPECT", "k", "STALE"],
                ["LOCK.INSPECT", "k"],
                ["PING"],
                ["LOCK.ACQUIRE", "k2", "SESSION", session],
            ):
                client.send(*command)
            await served.until(lambda: served.node.pending)
            assert [type(operation) for operation in served.node.pending] == [Acquire]
            served.node.let_go()
            granted, stale, fresh, pong, second = await client.replies(5)
            assert (granted["status"], pong, second["lock"]) == ("granted", "PONG", "k2")
            assert stale["status"] == fresh["status"] == "held"

    run(main())


@run_on_loops()
def test_a_renewal_waits_for_the_session_to_be_opened(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client(resp=3)
            session = await served.session(client)
            client.write(pack("SESSION.CLOSE", session) + pack("SESSION.KEEPALIVE", session))
            closed, renewed = await client.replies(2)
            assert closed == 1
            assert str(renewed).startswith("NOSESSION ")

    run(main())


@run_on_loops()
def test_a_blocking_wait_holds_up_its_own_connection_alone(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            holder, waiter = [await served.client(resp=3) for _ in range(2)]
            grant = await holder.ask("LOCK.ACQUIRE", "k", "TTL", 60_000)
            waiter.write(
                pack("SESSION.OPEN", 5000)
                + pack("LOCK.ACQUIRE", "k", "TTL", 60_000, "WAIT", "FOREVER")
                + pack("PING")
                + pack("SESSION.OPEN", 5000)
            )
            assert "session" in await waiter.reply()
            await served.until(lambda: served.node.machine.inspect("k").queue_length == 1)
            assert await holder.ask("PING") == "PONG"
            assert served.node.machine.stats.sessions == 3  # the holder's, the first, and the waiting one
            await holder.ask("LOCK.RELEASE", "k", grant["token"], "SESSION", grant["session"])
            granted, pong, opened = await waiter.replies(3)
            assert (granted["status"], pong) == ("granted", "PONG")
            assert "session" in opened

    run(main())


@run_on_loops()
def test_one_wait_at_a_time(run: Run) -> None:
    """A second blocking wait does not stand in its queue before the first one is over."""

    async def main() -> None:
        async with serving() as served:
            holder, waiter = [await served.client(resp=3) for _ in range(2)]
            first = await holder.ask("LOCK.ACQUIRE", "k1", "TTL", 60_000)
            await holder.ask("LOCK.ACQUIRE", "k2", "TTL", 60_000)
            for name in ("k1", "k2"):
                waiter.send("LOCK.ACQUIRE", name, "TTL", 60_000, "WAIT", "FOREVER")
            machine = served.node.machine
            await served.until(lambda: machine.inspect("k1").queue_length == 1)
            assert await holder.ask("PING") == "PONG"
            assert machine.inspect("k2").queue_length == 0
            await holder.ask("LOCK.RELEASE", "k1", first["token"], "SESSION", first["session"])
            assert (await waiter.reply())["lock"] == "k1"
            await served.until(lambda: machine.inspect("k2").queue_length == 1)

    run(main())


@run_on_loops()
def test_the_protocol_changes_between_two_commands(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            served.node.hold_back()
            opening = pack("SESSION.OPEN", 5000)
            client.write(opening + pack("HELLO", 3) + opening + pack("HELLO", 2) + opening)
            await served.until(lambda: served.node.pending)
            assert [type(operation) for operation in served.node.pending] == [OpenSession]
            served.node.let_go()
            kinds = [type(reply) for reply in await client.replies(5)]
            assert kinds == [list, dict, dict, list, list]

    run(main())


@run_on_loops()
def test_quit_waits_for_what_was_asked_before_it(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            client.write(pack("SESSION.OPEN", 5000) + pack("QUIT") + pack("PING"))
            opened, bye = await client.replies(2)
            assert "session" in as_map(opened)
            assert bye == "OK"
            assert await client.is_closed()

    run(main())


@run_on_loops()
def test_a_half_closed_client_gets_what_needs_no_waiting(run: Run) -> None:
    """As `printf ... | nc -N` does."""

    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            client.write(pack("PING") + pack("CLIENT", "ID"))
            client.writer.write_eof()
            assert await client.replies(2) == ["PONG", 1]
            assert await client.is_closed()

    run(main())


@run_on_loops()
def test_errors_keep_their_place(run: Run) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            session = await served.session(client)
            release = pack("LOCK.RELEASE", "k", 1, "SESSION", session)
            client.write(release + pack("NOPE") + release + pack("SESSION.OPEN", "x") + pack("PING"))
            found = await client.replies(5)
            assert [type(reply) for reply in found] == [int, Failure, int, Failure, str]
            assert served.node.batches[-1] == (Release("k", 1), Release("k", 1))

    run(main())


@pytest.mark.parametrize("size", [1, 7, 64])
@run_on_loops()
def test_commands_may_come_in_pieces(run: Run, size: int) -> None:
    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            stream = pack("PING", "a" * 50) + pack("SESSION.OPEN", 5000) + pack("PING")
            for at in range(0, len(stream), size):
                client.write(stream[at : at + size])
                await client.writer.drain()
            first, opened, last = await client.replies(3)
            assert (first, last) == ("a" * 50, "PONG")
            assert "session" in as_map(opened)

    run(main())
