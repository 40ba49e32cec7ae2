"""Cron evaluated slowly and plainly: walk every minute, and compare the wall clock's fields.

Shares no code with the triggers. Reads numbers, names of days, lists, ranges and steps.
"""

from datetime import datetime, timedelta, tzinfo

MINUTE = timedelta(minutes=1)
DAYS = {"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}


def plain_fires(expression: str, zone: tzinfo, start: datetime, end: datetime) -> list[datetime]:
    """The fires in (start, end) of a five-field line, by Debian's rule for changes of the clocks."""
    fields = expression.split()
    follows_real_time = fields[0].startswith("*") or fields[1].startswith("*")
    found = []
    moment = start + MINUTE
    last_wall = _wall(moment - MINUTE, zone)
    latest_wall = last_wall
    while moment < end:
        wall = _wall(moment, zone)
        if follows_real_time:
            if _matches(fields, wall):
                found.append(moment)
        else:
            # The wall times that came up for the first time now: usually one, none in a repeated
            # hour, and after a gap all that it skipped.
            new = []
            candidate = latest_wall + MINUTE
            while candidate <= wall:
                new.append(candidate)
                candidate += MINUTE
            if any(_matches(fields, one) for one in new):
                found.append(moment)
            latest_wall = max(latest_wall, wall)
        moment += MINUTE
    return found


def _wall(moment: datetime, zone: tzinfo) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def _matches(fields: list[str], wall: datetime) -> bool:
    minute, hour, day, month, weekday = fields
    if not (
        wall.minute in _values(minute, 0, 59)
        and wall.hour in _values(hour, 0, 23)
        and wall.month in _values(month, 1, 12)
    ):
        return False
    by_day = wall.day in _values(day, 1, 31)
    by_weekday = wall.isoweekday() % 7 in {value % 7 for value in _values(weekday, 0, 7)}
    if day.startswith("*") or weekday.startswith("*"):
        return by_day and by_weekday
    return by_day or by_weekday


def _values(field: str, low: int, high: int) -> set[int]:
    values: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, dash, last = span.partition("-")
        if span == "*":
            numbers = range(low, high + 1)
        elif dash:
            numbers = range(_number(first), _number(last) + 1)
        else:
            numbers = range(_number(first), (high if step else _number(first)) + 1)
        values.update(numbers[:: int(step or 1)])
    return values


def _number(text: str) -> int:
    return DAYS[text] if text in DAYS else int(text)
