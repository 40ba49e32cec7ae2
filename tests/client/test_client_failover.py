"""What the client does when a node fails it: nodes on real sockets that misbehave on cue (K1 to K3, K6)."""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import pytest

import lockd
from lockd.client.acquiring import ASK_AGAIN_SECONDS
from lockd.client.queries import command
from tests.client.peer import GARBAGE, HANG_UP, SILENCE, Error, Peer, option

SHORT_TTL_MS = 600
"""As the peer grants it: a session that nobody renews is lost 0.5 s after it was opened."""


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


async def renewed(client: lockd.AsyncClient, lease: lockd.AsyncLease) -> None:
    """Have a keepalive sent now, and wait for what comes of it."""
    assert client._direct is not None
    await client._direct.engine._keeper.renew(lease.grant, 0.0)


def state_of(lease: lockd.AsyncLease) -> str:
    return lease.state.value


def test_making_a_client_does_no_io() -> None:
    async def main() -> None:
        async with Peer() as peer:
            lockd.Client(peer.endpoint)
            client = lockd.AsyncClient(peer.endpoint)
            assert peer.connections == 0
            await client.status()
            assert [words[0] for words in peer.commands[:1]] == ["HELLO"]
            assert not peer.of("SESSION.OPEN"), "a session is opened by the first lock"
            await client.close()

    run(main())


def test_k2_a_lost_connection_is_not_a_lost_lease() -> None:
    """The same session goes on at the next node; until it is renewed there, the lease is suspended."""

    async def main() -> None:
        async with Peer(ttl_ms=10_000) as first, Peer(ttl_ms=10_000) as second:
            client = lockd.AsyncClient([first.endpoint, second.endpoint])
            async with client.lock("k") as lease:
                second.script("SESSION.KEEPALIVE", SILENCE)
                before = lease.remaining()
                await first.stop()
                keepalive = await second.heard("SESSION.KEEPALIVE")
                assert keepalive[1] == option(first.of("LOCK.ACQUIRE")[0], "SESSION")
                assert state_of(lease) == "suspended"
                assert 0 < lease.remaining() < before
                second.hang_up()
                await second.heard("SESSION.KEEPALIVE", 2)
                await renewed(client, lease)
                assert state_of(lease) == "held"
            release = await second.heard("LOCK.RELEASE")
            assert release[1:3] == ["k", str(lease.token)]
            await client.close()

    run(main())


def test_k2_when_no_node_answers_the_lease_is_lost_at_its_deadline_and_says_so_at_once() -> None:
    async def main() -> None:
        async with Peer(ttl_ms=SHORT_TTL_MS) as peer:
            peer.always("SESSION.KEEPALIVE", SILENCE)
            client = lockd.AsyncClient(peer.endpoint, ttl=2)
            lease = await client.acquire("k")
            told = asyncio.Event()
            lease.on_lost(told.set)
            remaining = lease.remaining()
            began = asyncio.get_running_loop().time()
            assert await lease.wait_lost()
            assert told.is_set()
            assert asyncio.get_running_loop().time() - began == pytest.approx(remaining, abs=0.25)
            assert (lease.lost, lease.remaining()) == (True, 0.0)
            with pytest.raises(lockd.LeaseLost, match="without an answered renewal"):
                await lease.check()
            assert not await lease.release()
            await client.close()

    run(main())


def test_k5_a_blocked_loop_loses_the_lease_by_the_clock() -> None:
    """No timer could run, and still nobody is told that it is held."""

    async def main() -> None:
        async with Peer(ttl_ms=SHORT_TTL_MS) as peer:
            peer.always("SESSION.KEEPALIVE", SILENCE)
            client = lockd.AsyncClient(peer.endpoint, ttl=2)
            lease = await client.acquire("k")
            while lease.remaining() > 0:  # the loop does not turn
                pass
            assert lease.lost
            with pytest.raises(lockd.LeaseLost):
                lease.check()
            await client.close()

    run(main())


def test_k3_a_lost_lease_is_not_replaced_and_the_next_acquisition_has_a_new_session() -> None:
    async def main() -> None:
        async with Peer(ttl_ms=10_000) as peer:
            client = lockd.AsyncClient(peer.endpoint)
            outer = await client.acquire("k")
            peer.script("SESSION.KEEPALIVE", Error("NOSESSION no such session"))
            with pytest.raises(lockd.LeaseLost, match="no such session"):
                await renewed(client, outer)
            with pytest.raises(lockd.LeaseLost):
                await client.acquire("k")  # the outer block still believes in its own
            other = await client.acquire("l")
            assert (outer.lost, other.lost) == (True, False)
            assert len(peer.of("SESSION.OPEN")) == 2
            await outer.release()
            again = await client.acquire("k")
            assert again.token > outer.token
            await client.close()

    run(main())


def test_a_forgotten_session_is_replaced_for_who_had_not_begun_to_wait() -> None:
    async def main() -> None:
        async with Peer() as peer:
            client = lockd.AsyncClient(peer.endpoint)
            held = await client.acquire("k")
            peer.script("LOCK.ACQUIRE", Error("NOSESSION no such session"))
            lease = await client.acquire("l", wait=0)
            assert (held.lost, lease.lost) == (True, False)
            first, second, third = peer.of("LOCK.ACQUIRE")
            assert option(first, "SESSION") == option(second, "SESSION") != option(third, "SESSION")
            await client.close()

    run(main())


def test_an_acquire_without_an_answer_does_not_stand_in_its_own_way_in_another_session() -> None:
    """It may hold in the session that our clock has given up, until the cluster gives it up too."""

    async def main() -> None:
        async with Peer(ttl_ms=SHORT_TTL_MS) as peer:
            client = lockd.AsyncClient(
                peer.endpoint, ttl=4
            )  # one answer may take 1 s: longer than the session
            peer.always("SESSION.KEEPALIVE", SILENCE)
            peer.script("LOCK.ACQUIRE", SILENCE)
            with pytest.raises(lockd.SessionExpired):
                await client.acquire("k")
            assert len(peer.of("SESSION.OPEN")) == 1
            assert len(peer.of("LOCK.ACQUIRE")) == 1
            await client.close()

    run(main())


def test_who_waits_when_the_session_ends_is_told() -> None:
    async def main() -> None:
        async with Peer(ttl_ms=10_000) as peer:
            client = lockd.AsyncClient(peer.endpoint)
            held = await client.acquire("l")
            peer.script("LOCK.ACQUIRE", peer.queued)
            waiter = asyncio.create_task(client.acquire("k"))
            await peer.heard("LOCK.ACQUIRE", 2)
            await client.ask(command("PING"))
            peer.script("SESSION.KEEPALIVE", Error("NOSESSION no such session"))
            with pytest.raises(lockd.LeaseLost):
                await renewed(client, held)
            with pytest.raises(lockd.SessionExpired, match="while waiting for 'k'"):
                await waiter
            await client.close()

    run(main())


def test_k1_the_answer_is_counted_from_before_its_own_sending() -> None:
    """The first keepalive is lost with its connection; the second one's answer counts from the second."""

    async def main() -> None:
        async with Peer(ttl_ms=10_000) as peer:
            client = lockd.AsyncClient(peer.endpoint)
            lease = await client.acquire("k")
            peer.script("SESSION.KEEPALIVE", HANG_UP)
            loop = asyncio.get_running_loop()
            began = loop.time()
            await renewed(client, lease)
            elapsed = loop.time() - began
            assert len(peer.of("SESSION.KEEPALIVE")) == 2
            assert 9.8 - elapsed <= lease.remaining() <= 9.8
            await client.close()

    run(main())


def test_an_acquire_in_flight_is_asked_again_with_the_same_id() -> None:
    async def main() -> None:
        async with Peer() as first, Peer() as second:
            first.script("LOCK.ACQUIRE", HANG_UP)
            client = lockd.AsyncClient([first.endpoint, second.endpoint])
            lease = await client.acquire("k", wait=5, meta={"job": 1})
            assert lease.token == 1
            assert first.of("LOCK.ACQUIRE") == second.of("LOCK.ACQUIRE")
            await client.close()

    run(main())


def test_a_wait_goes_on_at_the_next_node_with_the_same_id() -> None:
    async def main() -> None:
        async with Peer() as first, Peer() as second:
            first.script("LOCK.ACQUIRE", first.queued)
            second.script("LOCK.ACQUIRE", second.queued)
            client = lockd.AsyncClient([first.endpoint, second.endpoint])
            waiter = asyncio.create_task(client.acquire("k"))
            asked = await first.heard("LOCK.ACQUIRE")
            await client.ask(command("PING"))
            await first.stop()
            assert await second.heard("LOCK.ACQUIRE") == asked
            second.push_grant(asked)
            assert (await waiter).lock == "k"
            await client.close()

    run(main())


@pytest.mark.parametrize("says", ["UNAVAILABLE no leader is known", "UNKNOWN the leader changed"])
def test_what_has_no_outcome_is_asked_again_and_then_elsewhere(says: str) -> None:
    async def main() -> None:
        async with Peer() as first, Peer() as second:
            first.always("LOCK.ACQUIRE", Error(says))
            client = lockd.AsyncClient([first.endpoint, second.endpoint])
            lease = await client.acquire("k", wait=0)
            assert lease.token == 1
            asked = first.of("LOCK.ACQUIRE")
            assert asked == [asked[0]] * 2
            assert second.of("LOCK.ACQUIRE") == asked[:1]
            await client.close()

    run(main())


def test_a_push_that_says_unknown_is_a_question_to_ask_again() -> None:
    async def main() -> None:
        async with Peer() as peer:
            peer.script("LOCK.ACQUIRE", peer.queued)
            client = lockd.AsyncClient(peer.endpoint)
            waiter = asyncio.create_task(client.acquire("k"))
            asked = await peer.heard("LOCK.ACQUIRE")
            peer.push(
                "lock.timeout", {"lock": "k", **peer.wait_of(asked), "code": "UNKNOWN", "text": "moved"}
            )
            assert await peer.heard("LOCK.ACQUIRE", 2) == asked
            assert (await waiter).token == 1
            await client.close()

    run(main())


def test_what_a_new_connection_has_asked_for_is_not_asked_for_again() -> None:
    """A node that stops says UNKNOWN and hangs up. Of two requests over one connection the first is told
    UNKNOWN as well, since the second has the answer: asking again then has no end."""

    async def main() -> None:
        async with Peer() as first, Peer() as second:
            first.script("LOCK.ACQUIRE", first.queued)
            second.always("LOCK.ACQUIRE", second.queued)
            client = lockd.AsyncClient([first.endpoint, second.endpoint])
            waiter = asyncio.create_task(client.acquire("k"))
            asked = await first.heard("LOCK.ACQUIRE")
            first.push(
                "lock.timeout", {"lock": "k", **first.wait_of(asked), "code": "UNKNOWN", "text": "stopping"}
            )
            await first.stop()
            assert await second.heard("LOCK.ACQUIRE") == asked
            is_later = asyncio.Event()
            asyncio.get_running_loop().call_later(ASK_AGAIN_SECONDS, is_later.set)
            await is_later.wait()
            await client.ask(command("PING"))
            assert second.of("LOCK.ACQUIRE") == [asked]
            second.push_grant(asked)
            assert (await waiter).lock == "k"
            await client.close()

    run(main())


@pytest.mark.parametrize("fault", [SILENCE, GARBAGE, HANG_UP])
@pytest.mark.parametrize("verb", ["HELLO", "SESSION.OPEN", "LOCK.ACQUIRE"])
def test_a_node_that_fails_at_any_point_is_left_for_the_next(verb: str, fault: Any) -> None:
    async def main() -> None:
        async with Peer() as first, Peer() as second:
            first.always(verb, fault)
            client = lockd.AsyncClient([first.endpoint, second.endpoint], ttl=2)
            async with client.lock("k") as lease:
                assert lease.token == 1
            await second.heard("LOCK.RELEASE")
            await client.close()

    run(main())


def test_k2_a_silent_node_costs_less_than_a_third_of_the_ttl() -> None:
    async def main() -> None:
        async with Peer(ttl_ms=3000) as first, Peer(ttl_ms=3000) as second:
            client = lockd.AsyncClient([first.endpoint, second.endpoint], ttl=3)
            lease = await client.acquire("k")
            first.always("SESSION.KEEPALIVE", SILENCE)
            began = asyncio.get_running_loop().time()
            renewing = asyncio.create_task(renewed(client, lease))
            await second.heard("SESSION.KEEPALIVE")
            assert asyncio.get_running_loop().time() - began < 1.0
            await renewing
            await client.close()

    run(main())


def test_a_cluster_that_nobody_answers_for_is_unavailable_after_the_ttl() -> None:
    async def main() -> None:
        peer = Peer()
        async with peer:
            endpoint = peer.endpoint
        client = lockd.AsyncClient(endpoint, ttl=0.5)
        with pytest.raises(lockd.Unavailable, match=r"SESSION.OPEN was not answered: 127.0.0.1:\d+: "):
            await client.acquire("k")
        with pytest.raises(lockd.Unavailable):
            await client.inspect("k")
        await client.close()

    run(main())


@pytest.mark.parametrize(
    ("greets", "trouble"),
    [
        ({"server": "redis", "proto": 3}, "a server of 'redis' answers there, not lockd"),
        (SILENCE, r"no greeting within 0\.\d\d s"),
    ],
)
def test_whoever_is_asked_by_mistake_is_named(greets: Any, trouble: str) -> None:
    async def main() -> None:
        async with Peer() as peer:
            peer.always("HELLO", greets)
            client = lockd.AsyncClient(peer.endpoint, ttl=0.5)
            with pytest.raises(
                lockd.Unavailable, match=f"^SESSION.OPEN was not answered: [0-9.:]+: {trouble}$"
            ):
                await client.acquire("k")
            assert {words[0] for words in peer.commands} == {"HELLO"}
            await client.close()

    run(main())


def test_an_acquire_that_was_sent_and_not_answered_is_unknown_and_withdrawn() -> None:
    async def main() -> None:
        async with Peer() as peer:
            peer.always("LOCK.ACQUIRE", SILENCE)
            client = lockd.AsyncClient(peer.endpoint, ttl=0.5)
            with pytest.raises(lockd.OutcomeUnknown, match="was not answered"):
                await client.acquire("k", wait=0)
            cancelled = await peer.heard("LOCK.CANCEL")
            assert option(cancelled, "REQUEST") == option(peer.of("LOCK.ACQUIRE")[0], "REQUEST")
            await client.close()

    run(main())


def test_an_outcome_that_was_unknown_once_stays_so() -> None:
    """A node appended it and lost its leadership; that others take nothing now says nothing of that."""

    async def main() -> None:
        async with Peer() as peer:
            client = lockd.AsyncClient(peer.endpoint, ttl=0.5)
            await client.acquire("other")
            peer.script("LOCK.ACQUIRE", Error("UNKNOWN the leader is gone"))
            peer.always("LOCK.ACQUIRE", Error("UNAVAILABLE no leader is known"))
            with pytest.raises(lockd.OutcomeUnknown):
                await client.acquire("k")
            await client.close()

    run(main())


def test_wrong_credentials_are_said_at_once() -> None:
    async def main() -> None:
        async with Peer() as peer:
            peer.always("HELLO", Error("NOAUTH wrong user name or password"))
            client = lockd.AsyncClient(peer.endpoint, auth=("me", "wrong"))
            with pytest.raises(lockd.AccessDenied, match="wrong user name"):
                await client.acquire("k")
            assert peer.of("HELLO")[0][2:5] == ["AUTH", "me", "wrong"]
            await client.close()

    run(main())


def test_g2_nodes_of_another_cluster_are_refused_for_good() -> None:
    async def main() -> None:
        async with Peer() as ours, Peer(cluster="d" * 32) as theirs:
            client = lockd.AsyncClient([ours.endpoint, theirs.endpoint], ttl=2)
            lease = await client.acquire("k")
            ours.hang_up()  # the next node to be tried is theirs
            await theirs.heard("HELLO")
            await renewed(client, lease)
            assert not theirs.of("SESSION.KEEPALIVE")
            await client.close()

    run(main())


def test_g2_a_restored_cluster_is_refused_while_the_session_lives_and_taken_after() -> None:
    async def main() -> None:
        async with Peer(ttl_ms=SHORT_TTL_MS) as peer:
            client = lockd.AsyncClient(peer.endpoint, ttl=2)
            lease = await client.acquire("k")
            peer.incarnation = "2" * 8
            peer.hang_up()
            assert await lease.wait_lost()
            assert not peer.of("SESSION.KEEPALIVE")
            other = await client.acquire("l")
            assert other.incarnation == "2" * 8
            await client.close()

    run(main())


def test_g2_a_grant_of_another_incarnation_is_no_grant() -> None:
    async def main() -> None:
        async with Peer() as peer:
            client = lockd.AsyncClient(peer.endpoint)
            peer.script("LOCK.ACQUIRE", lambda words: peer.grant(words, incarnation="2" * 8, fence=""))
            with pytest.raises(lockd.OutcomeUnknown, match="another cluster"):
                await client.acquire("k")
            await peer.heard("LOCK.CANCEL")
            await client.close()

    run(main())


def test_k6_nodes_that_a_member_reports_are_tried_too() -> None:
    async def main() -> None:
        async with Peer() as first, Peer() as second:
            first.members = [first.endpoint, second.endpoint]
            client = lockd.AsyncClient(first.endpoint)
            lease = await client.acquire("k")
            await client.ask(command("PING"))
            await first.stop()
            await second.heard("SESSION.KEEPALIVE")
            await renewed(client, lease)
            await client.close()

    run(main())


def test_a_crowd_is_sent_in_portions_that_a_node_reads() -> None:
    """A node stops reading far ahead, and cuts off who pushes on behind a wait."""

    async def main() -> None:
        async with Peer() as peer:
            peer.always("LOCK.ACQUIRE", SILENCE)
            client = lockd.AsyncClient(peer.endpoint, ttl=60)
            crowd = [asyncio.create_task(client.acquire(f"k{number}")) for number in range(1000)]
            await peer.heard("LOCK.ACQUIRE", 256)
            assert len(peer.of("LOCK.ACQUIRE")) == 256
            peer.politely("LOCK.ACQUIRE")
            peer.hang_up()
            leases = await asyncio.gather(*crowd)
            assert len({lease.lock for lease in leases}) == 1000
            await client.close()

    run(main())


def test_g7_a_grant_of_another_lock_is_no_grant() -> None:
    async def main() -> None:
        async with Peer() as peer:
            client = lockd.AsyncClient(peer.endpoint)
            peer.script("LOCK.ACQUIRE", lambda words: peer.grant(words, lock="other"))
            with pytest.raises(lockd.OutcomeUnknown, match="another lock"):
                await client.acquire("k")
            assert (await peer.heard("LOCK.CANCEL"))[1] == "k"
            await client.close()

    run(main())


def test_reconnecting_leaves_the_programs_own_random_numbers_alone() -> None:
    async def main() -> None:
        async with Peer(ttl_ms=SHORT_TTL_MS) as peer:
            client = lockd.AsyncClient(peer.endpoint, ttl=2)
            lease = await client.acquire("k")
            before = random.getstate()
            await peer.stop()
            assert await lease.wait_lost()
            assert random.getstate() == before
            await client.close()

    run(main())


def test_a_client_that_is_closed_while_its_session_is_opened_keeps_none() -> None:
    async def main() -> None:
        async with Peer() as peer:
            client = lockd.AsyncClient(peer.endpoint)

            def closing(_: list[str]) -> Any:
                closed.append(asyncio.ensure_future(client.close()))
                return {"session": "a" * 32, "ttl_ms": 60_000}

            closed: list[asyncio.Future[None]] = []
            peer.script("SESSION.OPEN", closing)
            with pytest.raises(lockd.Unavailable):
                await client.acquire("k")
            await closed[0]
            assert client._direct is not None
            keeper = client._direct.engine._keeper
            assert (keeper.session, keeper._renew_timer) == (None, None)

    run(main())
