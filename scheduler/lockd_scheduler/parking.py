"""Jobs from files whose function has gone: parked with a reason, looked for, and brought back.

A decorated job that has gone from the code is parked when the office is taken. One that a file names by
`module:function` is found to have gone when it is run; its schedule is parked then, and a fresh
interpreter looks every few seconds whether the function is there again. A module that is there and
raises as it is imported is a failure of the run, like any other error.
"""

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime

from sqlalchemy import Connection, Engine, select

from lockd_scheduler.engines import reading
from lockd_scheduler.jobs import JobSpec
from lockd_scheduler.revisions import change_schedule
from lockd_scheduler.tables import AnyRow, office, schedule, schedule_revision

logger = logging.getLogger("lockd_scheduler")

LOOK_SECONDS = 15.0
LOOK_SECONDS_MAX = 30.0
"""So long a module may take to be imported."""
NOTE_CHARACTERS_MAX = 500
_GONE = "its function has gone: "
_LOOK = (
    "import importlib, json, sys\n"
    "words = json.loads(sys.argv[1])\n"
    "sys.path[:] = words['path']\n"
    "from lockd_scheduler.finding import finding_jobs\n"
    "with finding_jobs(words['module']):\n"
    "    found = importlib.import_module(words['module'])\n"
    "for part in words['name'].split('.'):\n"
    "    found = getattr(found, part)\n"
    "sys.exit(0 if callable(found) else 1)\n"
)


def park_gone(engine: Engine, scope: str, spec: JobSpec, why: str, *, now: datetime) -> None:
    """Park the schedule, if it is still that job's and not parked yet. Can be asked twice."""
    with engine.begin() as connection:
        row = _held(connection, scope, spec.name)
        if row is None or row.parked_at is not None or row.definition != spec.to_json():
            return
        told = (_GONE + why)[:NOTE_CHARACTERS_MAX]
        change_schedule(connection, row, "parked", {"parked_at": now}, note=told, now=now)
    logger.warning("job parked job=%s: %s%s", spec.name, _GONE, why)


def gone_jobs(engine: Engine, scope: str) -> list[JobSpec]:
    """The jobs that are parked because their functions had gone."""
    newest = (
        select(schedule_revision.c.schedule_id, schedule_revision.c.note)
        .join(schedule, schedule.c.id == schedule_revision.c.schedule_id)
        .where(schedule.c.scope == scope, schedule.c.parked_at.is_not(None))
        .where(schedule_revision.c.change == "parked")
        .order_by(schedule_revision.c.schedule_id, schedule_revision.c.revision)
    )
    with reading(engine) as connection:
        notes = {row.schedule_id: row.note or "" for row in connection.execute(newest)}
        gone = [schedule_id for schedule_id, note in notes.items() if note.startswith(_GONE)]
        rows = connection.execute(select(schedule).where(schedule.c.id.in_(gone))).all()
    return [JobSpec.from_json(row.name, row.definition) for row in rows]


def bring_back(engine: Engine, scope: str, spec: JobSpec, *, now: datetime) -> None:
    """Let the schedule go on where it was parked: what it missed gets its rows."""
    with engine.begin() as connection:
        row = _held(connection, scope, spec.name)
        if row is None or row.parked_at is None or row.definition != spec.to_json():
            return
        back = "its function is there again"
        change_schedule(connection, row, "resumed", {"parked_at": None}, note=back, now=now)
    logger.info("job resumed, its function is there again job=%s", spec.name)


def is_there(reference: str, is_over: threading.Event) -> bool:
    """Whether a fresh interpreter finds the function `module:name`, before it is over."""
    module, _, name = reference.partition(":")
    words = json.dumps({"path": sys.path, "module": module, "name": name})
    give_up = time.monotonic() + LOOK_SECONDS_MAX
    nothing = subprocess.DEVNULL
    command = [sys.executable, "-c", _LOOK, words]
    with subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing) as looking:  # noqa: S603 - our own interpreter
        while looking.poll() is None and time.monotonic() < give_up and not is_over.wait(0.1):
            pass
        looking.kill()
        return looking.wait() == 0


def look_for_gone(engine: Engine, scope: str, is_over: threading.Event, now: Callable[[], datetime]) -> None:
    """Bring back the jobs whose functions are there again. Raises SQLAlchemy's errors."""
    for spec in gone_jobs(engine, scope):
        if is_there(spec.runner["function"], is_over):
            bring_back(engine, scope, spec, now=now())


def _held(connection: Connection, scope: str, name: str) -> AnyRow | None:
    # No transaction of the office runs beside this one, as with `apply`.
    connection.execute(select(office.c.token).where(office.c.scope == scope).with_for_update())
    query = select(schedule).where(schedule.c.scope == scope, schedule.c.name == name)
    return connection.execute(query.with_for_update()).one_or_none()
