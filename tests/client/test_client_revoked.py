"""K6, K7: what is broken or held for too long is lost at once, and passed on when its work has stopped."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

import lockd
from lockd import AsyncClient, AsyncLease
from lockd.client.demand import Demand
from lockd.client.queries import EndedNotice, command
from lockd.client.session import Session
from lockd.errors import NotHeld
from lockd.ids import ClusterId, Fence, FencingToken, Incarnation, SessionId
from tests.client.peer import HANG_UP, Peer, option
from tests.client.threaded import threaded_listener
from tests.listener.harness import serving

TTL_MS = 60_000
"""Nobody renews by itself within a test's time: each keepalive below was sent for a reason."""


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


def ended(*notices: tuple[int, str, int, str]) -> dict[str, Any]:
    return {"ttl_ms": TTL_MS, "ended": [list(notice) for notice in notices]}


def keep_alive(client: AsyncClient) -> None:
    assert client._direct is not None
    client._direct.engine._keeper.renew_now()


async def told(client: AsyncClient, lease: AsyncLease) -> None:
    """Have a keepalive sent, and wait until the lease is lost by its answer."""
    keep_alive(client)
    assert await asyncio.wait_for(lease.wait_lost(), 10)


# By the notices of a peer.


@pytest.mark.parametrize("reason", ["broken: by the operator", "max_hold"])
def test_k7_a_revoked_lease_is_lost_at_once_with_its_reason_and_the_others_are_not(reason: str) -> None:
    async def main() -> None:
        async with Peer(ttl_ms=TTL_MS) as peer, AsyncClient(peer.endpoint) as client:
            lease, other = await client.acquire("k"), await client.acquire("l")
            calls: list[str] = []
            lease.on_lost(lambda: calls.append("k"))
            other.on_lost(lambda: calls.append("l"))
            peer.script("SESSION.KEEPALIVE", ended((1, "k", lease.token, reason)))
            await told(client, lease)
            assert (lease.lost, lease.remaining(), other.lost, calls) == (True, 0.0, False, ["k"])
            with pytest.raises(lockd.LeaseLost, match=reason):
                lease.check()

    run(main())


def test_k6_the_notice_is_acknowledged_when_the_block_was_left_and_not_before() -> None:
    async def main() -> None:
        async with Peer(ttl_ms=TTL_MS) as peer, AsyncClient(peer.endpoint) as client:

            async def work() -> None:
                async with client.lock("k") as lease:
                    peer.always("SESSION.KEEPALIVE", ended((4, "k", lease.token, "broken: because")))
                    await told(client, lease)
                    keep_alive(client)
                    await peer.heard("SESSION.KEEPALIVE", 2)
                    assert all("ACK" not in words for words in peer.of("SESSION.KEEPALIVE"))

            with pytest.raises(lockd.LeaseLost, match="broken: because"):
                await work()
            # Its own keepalive, at once: the next holder need not wait for a TTL.
            assert option(await peer.heard("SESSION.KEEPALIVE", 3), "ACK") == "4"
            assert not peer.of("LOCK.RELEASE"), "a lease that was lost is not given back a second time"
            # What was acknowledged is not acknowledged for ever, though this node still tells of it.
            await client.ask(command("PING"))  # the answer to that has come
            keep_alive(client)
            assert "ACK" not in await peer.heard("SESSION.KEEPALIVE", 4)

    run(main())


def test_k6_only_the_last_of_all_who_entered_leaves() -> None:
    async def main() -> None:
        async with Peer(ttl_ms=TTL_MS) as peer, AsyncClient(peer.endpoint) as client:
            outer, inner = await client.acquire("k"), await client.acquire("k")
            peer.always("SESSION.KEEPALIVE", ended((1, "k", outer.token, "max_hold")))
            await told(client, outer)
            assert not await inner.release()
            count = len(peer.of("SESSION.KEEPALIVE"))
            with pytest.raises(lockd.LeaseLost):  # K3: the outer block still stands
                await client.acquire("k")
            assert not await outer.release()
            assert option(await peer.heard("SESSION.KEEPALIVE", count + 1), "ACK") == "1"
            assert (await client.acquire("k")).token > outer.token

    run(main())


def test_an_acknowledgement_whose_answer_was_lost_is_sent_again() -> None:
    async def main() -> None:
        async with Peer(ttl_ms=TTL_MS) as peer, AsyncClient(peer.endpoint) as client:
            lease = await client.acquire("k")
            peer.script("SESSION.KEEPALIVE", ended((1, "k", lease.token, "max_hold")), HANG_UP)
            await told(client, lease)
            await lease.release()
            for count in (2, 3):
                assert option(await peer.heard("SESSION.KEEPALIVE", count), "ACK") == "1"

    run(main())


def test_a_notice_of_what_was_given_back_is_acknowledged_right_away() -> None:
    async def main() -> None:
        async with Peer(ttl_ms=TTL_MS) as peer, AsyncClient(peer.endpoint) as client:
            lease = await client.acquire("k")
            await lease.release()
            peer.script("SESSION.KEEPALIVE", ended((7, "k", lease.token, "max_hold")))
            keep_alive(client)
            assert option(await peer.heard("SESSION.KEEPALIVE", 2), "ACK") == "7"

    run(main())


def test_k7_a_grant_that_arrives_after_its_notice_is_not_believed() -> None:
    async def main() -> None:
        async with Peer(ttl_ms=TTL_MS) as peer, AsyncClient(peer.endpoint) as client:
            peer.script("LOCK.ACQUIRE", peer.queued)
            waiter = asyncio.create_task(client.acquire("k"))
            asked = await peer.heard("LOCK.ACQUIRE")
            peer.script("SESSION.KEEPALIVE", ended((1, "k", 1, "broken: too late")))
            keep_alive(client)
            assert option(await peer.heard("SESSION.KEEPALIVE", 2), "ACK") == "1"
            peer.push_grant(asked)
            with pytest.raises(lockd.NotHeld, match="broken: too late"):
                await waiter
            assert option(await peer.heard("LOCK.CANCEL"), "REQUEST") == option(asked, "REQUEST")

    run(main())


def test_a_crowd_that_stops_at_once_is_acknowledged_with_two_keepalives() -> None:
    async def main() -> None:
        async with Peer(ttl_ms=TTL_MS) as peer, AsyncClient(peer.endpoint) as client:
            leases = [await client.acquire(f"k{number}") for number in range(100)]
            notices = [(lease.token, lease.lock, lease.token, "max_hold") for lease in leases]
            peer.script("SESSION.KEEPALIVE", ended(*notices))
            await told(client, leases[-1])
            await asyncio.gather(*[lease.release() for lease in leases])
            assert option(await peer.heard("SESSION.KEEPALIVE", 3), "ACK") == "100"
            await client.ask(command("PING"))
            assert len(peer.of("SESSION.KEEPALIVE")) == 3

    run(main())


def test_k6_one_that_ended_behind_another_whose_work_goes_on_is_given_back() -> None:
    """Its notice can't be acknowledged: that would tell of the earlier one too."""

    async def main() -> None:
        async with Peer(ttl_ms=TTL_MS) as peer, AsyncClient(peer.endpoint) as client:
            first, second = await client.acquire("k"), await client.acquire("l")
            notices = ((1, "k", first.token, "max_hold"), (2, "l", second.token, "max_hold"))
            peer.script("SESSION.KEEPALIVE", ended(*notices))
            await told(client, second)
            await second.release()
            assert (await peer.heard("LOCK.RELEASE"))[1:3] == ["l", str(second.token)]
            assert len(peer.of("SESSION.KEEPALIVE")) == 1
            await first.release()
            assert option(await peer.heard("SESSION.KEEPALIVE", 2), "ACK") == "2"
            assert len(peer.of("LOCK.RELEASE")) == 1

    run(main())


def test_a_lease_that_nobody_has_in_hand_any_more_is_acknowledged_too() -> None:
    async def main() -> None:
        async with Peer(ttl_ms=TTL_MS) as peer, AsyncClient(peer.endpoint) as client:
            lease = await client.acquire("k")
            peer.script("SESSION.KEEPALIVE", ended((1, "k", lease.token, "max_hold")))
            await told(client, lease)
            del lease
            keep_alive(client)
            assert option(await peer.heard("SESSION.KEEPALIVE", 2), "ACK") == "1"

    run(main())


def test_only_who_asked_for_it_is_cancelled_by_a_loss() -> None:
    async def main() -> None:
        async with Peer(ttl_ms=TTL_MS) as peer, AsyncClient(peer.endpoint) as client:
            inside = [asyncio.Event(), asyncio.Event()]
            go_on = asyncio.Event()

            async def stops() -> None:
                async with client.lock("stops", on_lost="cancel"):
                    inside[0].set()
                    await asyncio.Event().wait()

            async def goes_on() -> str:
                async with client.lock("goes on", on_lost="flag") as lease:
                    inside[1].set()
                    await go_on.wait()
                    return f"lost: {lease.lost}"

            stopping, going_on = asyncio.create_task(stops()), asyncio.create_task(goes_on())
            await asyncio.gather(*[event.wait() for event in inside])
            notices = ((1, "stops", 1, "broken: x"), (2, "goes on", 2, "broken: y"))
            peer.script("SESSION.KEEPALIVE", ended(*notices))
            keep_alive(client)
            with pytest.raises(lockd.LeaseLost, match="broken: x"):
                await stopping
            assert option(await peer.heard("SESSION.KEEPALIVE", 2), "ACK") == "1"
            go_on.set()
            assert await going_on == "lost: True"
            assert option(await peer.heard("SESSION.KEEPALIVE", 3), "ACK") == "2"

    run(main())


# The rule alone.


def a_session(*tokens: int) -> Session:
    session = Session(SessionId("a" * 32), sent_at=0.0, ttl=10.0)
    for token in tokens:
        session.granted(Demand(locks=(f"k{token}",)), owner="o", fence=a_fence(token))
    return session


def a_fence(token: int) -> Fence:
    return Fence(ClusterId("c" * 32), Incarnation("1" * 8), FencingToken(token))


def test_what_is_acknowledged_is_not_noticed_again() -> None:
    session = a_session()
    notice = EndedNotice(3, "k", 9, "max_hold")
    assert session.revoked([notice]) == []
    assert session.to_acknowledge() == 3
    session.acknowledged(3)
    session.revoked([notice])
    assert session.to_acknowledge() == 0


def test_unseen_tokens_are_remembered_in_a_bounded_number_the_latest_longest() -> None:
    session = a_session()
    session.revoked(EndedNotice(number, "k", number, "max_hold") for number in range(1, 3000))
    assert len(session._revoked_unseen) == 1024
    with pytest.raises(NotHeld, match="max_hold"):
        session.granted(Demand(locks=("k",)), owner="o", fence=a_fence(2999))
    session.granted(Demand(locks=("k",)), owner="o", fence=a_fence(3000))
    session.check_invariants()


# On the real lock machine.


def test_p1_a_broken_lock_is_passed_on_when_its_block_was_left() -> None:
    async def main() -> None:
        async with serving() as server:
            endpoint = f"127.0.0.1:{server.listener.port}"
            async with AsyncClient(endpoint) as one, AsyncClient(endpoint) as two:
                successors: list[asyncio.Task[AsyncLease]] = []

                async def work() -> None:
                    async with one.lock("k") as lease:
                        successors.append(asyncio.create_task(two.acquire("k")))
                        assert await two.break_lock("k", lease.token, reason="the operator says so")
                        await told(one, lease)
                        holder = (await two.inspect("k")).holders[0]
                        assert (holder.token, holder.ending) == (lease.token, "broken: the operator says so")
                        assert not successors[0].done()

                with pytest.raises(lockd.LeaseLost, match="broken: the operator says so"):
                    await work()
                later = await successors[0]
                assert later.token > 1
                await later.release()

    run(main())


def test_k7_max_hold_ends_what_is_renewed_for_ever_and_the_decorator_has_it_too() -> None:
    async def main() -> None:
        async with serving() as server:
            endpoint = f"127.0.0.1:{server.listener.port}"
            async with AsyncClient(endpoint) as one, AsyncClient(endpoint) as two:

                @one.locked("k", max_hold=300)
                async def stuck(*, lease: AsyncLease = lockd.HELD) -> None:
                    server.node.advance(301_000)
                    await told(one, lease)

                with pytest.raises(lockd.LeaseLost, match="max_hold"):
                    await stuck()
                async with two.lock("k", wait=5):
                    pass

    run(main())


def test_threads_learn_of_it_and_pass_the_lock_on() -> None:
    with (
        threaded_listener() as server,
        lockd.Client(server.endpoint, ttl=2) as client,
        lockd.Client(server.endpoint) as other,
    ):
        heard = threading.Event()

        def work() -> None:
            with client.lock("k") as lease:
                lease.on_lost(heard.set)
                assert other.break_lock("k", lease.token, reason="now")
                assert lease.wait_lost(10)  # by the keepalive that is due anyway

        with pytest.raises(lockd.LeaseLost, match="broken: now"):
            work()
        assert heard.wait(10)
        with other.lock("k", wait=10):
            pass
