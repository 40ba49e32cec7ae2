"""A client that was dropped without being closed ends its session, and one that is in use does not."""

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import lockd
from tests.client.peer import SILENCE, Peer
from tests.client.threaded import ThreadedListener, threaded_listener


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


def sessions(server: ThreadedListener) -> int:
    return server.do(lambda serving: len(serving.node.machine.sessions(0, 100)))


def client_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "lockd-client"}


def until(condition: Callable[[], object]) -> None:
    """Of what another thread does when it comes to it."""
    ended = threading.Event()
    for _ in range(1000):
        if condition():
            return
        ended.wait(0.01)
    pytest.fail("it never came to that")


def test_a_dropped_client_closes_its_session_and_its_thread_ends() -> None:
    before = client_threads()
    with threaded_listener() as server:
        client = lockd.Client(server.endpoint)
        client.acquire("k")
        assert sessions(server) == 1
        assert len(client_threads() - before) == 1
        del client
        gc.collect()
        until(lambda: sessions(server) == 0)
        until(lambda: not client_threads() - before)


def test_a_dropped_client_is_kept_by_what_is_in_use() -> None:
    with threaded_listener() as server, lockd.Client(server.endpoint) as observer:

        def decorated() -> Callable[[], int]:
            client = lockd.Client(server.endpoint)

            @client.locked("of the function")
            def work(*, lease: lockd.Lease = lockd.HELD) -> int:
                return lease.token

            return work

        work = decorated()
        lease = lockd.Client(server.endpoint).acquire("k")
        with lockd.Client(server.endpoint).lock("block") as held:
            gc.collect()
            assert work() > 0
            lease.check(5.0)
            held.check(5.0)
            assert observer.inspect("block").status == "held"
        assert lease.release()
        assert work() > 0
        del lease, held, work
        gc.collect()
        until(lambda: sessions(server) == 0)


def test_a_callback_does_not_keep_a_client_and_is_told_of_the_end() -> None:
    with threaded_listener() as server:
        lost = threading.Event()
        lockd.Client(server.endpoint).acquire("k").on_lost(lost.set)
        gc.collect()
        assert lost.wait(10)
        until(lambda: sessions(server) == 0)


def test_a_callback_is_told_of_a_loss_though_its_lease_was_dropped() -> None:
    with threaded_listener() as server, lockd.Client(server.endpoint, ttl=2) as client:
        lost = threading.Event()
        client.acquire("k").on_lost(lost.set)
        gc.collect()
        token = client.inspect("k").holders[0].token
        assert client.break_lock("k", token, reason="because")
        assert lost.wait(10)


def test_a_dropped_async_client_closes_its_session() -> None:
    async def main() -> None:
        async with Peer() as peer:
            client = lockd.AsyncClient(peer.endpoint)
            lease = await client.acquire("k")
            token = lease.token
            del client
            gc.collect()
            await lease.check(1.0)
            assert not peer.of("SESSION.CLOSE")
            del lease
            gc.collect()
            await peer.heard("SESSION.CLOSE")
            assert token == 1

    run(main())


def test_a_dropped_async_client_gives_up_when_nobody_answers() -> None:
    async def main() -> None:
        async with Peer() as peer:
            client = lockd.AsyncClient(peer.endpoint, ttl=0.5)
            await client.acquire("k")
            assert client._direct is not None
            link = client._direct.engine._link
            peer.always("SESSION.CLOSE", SILENCE)
            supervisor = link._supervisor
            assert supervisor is not None
            del client, link
            gc.collect()
            await asyncio.wait([supervisor], timeout=10)
            assert supervisor.done()

    run(main())


def test_a_client_whose_loop_is_gone_is_dropped_without_a_word() -> None:
    async def main() -> lockd.AsyncClient:
        async with Peer() as peer:
            client = lockd.AsyncClient(peer.endpoint)
            await client.acquire("k")
            await peer.stop()
            return client

    client = asyncio.run(main())
    del client
    gc.collect()


def test_a_closed_client_is_dropped_without_a_word() -> None:
    with threaded_listener() as server:
        client = lockd.Client(server.endpoint)
        client.acquire("k")
        client.close()
        del client
        gc.collect()
        assert sessions(server) == 0
