"""Watching over nodes that misbehave: no event is lost, none comes twice, and what is gone is told."""

import asyncio
import gc
import os
import random
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

import lockd
from lockd.client import watch as watching
from lockd.client.feeds import AsyncFeed, Feed
from lockd.client.inspection import LockEvent
from lockd.client.threads import Runtime
from tests.client.history import History, event_of
from tests.client.peer import HANG_UP, SILENCE, Error, Peer, option
from tests.client.steps import cancel_at, every_step


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


async def revisions(feed: AsyncFeed[LockEvent], count: int) -> list[int]:
    return [(await anext(feed)).revision for _ in range(count)]


async def until(condition: Callable[[], object]) -> None:
    """Wait for what no event tells."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.005)


def test_what_happens_from_now_on_comes_in_order_and_typed() -> None:
    async def main() -> None:
        async with Peer() as peer:
            history = History(peer)
            history.happen("jobs/0")
            client = lockd.AsyncClient(peer.endpoint)
            async with client.watch("jobs/") as events:
                assert events.revision == 1
                history.happen("other")
                history.happen("jobs/1", meta='{"a":1}')
                history.happen("jobs/1", "released")
                first = await anext(events)
                assert (first.revision, first.event, first.lock, first.meta) == (
                    *(3, "acquired", "jobs/1"),
                    '{"a":1}',
                )
                assert (await anext(events)).event == "released"
                assert events.revision == 4
            await client.close()

    run(main())


def test_it_goes_on_by_revision_on_the_next_node() -> None:
    """Also when the next node repeats what was told."""

    async def main() -> None:
        async with Peer() as first, Peer() as second:
            history = History(first, second)
            client = lockd.AsyncClient([first.endpoint, second.endpoint])
            async with client.watch() as events:
                history.happen("a")
                assert await revisions(events, 1) == [1]
                second.script(
                    "LOCK.WATCH", lambda words: {"prefix": "", "revision": int(option(words, "FROM")) - 1}
                )
                await first.stop()
                history.happen("b")
                await second.heard("LOCK.WATCH")
                assert option(second.of("LOCK.WATCH")[0], "FROM") == "1"
                second.push("lock.event", history.events[0])
                second.push("lock.event", history.events[1])
                second.push("lock.event", history.events[1])
                history.happen("c")
                assert await revisions(events, 2) == [2, 3]
            await client.close()

    run(main())


def test_an_event_before_the_node_has_taken_the_watch_up_is_not_taken() -> None:
    """It would stand before those that the watch missed, and they would look old."""

    async def main() -> None:
        async with Peer() as peer:
            history = History(peer)
            client = lockd.AsyncClient(peer.endpoint)
            async with client.watch() as events:
                peer.script("LOCK.WATCH", SILENCE)
                peer.hang_up()
                history.happen("missed")
                await peer.heard("LOCK.WATCH", 2)
                history.happen("early")
                peer.hang_up()
                assert await revisions(events, 2) == [1, 2]
            await client.close()

    run(main())


def test_a_node_that_was_restarted_and_has_forgotten_is_left_for_one_that_has_not() -> None:
    async def main() -> None:
        async with Peer() as first, Peer() as second:
            history = History(first, second)
            client = lockd.AsyncClient([first.endpoint, second.endpoint])
            async with client.watch() as events:
                history.happen("a")
                assert await revisions(events, 1) == [1]
                history.forgotten[second] = 2
                first.hang_up()
                history.happen("b")
                assert await revisions(events, 1) == [2]
                assert second.of("LOCK.WATCH"), "it was asked"
            await client.close()

    run(main())


def test_when_no_node_has_the_events_it_says_so_after_all_that_came_before() -> None:
    async def main() -> None:
        async with Peer() as first, Peer() as second:
            history = History(first, second)
            client = lockd.AsyncClient([first.endpoint, second.endpoint])
            async with client.watch() as events:
                history.happen("a")
                source = events._source
                assert isinstance(source, watching.Watcher)
                await until(lambda: source._events)
                history.peers = ()
                history.happen("missed")
                history.forgotten = {first: 2, second: 2}
                first.hang_up()
                assert await revisions(events, 1) == [1]
                for _ in range(2):
                    with pytest.raises(lockd.WatchGone, match="'' after revision 1 "):
                        await anext(events)
                assert len(second.of("LOCK.WATCH")) == 1, "it was asked too"
            with pytest.raises(lockd.WatchGone):
                await anext(client.watch(revision=0))
            await client.close()

    run(main())


def test_a_watch_for_which_nothing_happened_goes_on_from_where_it_was_told_to_be() -> None:
    """However long ago its last event is, and though the next node has forgotten that."""

    async def main() -> None:
        async with Peer() as first, Peer() as second:
            history = History(first, second)
            client = lockd.AsyncClient([first.endpoint, second.endpoint])
            async with client.watch("a") as events:
                history.happen("a")
                assert await revisions(events, 1) == [1]
                for _ in range(5):
                    history.happen("b")
                first.push("lock.progress", {"prefix": "of another watch", "revision": 99})
                first.push("lock.progress", {"prefix": "a", "revision": 6})
                first.push("lock.progress", {"prefix": "a", "revision": 2})
                first.push("lock.progress", "unreadable")
                history.happen("a")
                assert await revisions(events, 1) == [7]
                first.push("lock.progress", {"prefix": "a", "revision": 9})
                history.happen("b")
                history.happen("b")
                source = events._source
                assert isinstance(source, watching.Watcher)
                await until(lambda: source._revision == 9)
                first.push("lock.progress", {"prefix": "a", "revision": 3})
                first.push("lock.event", event_of(5, "a"))
                history.forgotten[second] = 9
                await first.stop()
                history.happen("a")
                assert await revisions(events, 1) == [10]
                assert option(second.of("LOCK.WATCH")[0], "FROM") == "9"
            await client.close()

    run(main())


def test_a_node_that_may_have_them_is_waited_for() -> None:
    """Of two nodes one has forgotten, and the other is down for a moment."""

    async def main() -> None:
        async with Peer() as first, Peer() as second:
            history = History(first, second)
            client = lockd.AsyncClient([first.endpoint, second.endpoint])
            async with client.watch() as events:
                history.forgotten[second] = 1
                port = first.port
                await first.stop()
                history.happen("missed")
                await second.heard("LOCK.WATCH", 3)
                await first.listen(port)
                assert await revisions(events, 1) == [1]
            await client.close()

    run(main())


def test_but_no_longer_than_a_ttl() -> None:
    async def main() -> None:
        async with Peer() as first, Peer() as second:
            history = History(first, second)
            history.happen("missed")
            history.forgotten[second] = 1
            client = lockd.AsyncClient([first.endpoint, second.endpoint], ttl=1)
            await first.stop()
            with pytest.raises(lockd.WatchGone):
                await anext(client.watch(revision=0))
            assert len(second.of("LOCK.WATCH")) > 2, "and it did not give up at once"
            await client.close()

    run(main())


def test_a_watch_that_the_node_ended_as_too_slow_goes_on_where_it_was() -> None:
    async def main() -> None:
        async with Peer() as peer:
            history = History(peer)
            client = lockd.AsyncClient(peer.endpoint)
            async with client.watch("a") as events:
                history.happen("a")
                history.peers = ()
                history.happen("a")  # the node does not send it
                history.peers = (peer,)
                peer.push("lock.gone", {"prefix": "a", "revision": 1, "text": "too slow"})
                assert await revisions(events, 2) == [1, 2]
                history.happen("a")
                assert await revisions(events, 1) == [3]
                assert peer.connections == 1
            await client.close()

    run(main())


def test_events_that_nobody_takes_do_not_pile_up_and_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "EVENTS_MAX", 10)

    async def main() -> None:
        async with Peer() as peer:
            history = History(peer)
            client = lockd.AsyncClient(peer.endpoint)
            async with client.watch() as events:
                for _ in range(35):
                    history.happen("a")
                source = events._source
                assert isinstance(source, watching.Watcher)
                await until(lambda: len(source._events) >= 10)
                for _ in range(50):
                    await client.status()  # time in which it could come back
                assert len(source._events) == 10
                assert len(peer.of("LOCK.WATCH")) == 1
                assert await revisions(events, 1) == [1]
                assert await revisions(events, 34) == list(range(2, 36))
                history.happen("a")
                assert await revisions(events, 1) == [36]
                assert len(peer.of("LOCK.WATCH")) > 1, "it let go, and came back"
            await client.close()

    run(main())


def test_an_iteration_that_is_cancelled_loses_nothing() -> None:
    """At each of its awaits, and also as the event is there already."""

    async def main() -> None:
        async with Peer() as peer:
            history = History(peer)
            client = lockd.AsyncClient(peer.endpoint)
            seen: list[int] = []
            async with client.watch() as events:
                last = 0
                async for step in every_step():
                    taking = asyncio.create_task(cancel_at(step, anext(events)))
                    await asyncio.sleep(0)
                    last = history.happen("a")
                    await taking
                    seen += [step.result.revision] if step.result else []
                    seen += await revisions(events, last - len(seen))
            assert seen == list(range(1, last + 1))
            await client.close()

    run(main())


def test_a_beginning_that_is_cancelled_leaves_nothing() -> None:
    async def main() -> None:
        async with Peer() as peer, lockd.AsyncClient(peer.endpoint) as client:
            History(peer)
            await client.status()
            assert client._direct is not None
            watchers = client._direct.engine._watchers
            async for step in every_step():
                feed = client.watch()
                await cancel_at(step, feed.__aenter__())
                if not step.was_cancelled:
                    await feed.close()
                await until(lambda: not watchers)

    run(main())


def test_a_node_that_can_answer_no_read_is_left() -> None:
    """One that is cut off from the others would tell of nothing for as long as that lasts."""

    async def main() -> None:
        async with Peer() as first, Peer() as second:
            history = History(first, second)
            client = lockd.AsyncClient([first.endpoint, second.endpoint], ttl=1)
            first.always("LOCK.LIST", Error("UNAVAILABLE no leader is known"))
            async with client.watch() as events:
                history.peers = (second,)
                history.happen("a")
                assert await revisions(events, 1) == [1]
            await client.close()

    run(main())


def test_a_node_that_falls_silent_is_left() -> None:
    async def main() -> None:
        async with Peer() as first, Peer() as second:
            history = History(first, second)
            client = lockd.AsyncClient([first.endpoint, second.endpoint], ttl=1)
            async with client.watch() as events:
                first.always("LOCK.LIST", SILENCE)
                history.peers = (second,)
                history.happen("a")
                assert await revisions(events, 1) == [1]
            await client.close()

    run(main())


def test_an_event_that_cannot_be_read_is_not_left_out_quietly() -> None:
    async def main() -> None:
        async with Peer() as peer:
            history = History(peer)
            client = lockd.AsyncClient(peer.endpoint)
            async with client.watch() as events:
                history.happen("a")
                peer.push("lock.event", event_of(2, "b") | {"revision": "two"})
                assert await revisions(events, 1) == [1]
                with pytest.raises(lockd.OutcomeUnknown, match="can't be read"):
                    await anext(events)
            await client.close()

    run(main())


def test_g2_a_restored_cluster_is_another_past() -> None:
    async def main() -> None:
        async with Peer() as first, Peer(incarnation="2" * 8) as second:
            History(first, second)
            client = lockd.AsyncClient([first.endpoint, second.endpoint])
            async with client.watch() as events:
                await first.stop()
                with pytest.raises(lockd.WatchGone, match="was restored"):
                    await anext(events)
            await client.close()

    run(main())


def test_a_watch_has_a_connection_of_its_own_and_gives_it_back() -> None:
    """Events must not stand before the answers to keepalives."""

    async def main() -> None:
        async with Peer() as peer:
            history = History(peer)
            client = lockd.AsyncClient(peer.endpoint)
            await client.acquire("k")
            assert peer.connections == 1
            history.happen("a")
            async for _ in client.watch(revision=0):
                assert peer.connections == 2
                break
            assert client._direct is not None
            watchers = client._direct.engine._watchers
            gc.collect()
            await until(lambda: not watchers)
            await client.close()

    run(main())


def test_a_watch_that_outlives_its_loop_is_dropped_quietly() -> None:
    kept: list[AsyncFeed[LockEvent]] = []

    async def main() -> None:
        async with Peer() as peer:
            History(peer)
            kept.append(lockd.AsyncClient(peer.endpoint).watch())
            await kept[0].__aenter__()

    run(main())
    unraisable: list[Any] = []
    sys.unraisablehook, hook = unraisable.append, sys.unraisablehook
    try:
        kept.clear()
        gc.collect()
    finally:
        sys.unraisablehook = hook
    assert [each for each in unraisable if isinstance(each.exc_value, RuntimeError)] == []


def test_closing_it_or_its_client_ends_the_iteration() -> None:
    async def main() -> None:
        async with Peer() as peer:
            history = History(peer)
            history.happen("a")
            client = lockd.AsyncClient(peer.endpoint)
            events, others = client.watch(revision=0), client.watch(revision=0)
            assert await revisions(events, 1) == await revisions(others, 1) == [1]
            waiting = asyncio.ensure_future(_rest(events))
            await asyncio.sleep(0)
            await events.close()
            await events.close()
            assert await waiting == []
            waiting = asyncio.ensure_future(_rest(others))
            await asyncio.sleep(0)
            await client.close()
            assert await waiting == []
            assert await _rest(others) == []
            with pytest.raises(RuntimeError, match="closed"):
                await anext(client.watch())

    async def _rest(feed: AsyncFeed[LockEvent]) -> list[int]:
        return [event.revision async for event in feed]

    run(main())


def test_beginning_says_what_is_wrong() -> None:
    async def main() -> None:
        async with Peer() as peer:
            history = History(peer)
            client = lockd.AsyncClient(peer.endpoint, ttl=1)
            peer.script("LOCK.WATCH", Error("NOPERM user 'me' may not LOCK.WATCH"))
            with pytest.raises(lockd.AccessDenied):
                await anext(client.watch())
            peer.script("LOCK.WATCH", {"no": "watch"})
            with pytest.raises(lockd.OutcomeUnknown):
                await anext(client.watch())
            peer.always("LOCK.WATCH", HANG_UP)
            with pytest.raises(lockd.Unavailable):
                await anext(client.watch())
            history.serve(peer)
            async with client.watch():
                pass
            await client.close()

    run(main())


def test_threads_iterate_and_one_ends_it_for_the_other() -> None:
    async def main() -> None:
        async with Peer() as peer:
            history = History(peer)
            history.happen("a")
            with lockd.Client(peer.endpoint) as client:
                seen: list[int] = []
                came = threading.Event()

                def iterate() -> None:
                    for event in events:
                        seen.append(event.revision)
                        came.set()

                events = client.watch(revision=0)
                thread = threading.Thread(target=iterate)
                thread.start()
                await asyncio.to_thread(came.wait, 10)
                history.happen("b")
                await until(lambda: len(seen) == 2)
                await asyncio.to_thread(events.close)
                await asyncio.to_thread(thread.join, 10)
                assert not thread.is_alive()
                assert seen == [1, 2]
                entered = client.watch()
                await asyncio.to_thread(entered.__enter__)
                assert entered.revision == 2
                await asyncio.to_thread(client.close)
                assert list(entered) == []

    run(main())


class _AnswerLost(Exception):
    pass


class LosesAnswers:
    """A thread's way to its engine on which an answer can be lost, as by Ctrl-C while it arrives."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.engine = runtime.engine
        self.loses_next = False

    def run(self, coroutine: Coroutine[Any, Any, Any], give_back: Any = None) -> Any:
        answer = self._runtime.run(coroutine, give_back)
        if self.loses_next:
            self.loses_next = False
            raise _AnswerLost
        return answer


def test_an_iteration_that_is_interrupted_loses_nothing() -> None:
    async def main() -> None:
        async with Peer() as peer:
            history = History(peer)
            with lockd.Client(peer.endpoint) as client:
                runtime = LosesAnswers(client._started())
                feed = Feed(cast("Any", lambda: runtime), lambda engine: engine.watch("", 0))
                await asyncio.to_thread(feed.__enter__)
                history.happen("a")
                history.happen("b")
                runtime.loses_next = True
                with pytest.raises(_AnswerLost):
                    await asyncio.to_thread(next, feed)
                assert [(await asyncio.to_thread(next, feed)).revision for _ in range(2)] == [1, 2]
                await asyncio.to_thread(client.close)

    run(main())


def test_k5_a_forked_child_takes_nothing_of_its_parents_watch() -> None:
    async def main() -> None:
        async with Peer() as peer:
            history = History(peer)
            history.happen("a")
            with lockd.Client(peer.endpoint) as client:
                events = client.watch(revision=0)
                assert (await asyncio.to_thread(next, events)).revision == 1
                child = os.fork()
                if child == 0:
                    os._exit(42 if list(events) == [] else 1)
                _, status = await asyncio.to_thread(os.waitpid, child, 0)
                assert os.waitstatus_to_exitcode(status) == 42
                history.happen("b")
                assert (await asyncio.to_thread(next, events)).revision == 2
                await asyncio.to_thread(client.close)

    run(main())


@pytest.mark.parametrize("seed", range(20))
def test_over_nodes_that_fail_at_random_none_is_lost_and_none_comes_twice(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "EVENTS_MAX", 8)
    draw = random.Random(seed)

    async def main() -> None:
        async with Peer() as first, Peer() as second, Peer() as third:
            history = History(first, second, third)
            peers = history.peers
            client = lockd.AsyncClient([peer.endpoint for peer in peers], ttl=1)
            events = client.watch("a")
            async with events:
                reading = asyncio.ensure_future(_read(events, draw))
                for _ in range(120):
                    await _misbehave(history, draw)
                    await asyncio.sleep(0)
                history.peers = peers
                last = history.happen("a/last")
                assert await reading == [event["revision"] for event in history.after(0, "a")]
                assert events.revision == last
            await client.close()

    run(main())


async def _read(feed: AsyncFeed[LockEvent], draw: random.Random) -> list[int]:
    seen = []
    async for event in feed:
        seen.append(event.revision)
        if event.lock == "a/last":
            break
        for _ in range(draw.choice((0, 0, 1, 9))):
            await asyncio.sleep(0)
    return seen


async def _misbehave(history: History, draw: random.Random) -> None:
    peer = draw.choice(history.peers)
    match draw.randrange(9):
        case 0:
            peer.hang_up()
        case 1:
            peer.script("LOCK.WATCH", draw.choice((HANG_UP, Error("UNAVAILABLE no leader"))))
        case 2 if history.events:
            peer.push("lock.event", draw.choice(history.events))
        case 3:
            # It has what happened so far, and serves it, but does not tell whoever watches.
            told, history.peers = history.peers, ()
            history.happen("a/untold")
            history.peers = told
            peer.push("lock.gone", {"prefix": "a", "revision": 0, "text": "too slow"})
            for other in told:
                other.push("lock.gone", {"prefix": "a", "revision": 0, "text": "too slow"})
        case 4:
            history.forgotten = {peer: history.revision}
        case 5:
            await asyncio.sleep(0.003)
        case _:
            history.happen(draw.choice(("a/1", "a/2", "b")))
