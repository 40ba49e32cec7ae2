"""Elections: who leads, when lead is called again, how it ends; over nodes that do as the test says."""

import asyncio
import json
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

import lockd
from lockd.client.feeds import AsyncFeed
from tests.client.history import History
from tests.client.peer import Error, Followed, Peer, option
from tests.client.threaded import ThreadedListener, threaded_listener

PATIENCE_S = 10.0


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


def expire(peer: Peer) -> None:
    """The next keepalive is told that the session has ended."""
    peer.script("SESSION.KEEPALIVE", Error("NOSESSION it has ended"))


async def renewed(client: lockd.AsyncClient) -> None:
    """Have a keepalive sent now."""
    assert client._direct is not None
    client._direct.engine._keeper.renew_now()


def test_a_leader_has_a_lease_and_resigns_by_returning() -> None:
    async def main() -> None:
        async with Peer() as peer, lockd.AsyncClient(peer.endpoint) as client:

            async def lead(lease: lockd.AsyncLease) -> str:
                assert lease.lock == "cron"
                assert not peer.of("LOCK.RELEASE")
                return f"done with {lease.token}"

            assert await client.election("cron", value="host-a").run(lead) == "done with 1"
            (acquire,) = peer.of("LOCK.ACQUIRE")
            assert option(acquire, "META") == '"host-a"'
            assert option(acquire, "WAIT") == "FOREVER"
            assert (await peer.heard("LOCK.RELEASE"))[1:3] == ["cron", "1"]

    run(main())


def test_a_leader_that_loses_its_lease_is_cancelled_and_leads_again_after_that_has_ended() -> None:
    """SAFETY K3, K6: another lease, another token; never two calls of lead at a time."""

    async def main() -> None:
        async with Peer() as peer, lockd.AsyncClient(peer.endpoint) as client:
            terms: list[int] = []
            running = 0
            may_end = asyncio.Event()

            async def lead(lease: lockd.AsyncLease) -> str:
                nonlocal running
                assert running == 0
                running += 1
                terms.append(lease.token)
                try:
                    if len(terms) == 1:
                        expire(peer)
                        await renewed(client)
                        await asyncio.Event().wait()
                    return "resigned"
                finally:
                    if len(terms) == 1:
                        assert lease.lost
                        await client.status()  # what it had sent before that has arrived
                        assert len(peer.of("LOCK.ACQUIRE")) == 1, "it stands again before its work has ended"
                        may_end.set()
                    running -= 1

            assert await client.election("cron").run(lead) == "resigned"
            assert terms == [1, 2]
            assert may_end.is_set()

    run(main())


def test_what_lead_raises_is_raised_once_the_lock_is_released() -> None:
    async def main() -> None:
        async with Peer() as peer, lockd.AsyncClient(peer.endpoint) as client:
            election = client.election("cron")
            for error in (KeyError("x"), lockd.LeaseLost("of another lock", lock="other", token=1)):

                async def lead(_: lockd.AsyncLease, error: Exception = error) -> None:
                    raise error

                with pytest.raises(type(error)) as raised:
                    await election.run(lead)
                assert raised.value is error
            assert len(peer.of("LOCK.RELEASE")) == len(peer.of("LOCK.ACQUIRE")) == 2

    run(main())


def test_an_error_of_lead_is_not_masked_by_the_loss() -> None:
    async def main() -> None:
        async with Peer() as peer, lockd.AsyncClient(peer.endpoint) as client:

            async def lead(_: lockd.AsyncLease) -> None:
                expire(peer)
                await renewed(client)
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    raise KeyError("x") from None

            with pytest.raises(KeyError):
                await client.election("cron").run(lead)

    run(main())


def test_stopping_a_candidate_withdraws_it() -> None:
    """SAFETY K4."""

    async def main() -> None:
        async with Peer() as peer, lockd.AsyncClient(peer.endpoint) as client:
            peer.always("LOCK.ACQUIRE", peer.queued)
            election = client.election("cron")
            standing = asyncio.ensure_future(election.run(_never))
            await peer.heard("LOCK.ACQUIRE")
            election.stop()
            assert await standing is None
            await peer.heard("LOCK.CANCEL")
            assert await election.run(_never) is None, "it is stopped for good"
            assert len(peer.of("LOCK.ACQUIRE")) == 1

    run(main())


def test_stopping_a_leader_cancels_it_and_releases() -> None:
    async def main() -> None:
        async with Peer() as peer, lockd.AsyncClient(peer.endpoint) as client:
            election = client.election("cron")
            ended = []

            async def lead(_: lockd.AsyncLease) -> str:
                asyncio.get_running_loop().call_soon(election.stop)
                try:
                    await asyncio.Event().wait()
                    return "not cancelled"
                finally:
                    ended.append(len(peer.of("LOCK.RELEASE")))

            assert await election.run(lead) is None
            assert ended == [0], "the work ends, and then the lock is released"
            await peer.heard("LOCK.RELEASE")

    run(main())


def test_cancelling_the_run_goes_on_as_a_cancellation() -> None:
    async def main() -> None:
        async with Peer() as peer, lockd.AsyncClient(peer.endpoint) as client:
            leading = asyncio.Event()

            async def lead(_: lockd.AsyncLease) -> None:
                leading.set()
                await asyncio.Event().wait()

            task = asyncio.ensure_future(client.election("cron").run(lead))
            await leading.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await peer.heard("LOCK.RELEASE")

    run(main())


def test_a_timeout_of_leads_own_is_an_error_like_others() -> None:
    async def main() -> None:
        async with Peer() as peer, lockd.AsyncClient(peer.endpoint) as client:

            async def lead(_: lockd.AsyncLease) -> None:
                async with asyncio.timeout(0):
                    await asyncio.Event().wait()

            with pytest.raises(TimeoutError):
                await client.election("cron").run(lead)

    run(main())


def test_k2_a_candidate_outlasts_a_cluster_that_does_not_answer() -> None:
    async def main() -> None:
        async with Peer() as peer:
            peer.always("SESSION.OPEN", Error("UNAVAILABLE no leader is known"))
            async with lockd.AsyncClient(peer.endpoint, ttl=1) as client:
                standing = asyncio.ensure_future(client.election("cron").run(_token))
                with pytest.raises(lockd.Unavailable):
                    await client.acquire("for as long as a TTL")
                peer.politely("SESSION.OPEN")
                assert await standing == 1

    run(main())


def test_what_trying_again_cannot_help_is_raised() -> None:
    async def main() -> None:
        async with Peer() as peer, lockd.AsyncClient(peer.endpoint) as client:
            peer.script("LOCK.ACQUIRE", Error("NOPERM user 'me' may not LOCK.ACQUIRE"))
            with pytest.raises(lockd.AccessDenied):
                await client.election("cron").run(_never)

    run(main())


def test_a_leader_proclaims_and_stands_again_with_that_value() -> None:
    async def main() -> None:
        async with Peer() as peer, lockd.AsyncClient(peer.endpoint) as client:
            peer.always("LOCK.META", 1)
            election = client.election("cron", value={"at": 1})
            with pytest.raises(lockd.NotHeld):
                await election.proclaim("too early")

            async def lead(lease: lockd.AsyncLease) -> None:
                if lease.token == 1:
                    await election.proclaim({"at": 2})
                    peer.always("LOCK.META", 0)
                    with pytest.raises(lockd.LeaseLost):
                        await election.proclaim({"at": 3})
                    await asyncio.Event().wait()

            await election.run(lead)
            session = option(peer.of("LOCK.ACQUIRE")[0], "SESSION")
            assert peer.of("LOCK.META")[0][1:] == ["cron", "1", "SESSION", session, '{"at":2}']
            values = [json.loads(option(words, "META")) for words in peer.of("LOCK.ACQUIRE")]
            assert values == [{"at": 1}, {"at": 2}]
            with pytest.raises(lockd.NotHeld):
                await election.proclaim("too late")

    run(main())


def test_what_can_be_no_lead_is_refused_and_holds_nothing() -> None:
    async def main() -> None:
        async with Peer() as peer, lockd.AsyncClient(peer.endpoint) as client:
            with pytest.raises(TypeError, match="no async def"):
                await client.election("cron").run(lambda _: 7)  # type: ignore[arg-type,return-value]
            await peer.heard("LOCK.RELEASE")
            with pytest.raises(TypeError, match="AsyncClient"):
                lockd.Client(peer.endpoint).election("cron").run(_never)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="JSON"):
                client.election("cron", value=object())

    run(main())


def test_a_candidate_runs_once_at_a_time() -> None:
    async def main() -> None:
        async with Peer() as peer, lockd.AsyncClient(peer.endpoint) as client:
            election = client.election("cron")

            async def lead(_: lockd.AsyncLease) -> None:
                with pytest.raises(RuntimeError, match="runs already"):
                    await election.run(_never)

            await election.run(lead)

    run(main())


# Observing.


async def seen(feed: AsyncFeed[lockd.Leader | None], count: int) -> list[tuple[int, Any] | None]:
    found = [await anext(feed) for _ in range(count)]
    return [None if leader is None else (leader.token, leader.value) for leader in found]


def holder_of(token: int, meta: str) -> dict[str, Any]:
    return {
        "session": 7,
        "name": "host",
        "owner": "task-1",
        "token": token,
        "revision": token,
        "held_ms": 1,
        "meta": meta,
        "mode": "exclusive",
        "weight": 1,
        "ending": "",
    }


def lock_of(revision: int, *holders: dict[str, Any]) -> dict[str, Any]:
    return {
        "lock": "cron",
        "status": "held" if holders else "free",
        "mode": "exclusive",
        "holders": list(holders),
        "queue_length": 0,
        "held_ms": 0,
        "granted_last": 0,
        "revision": revision,
    }


def test_observers_see_each_leader_each_value_and_that_there_is_none() -> None:
    async def main() -> None:
        async with Peer() as peer, lockd.AsyncClient(peer.endpoint) as client:
            history = History(peer)
            peer.script("LOCK.INSPECT", lock_of(0))
            async with client.election("cron").observe() as leaders:
                history.happen("cron", meta='"a"', token=5)
                history.happen("cron:2", meta='"b"', token=6)
                history.happen("cron", "meta", meta='"c"', token=5)
                history.happen("cron", "breaking", meta='"c"', token=5)
                history.happen("cron", "broken", meta='"c"', token=5)
                history.happen("cron", meta="not JSON", token=7)
                history.happen("cron", "expired", meta="", token=5)
                history.happen("cron", "expired", meta="", token=7)
                assert await seen(leaders, 4) == [None, (5, "a"), (5, "c"), None]
                assert leaders.revision == 5, "vacant once it is broken, and not while its holder stops"
                assert await seen(leaders, 2) == [(7, None), None]
                assert leaders.revision == history.revision

    run(main())


def test_an_observer_begins_with_who_leads_and_misses_nothing_after_that() -> None:
    async def main() -> None:
        async with Peer() as peer, lockd.AsyncClient(peer.endpoint) as client:
            history = History(peer)
            history.happen("cron", meta='"a"', token=5)
            peer.script("LOCK.INSPECT", lock_of(1, holder_of(5, '"a"')))
            peer.script(
                "LOCK.WATCH",
                lambda words: (
                    Followed(
                        {"prefix": "cron", "revision": 1},
                        [("lock.event", history.events[history.happen("cron", "released", token=5) - 1])],
                    )
                    if option(words, "FROM") == "1"
                    else Error("ERR the watch begins where the look was")
                ),
            )
            leaders = client.election("cron").observe()
            assert await anext(leaders) == lockd.Leader("host", "task-1", "a", 5, 7)
            assert await seen(leaders, 1) == [None]

    run(main())


def test_an_observer_that_missed_too_much_looks_again() -> None:
    async def main() -> None:
        async with Peer() as peer, lockd.AsyncClient(peer.endpoint) as client:
            history = History(peer)
            peer.script("LOCK.INSPECT", lock_of(0), lock_of(3, holder_of(9, '"z"')))
            async with client.election("cron").observe() as leaders:
                assert await seen(leaders, 1) == [None]
                history.peers = ()
                for _ in range(3):
                    history.happen("cron")
                history.forgotten[peer] = 3
                history.peers = (peer,)
                peer.hang_up()
                assert await seen(leaders, 1) == [(9, "z")]
                history.happen("cron", "released", token=9)
                assert await seen(leaders, 1) == [None]

    run(main())


async def _never(_: lockd.AsyncLease) -> str:
    raise AssertionError("it was not elected")


async def _token(lease: lockd.AsyncLease) -> int:
    return lease.token


# In threads, over a real server in memory.


@pytest.fixture
def server() -> Any:
    with threaded_listener() as listener:
        yield listener


def queue_length(client: lockd.Client, name: str) -> int:
    return client.inspect(name).queue_length


def wait_for(condition: Any) -> None:
    done = threading.Event()
    for _ in range(2000):
        if condition():
            return
        done.wait(0.005)
    raise AssertionError("not in time")


def test_threads_lead_one_after_the_other(server: ThreadedListener) -> None:
    with lockd.Client(server.endpoint) as client:
        leading, terms = threading.Lock(), []

        def lead(lease: lockd.Lease) -> int:
            assert leading.acquire(blocking=False), "two lead"
            terms.append(lease.token)
            leading.release()
            return lease.token

        threads = [
            threading.Thread(target=lambda: results.append(client.election("cron").run(lead)))
            for _ in range(5)
        ]
        results: list[int | None] = []
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert terms == sorted(terms)
        assert sorted(filter(None, results)) == terms
        assert len(set(terms)) == 5


@pytest.mark.parametrize("how", ["returns", "checks"])
def test_a_thread_that_lost_its_lease_leads_again(server: ThreadedListener, how: str) -> None:
    """It was told by `lease.lost`, and what it did then is no resignation."""
    with lockd.Client(server.endpoint) as client:
        terms: list[int] = []

        def lead(lease: lockd.Lease) -> str:
            terms.append(lease.token)
            if len(terms) == 1:
                session = lease.grant.session
                client.ask(lockd.client.queries.close_session(session))
                assert client._runtime is not None
                with pytest.raises(lockd.LeaseLost):
                    client._runtime.run(client._runtime.engine._keeper.renew(lease.grant, 0.0))
                assert lease.wait_lost(PATIENCE_S)
                if how == "checks":
                    lease.check()
            return "resigned"

        assert client.election("cron").run(lead) == "resigned"
        assert len(terms) == 2
        assert terms[1] > terms[0]


def test_another_thread_stops_a_candidate_and_a_leader(server: ThreadedListener) -> None:
    with lockd.Client(server.endpoint) as client:
        first, second = client.election("cron"), client.election("cron")
        elected, results = threading.Event(), []

        def lead(_: lockd.Lease) -> str:
            elected.set()
            while not first.is_stopped:
                elected.wait(0.01)
            return "led"

        leader = threading.Thread(target=lambda: results.append(first.run(lead)))
        leader.start()
        assert elected.wait(PATIENCE_S)
        waiter = threading.Thread(target=lambda: results.append(second.run(lead)))
        waiter.start()
        wait_for(lambda: queue_length(client, "cron") == 1)
        second.stop()
        waiter.join(PATIENCE_S)
        assert results == [None]
        wait_for(lambda: queue_length(client, "cron") == 0)
        first.stop()
        leader.join(PATIENCE_S)
        assert results == [None, "led"]
        assert client.inspect("cron").status == "free"
