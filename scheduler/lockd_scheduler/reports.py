"""Reading the ledger for people: schedulers, schedules, runs with their states, attempts."""

from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, Select, inspect, or_, select

from lockd_scheduler.engines import reading
from lockd_scheduler.errors import NoLedger, SchedulerError
from lockd_scheduler.tables import attempt, run, schedule


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
        return _plain(asdict(self))


@dataclass(frozen=True)
class AttemptLine:
    """One try of a run. Moments are UTC."""

    id: int
    number: int
    state: str
    worker: str | None
    claimed_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    exit_status: int | None
    error: str | None
    late_state: str | None
    """What a worker said whose attempt had been ended without it; it moved nothing (SAFETY R3)."""

    def to_json(self) -> dict[str, Any]:
        """As JSON: moments in ISO 8601."""
        return _plain(asdict(self))


_RUN_COLUMNS = [field.name for field in fields(RunLine)][3:]
_ATTEMPT_COLUMNS = [field.name for field in fields(AttemptLine)]


def check_is_ledger(engine: Engine) -> None:
    """Raise NoLedger if the database has none."""
    with reading(engine) as connection:
        if not inspect(connection).has_table(run.name):
            where = engine.url.render_as_string(hide_password=True)
            raise NoLedger(f"{where} has no ledger yet: `lockd-scheduler serve` or `db upgrade` makes it")


def list_scopes(engine: Engine) -> list[str]:
    """The names of the schedulers that have schedules, in order."""
    with reading(engine) as connection:
        return list(connection.scalars(select(schedule.c.scope).distinct().order_by(schedule.c.scope)))


def list_runs(
    engine: Engine,
    *,
    job: str | None,
    state: str | None,
    limit: int,
    scope: str | None = None,
    kind: str | None = None,
    since: datetime | None = None,
) -> list[RunLine]:
    """The newest runs by fire time, at most `limit`, newest first; `since`: those with a later fire time."""
    query = _runs().order_by(run.c.fire_time.desc(), run.c.id.desc()).limit(limit)
    wanted = {schedule.c.name: job, schedule.c.scope: scope, run.c.state: state, run.c.kind: kind}
    query = query.where(*(column == value for column, value in wanted.items() if value is not None))
    if since is not None:
        query = query.where(run.c.fire_time >= since)
    with reading(engine) as connection:
        return [RunLine(*row) for row in connection.execute(query)]


def one_run(engine: Engine, run_id: int) -> RunLine:
    """The run with that id. Raises SchedulerError if there is none."""
    with reading(engine) as connection:
        row = connection.execute(_runs().where(run.c.id == run_id)).one_or_none()
    if row is None:
        raise SchedulerError(f"the ledger has no run {run_id}")
    return RunLine(*row)


def list_attempts(engine: Engine, run_id: int) -> list[AttemptLine]:
    """The run's attempts, in order."""
    query = select(*(attempt.c[name] for name in _ATTEMPT_COLUMNS)).where(attempt.c.run_id == run_id)
    with reading(engine) as connection:
        return [AttemptLine(*row) for row in connection.execute(query.order_by(attempt.c.number))]


def job_meant(engine: Engine, word: str, scope: str | None = None) -> str | None:
    """The job that a person means: the one of that name, else the only one whose function is called so.

    "nightly" is `jobs:nightly` where no other module has one. None if there is none; raises
    SchedulerError if there are several.
    """
    query = select(schedule.c.name).where(
        or_(schedule.c.name == word, schedule.c.name.endswith(f":{word}", autoescape=True))
    )
    if scope is not None:
        query = query.where(schedule.c.scope == scope)
    with reading(engine) as connection:
        found = set(connection.scalars(query))
    if word in found:
        return word
    # Compared once more: a database's own comparison may take capitals for small letters.
    names = sorted(name for name in found if name.endswith(f":{word}"))
    if len(names) > 1:
        raise SchedulerError(f"{word!r} may be any of {', '.join(names[:10])}: name one in full")
    return names[0] if names else None


def schedule_definition(engine: Engine, name: str, scope: str | None = None) -> dict[str, Any] | None:
    """The definition of the schedule with that name; None if there is none.

    Raises SchedulerError if several schedulers have one and no `scope` chooses.
    """
    query = select(schedule.c.scope, schedule.c.definition).where(schedule.c.name == name)
    if scope is not None:
        query = query.where(schedule.c.scope == scope)
    with reading(engine) as connection:
        rows = connection.execute(query.order_by(schedule.c.scope).limit(10)).all()
    if len(rows) > 1:
        names = ", ".join(repr(row.scope) for row in rows)
        raise SchedulerError(f"the schedulers {names} have a job {name!r}: choose one with --scope")
    definition: dict[str, Any] | None = rows[0].definition if rows else None
    return definition


def _runs() -> Select[*tuple[Any, ...]]:
    own = [run.c[name] for name in _RUN_COLUMNS]
    return select(run.c.id, schedule.c.scope, schedule.c.name, *own).join(
        schedule, schedule.c.id == run.c.schedule_id
    )


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()
    }
