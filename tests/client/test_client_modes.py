"""Shared locks, semaphores and several locks at once; re-entry in each; what a refusal tells."""

import asyncio
import json
import os
import signal
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

import lockd
from lockd import AsyncClient, LockMode
from lockd.client.queries import command
from tests.client.peer import Error, Peer, option
from tests.client.threaded import threaded_listener
from tests.listener.harness import serving

MANY = 200


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


@asynccontextmanager
async def two_clients() -> AsyncIterator[tuple[AsyncClient, AsyncClient]]:
    async with serving() as server:
        endpoint = f"127.0.0.1:{server.listener.port}"
        async with AsyncClient(endpoint, name="one") as one, AsyncClient(endpoint, name="two") as two:
            yield one, two


async def queued(client: AsyncClient, lock: str, count: int) -> None:
    async with asyncio.timeout(10):
        while (await client.inspect(lock)).queue_length != count:
            pass


def test_those_who_share_hold_together_and_a_writer_alone() -> None:
    async def main() -> None:
        async with two_clients() as (one, two):
            async with one.lock("cfg", shared=True) as first, two.lock("cfg", shared=True, wait=0) as second:
                assert (first.mode, second.mode) == (LockMode.SHARED, LockMode.SHARED)
                assert second.fence.endswith(f"/{second.token}")
                assert await two.try_lock("cfg") is None
                writer = asyncio.create_task(two.acquire("cfg"))
                await queued(one, "cfg", 1)
                # G5: who shares does not overtake the writer that waits.
                assert await asyncio.create_task(one.try_lock("cfg", shared=True)) is None
            written = await writer
            assert written.mode is LockMode.EXCLUSIVE
            assert written.token > second.token > first.token
            assert await one.try_lock("cfg", shared=True) is None
            await written.release()

    run(main())


def test_reentry_is_counted_in_the_same_mode_alone() -> None:
    async def main() -> None:
        async with two_clients() as (one, two):
            async with one.lock("k", shared=True) as outer:
                async with one.lock("k", shared=True) as inner:
                    assert inner.token == outer.token
                # The upgrade would wait for this very task, for ever.
                with pytest.raises(lockd.Deadlock, match="never end"):
                    async with one.lock("k"):
                        pass
                assert outer.state is lockd.LeaseState.HELD
                assert await two.try_lock("k") is None
            assert (await two.inspect("k")).status == "free"

    run(main())


def test_several_locks_are_one_lease_and_only_the_same_set_is_entered_again() -> None:
    async def main() -> None:
        async with two_clients() as (one, two):
            async with one.lock_all(["b", "a"]) as lease:
                assert (lease.lock, lease.locks, lease.mode) == ("a", ("a", "b"), LockMode.EXCLUSIVE)
                async with one.lock_all(["a", "b"]) as again:
                    assert again.token == lease.token
                for name in lease.locks:
                    assert (await two.inspect(name)).holders[0].token == lease.token
                with pytest.raises(lockd.Deadlock):
                    async with one.lock_all(["a"]):
                        pass
                with pytest.raises(lockd.Deadlock):
                    async with one.lock("b"):
                        pass
                with pytest.raises(lockd.LockTimeout) as busy:
                    async with two.lock_all(["b", "c"], wait=0):
                        pass
                assert (busy.value.lock, busy.value.holder) == ("b", "one")
            for name in ("a", "b", "c"):
                assert (await two.inspect(name)).status == "free"

    run(main())


def test_several_locks_may_wait_and_are_granted_at_once() -> None:
    async def main() -> None:
        async with two_clients() as (one, two):
            held = [await one.acquire(name) for name in ("a", "b")]

            async def transfer() -> tuple[str, ...]:
                async with two.lock_all(["b", "a", "c"], wait=10) as lease:
                    return lease.locks

            waiter = asyncio.create_task(transfer())
            await queued(one, "c", 1)
            for lease in held:
                await lease.release()
            assert await waiter == ("a", "b", "c")

    run(main())


def test_a_semaphore_has_units_and_is_never_entered_again() -> None:
    async def main() -> None:
        async with two_clients() as (one, two):
            async with one.semaphore("pool", limit=3) as first, one.semaphore("pool", limit=3) as second:
                assert first.token != second.token
                assert first.mode is LockMode.SEMAPHORE
                with pytest.raises(lockd.LockTimeout):
                    async with two.semaphore("pool", limit=3, weight=2, wait=0):
                        pass
                async with two.semaphore("pool", limit=3, wait=0):
                    pass
                with pytest.raises(lockd.LimitMismatch, match="3"):
                    async with two.semaphore("pool", limit=4, wait=0):
                        pass
                with pytest.raises(lockd.LimitMismatch):
                    await two.try_lock("pool")
            assert (await two.inspect("pool")).status == "free"

    run(main())


def test_g10_a_semaphore_has_no_fence_and_says_why() -> None:
    async def main() -> None:
        async with two_clients() as (one, _), one.semaphore("pool", limit=2) as lease:
            with pytest.raises(TypeError, match="fencing is not for semaphores"):
                assert lease.fence
            assert len(lease.cluster) == 32

    run(main())


def test_a_refusal_tells_who_holds_the_lock_for_how_long_and_how_many_wait() -> None:
    meta = {"job": 'a | {"b": 1}'}

    async def main() -> None:
        async with serving() as server:
            endpoint = f"127.0.0.1:{server.listener.port}"
            async with AsyncClient(endpoint, name="one") as one, AsyncClient(endpoint) as two:
                async with one.lock("k", meta=meta):
                    waiters = [asyncio.create_task(two.acquire("k", wait=wait)) for wait in (5, 9)]
                    await queued(one, "k", 2)
                    with pytest.raises(lockd.LockTimeout) as at_once:
                        await two.acquire("k", wait=0)
                    server.node.advance(6_000)
                    with pytest.raises(lockd.LockTimeout) as late:
                        await waiters[0]
                    assert (at_once.value.held_ms, at_once.value.queue_length) == (0, 2)
                    assert (late.value.held_ms, late.value.queue_length) == (6_000, 1)
                    for told in (at_once.value, late.value):
                        assert (told.lock, told.holder, told.meta) == ("k", "one", meta)
                        assert told.owner.startswith("task-")
                        assert "{" not in str(told)
                await (await waiters[1]).release()

    run(main())


def test_metadata_is_changed_while_the_lease_is_held() -> None:
    async def main() -> None:
        async with two_clients() as (one, two):
            async with one.lock_all(["a", "b"], meta={"step": 1}) as lease:
                await lease.update_meta({"step": 2})
                for name in lease.locks:
                    assert json.loads((await two.inspect(name)).holders[0].meta) == {"step": 2}
            with pytest.raises(lockd.LeaseLost, match="released"):
                await lease.update_meta({"step": 3})

    run(main())


def test_metadata_of_a_grant_that_is_gone_tells_of_the_loss() -> None:
    async def main() -> None:
        async with Peer() as peer, AsyncClient(peer.endpoint) as client:
            lease, other = await client.acquire("k"), await client.acquire("l")
            told = asyncio.Event()
            lease.on_lost(told.set)
            peer.script("LOCK.META", 0)
            with pytest.raises(lockd.LeaseLost, match="had ended it"):
                await lease.update_meta({})
            assert (lease.lost, other.lost, told.is_set()) == (True, False, True)

    run(main())


def test_metadata_in_a_session_that_is_gone_tells_of_the_loss_of_all() -> None:
    async def main() -> None:
        async with Peer() as peer, AsyncClient(peer.endpoint) as client:
            lease, other = await client.acquire("k"), await client.acquire("l")
            for verb in ("LOCK.META", "SESSION.KEEPALIVE"):
                peer.script(verb, Error("NOSESSION no such session"))
            with pytest.raises(lockd.LeaseLost, match="had ended it"):
                await lease.update_meta({})
            assert await other.wait_lost()

    run(main())


def test_g8_only_what_stays_in_one_task_is_looked_at_for_deadlocks() -> None:
    """A lease without a block may be given back by anybody: who waits for its task waits for nothing."""

    async def main() -> None:
        async with Peer() as peer, AsyncClient(peer.endpoint) as client:
            async with client.lock("a"), client.lock("b"), client.semaphore("s", limit=1):
                pass
            for name in ("c", "d"):
                await client.acquire(name)
            assert await client.try_lock("e") is not None
            owners = [option(words, "OWNER") for words in peer.of("LOCK.ACQUIRE")]
            assert len(set(owners[:3])) == 1
            assert len(set(owners)) == 4

    run(main())


def test_leases_are_handed_between_tasks_without_a_deadlock_that_is_none() -> None:
    async def main() -> None:
        async with two_clients() as (one, _):
            mine = await one.acquire("mine")
            theirs = await asyncio.create_task(one.acquire("theirs"))

            async def wants_mine() -> None:
                await (await one.acquire("mine", wait=10)).release()

            waiting = asyncio.create_task(wants_mine())
            await queued(one, "mine", 1)

            async def gives_back() -> None:
                await mine.release()
                await theirs.release()

            giving = asyncio.create_task(gives_back())
            await (await one.acquire("theirs", wait=10)).release()
            await asyncio.gather(waiting, giving)

    run(main())


def test_two_hundred_locks_live_by_one_connection_one_session_and_one_keepalive() -> None:
    async def main() -> None:
        async with Peer(ttl_ms=1500) as peer, AsyncClient(peer.endpoint, ttl=1.5) as client:
            leases = await asyncio.gather(*[client.acquire(f"k{number}") for number in range(MANY)])
            before = len(peer.of("SESSION.KEEPALIVE"))
            await peer.heard("SESSION.KEEPALIVE", before + 2)
            assert len({lease.token for lease in leases}) == MANY
            assert not any(lease.lost for lease in leases)
            assert (peer.connections, len(peer.of("SESSION.OPEN"))) == (1, 1)
            assert len(peer.of("SESSION.KEEPALIVE")) == before + 2
            await asyncio.gather(*[lease.release() for lease in leases])
            assert len(peer.of("LOCK.RELEASE")) == MANY

    run(main())


@pytest.mark.parametrize(
    "changes",
    [{"mode": "shared"}, {"lock": "l"}, {"token": 0}, {"token": 2**53}, {"fence": "x"}, {"token": "7"}],
    ids=str,
)
def test_a_grant_of_something_else_is_no_grant(changes: dict[str, Any]) -> None:
    async def main() -> None:
        async with Peer() as peer, AsyncClient(peer.endpoint) as client:
            peer.script("LOCK.ACQUIRE", lambda words: peer.grant(words, **changes))
            with pytest.raises(lockd.OutcomeUnknown):
                await client.acquire("k")
            await peer.heard("LOCK.CANCEL")

    run(main())


def test_a_grant_of_fewer_locks_is_no_grant() -> None:
    async def main() -> None:
        async with Peer() as peer, AsyncClient(peer.endpoint) as client:
            peer.script("LOCK.ACQUIREALL", lambda words: peer.grant(words, locks=["a"]))
            with pytest.raises(lockd.OutcomeUnknown):
                async with client.lock_all(["b", "a"]):
                    pass
            assert (await peer.heard("LOCK.CANCEL"))[1] == "a"

    run(main())


def test_p2_a_second_grant_ends_the_first_and_an_older_one_is_refused() -> None:
    """A node that gives one lock twice: no two owners of this client are both told that they hold it."""

    async def main() -> None:
        async with Peer() as peer, AsyncClient(peer.endpoint) as client:
            first = await asyncio.create_task(client.acquire("k"))
            second = await asyncio.create_task(client.acquire("k"))
            assert (first.lost, second.lost) == (True, False)
            with pytest.raises(lockd.LeaseLost, match="granted the lock again, under token 2"):
                first.check()
            peer._tokens = 0
            with pytest.raises(lockd.OutcomeUnknown, match="before one's"):
                await asyncio.create_task(client.acquire("k"))
            assert not second.lost
            await peer.heard("LOCK.CANCEL")

    run(main())


def test_what_a_text_alone_tells_is_used_when_there_is_no_more() -> None:
    async def main() -> None:
        async with Peer() as peer, AsyncClient(peer.endpoint) as client:
            peer.script("LOCK.ACQUIRE", Error('BUSY "k" has been held by session 3 for 5 ms | {"lock":'))
            with pytest.raises(lockd.LockTimeout) as busy:
                await client.acquire("k", wait=0)
            assert (busy.value.holder, busy.value.lock, busy.value.meta) == ("session 3", "k", None)
            await client.ask(command("PING"))

    run(main())


def test_threads_have_all_of_it_too() -> None:
    with threaded_listener() as server, lockd.Client(server.endpoint, name="one") as client:
        with client.lock("cfg", shared=True) as outer, client.lock("cfg", shared=True) as inner:
            assert inner.token == outer.token
            with pytest.raises(lockd.Deadlock), client.lock("cfg"):
                pass
        with client.lock_all(["b", "a"], wait=3, meta={"x": 1}) as both:
            both.update_meta({"x": 2})
            assert json.loads(client.inspect("b").holders[0].meta) == {"x": 2}
            assert both.locks == ("a", "b")
        with client.semaphore("pool", limit=2, weight=2) as units:
            assert units.mode == "semaphore"
            found: list[lockd.LockdError] = []

            def wants_one() -> None:
                try:
                    with client.semaphore("pool", limit=2, wait=0):
                        pass
                except lockd.LockTimeout as error:
                    found.append(error)

            thread = threading.Thread(target=wants_one)
            thread.start()
            thread.join()
            assert [type(error) for error in found] == [lockd.LockTimeout]
        assert all(not client.inspect(name).holders for name in ("cfg", "a", "b", "pool"))

        @client.locked("r:{n}", shared=True, max_hold=60)
        def reads(n: int, *, lease: lockd.Lease = lockd.HELD) -> str:
            return f"{n} {lease.mode}"

        assert reads(4) == "4 shared"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_k5_a_forked_child_has_lost_every_kind_of_lease() -> None:
    with threaded_listener() as server, lockd.Client(server.endpoint) as client:
        with (
            client.lock("cfg", shared=True) as shared,
            client.lock_all(["a", "b"]) as both,
            client.semaphore("pool", limit=2, weight=2) as units,
        ):
            leases = [shared, both, units]
            pid = os.fork()
            if pid == 0:  # whatever happens, the child ends here
                signal.alarm(20)
                is_lost = all(lease.lost and not lease.release() for lease in leases)
                # It is another client now: what its parent holds is busy, and what it shares is not.
                with client.lock("cfg", shared=True, wait=0) as own:
                    is_new = own.token > units.token and client.try_lock("a") is None
                client.close()
                os._exit(0 if is_lost and is_new else 1)
            assert os.waitpid(pid, 0)[1] == 0
            for lease in leases:
                lease.check(5.0)
        assert all(not client.inspect(name).holders for name in ("cfg", "a", "b", "pool"))
