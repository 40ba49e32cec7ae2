"""Who is not let in any more may have asked for something: it is withdrawn or released all the same (K4)."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

import lockd
from lockd.client.queries import command
from tests.client.peer import HANG_UP, SILENCE, Error, Peer, option

DENIED = Error("NOAUTH wrong user name or password")


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


def test_k4_an_acquire_on_its_way_is_not_refused_by_a_door_that_is_shut() -> None:
    """Its answer was lost, and the next connection is not let in: what came of it is unknown, not "no"."""

    async def main() -> None:
        async with Peer() as peer, lockd.AsyncClient(peer.endpoint, ttl=1) as client:
            await client.acquire("warm")
            peer.script("LOCK.ACQUIRE", HANG_UP)
            peer.always("HELLO", DENIED)
            with pytest.raises(lockd.OutcomeUnknown, match="wrong user name"):
                await client.acquire("k")
            peer.politely("HELLO")
            withdrawn = await peer.heard("LOCK.CANCEL")
            assert option(withdrawn, "REQUEST") == option(peer.of("LOCK.ACQUIRE")[1], "REQUEST")

    run(main())


def test_k4_a_withdrawal_and_a_release_wait_for_a_door_that_opens() -> None:
    async def main() -> None:
        async with Peer() as peer, lockd.AsyncClient(peer.endpoint) as client:
            lease = await client.acquire("held")
            peer.script("LOCK.ACQUIRE", SILENCE)
            waiter = asyncio.create_task(client.acquire("k"))
            asked = await peer.heard("LOCK.ACQUIRE", 2)
            peer.always("HELLO", DENIED)
            waiter.cancel()
            releasing = asyncio.create_task(lease.release())
            greeted = len(peer.of("HELLO"))
            peer.hang_up()
            await peer.heard("HELLO", greeted + 2)
            assert not releasing.done()
            peer.politely("HELLO")
            assert await releasing
            assert option(await peer.heard("LOCK.CANCEL"), "REQUEST") == option(asked, "REQUEST")

    run(main())


def test_what_was_never_sent_is_refused_at_once() -> None:
    async def main() -> None:
        async with Peer() as peer, lockd.AsyncClient(peer.endpoint, ttl=60) as client:
            await client.acquire("held")
            peer.always("HELLO", DENIED)
            peer.hang_up()
            await peer.heard("HELLO", 2)
            with pytest.raises(lockd.AccessDenied):
                await client.acquire("k")
            with pytest.raises(lockd.AccessDenied):
                await client.inspect("k")

    run(main())


@pytest.mark.parametrize(
    "says", ["NOPERM the user lacks the role lock", "LIMIT too many NOTIFY waits", "ERR what is that"]
)
def test_k4_a_refusal_of_the_second_asking_says_nothing_of_the_first(says: str) -> None:
    async def main() -> None:
        async with Peer() as peer, lockd.AsyncClient(peer.endpoint) as client:
            peer.script("LOCK.ACQUIRE", HANG_UP, Error(says))
            with pytest.raises(lockd.Rejected):
                await client.acquire("k")
            assert (await peer.heard("LOCK.CANCEL"))[1] == "k"
            peer.script("LOCK.ACQUIRE", Error(says))
            with pytest.raises(lockd.Rejected):
                await client.acquire("k")
            await client.ask(command("PING"))
            assert len(peer.of("LOCK.CANCEL")) == 1, (
                "the first asking was refused: there is nothing to withdraw"
            )

    run(main())


def test_k4_what_waits_and_is_refused_at_the_next_node_is_withdrawn() -> None:
    async def main() -> None:
        async with Peer() as peer, lockd.AsyncClient(peer.endpoint) as client:
            peer.script("LOCK.ACQUIRE", peer.queued, Error("LIMIT too many NOTIFY waits"))
            waiter = asyncio.create_task(client.acquire("k"))
            await peer.heard("LOCK.ACQUIRE")
            await client.ask(command("PING"))
            peer.hang_up()
            with pytest.raises(lockd.LimitExceeded):
                await waiter
            await peer.heard("LOCK.CANCEL")

    run(main())


def test_a_private_session_that_can_t_be_withdrawn_is_let_be_when_its_ttl_has_passed() -> None:
    async def main() -> None:
        async with Peer() as peer:
            client = lockd.AsyncClient(peer.endpoint, ttl=0.5)
            peer.always("LOCK.ACQUIRE", SILENCE)
            with pytest.raises(lockd.OutcomeUnknown):
                await client.acquire_ttl("k", ttl=0.5)
            assert client._direct is not None
            engine = client._direct.engine
            assert len(engine._duties._open) == 1
            peer.always("HELLO", DENIED)
            peer.hang_up()
            (duty,) = engine._duties._open
            assert isinstance(await asyncio.wait_for(duty.done, 10), lockd.OutcomeUnknown)
            await client.close()

    run(main())
