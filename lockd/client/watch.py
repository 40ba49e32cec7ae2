"""One watch: the events of all locks with a prefix after a revision, none lost and none twice.

It goes on by revision: over lost connections, on other nodes, after a node that ended it as too
slow. A node that no longer has the events is left for the next; when none has them the watch ends
with WatchGone, which is the one way in which events are missed, and it is told.

A watch has a link of its own. On the client's own a flood of events would stand before the answers
to keepalives, so that looking could cost a lease; and pushes do not say which watch they are for.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from lockd.client import inspection
from lockd.client.inspection import LockEvent, WatchReply
from lockd.client.lease import Clock
from lockd.client.link import Call, Link
from lockd.client.options import ClientOptions, Endpoint
from lockd.client.queries import Greeting
from lockd.errors import LockdError, OutcomeUnknown, WatchGone

EVENTS_MAX: Final = 4096
"""Events that nobody has taken yet. With more the link is let go until they are taken: the cluster
keeps them meanwhile, for as long as it keeps any."""
CHECKS_PER_TTL: Final = 2
"""How often the node is asked whether it is still part of the cluster: one that is cut off from the
others would stay silent, and so would a watch that waits for it."""


FORGETFUL_PAUSE: Final = 0.1
"""Seconds before a node that has not the events is left again, when the others can't be reached."""

T = TypeVar("T")


class Item(NamedTuple, Generic[T]):
    """One piece of news, and the revision of the event behind it."""

    revision: int
    news: T


class Watcher:
    """See the module's text. Made on the engine's loop and used from there alone."""

    def __init__(
        self,
        options: ClientOptions,
        clock: Clock,
        *,
        prefix: str,
        revision: int | None,
        accept: Callable[[Greeting], str],
        on_over: Callable[["Watcher"], None],
    ) -> None:
        """`revision` None: from now on, as the cluster says when that is. `accept` says what is
        wrong with a node that greets."""
        self.prefix = prefix
        self._options = options
        self._accept = accept
        self._on_over = on_over
        self._start = revision
        self._revision = revision
        """Everything up to here has come."""
        self._incarnation = ""
        self._events: deque[LockEvent] = deque()
        self._news = asyncio.Event()
        self._has_begun = False
        self._is_full = False
        self._is_over = False
        self._error: LockdError | None = None
        self._is_live = False
        """The node has taken the watch up, on this connection: what it pushes is in order."""
        self._forgetful: set[Endpoint] = set()
        """Where the events are gone, as far as is known; `_forgot_at` is when the first one said so."""
        self._forgot_at = 0.0
        self._call: Call | None = None
        self._check: Call | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._link = Link(
            options,
            clock,
            is_needed=lambda: False,  # what is open keeps it connected: see _on_down
            accept=self._accept_node,
            on_up=lambda: None,
            on_down=self._on_down,
            on_push=self._on_push,
        )

    async def begin(self) -> int:
        """Return once the cluster has taken it up: the revision after which all events come.

        Raises WatchGone, Unavailable (no node for a TTL), AccessDenied and Rejected; it is over then.
        """
        if self._call is None and not self._has_begun and not self._is_over:
            self._subscribe()
            self._timer = self._loop.call_later(self._options.ttl / CHECKS_PER_TTL, self._check_node)
        try:
            async with asyncio.timeout(self._options.ttl):
                while not self._has_begun and not self._is_over:
                    await self._wait()
        except TimeoutError:
            if self._forgetful:
                self._end(_gone("no other node was reached", self.prefix, self._revision))
            else:
                assert self._call is not None, "it was sent"
                self._end(self._link.unanswered(self._call, changes=False))
        if self._error is not None and not self._has_begun:
            raise self._error
        return self._start or 0

    async def take(self, after: int) -> list[Item[LockEvent]]:
        """The events after that revision that have come, at least one; none when it was closed.

        Those up to `after` are forgotten: whoever lost the answer asks with the same one again.
        Raises what ended it, when all that came before has been taken.
        """
        while True:
            while self._events and self._events[0].revision <= after:
                self._events.popleft()
            if self._is_full and not self._events:
                self._is_full = False
                self._subscribe()
            if self._events:
                return [Item(event.revision, event) for event in self._events]
            if self._error is not None:
                raise self._error
            if self._is_over:
                return []
            await self._wait()

    async def close(self) -> None:
        """End it; who waits for events is told that there are no more. Idempotent."""
        self._events.clear()
        self._end(None)
        if self._closing is not None:
            await asyncio.wait([self._closing])

    def close_soon(self) -> None:
        """As `close`, from any thread, without waiting for it."""
        with contextlib.suppress(RuntimeError):  # its loop is closed, and with it the connection
            self._loop.call_soon_threadsafe(self._end, None)

    async def _wait(self) -> None:
        self._news.clear()
        await self._news.wait()

    def _end(self, error: LockdError | None) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._error = error
        if self._timer is not None:
            self._timer.cancel()
        self._closing = self._loop.create_task(self._link.close(), name="lockd-watch-close")
        self._on_over(self)
        self._news.set()

    # What is asked, and what comes.

    def _subscribe(self) -> None:
        self._is_live = False
        if self._call is not None:
            self._link.forget(self._call)
        words = inspection.watch(self.prefix, self._revision).words
        self._call = self._link.call(words, self._on_reply)

    def _on_down(self) -> None:
        self._is_live = False
        if not self._is_over and not self._is_full:
            self._subscribe()  # sent with the next connection; an open call is what makes one

    def _on_reply(self, call: Call) -> None:
        self._call = None
        if self._is_over:
            return
        try:
            if isinstance(call.reply, LockdError):
                raise call.reply
            reply = inspection.watch(self.prefix, self._revision).read(call.reply)
        except WatchGone as error:
            self._on_forgotten(error)
        except LockdError as error:
            self._end(error)
        else:
            self._is_live = True
            self._forgetful.clear()
            if self._revision is None:
                self._start = self._revision = reply.revision
            self._has_begun = True
            self._news.set()

    def _on_forgotten(self, error: WatchGone) -> None:
        """This node has not the events; another may, and one that is down may come back in a TTL."""
        if not self._forgetful:
            self._forgot_at = self._loop.time()
        was_asked = self._link.endpoint in self._forgetful
        self._forgetful.add(self._link.endpoint)
        waited = self._loop.time() - self._forgot_at
        if self._forgetful.issuperset(self._link.endpoints) or waited >= self._options.ttl:
            self._end(_gone(str(error), self.prefix, self._revision))
        elif was_asked:
            self._loop.call_later(FORGETFUL_PAUSE, self._leave)
        else:
            self._leave()

    def _leave(self) -> None:
        if not self._is_live:
            self._link.drop("it has not the events that a watch needs")

    def _on_push(self, kind: str, message: Any) -> None:
        if not self._is_live or self._is_over:
            return
        if kind == "lock.gone":
            self._subscribe()  # we were too slow; the node may still have what it did not send
        elif kind == "lock.progress":
            self._on_progress(message)
        elif kind == "lock.event":
            try:
                self._take_up(msgspec.convert(message, LockEvent))
            except msgspec.ValidationError as error:
                # Leaving it out would be a lost event.
                self._end(OutcomeUnknown(f"an event can't be read: {error}"))

    def _on_progress(self, message: Any) -> None:
        """Nothing happened to our locks for long: from there it goes on, should it have to."""
        with contextlib.suppress(msgspec.ValidationError):  # without it we know less, and nothing wrong
            told = msgspec.convert(message, WatchReply)
            if told.prefix == self.prefix:
                self._revision = max(self._revision or 0, told.revision)

    def _take_up(self, event: LockEvent) -> None:
        assert self._revision is not None, "it has begun"
        if event.revision <= self._revision or not event.lock.startswith(self.prefix):
            return
        self._revision = event.revision
        self._events.append(event)
        self._news.set()
        if len(self._events) >= EVENTS_MAX:
            self._is_full, self._is_live = True, False
            if self._check is not None:
                self._link.forget(self._check)
                self._check = None
            self._link.drop("its events are not taken")

    def _check_node(self) -> None:
        """A linearizable read: a node that can't answer it is left by the link."""
        if self._is_live and self._check is None:
            query = inspection.list_locks(prefix=self.prefix, count=1)
            self._check = self._link.call(query.words, self._on_checked)
        self._timer = self._loop.call_later(self._options.ttl / CHECKS_PER_TTL, self._check_node)

    def _on_checked(self, _: Call) -> None:
        self._check = None

    def _accept_node(self, greeting: Greeting) -> str:
        objection = self._accept(greeting)
        if not objection and self._incarnation and greeting.incarnation not in ("", self._incarnation):
            objection = (
                f"its cluster was restored: incarnation {greeting.incarnation}, not {self._incarnation}"
            )
            self._end(_gone(objection, self.prefix, self._revision))
        self._incarnation = self._incarnation or greeting.incarnation
        return objection


def _gone(because: str, prefix: str, revision: int | None) -> WatchGone:
    text = f"the events of {prefix!r} after revision {revision} are not to be had any more: {because}"
    return WatchGone(text)
