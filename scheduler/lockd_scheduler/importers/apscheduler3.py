"""The SQLAlchemy job store of APScheduler 3: rows with pickles, which are looked into and never unpickled.

What a stock APScheduler would do with a trigger is asked of its own classes, made from the plain values
that were read; that is how the fires are found that its CronTrigger loses or doubles (SAFETY R6).
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

from apscheduler.triggers.calendarinterval import CalendarIntervalTrigger
from apscheduler.triggers.cron import CronTrigger
from sqlalchemy import LargeBinary, String, column, create_engine, make_url, select, table
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from lockd_scheduler.durations import format_duration
from lockd_scheduler.engines import DRIVERS
from lockd_scheduler.errors import BadSchedule
from lockd_scheduler.importers.imported import Imported, Series, free_name
from lockd_scheduler.importers.inert import Name, NotInertError, Thing, read_inert
from lockd_scheduler.triggers import zone_named
from lockd_scheduler.triggers.every import EPOCH

DEFAULT_TABLE = "apscheduler_jobs"

_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CRON_FIELDS = ("second", "minute", "hour", "day", "month", "day_of_week")
_HIGHEST = {"second": 59, "minute": 59, "hour": 23, "day": 31, "month": 12, "day_of_week": 6}
_GETATTR = ("builtins.getattr", "__builtin__.getattr")
_POSITIONS = ("1st", "2nd", "3rd", "4th", "5th", "last")
_SECOND = timedelta(seconds=1)
_SHORTLY = timedelta(milliseconds=5)


class CannotSayError(ValueError):
    """Something that a file of ours has no words for."""


def read_store(url: str, table_name: str = DEFAULT_TABLE) -> list[Imported]:
    """The jobs in a store's table, by their ids. Raises BadSchedule for a wrong URL, and SQLAlchemy's."""
    try:
        parsed = make_url(url)
        # The driver of the ledger is there; another one that the store was made with need not be.
        parsed = parsed.set(drivername=DRIVERS.get(parsed.drivername, parsed.drivername))
        if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
            raise BadSchedule(f"there is no file {parsed.database}")
        engine = create_engine(parsed)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise BadSchedule(f"not the URL of a job store in SQL: {str(error).splitlines()[0]}") from None
    jobs = table(table_name, column("id", String), column("job_state", LargeBinary))
    taken: set[str] = set()
    try:
        with engine.connect() as connection:
            rows = connection.execute(select(jobs.c.id, jobs.c.job_state).order_by(jobs.c.id))
            return [read_job(str(row.id), bytes(row.job_state), taken) for row in rows]
    finally:
        engine.dispose()


def read_job(job_id: str, pickled: bytes, taken: set[str]) -> Imported:
    """One job of a store, from its id and its pickle."""
    one = Imported(free_name(job_id, taken), f"job {job_id!r}", None)
    try:
        state = read_inert(pickled)
        if not isinstance(state, dict) or not isinstance(state.get("trigger"), Thing):
            raise NotInertError("it is not the state of a job")
        words, theirs = _timing(state["trigger"], one.notes)
        words["run"] = {"python": _function(state)}
        words |= _choices(state, one.notes)
        one.words, one.theirs = words, theirs
    except (NotInertError, CannotSayError, BadSchedule) as error:
        one.notes.append(f"not imported: {error}")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
        one.notes.append("not imported: it is not a job as APScheduler 3 writes them")
    return one


def _function(state: Mapping[str, Any]) -> str:
    reference = state.get("func")
    if not isinstance(reference, str):
        raise CannotSayError("its function has no name")
    if state.get("args"):
        raise CannotSayError("it has arguments by position: give them by name, then import it again")
    return reference


def _choices(state: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    words: dict[str, Any] = {}
    arguments = state.get("kwargs") or {}
    if not _is_json(arguments):
        raise CannotSayError("it has arguments that are not JSON")
    if arguments:
        words["args"] = arguments
    most = state.get("max_instances")
    words["overlap"] = "skip" if most == 1 else "allow"
    if isinstance(most, int) and most > 1:
        notes.append(f"max_instances was {most}: here any number may run at a time")
    grace = state.get("misfire_grace_time")
    if grace is None or (isinstance(grace, int) and grace > 60):
        words["catch_up"] = "latest" if state.get("coalesce") else "all"
        if isinstance(grace, int):
            words["within"] = format_duration(timedelta(seconds=grace))
    if state.get("next_run_time") is None:
        notes.append("it is paused there: pause it here too, once it is applied")
    return words


def _timing(trigger: Thing, notes: list[str]) -> tuple[dict[str, Any], Series | None]:
    state = trigger.state
    if not isinstance(state, dict):
        raise NotInertError("its trigger has no state")
    kind = trigger.name.rpartition(".")[2]
    for bound in ("start_date", "end_date"):
        if state.get(bound) is not None:
            _note_bound(bound, state[bound], kind, notes)
    words: dict[str, Any]
    theirs: Series | None = None
    match kind:
        case "CronTrigger":
            words, theirs = _cron(state)
        case "IntervalTrigger":
            words = _interval(state)
        case "DateTrigger":
            words = {"at": _moment(state.get("run_date"), None).isoformat()}
        case "CalendarIntervalTrigger":
            words, theirs = _calendar(state)
        case _:
            raise CannotSayError(f"{kind or 'its trigger'} has no counterpart here")
    jitter = state.get("jitter")
    if isinstance(jitter, int | float) and jitter > 0:
        words["jitter"] = format_duration(timedelta(seconds=jitter))
        notes.append("its jitter was another each time, and fed back into the next fire; here it is fixed")
    return words, theirs


def _note_bound(bound: str, value: Any, kind: str, notes: list[str]) -> None:
    if bound == "start_date" and kind != "CronTrigger":
        return  # only the phase of the series, which is kept
    when = _date(value) if kind == "CalendarIntervalTrigger" else _moment(value, None).isoformat()
    notes.append(f"its {bound} {when} is not kept: put it in or take it out by then")


def _cron(state: Mapping[str, Any]) -> tuple[dict[str, Any], Series]:
    zone = _zone(state.get("timezone"))
    texts: dict[str, str] = {}
    line: dict[str, str] = {}
    for field in _things(state.get("fields")):
        name, expressions = field.state["name"], _things(field.state["expressions"])
        texts[name] = ",".join(_stock_text(one) for one in expressions)
        if name not in _CRON_FIELDS:
            if texts[name] != "*":
                raise CannotSayError(f"its {name} {texts[name]!r} has no place in a cron line")
            continue
        positions = [one for one in expressions if one.name.endswith("WeekdayPositionExpression")]
        if positions and len(positions) != len(expressions):
            raise CannotSayError(f"its day {texts[name]!r} mixes weekdays and days")
        if positions:
            line["position"] = ",".join(_position_text(one.state) for one in positions)
        line[name] = "*" if positions else ",".join(_cron_text(name, one) for one in expressions)
    if missing := [name for name in _CRON_FIELDS if name not in line]:
        raise NotInertError(f"its trigger has no field {missing[0]}")
    position = line.pop("position", None)
    if (line["day"] != "*" or position) and line["day_of_week"] != "*":
        raise CannotSayError("it asks for a day of the month and of the week at once, and cron takes either")
    if position:
        line["day_of_week"] = position
    fields = [line[name] for name in _CRON_FIELDS]
    words = {"schedule": " ".join(fields[1:] if fields[0] == "0" else fields)}
    if zone != "UTC":
        words["tz"] = zone
    stock = CronTrigger(**texts, timezone=zone_named(zone))
    return words, _series(stock)


def _things(values: Any) -> Sequence[Thing]:
    if not isinstance(values, list) or not all(
        isinstance(one, Thing) and isinstance(one.state, dict) for one in values
    ):
        raise NotInertError("its trigger's fields are not those of APScheduler 3")
    return values


def _stock_text(expression: Thing) -> str:
    """The expression as APScheduler writes it."""
    state = expression.state
    match expression.name.rpartition(".")[2]:
        case "LastDayOfMonthExpression":
            return "last"
        case "WeekdayPositionExpression":
            return f"{_POSITIONS[state['option_num']]} {_WEEKDAYS[state['weekday']]}"
        case "AllExpression":
            return "*" if not state.get("step") else f"*/{_number(state['step'])}"
        case _:
            first, last, step = (state.get(name) for name in ("first", "last", "step"))
            text = str(_number(first)) if last in (None, first) else f"{_number(first)}-{_number(last)}"
            return f"{text}/{_number(step)}" if step else text


def _position_text(state: Mapping[str, Any]) -> str:
    weekday = (_number(state["weekday"]) + 1) % 7
    number = _number(state["option_num"])
    return f"{weekday}L" if _POSITIONS[number] == "last" else f"{weekday}#{number + 1}"


def _cron_text(name: str, expression: Thing) -> str:
    """The expression as cron has it: Monday is 1 there, and 0 in APScheduler."""
    state, kind = expression.state, expression.name.rpartition(".")[2]
    if kind == "LastDayOfMonthExpression":
        return "L"
    step = state.get("step")
    if kind == "AllExpression":
        first, last = (1 if name in ("day", "month") else 0), _HIGHEST[name]
        if not step:
            return "*"
    elif kind in ("RangeExpression", "MonthRangeExpression", "WeekdayRangeExpression"):
        first = _number(state.get("first"))
        given = state.get("last")
        last = _HIGHEST[name] if given is None and step else _number(first if given is None else given)
    else:
        raise CannotSayError(f"its {name} has a {kind}")
    if name == "day_of_week":
        days = range(first, last + 1, _number(step or 1))
        return ",".join(_WEEKDAYS[day] for day in days)
    if kind == "AllExpression":
        return f"*/{_number(step)}"
    text = str(first) if first == last else f"{first}-{last}"
    return f"{text}/{_number(step)}" if step else text


def _number(value: Any) -> int:
    if not isinstance(value, int):
        raise NotInertError("its trigger's fields are not those of APScheduler 3")
    return value


def _interval(state: Mapping[str, Any]) -> dict[str, Any]:
    length = _length(state.get("interval"))
    start = _moment(state.get("start_date"), state.get("timezone"))
    if length % _SECOND or not length:
        raise CannotSayError("its interval is not in whole seconds")
    offset = (start - EPOCH) % length
    words = {"every": format_duration(length)}
    if offset >= timedelta(milliseconds=1):
        words["offset"] = format_duration(offset)
    return words


def _calendar(state: Mapping[str, Any]) -> tuple[dict[str, Any], Series]:
    years, months, weeks, days = (_number(part) for part in state["interval"])
    hour, minute, second = (_number(part) for part in state["time"])
    start = _date(state["start_date"])
    zone = _zone(state.get("timezone"))
    if (years or months) and (weeks or days):
        raise CannotSayError("its interval mixes months and days")
    parts = {"years": years, "months": months, "weeks": weeks, "days": days}
    calendar: dict[str, Any] = {name: part for name, part in parts.items() if part}
    calendar |= {"at": f"{hour:02}:{minute:02}:{second:02}", "start": start}
    words: dict[str, Any] = {"calendar": calendar}
    if zone != "UTC":
        words["tz"] = zone
    stock = CalendarIntervalTrigger(
        **parts, hour=hour, minute=minute, second=second, start_date=start, timezone=zone_named(zone)
    )
    return words, _series(stock)


def _series(stock: Any) -> Series:
    def fires(start: datetime) -> Iterator[datetime]:
        fire = stock.get_next_fire_time(None, start)
        while fire is not None:
            moment = fire.astimezone(UTC)
            if moment > start:
                yield moment
            # As its scheduler asks: shortly after the fire, by a clock in the trigger's zone.
            fire = stock.get_next_fire_time(fire, (moment + _SHORTLY).astimezone(fire.tzinfo))

    return fires


def _zone(value: Any) -> str:
    """The IANA name of a pickled zone: of zoneinfo, pytz or the standard library's UTC."""
    if isinstance(value, Thing):
        name, arguments = value.name, value.arguments
        of_zoneinfo = isinstance(value.of, Thing) and value.of.name in _GETATTR
        is_named = isinstance(arguments, tuple) and bool(arguments) and isinstance(arguments[0], str)
        if is_named and (of_zoneinfo or name in ("pytz._p", "zoneinfo.ZoneInfo._unpickle")):
            return str(arguments[0])
        if name in ("pytz._UTC", "datetime.timezone") and (not arguments or _is_zero(arguments[0])):
            return "UTC"
    if isinstance(value, Name) and str(value) in ("pytz.utc", "pytz.UTC"):
        return "UTC"
    raise CannotSayError("its time zone has no IANA name that can be read")


def _is_zero(value: Any) -> bool:
    return not _length(value)


def _length(value: Any) -> timedelta:
    if isinstance(value, Thing) and value.name == "datetime.timedelta" and isinstance(value.arguments, tuple):
        days, seconds, microseconds = (*map(_number, value.arguments), 0, 0, 0)[:3]
        try:
            return timedelta(days, seconds, microseconds)
        except OverflowError:
            raise NotInertError("it has a length of time that is too long") from None
    raise NotInertError("it has no length of time where one should be")


def _moment(value: Any, zone: Any) -> datetime:
    """A pickled datetime, which is ten bytes and a zone."""
    if not (isinstance(value, Thing) and value.name == "datetime.datetime" and value.arguments):
        raise NotInertError("it has no moment where one should be")
    first, *zones = value.arguments
    data = _bytes(first)
    if len(data) != 10:
        raise NotInertError("it has a moment that can't be read")
    year, month, day, hour, minute, second, high, low = struct.unpack(">HBBBBBBH", data)
    where: tzinfo = zone_named(_zone(zones[0] if zones else zone))
    try:
        fold, month = divmod(month, 128)
        wall = datetime(year, month, day, hour, minute, second, (high << 16) | low, where, fold=fold)
        return wall.astimezone(UTC)
    except (ValueError, OverflowError):
        raise NotInertError("it has a moment that can't be read") from None


def _date(value: Any) -> str:
    if isinstance(value, Thing) and value.name == "datetime.date" and isinstance(value.arguments, tuple):
        data = _bytes(value.arguments[0])
        if len(data) == 4:
            year, month, day = struct.unpack(">HBB", data)
            return f"{year:04}-{month:02}-{day:02}"
    raise NotInertError("it has no date where one should be")


def _bytes(value: Any) -> bytes:
    """Bytes, which protocol 2 writes as a text in Latin-1."""
    if isinstance(value, Thing) and value.name == "_codecs.encode":
        value = str(value.arguments[0]).encode("latin-1")
    if not isinstance(value, bytes):
        raise NotInertError("it has no bytes where some should be")
    return value


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(below) for key, below in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    return value is None or isinstance(value, str | int | float | bool)
