"""A cron line in a time zone, and what it means where the zone's clocks are changed."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from cronsim import CronSim, CronSimError

from lockd_scheduler.errors import BadSchedule
from lockd_scheduler.triggers.base import Trigger
from lockd_scheduler.triggers.cronline import plain_line
from lockd_scheduler.triggers.zones import (
    SECOND,
    first_instant,
    next_change,
    offset_in,
    standard_offset_in,
    wall_of,
    zone_named,
)


class Dst(StrEnum):
    """How a line is read where clocks are changed."""

    ONCE = "once"
    """Debian cron's rule. A job whose minute or hour field starts with `*` follows real time. Any
    other is fixed-time: a wall time that a change skips fires once, at the first valid moment after
    the gap (several skipped ones make one fire), and one that repeats fires the first time only."""
    WALL = "wall"
    """Whenever the clocks show it: not at all for a wall time that is skipped, twice for one that
    repeats."""
    ELAPSED = "elapsed"
    """In the zone's standard time all year: equal distances, an hour off on the wall in summer."""


class CronTrigger(Trigger):
    """Five cron fields, or six with seconds first, or a macro, read in a time zone."""

    def __init__(
        self, expression: str, tz: str = "UTC", *, dst: str = Dst.ONCE.value, slot: str | None = None
    ) -> None:
        """`slot`: the name whose hash an `H` in the line stands for.

        Raises BadSchedule for a wrong field, an unknown zone or choice, or a time that never comes.
        """
        self.expression = plain_line(expression, slot)
        self.tz = tz
        try:
            self.dst = Dst(dst)
        except ValueError:
            choices = ", ".join(Dst)
            raise BadSchedule(f"dst={dst!r} is not available; choose from: {choices}") from None
        self._zone = zone_named(tz)
        self._offset_at = (standard_offset_in if self.dst is Dst.ELAPSED else offset_in)(self._zone)
        minute, hour = self.expression.split(" ")[-5:-3]
        is_fixed_time = not (minute.startswith("*") or hour.startswith("*"))
        self._next = self._next_fixed if is_fixed_time and self.dst is Dst.ONCE else self._next_real
        _check_comes(self.expression, expression)

    def next_after(self, moment: datetime) -> datetime | None:
        try:
            return self._next(moment.astimezone(UTC))
        except OverflowError:
            return None  # past the year 9999

    def to_json(self) -> dict[str, Any]:
        return {"type": "cron", "expression": self.expression, "tz": self.tz, "dst": self.dst.value}

    def _next_fixed(self, moment: datetime) -> datetime | None:
        # Wall times in order have instants in order (skipped and repeated ones share theirs), and
        # every wall time up to the one that `moment` shows has an instant up to `moment`.
        for wall in CronSim(self.expression, wall_of(moment, self._zone)):
            instant = first_instant(wall, self._zone)
            if instant > moment:
                return instant
        return None

    def _next_real(self, moment: datetime) -> datetime | None:
        # Between two changes of the zone's offset, real time is wall time less the offset. Look for
        # a match as if the offset stayed; if it changes on the way, look again from the change on.
        offset = self._offset_at(moment)
        wall = _naive(moment + offset)
        while True:
            match = next(CronSim(self.expression, wall), None)
            if match is None:
                return None
            candidate = match.replace(tzinfo=UTC) - offset
            change = next_change(moment, candidate, self._offset_at)
            if change is None:
                return candidate
            moment, offset = change, self._offset_at(change)
            wall = _naive(change + offset) - SECOND


def _check_comes(line: str, written: str) -> None:
    """Raise BadSchedule for fields that cronsim can't read, and for a date that never comes."""
    try:
        comes = next(CronSim(line, datetime(2000, 1, 1)), None)  # noqa: DTZ001 - wall time
    except CronSimError as error:
        raise BadSchedule(f"{written[:80]!r} is not a cron line: {error}") from None
    if comes is None:
        raise BadSchedule(f"{written[:80]!r} is a cron line that never fires")


def _naive(moment: datetime) -> datetime:
    return moment.replace(tzinfo=None)
