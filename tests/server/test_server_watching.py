"""The history of events, and watches that are fed from it: in order, without gaps, bounded."""

import asyncio
from collections.abc import Sequence
from typing import Any

import hiredis
from hypothesis import given, settings
from hypothesis import strategies as st

from lockd.locks.commands import Refused
from lockd.locks.events import EventKind, LockEvent
from lockd.protocol.requests import LockUnwatch, LockWatch
from lockd.protocol.resp import Reply
from lockd.server.history import History
from lockd.server.turns import Client, Unsent
from lockd.server.watching import _EVENTS_PER_STEP, WATCHES_PER_CONNECTION_MAX, Watching


def event(revision: int, lock: str = "k", meta: str = "") -> LockEvent:
    return LockEvent(revision, EventKind.ACQUIRED, lock, revision, "exclusive", 1, "", "", meta, "")


def events(first: int, last: int, lock: str = "k") -> list[LockEvent]:
    return [event(revision, lock) for revision in range(first, last + 1)]


class Watcher:
    """A connection that takes what is pushed while a test lets it."""

    def __init__(self, watching: Watching, number: int = 1, resp: int = 3) -> None:
        self.watching = watching
        self.room = 1_000_000
        """How many more messages its output takes."""
        self.pushed: list[tuple[str, dict[str, Any]]] = []
        self.client = Client(number, None, self._push, resp, has_room=lambda: self.room > 0)

    def _push(self, message: bytes, unsent: Unsent | None) -> None:
        assert unsent is None
        self.room -= 1
        reader = hiredis.Reader(encoding="utf-8")
        reader.feed(message)
        kind, told = reader.gets()
        self.pushed.append((kind, told))

    def watch(self, prefix: str = "", after: int | None = None) -> Reply | Refused:
        turn = Turn(LockWatch(prefix, after))
        self.watching.watch(turn.request, self.client, turn)
        return turn.told[0]

    def unwatch(self, prefix: str | None = None) -> Reply | Refused:
        turn = Turn(LockUnwatch(prefix))
        self.watching.unwatch(turn.request, self.client, turn)
        return turn.told[0]

    @property
    def revisions(self) -> list[int]:
        assert all(kind == "lock.event" for kind, _ in self.pushed)
        return [told["revision"] for _, told in self.pushed]


class Turn:
    """A command that keeps its answer."""

    def __init__(self, request: Any) -> None:
        self.request = request
        self.told: list[Reply | Refused] = []

    def answer(self, value: Reply, unsent: Unsent | None = None) -> None:
        assert unsent is None
        self.told.append(value)

    def refuse(self, refused: Refused) -> None:
        self.told.append(refused)


def refused(found: Reply | Refused) -> str:
    assert isinstance(found, Refused), found
    return found.code


def test_a_watch_is_told_of_its_locks_from_then_on() -> None:
    history = History(4)
    watching = Watching(history)
    watcher = Watcher(watching)
    history.record(events(5, 6))
    assert watcher.watch("a") == {"prefix": "a", "revision": 6}
    history.record([event(7, "ab"), event(8, "b"), event(9, "a"), event(10, "")])
    assert watcher.revisions == [7, 9]
    assert watcher.pushed[0][1] == {
        "revision": 7,
        "event": "acquired",
        "lock": "ab",
        "token": 7,
        "mode": "exclusive",
        "session": 1,
        "name": "",
        "owner": "",
        "meta": "",
        "reason": "",
    }


def test_each_watch_gets_an_event_once_whatever_others_watch() -> None:
    """Prefixes of all lengths, longer ones than the name too."""
    history = History(0)
    watching = Watching(history)
    prefixes = ["", "a", "ab", "abc", "b"]
    watchers = {prefix: Watcher(watching, number) for number, prefix in enumerate(prefixes)}
    for prefix, watcher in watchers.items():
        watcher.watch(prefix)
    both = Watcher(watching, 9)
    both.watch("a")
    both.watch("ab")
    history.record([event(1, "a"), event(2, "ab"), event(3, "abcd"), event(4, "x")])
    found = {prefix: watcher.revisions for prefix, watcher in watchers.items()}
    assert found == {"": [1, 2, 3, 4], "a": [1, 2, 3], "ab": [2, 3], "abc": [3], "b": []}
    assert both.revisions == [1, 2, 2, 3, 3]  # two watches of one connection


def test_a_watch_goes_on_from_a_revision() -> None:
    history = History(0)
    history.record(events(1, 9))
    watcher = Watcher(Watching(history))
    assert watcher.watch("", after=6) == {"prefix": "", "revision": 6}
    assert watcher.revisions == [7, 8, 9]
    history.record(events(10, 11))
    assert watcher.revisions == [7, 8, 9, 10, 11]


def test_a_revision_that_this_node_has_yet_to_see_is_waited_for() -> None:
    """Who listed at a node that is ahead misses nothing here, and sees nothing twice."""
    history = History(0)
    history.record(events(1, 3))
    watcher = Watcher(Watching(history))
    watcher.watch("", after=5)
    history.record(events(4, 7))
    assert watcher.revisions == [6, 7]


def test_what_the_history_has_lost_is_gone() -> None:
    history = History(0, events_max=3)
    watcher = Watcher(Watching(history))
    history.record(events(1, 5))
    assert refused(watcher.watch("", after=1)) == "GONE"
    assert watcher.watch("", after=2) == {"prefix": "", "revision": 2}
    assert watcher.revisions == [3, 4, 5]
    assert refused(Watcher(Watching(History(7))).watch("", after=6)) == "GONE"  # as after a restart


def test_the_history_is_bounded_by_bytes_as_well() -> None:
    history = History(0, bytes_max=10_000)
    for revision in range(1, 101):
        history.record([event(revision, meta="x" * 2_000)])
    assert not history.reaches(95)
    assert history.reaches(97)
    assert [told.revision for told in history.after(97)] == [98, 99, 100]


def test_a_watch_that_is_behind_goes_on_when_there_is_room() -> None:
    history = History(0)
    watching = Watching(history)
    slow, quick = Watcher(watching, 1), Watcher(watching, 2)
    slow.watch()
    quick.watch()
    slow.room = 2
    history.record(events(1, 5))
    assert (slow.revisions, quick.revisions) == ([1, 2], [1, 2, 3, 4, 5])
    assert slow.client.wants_room
    history.record(events(6, 7))
    assert slow.revisions == [1, 2]  # nothing overtakes
    slow.room = 3
    watching.room(slow.client)
    assert slow.revisions == [1, 2, 3, 4, 5]
    slow.room = 100
    watching.room(slow.client)
    history.record(events(8, 8))
    assert slow.revisions == list(range(1, 9))
    assert not slow.client.wants_room


def test_a_watch_that_is_too_slow_is_over_and_says_so() -> None:
    history = History(0, events_max=3)
    watching = Watching(history)
    watcher = Watcher(watching)
    watcher.watch("k")
    watcher.room = 1
    history.record(events(1, 3))
    history.record(events(4, 6))
    watcher.room = 10
    watching.room(watcher.client)
    assert [kind for kind, _ in watcher.pushed] == ["lock.event", "lock.gone"]
    gone = watcher.pushed[1][1]
    assert (gone["prefix"], gone["revision"]) == ("k", 1)
    assert "list" in gone["text"]
    assert (watching.count, watcher.client.watches) == (0, 0)
    history.record(events(7, 7))
    assert len(watcher.pushed) == 2


def test_a_snapshot_ends_the_watches_that_have_missed_something() -> None:
    """C9: its events never come; going on in silence would be a gap."""
    history = History(0)
    watching = Watching(history)
    live, ahead = Watcher(watching, 1), Watcher(watching, 2)
    live.watch("")
    ahead.watch("", after=20)
    history.record(events(1, 5))
    history.restart(20)
    assert live.pushed[-1][0] == "lock.gone"
    assert live.pushed[-1][1]["revision"] == 5
    assert watching.count == 1
    history.record(events(21, 22))
    assert ahead.revisions == [21, 22]
    assert refused(live.watch("", after=19)) == "GONE"
    assert live.watch("", after=20) == {"prefix": "", "revision": 20}


def test_a_snapshot_of_what_is_known_ends_no_watch() -> None:
    history = History(0)
    watcher = Watcher(Watching(history))
    watcher.watch("")
    history.record(events(1, 5))
    history.restart(5)
    history.record(events(6, 6))
    assert watcher.revisions == [1, 2, 3, 4, 5, 6]


def test_what_is_refused() -> None:
    watching = Watching(History(0))
    assert refused(Watcher(watching, 1, resp=2).watch("")) == "ERR"
    watcher = Watcher(watching, 2)
    watcher.watch("a")
    assert refused(watcher.watch("a")) == "ERR"
    for number in range(WATCHES_PER_CONNECTION_MAX - 1):
        watcher.watch(f"p{number}")
    assert refused(watcher.watch("one more")) == "LIMIT"


def test_an_end_ends_it() -> None:
    history = History(0)
    watching = Watching(history)
    watcher, other = Watcher(watching, 1), Watcher(watching, 2)
    for prefix in ("", "a", "k"):
        watcher.watch(prefix)
    other.watch("")
    assert watcher.unwatch("b") == 0
    assert watcher.unwatch("a") == 1
    assert watcher.unwatch() == 2
    watcher.watch("k")
    watching.ended(watcher.client)
    assert watching.count == 1
    history.record(events(1, 2))
    assert watcher.pushed == []
    assert other.revisions == [1, 2]


def test_a_long_way_back_is_gone_in_steps() -> None:
    """P6: others get their turn of the loop meanwhile."""

    async def main() -> None:
        history = History(0)
        history.record([*events(1, 9_000, "other"), event(9_001, "k")])
        watching = Watching(history)
        watcher = Watcher(watching)
        watcher.watch("k", after=0)
        assert watcher.pushed == []
        history.record([event(9_002, "k")])
        while len(watcher.pushed) < 2:  # noqa: ASYNC110 - steps are turns of the loop
            await asyncio.sleep(0)
        assert watcher.revisions == [9_001, 9_002]

    asyncio.run(asyncio.wait_for(main(), 10))


def test_a_watch_for_which_nothing_happens_is_told_how_far_it_has_got() -> None:
    """So that it can go on elsewhere, when the history has turned since anything happened to its locks."""
    history = History(0, events_max=40)
    watching = Watching(history)
    quiet, busy, slow = Watcher(watching, 1), Watcher(watching, 2), Watcher(watching, 3)
    quiet.watch("a")
    busy.watch("b")
    slow.watch("a")
    slow.room = 0
    last = 0
    for revision in range(1, 201):
        history.record([event(revision, "a" if revision == 41 else "b")])
        last = max([last, *(told["revision"] for _, told in quiet.pushed)])
        assert history.reaches(last), "it could not go on from what it knows"
    assert [told["revision"] for kind, told in quiet.pushed if kind == "lock.event"] == [41]
    assert {told["prefix"] for kind, told in quiet.pushed if kind == "lock.progress"} == {"a"}
    assert len(quiet.pushed) <= 200 / (40 / 4)
    assert len(busy.revisions) == 199, "events say as much"
    assert slow.pushed == []
    history.record([event(201, "a")])
    assert quiet.pushed[-1][0] == "lock.event"


steps = st.lists(
    st.one_of(
        st.tuples(st.just("events"), st.lists(st.sampled_from(["a", "ab", "b"]), min_size=1, max_size=5)),
        st.tuples(st.just("room"), st.integers(0, 4)),
        st.tuples(st.just("watch"), st.sampled_from(["", "a", "ab", "b"])),
        st.tuples(st.just("unwatch"), st.sampled_from(["", "a", "ab", "b"])),
        st.tuples(st.just("snapshot"), st.integers(0, 3)),
    ),
    max_size=30,
)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_a_watch_has_no_gap_and_no_repeat_until_it_is_told_of_one(steps: Sequence[tuple[str, Any]]) -> None:
    """Against all that ever happened: a watch is told it up to somewhere, in order, or that it is gone."""
    history = History(0, events_max=6)
    watching = Watching(history)
    watcher = Watcher(watching)
    past: list[LockEvent] = []
    hidden: set[int] = set()
    since: dict[str, int] = {}
    read = 0
    for step, value in [*steps, ("room", 10**6)]:
        if step == "events":
            fresh = [event(history.revision + n, lock) for n, lock in enumerate(value, 1)]
            past += fresh
            history.record(fresh)
        elif step == "room":
            watcher.room = value
            watching.room(watcher.client)
        elif step == "watch":
            if isinstance(watcher.watch(value), dict):
                since[value] = history.revision
        elif step == "unwatch":
            watcher.unwatch(value)
            since.pop(value, None)
        else:
            hidden |= set(range(history.revision + 1, history.revision + value + 1))
            past += events(history.revision + 1, history.revision + value, "ab")
            history.restart(history.revision + value)
        told_now = watcher.pushed[read:]
        read = len(watcher.pushed)
        for kind, told in told_now:
            if kind == "lock.gone":
                assert told["revision"] >= since.pop(told["prefix"])
                continue
            if kind == "lock.progress":
                of, upto = told["prefix"], told["revision"]
                following = _next(past, of, since[of])
                assert following is None or following > upto, "it was told all that was for it"
                since[of] = max(since[of], upto)
                continue
            # Which of its watches an event is for isn't said: one must be at exactly this event.
            matching = [
                prefix
                for prefix, seen in since.items()
                if told["lock"].startswith(prefix) and _next(past, prefix, seen) == told["revision"]
            ]
            assert matching, (told, since)
            since[matching[0]] = told["revision"]
    assert all(_next(past, prefix, seen) is None for prefix, seen in since.items())
    assert not hidden & {told["revision"] for kind, told in watcher.pushed if kind == "lock.event"}


def _next(past: Sequence[LockEvent], prefix: str, seen: int) -> int | None:
    return next(
        (told.revision for told in past if told.revision > seen and told.lock.startswith(prefix)), None
    )


def test_p6_the_watches_of_a_connection_share_what_is_looked_at_before_others_get_their_turn() -> None:
    """Each of 256 that are far behind for itself took a third of a second of the loop, again and again."""

    async def watch_all() -> None:
        history = History(0)
        history.record(events(1, 20_000))
        watching = Watching(history)
        watcher = Watcher(watching)
        for number in range(50):
            watcher.watch(f"other{number}", after=0)
        looked_at = 0
        while behind := [watch for watch in watching._of_client[1].values() if watch.cursor < 20_000]:
            before, looked_at = looked_at, 20_000 * (50 - len(behind)) + sum(watch.cursor for watch in behind)
            assert before < looked_at <= before + _EVENTS_PER_STEP
            await asyncio.sleep(0)
        watcher.unwatch()
        watcher.watch("k", after=19_999)
        history.record([event(20_001, "other1"), event(20_002, "k1")])
        assert watcher.revisions == [20_000, 20_002]

    asyncio.run(watch_all())
