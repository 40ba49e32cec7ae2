"""K4: whatever is cancelled at any of its awaits, nothing is held or waited for afterwards."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

import lockd
from lockd import AsyncClient, AsyncLease
from lockd.client.queries import command
from tests.client.peer import Peer, option
from tests.client.steps import Step, cancel_at, every_step
from tests.listener.harness import Serving, serving

NAMES = ("a", "b", "k")


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


def endpoint_of(server: Serving) -> str:
    return f"127.0.0.1:{server.listener.port}"


async def nothing_left(client: AsyncClient) -> None:
    """These questions stand behind all that the client has sent before."""
    for name in NAMES:
        left = await client.inspect(name)
        assert (left.status, left.queue_length) == ("free", 0)


@asynccontextmanager
async def another(server: Serving) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(endpoint_of(server), name="another") as client:
        yield client


async def acquire(client: AsyncClient) -> Any:
    return await client.acquire("k", wait=30)


async def share(client: AsyncClient) -> Any:
    return await client.acquire("k", wait=30, shared=True)


async def try_lock(client: AsyncClient) -> Any:
    return await client.try_lock("k")


async def block(client: AsyncClient) -> Any:
    async with client.lock("k", on_lost="cancel"):
        await asyncio.sleep(0)


async def all_of_them(client: AsyncClient) -> Any:
    async with client.lock_all(["b", "a", "k"], wait=30):
        await asyncio.sleep(0)


async def semaphore(client: AsyncClient) -> Any:
    async with client.semaphore("k", limit=2, weight=2, wait=30):
        await asyncio.sleep(0)


async def decorated(client: AsyncClient) -> Any:
    @client.locked("{name}", wait=30)
    async def work(name: str, *, lease: AsyncLease = lockd.HELD) -> None:
        assert lease.lock == name
        await lease.check(1.0)

    await work("k")


async def campaign(client: AsyncClient) -> Any:
    return await client.election("k").campaign()


async def lead(client: AsyncClient) -> Any:
    async def leading(lease: AsyncLease) -> None:
        await lease.check(1.0)

    await client.election("k", value="me").run(leading)


OPERATIONS = [acquire, share, try_lock, block, all_of_them, semaphore, decorated, campaign, lead]


async def put_down(step: Step) -> None:
    """Give back what the operation returned in spite of its cancellation."""
    if isinstance(step.result, AsyncLease):
        await step.result.release()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_k4_from_the_first_connection_on(operation: Any) -> None:
    async def main() -> None:
        async with serving() as server, another(server) as observer:
            async for step in every_step():
                client = AsyncClient(endpoint_of(server))
                await cancel_at(step, operation(client))
                await put_down(step)
                await nothing_left(client)
                await client.close()
                await nothing_left(observer)

    run(main())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_k4_in_a_session_that_is_open(operation: Any) -> None:
    async def main() -> None:
        async with serving() as server, AsyncClient(endpoint_of(server)) as client:
            await (await client.acquire("warm")).release()
            async for step in every_step():
                await cancel_at(step, operation(client))
                await put_down(step)
                await nothing_left(client)

    run(main())


@pytest.mark.parametrize("operation", [each for each in OPERATIONS if each is not try_lock])
def test_k4_while_the_lock_is_passed_on(operation: Any) -> None:
    """It waits, and is granted the lock by a push at about the time when it is cancelled."""

    async def main() -> None:
        async with serving() as server, another(server) as holder, AsyncClient(endpoint_of(server)) as client:
            await (await client.acquire("warm")).release()
            async for step in every_step():
                entered = holder.semaphore("k", limit=2) if operation is semaphore else holder.lock("k")
                held = await entered.__aenter__()
                running = asyncio.create_task(cancel_at(step, operation(client)))
                while not (await holder.inspect("k")).queue_length and not running.done():
                    pass
                await held.release()
                await running
                await put_down(step)
                await nothing_left(client)
                await nothing_left(holder)

    run(main())


def test_k4_releases_arrive_wherever_they_are_cancelled() -> None:
    async def main() -> None:
        async with serving() as server, AsyncClient(endpoint_of(server)) as client:
            async for step in every_step():
                lease = await client.acquire("k")
                await cancel_at(step, lease.release())
                assert lease.state is lockd.LeaseState.RELEASED
                await nothing_left(client)

    run(main())


def test_k4_leaving_a_block_of_several_locks_wherever_it_is_cancelled() -> None:
    async def main() -> None:
        async with serving() as server, AsyncClient(endpoint_of(server)) as client:
            async for step in every_step():
                entered = client.lock_all(["a", "b"])
                await entered.__aenter__()
                await cancel_at(step, entered.__aexit__(None, None, None))
                await nothing_left(client)

    run(main())


def test_a_renewal_that_is_cancelled_costs_nobody_the_lease() -> None:
    async def main() -> None:
        async with Peer(ttl_ms=10_000) as peer, AsyncClient(peer.endpoint) as client:
            lease = await client.acquire("k")

            async def renew() -> None:
                assert client._direct is not None
                await client._direct.engine._keeper.renew(lease.grant, 0.0)

            async for step in every_step():
                await cancel_at(step, renew())
                assert lease.state is lockd.LeaseState.HELD
                await renew()
                assert lease.remaining() > 9.0
                await client.ask(command("PING"))
            assert await lease.release()

    run(main())


def test_changing_metadata_leaves_the_lease_as_it_was() -> None:
    async def main() -> None:
        async with serving() as server, AsyncClient(endpoint_of(server)) as client:
            lease = await client.acquire("k")
            async for step in every_step():
                await cancel_at(step, lease.update_meta({"step": step.number}))
                assert lease.state is lockd.LeaseState.HELD
            assert await lease.release()
            await nothing_left(client)

    run(main())


def test_k4_a_closing_that_is_cancelled_leaves_no_connection() -> None:
    async def main() -> None:
        async with Peer() as peer:
            async for step in every_step():
                client = AsyncClient(peer.endpoint)
                await client.acquire("k")
                assert client._direct is not None
                link = client._direct.engine._link
                await cancel_at(step, client.close())
                assert link._connection is None or link._connection.closed.done()

    run(main())


def test_k4_every_acquisition_that_was_sent_and_given_up_is_withdrawn_by_its_id() -> None:
    """A node that answers none of them, and one that answers them late."""

    async def main() -> None:
        async with Peer() as peer, AsyncClient(peer.endpoint) as client:
            await client.acquire("warm")
            peer.always("LOCK.ACQUIRE", peer.queued)
            peer.always("LOCK.ACQUIREALL", peer.queued)
            for operation in (acquire, all_of_them, semaphore):
                before = len(peer.commands)
                verb = "LOCK.ACQUIREALL" if operation is all_of_them else "LOCK.ACQUIRE"
                count = len(peer.of(verb)) + 1
                task = asyncio.create_task(operation(client))
                asked = await peer.heard(verb, count)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await client.ask(command("PING"))
                (withdrawn,) = [words for words in peer.commands[before:] if words[0] == "LOCK.CANCEL"]
                assert option(withdrawn, "REQUEST") == option(asked, "REQUEST")

    run(main())
