"""A Celery beat schedule: the dictionary `beat_schedule`, or the app that has one.

It is Python, the user's own, and is imported like a jobs.py. A job sends its task through Celery's own
command, so that the workers of before go on working. Schedules are known by their attributes: nothing of
Celery is imported here.
"""

import json
import shlex
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from lockd_scheduler.durations import format_duration
from lockd_scheduler.errors import BadSchedule
from lockd_scheduler.importers.imported import Imported, free_name
from lockd_scheduler.loading import load_module

_APP_NAMES = ("app", "celery", "celery_app")
_OPTIONS = ("queue", "exchange", "routing_key", "expires", "countdown", "serializer")
_DST = (
    "Celery keeps time by its last run and the wall clock, and no series can be told beforehand; here a"
    " time that clocks skip fires once after the gap, and one that repeats the first time only"
)


def read_beat(reference: str, *, tz: str | None) -> list[Imported]:
    """The entries of `module:attribute`, `file.py:attribute`, or a module with an app or `beat_schedule`.

    `tz`: the schedule's zone, where no app says it. Raises BadSchedule.
    """
    place, colon, attribute = reference.partition(":")
    module = load_module(place)
    if colon:
        found = getattr(module, attribute, None)
    else:
        names = (name for name in (*_APP_NAMES, "beat_schedule") if name in vars(module))
        found = vars(module).get(next(names, ""))
    conf = getattr(found, "conf", None)
    entries = found if conf is None else getattr(conf, "beat_schedule", None)
    if not isinstance(entries, Mapping):
        raise BadSchedule(f"{reference}: there is no Celery app or beat_schedule; name it, like {place}:app")
    zone = tz or str(getattr(conf, "timezone", None) or "UTC")
    app = None if conf is None else place.removesuffix(".py").replace("/", ".")
    taken: set[str] = set()
    return [_job(str(name), entry, taken, app=app, tz=zone) for name, entry in entries.items()]


def _job(name: str, entry: Any, taken: set[str], *, app: str | None, tz: str) -> Imported:
    one = Imported(free_name(name, taken), f"entry {name!r}", None)
    if not isinstance(entry, Mapping) or not isinstance(entry.get("task"), str):
        one.notes.append("not imported: it has no task")
        return one
    try:
        words = _timing(entry.get("schedule"), tz, one.notes)
        words["run"] = {"shell": _command(entry, app, one.notes)}
    except BadSchedule as error:
        one.notes.append(f"not imported: {error}")
        return one
    words["overlap"] = "allow"
    one.words = words
    return one


def _timing(schedule: Any, tz: str, notes: list[str]) -> dict[str, Any]:
    if hasattr(schedule, "_orig_minute"):
        names = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
        fields = [_field(getattr(schedule, f"_orig_{name}")) for name in names]
        if fields[2] != "*" and fields[4] != "*":
            raise BadSchedule("it asks for a day of the month and of the week at once, and cron takes either")
        words = {"schedule": " ".join(fields)}
        if tz != "UTC":
            words["tz"] = tz
            notes.append(_DST)
        return words
    length = getattr(schedule, "run_every", schedule)
    if isinstance(length, int | float) and not isinstance(length, bool):
        length = timedelta(seconds=length)
    if not isinstance(length, timedelta):
        raise BadSchedule(f"a schedule of the kind {type(schedule).__name__} has no counterpart here")
    notes.append("it was counted from its last run; here all processes have the same moments")
    return {"every": format_duration(length)}


def _field(value: Any) -> str:
    if isinstance(value, str):
        return "".join(value.split())
    if isinstance(value, Iterable):
        return ",".join(map(str, sorted(value)))
    return str(value)


def _command(entry: Mapping[str, Any], app: str | None, notes: list[str]) -> str:
    if app is None:
        notes.append("no app is known: put its module in the command, in place of APP")
    parts = ["celery", "-A", app or "APP", "call", entry["task"]]
    for name in ("args", "kwargs"):
        given = entry.get(name)
        if given:
            try:
                parts.append(f"--{name}={json.dumps(given, allow_nan=False)}")
            except (TypeError, ValueError):
                raise BadSchedule(f"its {name} are not JSON") from None
    for option, value in sorted((entry.get("options") or {}).items()):
        if option in _OPTIONS and isinstance(value, str | int | float):
            parts.append(f"--{option.replace('_', '-')}={value}")
        else:
            notes.append(f"its option {option!r} has no counterpart in `celery call`")
    return shlex.join(parts)
