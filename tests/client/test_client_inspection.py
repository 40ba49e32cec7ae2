"""Looking at locks, queues and sessions, and breaking a grant: over the real server, and page by page."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import lockd
from lockd.client import inspection
from tests.client.peer import Peer, option
from tests.client.threaded import ThreadedListener, threaded_listener

PATIENCE_S = 10.0


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadedListener]:
    with threaded_listener() as listener:
        yield listener


def test_a_queue_tells_who_waits_in_order(server: ThreadedListener) -> None:
    with lockd.Client(server.endpoint, name="holder") as client, client.lock("queued"):
        waiters = [lockd.Client(server.endpoint, name=f"host-{number}") for number in range(2)]
        threads = []
        for number, waiter in enumerate(waiters):
            threads.append(threading.Thread(target=_wait_for, args=(waiter, "queued", number)))
            threads[-1].start()
            _until(client, "queued", number + 1)
        queue = client.queue("queued")
        assert (queue.lock, queue.queue_length) == ("queued", 2)
        assert [(found.position, found.name) for found in queue.waiters] == [(0, "host-0"), (1, "host-1")]
        assert [json.loads(found.meta) for found in queue.waiters] == [{"n": 0}, {"n": 1}]
        assert queue.waiters[0].mode == "exclusive"
        assert queue.revision == client.inspect("queued").revision
        sessions = {session.name: session for session in client.sessions()}
        assert (sessions["holder"].held, sessions["holder"].waiting) == (1, 0)
        assert (sessions["host-1"].held, sessions["host-1"].waiting) == (0, 1)
        assert sessions["host-0"].session == queue.waiters[0].session
        for waiter in waiters:
            waiter.close()
        for thread in threads:
            thread.join(PATIENCE_S)


def _wait_for(client: lockd.Client, name: str, number: int) -> None:
    with pytest.raises((lockd.SessionExpired, RuntimeError)):
        client.acquire(name, meta={"n": number})


def _until(client: lockd.Client, name: str, queue_length: int) -> None:
    pause = threading.Event()
    for _ in range(2000):
        if client.inspect(name).queue_length == queue_length:
            return
        pause.wait(0.005)
    raise AssertionError(f"{queue_length} never waited for {name}")


def test_a_grant_is_validated_and_broken(server: ThreadedListener) -> None:
    """SAFETY K7, P1: its holder is told, and stops before anybody else gets the lock."""
    with lockd.Client(server.endpoint) as holder, lockd.Client(server.endpoint) as operator:
        lease = holder.acquire("broken")
        assert operator.validate("broken", lease.token) == "current"
        assert operator.break_lock("broken", lease.token, reason="it hangs")
        assert operator.inspect("broken").holders[0].ending == "broken: it hangs"
        assert operator.try_lock("broken") is None
        assert lease.wait_lost(PATIENCE_S)
        with pytest.raises(lockd.LeaseLost, match="it hangs"):
            lease.check()
        lease.release()
        after = operator.acquire("broken", wait=PATIENCE_S)
        assert operator.validate("broken", lease.token) == "superseded"
        assert not operator.break_lock("broken", lease.token, reason="again")
        after.release()
        assert operator.validate("broken", after.token) == "free"


def test_tasks_look_in_the_same_way(server: ThreadedListener) -> None:
    async def main() -> None:
        async with (
            lockd.AsyncClient(server.endpoint) as client,
            client.lock("looked at") as lease,
        ):
            assert await client.validate("looked at", lease.token) == "current"
            assert (await client.queue("looked at")).waiters == ()
            assert 1 in [session.held for session in await client.sessions()]
            assert await client.break_lock("looked at", lease.token, reason="now", now=True)
            assert await client.validate("looked at", lease.token) == "free"
            assert await lease.wait_lost()

    with pytest.raises(lockd.LeaseLost):
        asyncio.run(asyncio.wait_for(main(), 30))


def test_all_pages_of_sessions_are_asked_for() -> None:
    def session(number: int) -> dict[str, Any]:
        return {
            "session": number,
            "name": "",
            "user": "default",
            "ttl_ms": 1000,
            "held": 0,
            "waiting": 0,
            "meta": "",
            "private": 0,
        }

    async def main() -> None:
        async with Peer() as peer, lockd.AsyncClient(peer.endpoint) as client:
            peer.script(
                "SESSION.LIST",
                {"sessions": [session(1), session(2)], "next": 2},
                {"sessions": [session(5)], "next": None},
            )
            assert [found.session for found in await client.sessions()] == [1, 2, 5]
            first, second = peer.of("SESSION.LIST")
            assert "AFTER" not in first
            assert option(second, "AFTER") == "2"

    asyncio.run(asyncio.wait_for(main(), 30))


def test_metadata_that_is_no_json_after_all_is_none() -> None:
    assert inspection.parsed('{"a": 1}') == {"a": 1}
    assert inspection.parsed("") is None
    assert inspection.parsed("{") is None
