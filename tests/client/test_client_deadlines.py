"""K1 in the engine: deadlines count from before the sending, on a clock that the test turns."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from lockd.client.demand import Demand
from lockd.client.engine import Engine
from lockd.client.lease import Grant
from lockd.client.options import ClientOptions
from tests.client.peer import Act, Peer

TTL_S = 10.0
MARGIN_S = 0.2


class Clock:
    """Stands still but for what the test adds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


def an_engine(peer: Peer, clock: Clock) -> Engine:
    options = ClientOptions.build(peer.endpoint, ttl=TTL_S, name="", tls=False, auth=None)
    return Engine(options, clock)


async def acquire(engine: Engine, lock: str = "k") -> Grant:
    return await engine.acquire(Demand(locks=(lock,)), owner="task-1")


def test_k1_the_time_that_an_answer_takes_is_the_clients_loss() -> None:
    async def main() -> None:
        async with Peer(ttl_ms=10_000) as peer:
            clock = Clock()
            engine = an_engine(peer, clock)

            def slowly(reply: Any) -> Any:
                def answer(_: list[str]) -> Any:
                    clock.now += 2.0
                    return reply

                return answer

            peer.script("SESSION.OPEN", slowly({"session": "a" * 32, "ttl_ms": 10_000}))
            grant = await acquire(engine)
            assert grant.remaining(clock()) == pytest.approx(TTL_S - MARGIN_S - 2.0)

            clock.now += 3.0
            peer.script("SESSION.KEEPALIVE", slowly({"ttl_ms": 10_000, "ended": []}))
            await engine._keeper.renew(grant, 0.0)
            assert grant.remaining(clock()) == pytest.approx(TTL_S - MARGIN_S - 2.0)
            await engine.close()

    run(main())


@pytest.mark.parametrize("verb", ["SESSION.OPEN", "SESSION.KEEPALIVE"])
def test_k1_what_is_sent_again_counts_from_its_own_sending(verb: str) -> None:
    async def main() -> None:
        async with Peer(ttl_ms=10_000) as peer:
            clock = Clock()
            engine = an_engine(peer, clock)

            def too_late(_: list[str]) -> Act:
                clock.now += 3.0
                return Act.HANG_UP

            peer.script(verb, too_late)
            grant = await acquire(engine)
            assert verb != "SESSION.OPEN" or grant.remaining(clock()) == pytest.approx(TTL_S - MARGIN_S)
            await engine._keeper.renew(grant, 0.0)
            assert grant.remaining(clock()) == pytest.approx(TTL_S - MARGIN_S)
            await engine.close()

    run(main())


def test_k1_a_grant_that_waited_is_worth_what_is_left_of_the_session() -> None:
    async def main() -> None:
        async with Peer(ttl_ms=10_000) as peer:
            clock = Clock()
            engine = an_engine(peer, clock)
            await acquire(engine)
            peer.script("LOCK.ACQUIRE", peer.queued)
            waiting = asyncio.create_task(acquire(engine, "l"))
            asked = await peer.heard("LOCK.ACQUIRE", 2)
            clock.now += 6.0
            peer.push_grant(asked)
            grant = await waiting
            assert grant.remaining(clock()) == pytest.approx(TTL_S - MARGIN_S - 6.0)
            await engine.close()

    run(main())


def test_k1_a_machine_that_slept_has_lost_the_lease_before_any_timer_runs() -> None:
    """The clock counts suspend; the loop's own may not. Nor does a late answer bring anything back."""

    async def main() -> None:
        async with Peer(ttl_ms=10_000) as peer:
            clock = Clock()
            engine = an_engine(peer, clock)
            grant = await acquire(engine)
            peer.script("SESSION.KEEPALIVE", lambda _: _slept(clock, {"ttl_ms": 10_000, "ended": []}))
            engine._keeper.renew_now()
            await peer.heard("SESSION.KEEPALIVE")
            assert grant.remaining(clock()) == 0.0
            again = await acquire(engine, "l")
            assert grant.remaining(clock()) == 0.0
            assert again.session != grant.session
            await engine.close()

    run(main())


def _slept(clock: Clock, reply: Any) -> Any:
    clock.now += 3600.0
    return reply
