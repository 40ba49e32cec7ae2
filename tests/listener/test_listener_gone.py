"""SAFETY G4: a connection that is gone leaves no wait behind, and no grant that nobody knows of."""

import uuid

from lockd.locks.commands import OpenSession, OriginGone, RequestOrphaned
from lockd.server.connection import ConnectionLimits
from tests.listener.harness import Run, as_map, pack, run_on_loops, serving


@run_on_loops()
def test_a_wait_whose_connection_is_gone_is_withdrawn_through_the_log(run: Run) -> None:
    """G4"""

    async def main() -> None:
        async with serving() as served:
            holder, waiter = [await served.client() for _ in range(2)]
            await holder.ask("LOCK.ACQUIRE", "k", "TTL", 60_000)
            waiter.send("LOCK.ACQUIRE", "k", "TTL", 5_000, "WAIT", "FOREVER")
            await served.until(lambda: served.node.machine.inspect("k").queue_length == 1)
            waiter.abort()
            await served.until(lambda: served.node.gone == [2])
            await served.until(lambda: isinstance(served.node.batches[-1][0], OriginGone))
            served.node.advance(5_001)
            assert served.node.machine.inspect("k").queue_length == 0

    run(main())


@run_on_loops()
def test_a_client_that_half_closes_counts_as_gone(run: Run) -> None:
    """G4: nobody might be there for the grant."""

    async def main() -> None:
        async with serving() as served:
            holder, waiter = [await served.client() for _ in range(2)]
            await holder.ask("LOCK.ACQUIRE", "k", "TTL", 60_000)
            waiter.send("LOCK.ACQUIRE", "k", "TTL", 5_000, "WAIT", "FOREVER")
            await served.until(lambda: served.node.machine.inspect("k").queue_length == 1)
            waiter.writer.write_eof()
            assert await waiter.is_closed()
            assert served.node.gone == [2]

    run(main())


@run_on_loops()
def test_a_notify_wait_is_withdrawn_too(run: Run) -> None:
    """G4"""

    async def main() -> None:
        async with serving() as served:
            holder, waiter = await served.client(), await served.client(resp=3)
            await holder.ask("LOCK.ACQUIRE", "k", "TTL", 60_000)
            queued = await waiter.ask("LOCK.ACQUIRE", "k", "TTL", 5_000, "WAIT", "FOREVER", "NOTIFY")
            assert queued["status"] == "queued"
            await waiter.close()
            await served.until(lambda: served.node.gone == [2])

    run(main())


@run_on_loops()
def test_a_grant_that_comes_after_the_end_of_its_connection_is_given_back(run: Run) -> None:
    """G4: the lock is free again a TTL later; the same id would bring the grant back before that."""

    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            session = await served.session(client, 60_000)
            served.node.hold_back()
            client.send("LOCK.ACQUIRE", "k", "SESSION", session, "REQUEST", 5, "OWNER", "o")
            await served.until(lambda: served.node.pending)
            client.abort()
            await served.until(lambda: served.node.gone)
            served.node.let_go()
            await served.until(lambda: served.node.orphaned() == [RequestOrphaned("k", 1)])
            assert served.node.machine.inspect("k").status == "held"
            served.node.advance(60_001)
            assert served.node.machine.inspect("k").status == "free"

    run(main())


@run_on_loops()
def test_a_grant_without_an_id_that_reached_nobody_ends_at_once(run: Run) -> None:
    """G4: it can't be asked for again."""

    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            session = await served.session(client, 60_000)
            served.node.hold_back()
            client.send("LOCK.ACQUIRE", "k", "SESSION", session)
            await served.until(lambda: served.node.pending)
            client.abort()
            await served.until(lambda: served.node.gone)
            served.node.let_go()
            await served.until(served.node.orphaned)
            assert served.node.machine.inspect("k").status == "free"

    run(main())


@run_on_loops()
def test_the_same_id_brings_an_orphaned_grant_back(run: Run) -> None:
    """G4, G3"""

    async def main() -> None:
        async with serving() as served:
            client, again = [await served.client() for _ in range(2)]
            command = ("LOCK.ACQUIRE", "k", "TTL", 5_000, "REQUEST", uuid.uuid4())
            served.node.hold_back()
            client.send(*command)
            await served.until(lambda: served.node.pending)
            client.abort()
            await served.until(lambda: served.node.gone)
            served.node.let_go()
            await served.until(served.node.orphaned)
            grant = as_map(await again.ask(*command))
            assert grant["repeat"] == 1
            served.node.advance(5_001)
            assert served.node.machine.inspect("k").status == "held"

    run(main())


@run_on_loops()
def test_a_grant_that_stands_behind_an_unanswered_command_is_given_back(run: Run) -> None:
    """G4: a reply that waits for its turn has reached nobody either."""

    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            session = await served.session(client, 60_000)
            served.node.hold_back(OpenSession)
            client.write(
                pack("SESSION.OPEN", 5000) + pack("LOCK.ACQUIRE", "k", "SESSION", session, "REQUEST", 1)
            )
            await served.until(lambda: served.node.machine.inspect("k").status == "held")
            client.abort()
            await served.until(lambda: served.node.orphaned() == [RequestOrphaned("k", 1)])
            assert served.node.gone == [1]

    run(main())


@run_on_loops()
def test_a_grant_that_was_written_is_not_given_back(run: Run) -> None:
    """K2: losing the connection is not losing the lock."""

    async def main() -> None:
        async with serving() as served:
            client = await served.client()
            grant = as_map(await client.ask("LOCK.ACQUIRE", "k", "TTL", 60_000))
            client.abort()
            await served.until(lambda: served.listener.clients == 0)
            assert served.node.gone == []
            assert served.node.orphaned() == []
            assert served.node.machine.inspect("k").holders[0].token == grant["token"]

    run(main())


@run_on_loops()
def test_a_grant_that_a_slow_reader_never_took_is_given_back(run: Run) -> None:
    """G4: what is still in this node's own buffer when the connection ends has reached nobody."""

    async def main() -> None:
        roomy = ConnectionLimits(output_pause_bytes=2**30, output_bytes_max=2**30)
        async with serving(limits=roomy) as served:
            client = await served.client()
            session = await served.session(client, 60_000)
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport
            (connection,) = served.listener._connections.values()
            while connection._writable:
                client.write(pack("PING", "x" * 60_000))
                await client.writer.drain()
            client.send("LOCK.ACQUIRE", "k", "SESSION", session, "REQUEST", 1)
            await served.until(lambda: served.node.machine.inspect("k").status == "held")
            client.abort()
            await served.until(lambda: served.node.orphaned() == [RequestOrphaned("k", 1)])

    run(main())
