"""LOCK.WATCH: connections that are told of the events of locks whose names begin in some way.

A watch is fed as events are applied while the connection's output has room. Otherwise it falls behind
and reads on from the history when there is room again; memory holds each event once, however many
watch. A watch whose next event the history has lost is over, and says so: `lock.gone`. One that had
nothing to be told for long is told so, `lock.progress`: where it could go on, on another node too, must
not fall out of the history only because nothing happened to its locks.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from itertools import islice

from lockd.locks.commands import Refused
from lockd.locks.events import LockEvent
from lockd.protocol import requests
from lockd.protocol.resp import encode_push
from lockd.server import replies
from lockd.server.history import History
from lockd.server.turns import Client, Turn

WATCHES_PER_CONNECTION_MAX = 256
_PROGRESS_TURNS = 0.25
"""Share of the history after which a watch that was told nothing is told that this was all."""
_EVENTS_PER_STEP = 4096
"""How many events the watches of a connection that are behind look at, all in all, before others get
their turn of the loop."""


class _Watch:
    __slots__ = ("client", "cursor", "is_quiet", "prefix")

    def __init__(self, client: Client, prefix: str, cursor: int) -> None:
        self.client = client
        self.prefix = prefix
        self.cursor = cursor
        """It has been told all up to this revision, and more while it is live."""
        self.is_quiet = True
        """It was told nothing since this was last looked at."""


class Watching:
    """All watches of one node."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._of_client: dict[int, dict[str, _Watch]] = {}
        """By the connection's number, then by prefix."""
        self._live: dict[str, dict[_Watch, None]] = {}
        """Those that have been told everything, by prefix."""
        self._lengths: Counter[int] = Counter()
        """Of the prefixes in `_live`: an event is looked up once for each."""
        self._looked_at = 0.0
        """How far the history had turned when quiet watches were last looked for."""
        history.subscribe(self._tell, self._skip)

    @property
    def count(self) -> int:
        return sum(map(len, self._of_client.values()))

    def watch(self, request: requests.LockWatch, client: Client, turn: Turn) -> None:
        known = self._of_client.get(client.number, {})
        after = self._history.revision if request.after is None else request.after
        if client.resp != 3:
            turn.refuse(Refused("ERR", "LOCK.WATCH needs RESP3: send HELLO 3 first"))
        elif request.prefix in known:
            turn.refuse(Refused("ERR", f"this connection watches '{request.prefix}' already"))
        elif len(known) >= WATCHES_PER_CONNECTION_MAX:
            text = f"watches of one connection: at most {WATCHES_PER_CONNECTION_MAX}"
            turn.refuse(Refused("LIMIT", text))
        elif not self._history.reaches(after):
            turn.refuse(Refused("GONE", replies.gone_text(after)))
        else:
            watch = _Watch(client, request.prefix, after)
            self._of_client.setdefault(client.number, {})[request.prefix] = watch
            client.watches += 1
            turn.answer({"prefix": request.prefix, "revision": after})
            if not client.wants_room:  # or it goes on with those of this connection that are behind
                self._catch_up(watch, _EVENTS_PER_STEP)

    def unwatch(self, request: requests.LockUnwatch, client: Client, turn: Turn) -> None:
        known = self._of_client.get(client.number, {})
        ended = [watch for watch in known.values() if request.prefix in {None, watch.prefix}]
        for watch in ended:
            self._end(watch)
        turn.answer(len(ended))

    def ended(self, client: Client) -> None:
        """The connection is gone."""
        for watch in list(self._of_client.get(client.number, {}).values()):
            self._end(watch)

    def room(self, client: Client) -> None:
        """The connection's output has room: its watches that are behind go on."""
        client.wants_room = False
        left = _EVENTS_PER_STEP
        for watch in list(self._of_client.get(client.number, {}).values()):
            if not self._is_live(watch):
                left -= self._catch_up(watch, max(left, 0))

    # Watches that have been told everything.

    def _tell(self, events: Sequence[LockEvent]) -> None:
        for event in events:
            prefixes = [event.lock[:length] for length in self._lengths if length <= len(event.lock)]
            watches = [watch for prefix in prefixes for watch in self._live.get(prefix, ())]
            message = _encode(event) if watches else b""
            for watch in watches:
                if event.revision <= watch.cursor:
                    continue  # it has asked for what comes after a revision that was yet to come
                if watch.client.has_room():
                    watch.client.push(message, None)
                    watch.is_quiet = False
                else:
                    self._fall_behind(watch, event.revision - 1)
        if self._history.turned - self._looked_at >= _PROGRESS_TURNS:
            self._looked_at = self._history.turned
            self._tell_progress()

    def _tell_progress(self) -> None:
        """Tell live watches for which there was nothing up to where they have got all the same."""
        for prefix, watches in self._live.items():
            message = encode_push("lock.progress", replies.watch_progress(prefix, self._history.revision))
            for watch in watches:
                has_begun = watch.cursor < self._history.revision  # or it waits for one yet to come
                if has_begun and watch.is_quiet and watch.client.has_room():
                    watch.client.push(message, None)
                watch.is_quiet = True

    def _is_live(self, watch: _Watch) -> bool:
        return watch in self._live.get(watch.prefix, ())

    def _go_live(self, watch: _Watch) -> None:
        self._live.setdefault(watch.prefix, {})[watch] = None
        self._lengths[len(watch.prefix)] += 1

    def _leave_live(self, watch: _Watch) -> None:
        group = self._live[watch.prefix]
        del group[watch]
        if not group:
            del self._live[watch.prefix]
        self._lengths[len(watch.prefix)] -= 1
        if not self._lengths[len(watch.prefix)]:
            del self._lengths[len(watch.prefix)]

    # Watches that are behind.

    def _fall_behind(self, watch: _Watch, cursor: int) -> None:
        self._leave_live(watch)
        watch.cursor = max(watch.cursor, cursor)
        watch.client.wants_room = True

    def _catch_up(self, watch: _Watch, at_most: int) -> int:
        """Tell it what the history has for it, while there is room; return how many events were looked at."""
        begun = watch.cursor
        if not self._history.reaches(watch.cursor):
            self._lose(watch)
            return 0
        for event in islice(self._history.after(watch.cursor), at_most):
            if event.lock.startswith(watch.prefix):
                if not watch.client.has_room():
                    watch.client.wants_room = True
                    return watch.cursor - begun
                watch.client.push(_encode(event), None)
            watch.cursor = event.revision
        if watch.cursor >= self._history.revision:
            self._go_live(watch)
        elif not watch.client.wants_room:
            watch.client.wants_room = True
            asyncio.get_running_loop().call_soon(self.room, watch.client)
        return watch.cursor - begun

    # The end.

    def _skip(self, seen: int) -> None:
        """What came after the revision `seen` is hidden from this node, by a snapshot."""
        for watch in [watch for known in self._of_client.values() for watch in known.values()]:
            if self._is_live(watch):
                watch.cursor = max(watch.cursor, seen)
            if not self._history.reaches(watch.cursor):
                self._lose(watch)

    def _lose(self, watch: _Watch) -> None:
        lost = replies.watch_lost(watch.prefix, watch.cursor, replies.gone_text(watch.cursor))
        self._end(watch)
        watch.client.push(encode_push("lock.gone", lost), None)

    def _end(self, watch: _Watch) -> None:
        if self._is_live(watch):
            self._leave_live(watch)
        known = self._of_client[watch.client.number]
        del known[watch.prefix]
        watch.client.watches -= 1
        if not known:
            del self._of_client[watch.client.number]


def _encode(told: LockEvent) -> bytes:
    return encode_push("lock.event", replies.event(told))
