"""The ledger's time in this process: read from the database now and then, counted on in between.

Processes whose own clocks disagree so still agree on what is due. A test sets its clock and
turns it by hand.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

RESYNC_SECONDS = 5.0


class LedgerClock:
    """Asks `read` for the time when `sync` is called, and adds elapsed time after that."""

    def __init__(self, read: Callable[[], datetime]) -> None:
        self._read = read
        self._reading: tuple[datetime, float] | None = None
        """The database's time, and this process's elapsed seconds at that moment."""

    def now(self) -> datetime:
        """The time by the last reading; before the first, by this machine's clock."""
        if self._reading is None:
            return datetime.now(UTC)
        base, base_at = self._reading
        return base + timedelta(seconds=_elapsed() - base_at)

    def sync(self) -> None:
        """Read again if the last reading is over 5 s old. Raises what `read` raises."""
        if self._reading is None or _elapsed() - self._reading[1] > RESYNC_SECONDS:
            self._reading = (self._read(), _elapsed())


class SettableClock:
    """Stands still until it is set or turned."""

    def __init__(self, now: datetime) -> None:
        self.set(now)

    def now(self) -> datetime:
        """The time that was set."""
        return self._now

    def sync(self) -> None:
        """Nothing to read."""

    def set(self, now: datetime) -> None:
        """Jump to `now`, which has a zone."""
        assert now.tzinfo is not None
        self._now = now.astimezone(UTC)

    def turn(self, by: timedelta) -> None:
        """Move on by that much."""
        self._now += by


def _elapsed() -> float:
    """Seconds by a clock that counts suspend, where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
