"""Reading the ledger for people: the runs with their states, and a schedule by its name."""

from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, inspect, select

from lockd_scheduler.engines import reading
from lockd_scheduler.errors import SchedulerError
from lockd_scheduler.tables import run, schedule


@dataclass(frozen=True)
class RunLine:
    """One run as `lockd-scheduler runs` shows it. Moments are UTC."""

    id: int
    scheduler: str
    job: str
    kind: str
    fire_time: datetime
    state: str
    reason: str | None
    skipped_until: datetime | None
    attempts: int
    next_attempt_at: datetime | None
    claimed_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error: str | None

    def to_json(self) -> dict[str, Any]:
        """As JSON: moments in ISO 8601."""
        return {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in asdict(self).items()
        }


_RUN_COLUMNS = [field.name for field in fields(RunLine)][3:]


def check_is_ledger(engine: Engine) -> None:
    """Raise SchedulerError if the database has no ledger."""
    with reading(engine) as connection:
        if not inspect(connection).has_table(run.name):
            where = engine.url.render_as_string(hide_password=True)
            raise SchedulerError(f"{where} has no ledger yet: `lockd-scheduler serve` makes it")


def list_runs(engine: Engine, *, job: str | None, state: str | None, limit: int) -> list[RunLine]:
    """The newest runs by fire time, at most `limit`, newest first."""
    own = [run.c[name] for name in _RUN_COLUMNS]
    query = (
        select(run.c.id, schedule.c.scope, schedule.c.name, *own)
        .join(schedule, schedule.c.id == run.c.schedule_id)
        .order_by(run.c.fire_time.desc(), run.c.id.desc())
        .limit(limit)
    )
    if job is not None:
        query = query.where(schedule.c.name == job)
    if state is not None:
        query = query.where(run.c.state == state)
    with reading(engine) as connection:
        return [RunLine(*row) for row in connection.execute(query)]


def schedule_definition(engine: Engine, name: str) -> dict[str, Any] | None:
    """The definition of the schedule with that name; None if there is none."""
    query = select(schedule.c.definition).where(schedule.c.name == name).order_by(schedule.c.id).limit(1)
    with reading(engine) as connection:
        definition: dict[str, Any] | None = connection.scalar(query)
        return definition
