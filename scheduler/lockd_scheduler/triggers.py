"""When a schedule fires: by a cron line in a time zone, at a fixed interval, or once.

Every trigger answers one question, `next_after(moment)`, from its own definition alone: the same
series of UTC moments in every process and after every restart. None of them reads a clock.

They are also APScheduler 3 triggers (`get_next_fire_time`), so they work in a stock
APScheduler. Its own CronTrigger is not used: since 3.11 it loses the fires from 00:00 to 00:59 after
spring-forward (SAFETY R6). The cron fields are read by cronsim, over plain wall time; where that
meets a zone's changes is decided here, for five fields and for six.
"""

import hashlib
from abc import abstractmethod
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from apscheduler.triggers.base import BaseTrigger
from cronsim import CronSim, CronSimError

from lockd_scheduler.durations import format_duration, parse_duration
from lockd_scheduler.errors import BadSchedule

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PERIOD_MIN = timedelta(seconds=1)

_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)

_EARLIEST = datetime(1, 1, 3, tzinfo=UTC)
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
        return self.next_after(max(now, _EARLIEST) - timedelta(microseconds=1))

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        """APScheduler's question: the first fire after the previous one, or at or after `now`."""
        return self.first(now) if previous_fire_time is None else self.next_after(previous_fire_time)


class CronTrigger(Trigger):
    """Five cron fields, or six with seconds first, read in a time zone by Debian cron's DST rule.

    A job whose minute or hour field starts with `*` follows real time. Any other is fixed-time: a
    wall time that a change of the clocks skips fires once, at the first valid moment after the gap
    (several skipped ones make one fire), and one that repeats fires the first time only.
    """

    def __init__(self, expression: str, tz: str = "UTC") -> None:
        """Raises BadSchedule for a wrong field, an unknown zone, or a time that never comes."""
        self.expression = " ".join(expression.split())
        self.tz = tz
        self._zone = zone_named(tz)
        fields = self.expression.split(" ")
        minute, hour = fields[-5:-3] if len(fields) in (5, 6) else ("", "")
        self._is_fixed_time = not (minute.startswith("*") or hour.startswith("*"))
        try:
            comes = next(CronSim(self.expression, datetime(2000, 1, 1)), None)  # noqa: DTZ001 - wall time
        except CronSimError as error:
            raise BadSchedule(f"{expression[:80]!r} is not a cron line: {error}") from None
        if comes is None:
            raise BadSchedule(f"{expression[:80]!r} is a cron line that never fires")

    def next_after(self, moment: datetime) -> datetime | None:
        moment = moment.astimezone(UTC)
        try:
            return self._next_fixed(moment) if self._is_fixed_time else self._next_real(moment)
        except OverflowError:
            return None  # past the year 9999

    def to_json(self) -> dict[str, Any]:
        return {"type": "cron", "expression": self.expression, "tz": self.tz, "dst": "once"}

    def _next_fixed(self, moment: datetime) -> datetime | None:
        # Wall times in order have instants in order (skipped and repeated ones share theirs), and
        # every wall time up to the one that `moment` shows has an instant up to `moment`.
        for wall in CronSim(self.expression, _wall(moment, self._zone)):
            instant = _first_instant(wall, self._zone)
            if instant > moment:
                return instant
        return None

    def _next_real(self, moment: datetime) -> datetime | None:
        # Between two changes of the zone's offset, real time is wall time less the offset. Look for
        # a match as if the offset stayed; if it changes on the way, look again from the change on.
        offset = _offset(moment, self._zone)
        wall = _naive(moment + offset)
        while True:
            match = next(CronSim(self.expression, wall), None)
            if match is None:
                return None
            candidate = match.replace(tzinfo=UTC) - offset
            change = _next_change(moment, candidate, self._zone)
            if change is None:
                return candidate
            moment, offset = change, _offset(change, self._zone)
            wall = _naive(change + offset) - _SECOND


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


class AtTrigger(Trigger):
    """Once, at `moment`; a moment that has passed is due at once, and then the policy decides."""

    def __init__(self, moment: datetime) -> None:
        """Raises BadSchedule for a time without a zone."""
        if moment.tzinfo is None:
            raise BadSchedule(f"{moment.isoformat()} has no time zone: one-shots need an exact moment")
        self.moment = moment.astimezone(UTC)

    def next_after(self, moment: datetime) -> datetime | None:
        return self.moment if self.moment > moment else None

    def first(self, now: datetime) -> datetime | None:  # noqa: ARG002 - a past one-shot gets its row too
        return self.moment

    def to_json(self) -> dict[str, Any]:
        return {"type": "at", "moment": self.moment.isoformat()}


def trigger_from_json(definition: dict[str, Any]) -> Trigger:
    """Make the trigger again from what its `to_json` gave. Raises BadSchedule."""
    match definition:
        case {"type": "cron", "expression": str(expression), "tz": str(tz), "dst": "once"}:
            return CronTrigger(expression, tz)
        case {"type": "every", "period": str(period), "offset": str(offset)}:
            return EveryTrigger(parse_duration(period), parse_duration(offset))
        case {"type": "at", "moment": str(moment)}:
            return AtTrigger(datetime.fromisoformat(moment))
        case _:
            raise BadSchedule(f"unknown trigger in the ledger: {str(definition)[:200]}")


def hashed_slot(name: str, period: timedelta) -> timedelta:
    """A whole-second offset within `period` that depends on `name` alone: `offset="H"`."""
    seconds = max(period // _SECOND, 1)
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % seconds * _SECOND


def zone_named(name: str) -> tzinfo:
    """The IANA zone of that name. Raises BadSchedule."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise BadSchedule(f"unknown time zone {name[:60]!r}") from None


def _naive(moment: datetime) -> datetime:
    return moment.replace(tzinfo=None)


def _wall(moment: datetime, zone: tzinfo) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def _offset(moment: datetime, zone: tzinfo) -> timedelta:
    offset = moment.astimezone(zone).utcoffset()
    assert offset is not None
    return offset


def _first_instant(wall: datetime, zone: tzinfo) -> datetime:
    """The moment at which the zone's clocks first show `wall`, or pass it by in a gap."""
    local = wall.replace(tzinfo=zone)
    instant = local.astimezone(UTC)
    if _wall(instant, zone) == wall:
        return instant
    # In a gap, fold=0 reads the wall time with the offset before the change, fold=1 with the one
    # after it (PEP 495): the change lies between the two readings.
    change = _next_change(local.replace(fold=1).astimezone(UTC), instant, zone)
    assert change is not None
    return change


def _next_change(low: datetime, high: datetime, zone: tzinfo) -> datetime | None:
    """The first moment in (low, high] with another offset than at the moment before it.

    Looks a day at a time: no zone changes its clocks and changes them back within a day.
    """
    before = _offset(low, zone)
    while low < high:
        step = min(low + _DAY, high)
        if _offset(step, zone) != before:
            return _bisect_change(low, step, zone, before)
        low = step
    return None


def _bisect_change(low: datetime, high: datetime, zone: tzinfo, before: timedelta) -> datetime:
    low, high = low.replace(microsecond=0), high + timedelta(microseconds=-high.microsecond % 1_000_000)
    while high - low > _SECOND:
        middle = low + (high - low) // _SECOND // 2 * _SECOND
        if _offset(middle, zone) == before:
            low = middle
        else:
            high = middle
    return high
