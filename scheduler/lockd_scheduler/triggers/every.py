"""At an interval of elapsed time."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from lockd_scheduler.durations import format_duration
from lockd_scheduler.errors import BadSchedule
from lockd_scheduler.triggers.base import Trigger

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PERIOD_MIN = timedelta(seconds=1)

_SECOND = timedelta(seconds=1)


class EveryTrigger(Trigger):
    """Every `period` of elapsed time, counted from 1970-01-01T00:00Z plus `offset`."""

    def __init__(self, period: timedelta, offset: timedelta = timedelta()) -> None:
        """Raises BadSchedule unless 1 s <= period and 0 <= offset < period."""
        if period < PERIOD_MIN:
            raise BadSchedule(f"every {format_duration(period)}: the shortest interval is 1s")
        if not timedelta() <= offset < period:
            raise BadSchedule(
                f"offset {format_duration(offset)} is not shorter than every {format_duration(period)}"
            )
        self.period = period
        self.offset = offset

    def next_after(self, moment: datetime) -> datetime | None:
        origin = EPOCH + self.offset
        try:
            return origin + ((moment - origin) // self.period + 1) * self.period
        except OverflowError:
            return None  # past the year 9999

    def to_json(self) -> dict[str, Any]:
        return {
            "type": "every",
            "period": format_duration(self.period),
            "offset": format_duration(self.offset),
        }


def hashed_slot(name: str, period: timedelta) -> timedelta:
    """A whole-second offset within `period` that depends on `name` alone: `offset="H"`."""
    seconds = max(period // _SECOND, 1)
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % seconds * _SECOND
