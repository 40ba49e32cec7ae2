"""Moments as a test writes them: "2026-03-28 23:59 Europe/Berlin", and "+2d" from another one."""

from datetime import UTC, datetime

from lockd_scheduler.durations import parse_duration
from lockd_scheduler.errors import BadSchedule
from lockd_scheduler.triggers import zone_named


def moment(text: str | datetime) -> datetime:
    """The UTC moment that clocks in a zone show: a date, or a date and a time, and the zone's name.

    A time that clocks show twice means the first. Raises BadSchedule for one that they never show, and
    for a moment without a zone.
    """
    if isinstance(text, datetime):
        if text.tzinfo is None:
            raise BadSchedule(f"{text.isoformat()} has no zone: write it like datetime(..., tzinfo=UTC)")
        return text.astimezone(UTC)
    wall, _, zone_name = text.strip().rpartition(" ")
    try:
        read = datetime.fromisoformat(wall or zone_name)
    except ValueError:
        raise BadSchedule(f"{text!r} is not a moment: write it like 2026-03-28 23:59 Europe/Berlin") from None
    if read.tzinfo is not None and not wall:
        return read.astimezone(UTC)
    if read.tzinfo is not None or not wall:
        raise BadSchedule(f"{text!r} needs one zone at its end, like 2026-03-28 23:59 Europe/Berlin")
    zone = zone_named(zone_name)
    instant = read.replace(tzinfo=zone).astimezone(UTC)
    if instant.astimezone(zone).replace(tzinfo=None) != read:
        raise BadSchedule(f"{text!r}: clocks are put forward there, and never show that time")
    return instant


def moment_after(text: str | datetime, now: datetime) -> datetime:
    """Such a moment, or "+2d" for one that much after `now`. Raises BadSchedule for one before it."""
    if isinstance(text, str) and text.startswith("+"):
        return now + parse_duration(text[1:])
    found = moment(text)
    if found < now:
        raise BadSchedule(f"{text} has passed: the clock stands at {now.isoformat()} and turns forward only")
    return found
