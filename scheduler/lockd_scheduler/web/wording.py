"""Times and schedules as people read them."""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from markupsafe import Markup

from lockd_scheduler.durations import format_duration
from lockd_scheduler.triggers import zone_named

_PARTS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def schedule_words(trigger: Mapping[str, Any]) -> str:
    """A trigger's definition in a line."""
    match trigger:
        case {"type": "cron", "expression": expression}:
            return str(expression)
        case {"type": "every", "period": period, "offset": offset}:
            return f"every {period}" + ("" if offset == "0s" else f", offset {offset}")
        case {"type": "at", "moment": moment}:
            return f"once at {moment}"
        case {"type": "after", "job": job, "on": on}:
            return f"after {job} has {on}"
        case {"type": "calendar", "months": months, "days": days, "start": start, "at": at}:
            step = f"{months} months" if months else f"{days} days"
            return f"every {step} from {start}, at {at[:5]}"
        case _:
            return "unknown"


def zone_of(trigger: Mapping[str, Any]) -> str:
    """The zone that a trigger's wall times are in."""
    return str(trigger.get("tz", "UTC"))


def in_zone(moment: datetime, zone: str = "UTC") -> str:
    """Day and wall time in a zone, with the zone's name unless it is UTC's: `Tue 24 Nov 2026 02:00:00`."""
    return moment.astimezone(zone_named(zone)).strftime("%a %d %b %Y %H:%M:%S")


def utc(moment: datetime) -> str:
    """`2026-11-24 02:00:00`, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def iso(moment: datetime) -> str:
    """ISO 8601 in UTC, with a Z."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def breakable(name: str) -> Markup:
    """A name as HTML whose line may be broken after its separators, not within a word of it."""
    return Markup("<wbr>").join(re.findall(r".[^._:/-]*[._:/-]*|^$", name, re.DOTALL))


def due(fire: datetime, now: datetime) -> str:
    """How far away a next fire is; one that nobody has claimed yet is `due`: `due for 3min`."""
    late = now - fire
    return f"due for {_length(late.total_seconds())}" if late >= timedelta(seconds=1) else relative(fire, now)


def relative(moment: datetime, now: datetime) -> str:
    """How far away a moment is: `in 2h 5min`, `3d 1h ago`, `now`."""
    seconds = (moment - now).total_seconds()
    if abs(seconds) < 1:
        return "now"
    length = _length(abs(seconds))
    return f"in {length}" if seconds > 0 else f"{length} ago"


def lasted(start: datetime | None, end: datetime | None) -> str:
    """How long it took, to the millisecond below a minute; nothing if it has not ended."""
    if start is None or end is None:
        return ""
    length = end - start
    if length < timedelta(minutes=1):
        return format_duration(length) if length >= timedelta(milliseconds=1) else "under 1ms"
    return _length(length.total_seconds())


def _length(seconds: float) -> str:
    """The two largest units of it."""
    rest = math.floor(seconds)
    words: list[str] = []
    for size, unit in _PARTS:
        number, rest = divmod(rest, size)
        if number or (words and len(words) < 2):
            words.append(f"{number}{unit}")
        if len(words) == 2:
            break
    return " ".join(word for word in words if not word.startswith("0"))
