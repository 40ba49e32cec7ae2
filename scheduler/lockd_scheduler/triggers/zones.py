"""What the clocks of a zone show, and where they are changed."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from lockd_scheduler.errors import BadSchedule

SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)

OffsetAt = Callable[[datetime], timedelta]
"""How far clocks are ahead of UTC at a UTC moment."""


def zone_named(name: str) -> tzinfo:
    """The IANA zone of that name. Raises BadSchedule."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise BadSchedule(f"unknown time zone {name[:60]!r}: use an IANA name like Europe/Berlin") from None


def wall_of(moment: datetime, zone: tzinfo) -> datetime:
    """What the zone's clocks show at an aware moment, without a zone."""
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def offset_in(zone: tzinfo) -> OffsetAt:
    """The offset of the zone's clocks."""

    def offset(moment: datetime) -> timedelta:
        found = moment.astimezone(zone).utcoffset()
        assert found is not None
        return found

    return offset


def standard_offset_in(zone: tzinfo) -> OffsetAt:
    """The offset that the zone's clocks would have without daylight saving time."""

    def offset(moment: datetime) -> timedelta:
        local = moment.astimezone(zone)
        found, saved = local.utcoffset(), local.dst()
        assert found is not None
        return found - (saved or timedelta())

    return offset


def first_instant(wall: datetime, zone: tzinfo) -> datetime:
    """The moment at which the zone's clocks first show `wall`, or pass it by in a gap."""
    local = wall.replace(tzinfo=zone)
    instant = local.astimezone(UTC)
    if wall_of(instant, zone) == wall:
        return instant
    # In a gap, fold=0 reads the wall time with the offset before the change, fold=1 with the one
    # after it (PEP 495): the change lies between the two readings.
    change = next_change(local.replace(fold=1).astimezone(UTC), instant, offset_in(zone))
    assert change is not None
    return change


def next_change(low: datetime, high: datetime, offset_at: OffsetAt) -> datetime | None:
    """The first moment in (low, high] with another offset than at the moment before it.

    Looks a day at a time: no zone changes its clocks and changes them back within a day.
    """
    before = offset_at(low)
    while low < high:
        step = min(low + DAY, high)
        if offset_at(step) != before:
            return _bisect_change(low, step, offset_at, before)
        low = step
    return None


def _bisect_change(low: datetime, high: datetime, offset_at: OffsetAt, before: timedelta) -> datetime:
    low, high = low.replace(microsecond=0), high + timedelta(microseconds=-high.microsecond % 1_000_000)
    while high - low > SECOND:
        middle = low + (high - low) // SECOND // 2 * SECOND
        if offset_at(middle) == before:
            low = middle
        else:
            high = middle
    return high
