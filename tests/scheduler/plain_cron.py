"""Cron evaluated slowly and plainly: walk every minute, and compare the wall clock's fields.

Shares no code with the triggers. Reads numbers, names of days, lists, ranges and steps.
"""

from datetime import datetime, timedelta, tzinfo

MINUTE = timedelta(minutes=1)
DAYS = {"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}


def plain_fires(
    expression: str, zone: tzinfo, start: datetime, end: datetime, *, dst: str = "once"
) -> list[datetime]:
    """The fires in (start, end) of a five-field line, where both are whole minutes."""
    fields = expression.split()
    line = _Line(fields)
    follows_real_time = dst != "once" or fields[0].startswith("*") or fields[1].startswith("*")
    found = []
    moment = start + MINUTE
    latest_wall = _wall(start, zone)
    while moment < end:
        wall = _standard(moment, zone) if dst == "elapsed" else _wall(moment, zone)
        if follows_real_time:
            if line.matches(wall):
                found.append(moment)
        else:
            # The wall times that came up for the first time now: usually one, none in a repeated
            # hour, and after a gap all that it skipped.
            new = []
            candidate = latest_wall + MINUTE
            while candidate <= wall:
                new.append(candidate)
                candidate += MINUTE
            if any(line.matches(one) for one in new):
                found.append(moment)
            latest_wall = max(latest_wall, wall)
        moment += MINUTE
    return found


def offset_changes(zone: tzinfo, start: datetime, end: datetime) -> list[datetime]:
    """The first minutes of new offsets in (start, end]; no zone has two changes within six hours."""
    changes = []
    moment, step = start, timedelta(hours=6)
    while moment < end:
        before = moment.astimezone(zone).utcoffset()
        if (moment + step).astimezone(zone).utcoffset() != before:
            minute = moment
            while minute.astimezone(zone).utcoffset() == before:
                minute += MINUTE
            changes.append(minute)
        moment += step
    return changes


def _standard(moment: datetime, zone: tzinfo) -> datetime:
    local = moment.astimezone(zone)
    return (local - (local.dst() or timedelta())).replace(tzinfo=None, fold=0)


def _wall(moment: datetime, zone: tzinfo) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


class _Line:
    """The values of five fields, written out."""

    def __init__(self, fields: list[str]) -> None:
        minute, hour, day, month, weekday = fields
        self.minutes = _values(minute, 0, 59)
        self.hours = _values(hour, 0, 23)
        self.days = _values(day, 1, 31)
        self.months = _values(month, 1, 12)
        self.weekdays = {value % 7 for value in _values(weekday, 0, 7)}
        self.needs_both_days = day.startswith("*") or weekday.startswith("*")

    def matches(self, wall: datetime) -> bool:
        if wall.minute not in self.minutes or wall.hour not in self.hours or wall.month not in self.months:
            return False
        by_day, by_weekday = wall.day in self.days, wall.isoweekday() % 7 in self.weekdays
        return (by_day and by_weekday) if self.needs_both_days else (by_day or by_weekday)


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
