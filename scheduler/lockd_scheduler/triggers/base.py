"""The one question that every trigger answers."""

from abc import abstractmethod
from datetime import UTC, datetime, timedelta
from typing import Any

from apscheduler.triggers.base import BaseTrigger

EARLIEST = datetime(1, 1, 3, tzinfo=UTC)
"""From here on every zone's wall time is a date that Python can express."""


class Trigger(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """A rising series of UTC moments, and the JSON that it can be made from again."""

    @abstractmethod
    def next_after(self, moment: datetime) -> datetime | None:
        """The first fire later than `moment` (any aware time), in UTC; None if there is none."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The definition that `trigger_from_json` reads back."""

    def first(self, now: datetime) -> datetime | None:
        """The fire with which a new schedule begins: the first at or after `now`."""
        return self.next_after(max(now, EARLIEST) - timedelta(microseconds=1))

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        """APScheduler's question: the first fire after the previous one, or at or after `now`."""
        return self.first(now) if previous_fire_time is None else self.next_after(previous_fire_time)
