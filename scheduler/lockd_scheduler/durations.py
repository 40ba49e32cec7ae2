"""Lengths of time as people write them: "30s", "1h30m", "500ms"."""

import re
from datetime import timedelta

from lockd_scheduler.errors import BadSchedule

_UNITS = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}
_LONGEST = timedelta(days=36_525)
"""A century: any moment plus or minus it is still a date, and a thread can wait so long."""
_PART = re.compile(r"([0-9]{1,9})(ms|s|m|h|d|w)")
_WHOLE = re.compile(rf"({_PART.pattern})+")


def parse_duration(text: str) -> timedelta:
    """Read one or more whole numbers with a unit (ms, s, m, h, d, w), as in "1h30m".

    Raises BadSchedule.
    """
    if not isinstance(text, str) or not _WHOLE.fullmatch(text):
        raise BadSchedule(f"{repr(text)[:42]} is not a duration: write it like 30s, 5m or 1h30m")
    parts = _PART.findall(text)
    try:
        length = sum((int(number) * _UNITS[unit] for number, unit in parts), timedelta())
    except OverflowError:
        length = timedelta.max
    if length > _LONGEST:
        raise BadSchedule(f"{text[:40]!r} is too long a duration: at most 100 years")
    return length


def format_duration(length: timedelta) -> str:
    """The text that `parse_duration` reads back as `length`, to the millisecond: "1h30m"."""
    rest = length // timedelta(milliseconds=1)
    words: list[str] = []
    for unit in ("d", "h", "m", "s", "ms"):
        number, rest = divmod(rest, _UNITS[unit] // timedelta(milliseconds=1))
        if number:
            words.append(f"{number}{unit}")
    return "".join(words) or "0s"
