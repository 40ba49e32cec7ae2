"""The client's clock: it counts the time that the machine sleeps (SAFETY K1).

A laptop that was closed for an hour must see an hour pass. CLOCK_MONOTONIC stands still in
suspend on Linux; CLOCK_BOOTTIME does not. Elsewhere the monotonic clock is the best there is: on
macOS and Windows it may or may not count sleep.

A node of `lockd.testing` has a clock that stands still until a test turns it, and who is its client
goes by the same clock.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol
from weakref import WeakSet

from lockd.client.lease import Clock

_BOOTTIME: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)


def now() -> float:
    """Seconds since some fixed moment; never goes back."""
    return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)


class Follower(Protocol):
    """An engine that goes by a turned clock: its timers, which run in real time, tell it nothing.

    So it is told when to act.
    """

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    def clock_was_turned(self, then: Callable[[], None]) -> None:
        """Do what is due by now, and call `then`. Any thread; raises RuntimeError when its loop is closed."""

    def ask_what_is_left(self, then: Callable[[], None]) -> None:
        """Ask the node what is left of its leases, and call `then`. As `clock_was_turned`."""


class TurnedClock:
    """A clock that stands still until it is turned. Any thread may ask it."""

    def __init__(self) -> None:
        self.ms = 0
        """Since the beginning; never to be set back."""
        self._lock = threading.Lock()
        self._followers: WeakSet[Follower] = WeakSet()

    def __call__(self) -> float:
        return self.ms / 1000

    def lead(self, follower: Follower) -> None:
        """Have it told when the clock was turned, for as long as it lives."""
        with self._lock:
            self._followers.add(follower)

    def followers(self) -> list[Follower]:
        """Who is to be told."""
        with self._lock:
            return list(self._followers)


_turned: dict[str, TurnedClock] = {}


def turn_for(endpoint: str, clock: TurnedClock) -> None:
    """Have clients of that endpoint, made from now on in this process, go by this clock."""
    _turned[endpoint] = clock


def turn_no_more(endpoint: str) -> None:
    """The node is gone: whoever listens there next has the time of the machine."""
    del _turned[endpoint]


def of_endpoints(endpoints: Iterable[object]) -> Clock:
    """The clock that a client of these nodes goes by: the machine's, but for nodes under test."""
    return next((_turned[text] for text in map(str, endpoints) if text in _turned), now)
