"""The clock of a server under test, and of its clients: it stands still until the test turns it."""

import threading
from collections.abc import Callable

from lockd.client.clock import TurnedClock
from lockd.testing.followers import tell_all
from lockd.testing.memory import ELECTION_TIMEOUT_MS

_STEP_MS = ELECTION_TIMEOUT_MS
"""Clients renew after a third of their TTL, and that is three of these at least."""


class Clock:
    """Seconds since the server started. Only `advance` and `advance_renewing` make them pass."""

    def __init__(self, clock: TurnedClock, pass_on_server: Callable[[int], bool]) -> None:
        """`pass_on_server` lets so many ms pass, and tells whether the server can answer."""
        self._clock = clock
        self._pass_on_server = pass_on_server
        self._turning = threading.Lock()

    def now(self) -> float:
        """Seconds that have been let pass, to the millisecond."""
        return self._clock()

    def advance(self, seconds: float) -> None:
        """Let time pass as if the program had stood still meanwhile: nobody renews, nobody asks.

        What has run out is over when this returns: leases whose TTL is not longer are lost, waits are
        over, locks are passed on. Clients whose sessions live on have renewed them, unless the server
        is paused; but a client of the calling thread's own event loop does what is due when that loop
        goes on. Raises ValueError for less than no time.
        """
        if seconds < 0.0:
            raise ValueError(f"time goes on, not back: {seconds} s")
        with self._turning:
            self._turn(round(seconds * 1000))

    def advance_renewing(self, seconds: float) -> None:
        """Let time pass while clients go on renewing their sessions, as in a program that is well."""
        with self._turning:
            left_ms = round(seconds * 1000)
            while left_ms > 0:
                self._turn(min(left_ms, _STEP_MS))
                left_ms -= _STEP_MS

    def _turn(self, ms: int) -> None:
        answers = self._pass_on_server(ms)
        tell_all(self._clock, lambda each, then: each.clock_was_turned(then), and_wait=answers)
