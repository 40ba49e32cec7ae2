"""Every so many days, weeks, months or years, at a wall time."""

from calendar import monthrange
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from itertools import count
from typing import Any, Self

from lockd_scheduler.errors import BadSchedule
from lockd_scheduler.triggers.base import Trigger
from lockd_scheduler.triggers.zones import first_instant, wall_of, zone_named

_ANCHOR = date(2000, 1, 1)
STEPS_MAX = 1_200
"""Months (a century) or days that one step may have."""


class CalendarTrigger(Trigger):
    """Every `months` or every `days` from the date `start` on, at the wall time `at` in a zone.

    A month that has no such day (the 31st, 29 February) is passed over. A wall time that a change of
    the clocks skips fires at the first valid moment after the gap; one that repeats, the first time.
    """

    def __init__(
        self, *, months: int = 0, days: int = 0, start: date = _ANCHOR, at: time = time(), tz: str = "UTC"
    ) -> None:
        """Raises BadSchedule unless exactly one of `months` and `days` is given, and for an unknown zone."""
        if (months == 0) == (days == 0):
            raise BadSchedule("a calendar interval has either months (years) or days (weeks)")
        if not 1 <= months + days <= STEPS_MAX:
            raise BadSchedule(f"a calendar interval has from 1 to {STEPS_MAX} days or months")
        if at.tzinfo is not None or at.microsecond:
            raise BadSchedule(f"{at.isoformat()} is not a wall time in whole seconds; its zone is tz=")
        self.months = months
        self.days = days
        self.start = start
        self.at = at
        self.tz = tz
        self._zone = zone_named(tz)

    def next_after(self, moment: datetime) -> datetime | None:
        try:
            # The day before: a wall time just passed may have an instant that is still to come.
            since = wall_of(moment, self._zone).date() - timedelta(days=1)
            for day in self._days_from(since):
                instant = first_instant(datetime.combine(day, self.at), self._zone)
                if instant > moment:
                    return instant.astimezone(UTC)
        except (OverflowError, ValueError):
            return None  # past the year 9999
        return None

    def to_json(self) -> dict[str, Any]:
        return {
            "type": "calendar",
            "months": self.months,
            "days": self.days,
            "start": self.start.isoformat(),
            "at": self.at.isoformat(),
            "tz": self.tz,
        }

    @classmethod
    def from_json(cls, definition: Mapping[str, Any]) -> Self:
        """Read what `to_json` made. Raises BadSchedule."""
        return cls(
            months=definition["months"],
            days=definition["days"],
            start=date.fromisoformat(definition["start"]),
            at=time.fromisoformat(definition["at"]),
            tz=definition["tz"],
        )

    def _days_from(self, since: date) -> Iterator[date]:
        """The dates at or after both `since` and the start, in order. Raises OverflowError at the end."""
        if self.days:
            passed = max((since - self.start).days, 0)
            for step in count(-(-passed // self.days)):
                yield self.start + timedelta(days=step * self.days)
        passed = (since.year - self.start.year) * 12 + since.month - self.start.month
        for step in count(max(passed // self.months, 0)):
            day = _date_in_month(self.start, step, self.months)
            if day is not None and day >= since:
                yield day


def _date_in_month(start: date, step: int, months: int) -> date | None:
    """The start's day `step * months` months later; None if that month is too short."""
    year, month = divmod(start.year * 12 + start.month - 1 + step * months, 12)
    if start.day > monthrange(year, month + 1)[1]:
        return None
    return date(year, month + 1, start.day)
