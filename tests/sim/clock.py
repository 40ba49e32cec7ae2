"""Simulated time: one true time, and machines that count it each in their own way."""

import heapq
import itertools
from collections.abc import Callable
from random import Random

MILLISECOND = 1_000
SECOND = 1_000_000
CLOCK_RATE_SPREAD = 0.01
"""Rates differ by up to 2 % between the fastest and the slowest clock: the client's margin (K1)."""


class Schedule:
    """What happens when, in true microseconds; ties in the order of scheduling."""

    def __init__(self) -> None:
        self.now = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def after(self, delay: int, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + max(delay, 0), next(self._order), event))

    def step(self, until: int) -> bool:
        """Run the next event that is due by `until`; False when there is none."""
        if not self._events or self._events[0][0] > until:
            self.now = until
            return False
        self.now, _, event = heapq.heappop(self._events)
        event()
        return True


class MachineClock:
    """A monotonic clock: a random origin, a rate near 1, milliseconds out."""

    def __init__(self, schedule: Schedule, random: Random) -> None:
        self._schedule = schedule
        self._origin = random.randrange(10**12)
        self.rate = 1 + random.uniform(-CLOCK_RATE_SPREAD, CLOCK_RATE_SPREAD)

    def ms(self) -> int:
        return (self._origin + int(self._schedule.now * self.rate)) // MILLISECOND

    def true_delay(self, ms: float) -> int:
        """True microseconds until this clock has counted so many milliseconds."""
        return int(ms * MILLISECOND / self.rate)
