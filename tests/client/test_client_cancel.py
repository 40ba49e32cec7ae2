"""Cancelled acquires leave nothing behind, and cancelling does not stop a release (K4, G7)."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

import lockd
from lockd.client.queries import command
from tests.client.peer import HANG_UP, SILENCE, Error, Peer, option
from tests.listener.harness import serving


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_k4_a_cancelled_wait_is_withdrawn_by_its_id() -> None:
    async def main() -> None:
        async with Peer() as peer:
            peer.script("LOCK.ACQUIRE", peer.queued)
            client = lockd.AsyncClient(peer.endpoint)
            waiter = asyncio.create_task(client.acquire("k"))
            asked = await peer.heard("LOCK.ACQUIRE")
            await cancelled(waiter)
            withdrawn = await peer.heard("LOCK.CANCEL")
            assert withdrawn[1] == "k"
            assert option(withdrawn, "REQUEST") == option(asked, "REQUEST")
            await client.close()

    run(main())


def test_k4_a_withdrawal_is_repeated_until_it_is_answered() -> None:
    async def main() -> None:
        async with Peer() as peer:
            peer.script("LOCK.ACQUIRE", peer.queued)
            peer.script("LOCK.CANCEL", HANG_UP, Error("UNAVAILABLE no leader"))
            client = lockd.AsyncClient(peer.endpoint)
            waiter = asyncio.create_task(client.acquire("k"))
            await peer.heard("LOCK.ACQUIRE")
            await cancelled(waiter)
            await peer.heard("LOCK.CANCEL", 3)
            await client.close()

    run(main())


def test_k4_a_grant_that_crosses_the_cancellation_is_withdrawn_too() -> None:
    async def main() -> None:
        async with Peer() as peer:
            peer.script("LOCK.ACQUIRE", SILENCE)
            client = lockd.AsyncClient(peer.endpoint)
            waiter = asyncio.create_task(client.acquire("k"))
            asked = await peer.heard("LOCK.ACQUIRE")
            waiter.cancel()
            peer.push_grant(asked)
            with pytest.raises(asyncio.CancelledError):
                await waiter
            await peer.heard("LOCK.CANCEL")
            await client.close()

    run(main())


def test_an_acquire_that_was_refused_is_not_withdrawn() -> None:
    async def main() -> None:
        async with Peer() as peer:
            peer.script("LOCK.ACQUIRE", Error('BUSY "k" has been held by session 3 for 5 ms'))
            client = lockd.AsyncClient(peer.endpoint)
            with pytest.raises(lockd.LockTimeout) as busy:
                await client.acquire("k", wait=0)
            assert (busy.value.lock, busy.value.holder) == ("k", "session 3")
            await client.ask(command("PING"))
            assert not peer.of("LOCK.CANCEL")
            await client.close()

    run(main())


def test_a_wait_that_ran_out_names_the_holder() -> None:
    async def main() -> None:
        async with Peer() as peer:
            peer.script("LOCK.ACQUIRE", peer.queued)
            client = lockd.AsyncClient(peer.endpoint)
            waiter = asyncio.create_task(client.acquire("k", wait=5))
            asked = await peer.heard("LOCK.ACQUIRE")
            await client.ask(command("PING"))
            end = {
                "lock": "k",
                **peer.wait_of(asked),
                "code": "TIMEOUT",
                "text": "too late",
                "holder": "billing",
            }
            peer.push("lock.timeout", end)
            with pytest.raises(lockd.LockTimeout, match="too late") as late:
                await waiter
            assert late.value.holder == "billing"
            assert not peer.of("LOCK.CANCEL")
            await client.close()

    run(main())


def test_a_wait_ends_by_our_own_clock_when_the_node_forgets_it() -> None:
    async def main() -> None:
        async with Peer() as peer:
            peer.script("LOCK.ACQUIRE", peer.queued)
            client = lockd.AsyncClient(peer.endpoint, ttl=1)
            with pytest.raises(lockd.LockTimeout, match=r"not granted within 0.1 s"):
                await client.acquire("k", wait=0.1)
            await peer.heard("LOCK.CANCEL")
            await client.close()

    run(main())


def test_k4_a_release_goes_on_when_it_is_cancelled() -> None:
    async def main() -> None:
        async with Peer() as peer:
            client = lockd.AsyncClient(peer.endpoint)
            lease = await client.acquire("k")
            peer.script("LOCK.RELEASE", HANG_UP, SILENCE)
            releasing = asyncio.create_task(lease.release())
            await peer.heard("LOCK.RELEASE")
            await cancelled(releasing)
            assert lease.state is lockd.LeaseState.RELEASED
            peer.politely("LOCK.RELEASE")
            peer.hang_up()
            await peer.heard("LOCK.RELEASE", 2)
            assert not await lease.release()
            await client.close()

    run(main())


def test_g7_a_release_whose_answer_was_lost_is_repeated_and_the_repeat_is_no_loss() -> None:
    async def main() -> None:
        async with Peer() as peer:
            client = lockd.AsyncClient(peer.endpoint)
            peer.script("LOCK.RELEASE", HANG_UP, 0)  # the first one got through
            async with client.lock("k"):
                pass
            assert len(peer.of("LOCK.RELEASE")) == 2
            await client.close()

    run(main())


def test_a_release_that_finds_nothing_says_that_the_lease_was_lost() -> None:
    async def main() -> None:
        async with Peer() as peer:
            client = lockd.AsyncClient(peer.endpoint)
            peer.script("LOCK.RELEASE", 0, 0, 0)
            with pytest.raises(lockd.LeaseLost, match="ended it before"):
                async with client.lock("k"):
                    pass
            async with client.lock("k", on_lost="flag"):
                pass
            with pytest.raises(KeyError):
                async with client.lock("k"):
                    raise KeyError("the body's own")
            await client.close()

    run(main())


def test_a_release_without_an_answer_ends_with_the_session_and_does_not_fail_the_block() -> None:
    async def main() -> None:
        async with Peer(ttl_ms=600) as peer:
            peer.always("LOCK.RELEASE", SILENCE)
            client = lockd.AsyncClient(peer.endpoint, ttl=2)
            async with client.lock("k"):
                peer.always("SESSION.KEEPALIVE", SILENCE)
            lease = await client.acquire("l")
            with pytest.raises(lockd.OutcomeUnknown, match="was not answered"):
                await lease.release()
            await client.close()

    run(main())


def test_cancel_on_loss_stops_the_body_and_names_the_loss() -> None:
    async def main() -> None:
        async with Peer(ttl_ms=600) as peer:
            peer.always("SESSION.KEEPALIVE", SILENCE)
            client = lockd.AsyncClient(peer.endpoint, ttl=2)
            with pytest.raises(lockd.LeaseLost, match="without an answered renewal"):
                async with client.lock("k", on_lost="cancel"):
                    await asyncio.Event().wait()
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
            await client.close()

    run(main())


def test_cancel_on_loss_lets_another_cancellation_through() -> None:
    async def main() -> None:
        async with Peer(ttl_ms=600) as peer:
            peer.always("SESSION.KEEPALIVE", SILENCE)
            client = lockd.AsyncClient(peer.endpoint, ttl=2)
            inside = asyncio.Event()

            async def body() -> None:
                async with client.lock("k", on_lost="cancel") as lease:
                    inside.set()
                    try:
                        await asyncio.Event().wait()
                    finally:
                        assert lease.lost
                        task.cancel()  # somebody else's, on top of ours

            task = asyncio.create_task(body())
            await inside.wait()
            with pytest.raises(asyncio.CancelledError):
                await task
            await client.close()

    run(main())


def test_an_error_of_the_body_is_never_masked_by_a_loss() -> None:
    async def main() -> None:
        async with Peer(ttl_ms=600) as peer:
            peer.always("SESSION.KEEPALIVE", SILENCE)
            client = lockd.AsyncClient(peer.endpoint, ttl=2)

            async def body() -> None:
                async with client.lock("k") as lease:
                    await lease.wait_lost()
                    raise KeyError("the body's own")

            with pytest.raises(KeyError):
                await body()
            await client.close()

    run(main())


async def steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def nothing_left(client: lockd.AsyncClient, lock: str) -> None:
    """The question stands behind all that the client has sent before."""
    left = await client.inspect(lock)
    assert (left.status, left.queue_length) == ("free", 0)


def test_k4_cancelled_at_every_step_an_acquire_leaves_nothing_behind() -> None:
    """On the real listener and lock machine: cancel after 0, 1, 2, ... turns of the loop."""

    async def main() -> None:
        async with serving() as server:
            endpoint = f"127.0.0.1:{server.listener.port}"
            for turns in range(200):
                client = lockd.AsyncClient(endpoint)

                async def use(client: lockd.AsyncClient = client) -> None:
                    async with client.lock("k"):
                        pass

                task = asyncio.create_task(use())
                await steps(turns)
                if task.done():
                    await client.close()
                    break
                await cancelled(task)
                await nothing_left(client, "k")
                await client.close()
            else:
                pytest.fail("it never came to its end")
            assert turns > 10

    run(main())


def test_k4_cancelled_at_every_step_of_a_wait_the_next_one_in_the_queue_gets_the_lock() -> None:
    async def main() -> None:
        async with (
            serving() as server,
            lockd.AsyncClient(f"127.0.0.1:{server.listener.port}") as client,
            lockd.AsyncClient(f"127.0.0.1:{server.listener.port}") as holder,
        ):
            for turns in range(30):
                held = await holder.acquire("k")
                waiter = asyncio.create_task(client.acquire("k"))
                await steps(turns)
                releasing = asyncio.create_task(held.release())
                await steps(turns // 3)
                if waiter.done():
                    await (await waiter).release()
                else:
                    await cancelled(waiter)
                await releasing
                await nothing_left(client, "k")

    run(main())
