"""Reading the ledger of one scheduler name for the API and the page, in bounded queries.

Runs are found by the indexes that the ledger has: by id, or by (schedule, kind, fire time). What is
asked here waits for no writer, and PostgreSQL ends it after a few seconds: looking must not
cost the scheduler anything.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    ScalarSelect,
    Select,
    and_,
    func,
    or_,
    select,
    text,
    union_all,
)
from sqlalchemy.sql.elements import ColumnElement

from lockd_scheduler.audit import audit
from lockd_scheduler.dialects import now_of
from lockd_scheduler.durations import parse_duration
from lockd_scheduler.engines import reading
from lockd_scheduler.outputs import read_output
from lockd_scheduler.runs import ENDS, LIVE, State
from lockd_scheduler.tables import attempt, backfill, office, outbox, run, schedule, schedule_revision
from lockd_scheduler.web import models
from lockd_scheduler.web.job_rows import KINDS, facts_of, job_of, starred
from lockd_scheduler.web.problems import ProblemError

STATEMENT_MS = 5_000
RUNS_DRAWN_MAX = 1_500
"""So many runs of each kind a line of the timeline is drawn from; a job of every minute has 1,440 a day."""

_RUN_COLUMNS = [run.c[name] for name in models.Run.model_fields if name != "job"]
_ATTEMPT_COLUMNS = [attempt.c[name] for name in models.Attempt.model_fields]


@dataclass(frozen=True)
class Cell:
    """The runs of one job whose fire times fall into one slice of a timeline."""

    slice: int
    """Counted from 0, the oldest."""
    states: Mapping[str, int]


@dataclass(frozen=True)
class Timeline:
    """Of some jobs, the runs of a span of time, in slices of equal length."""

    start: datetime
    slice_length: timedelta
    slices: int
    cells: Mapping[int, Sequence[Cell]] = field(default_factory=dict)
    """By the schedule's id."""
    cut: Mapping[int, datetime] = field(default_factory=dict)
    """By the schedule's id, up to when nothing was looked at: it has too many runs for that."""


class Queries:
    """All answers are of one scheduler name (`scope`)."""

    def __init__(self, engine: Engine, scope: str, *, version: str) -> None:
        self._engine = engine
        self._scope = scope
        self._version = version
        # It computes every fire again: several at a time would take the processor from the scheduler.
        self._one_audit = threading.Lock()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with reading(self._engine) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text(f"SET LOCAL statement_timeout = {STATEMENT_MS}"))
            yield connection

    def status(self, here: str | None) -> models.Status:
        """How the scheduler stands; `here` is what the process that asks says of itself."""
        jobs = select(func.count()).select_from(schedule)
        live = self._runs(select(func.count()))
        with self._reading() as connection:
            held = connection.execute(select(office).where(office.c.scope == self._scope)).one_or_none()
            return models.Status(
                scheduler=self._scope,
                version=self._version,
                now=connection.execute(select(now_of(connection))).scalar_one(),
                office_token=0 if held is None else held.token,
                active=None if held is None else held.holder,
                here=here,
                jobs=connection.scalar(
                    jobs.where(schedule.c.scope == self._scope, schedule.c.parked_at.is_(None))
                )
                or 0,
                live_runs=connection.scalar(live.where(run.c.state.in_(LIVE))) or 0,
                notices_pending=count_notices(connection, self._scope),
            )

    def now(self) -> datetime:
        """The database's time."""
        with self._reading() as connection:
            return connection.execute(select(now_of(connection))).scalar_one()

    def live_figures(self) -> tuple[dict[str, int], int, float]:
        """Live runs by state, notices that wait, and for how many seconds the oldest due fire has."""
        live = self._runs(select(run.c.state, func.count().label("many")))
        due = select(func.min(schedule.c.next_fire_at)).where(
            schedule.c.scope == self._scope, schedule.c.parked_at.is_(None), schedule.c.paused_at.is_(None)
        )
        with self._reading() as connection:
            rows = connection.execute(live.where(run.c.state.in_(LIVE)).group_by(run.c.state)).all()
            now = connection.execute(select(now_of(connection))).scalar_one()
            oldest = connection.scalar(due)
            notices = count_notices(connection, self._scope)
        states = dict.fromkeys(sorted(state.value for state in LIVE), 0) | {
            row.state: row.many for row in rows
        }
        overdue = 0.0 if oldest is None else max((now - oldest).total_seconds(), 0.0)
        return states, notices, overdue

    def jobs(self, asked: models.ListJobs) -> tuple[models.JobPage, list[int]]:
        """A page of jobs by name, and their schedules' ids."""
        query = select(schedule).where(schedule.c.scope == self._scope).order_by(schedule.c.name)
        if asked.after is not None:
            query = query.where(schedule.c.name > asked.after)
        if asked.match:
            query = query.where(schedule.c.name.contains(asked.match, autoescape=True))
        with self._reading() as connection:
            rows = connection.execute(query.limit(asked.limit + 1)).all()
            shown = rows[: asked.limit]
            facts = facts_of(connection, shown)
        page = models.JobPage(
            jobs=[job_of(row, facts, asked.fires) for row in shown],
            next=shown[-1].name if len(rows) > len(shown) else None,
        )
        return page, [row.id for row in shown]

    def job(self, name: str, *, fires: int) -> tuple[models.JobDetail, int] | None:
        """One job, and its schedule's id; None if there is none of that name."""
        query = select(schedule).where(schedule.c.scope == self._scope, schedule.c.name == name)
        with self._reading() as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                return None
            job = job_of(row, facts_of(connection, [row]), fires)
        return models.JobDetail(**job.model_dump(), definition=starred(row.definition)), row.id

    def runs(self, asked: models.ListRuns) -> models.RunPage:
        """A page of runs, newest id first. Raises ProblemError if it is of a job that is not there."""
        columns = select(schedule.c.name.label("job"), *_RUN_COLUMNS).join_from(run, schedule)
        with self._reading() as connection:
            of = None if asked.job is None else self._id_of(connection, asked.job)
            ids = list(connection.scalars(self._newest_runs(asked, of)))
            shown = ids[: asked.limit]
            rows = connection.execute(columns.where(run.c.id.in_(shown)).order_by(run.c.id.desc())).mappings()
            return models.RunPage(
                runs=[models.Run(**row) for row in rows], next=shown[-1] if len(ids) > len(shown) else None
            )

    def _newest_runs(self, asked: models.ListRuns, of: int | None) -> Select[int]:
        """The ids of a page's runs and of one more, read in order until there are enough."""
        before = [] if asked.before is None else [run.c.id < asked.before]
        newest = select(run.c.id).where(*before).order_by(run.c.id.desc()).limit(asked.limit + 1)
        if of is None:
            # Asked of each run instead of joined: else SQLite begins with the schedules, and sorts all runs.
            owner = select(schedule.c.scope).where(schedule.c.id == run.c.schedule_id).scalar_subquery()
            newest = newest.where(owner == self._scope)
            return newest if asked.state is None else newest.where(run.c.state == asked.state)
        # By state, as the index has them: a job of every second has a hundred thousand runs a day.
        states = list(State) if asked.state is None else [asked.state]
        parts = [newest.where(run.c.state == state, run.c.schedule_id == of).subquery() for state in states]
        found = union_all(*(select(part.c.id) for part in parts)).subquery()
        return select(found.c.id).order_by(found.c.id.desc()).limit(asked.limit + 1)

    def run(self, run_id: int) -> models.RunDetail | None:
        """One run with its attempts; None if there is none."""
        query = self._runs(select(schedule.c.name.label("job"), *_RUN_COLUMNS)).where(run.c.id == run_id)
        tries = select(*_ATTEMPT_COLUMNS).where(attempt.c.run_id == run_id).order_by(attempt.c.number)
        with self._reading() as connection:
            row = connection.execute(query).mappings().one_or_none()
            if row is None:
                return None
            attempts = [models.Attempt(**one) for one in connection.execute(tries).mappings()]
        return models.RunDetail(**row, tries=attempts)

    def output(self, attempt_id: int, asked: models.ReadOutput) -> models.Output | None:
        """Pieces of an attempt's output; None if there is no such attempt."""
        query = (
            select(attempt.c.state)
            .join(run, run.c.id == attempt.c.run_id)
            .join(schedule, schedule.c.id == run.c.schedule_id)
            .where(schedule.c.scope == self._scope, attempt.c.id == attempt_id)
        )
        # The state comes first: what an attempt said is there once its row says that it has ended.
        with self._reading() as connection:
            state = connection.scalar(query)
        if state is None:
            return None
        pieces = read_output(self._engine, attempt_id, after=asked.after, limit=asked.limit)
        told = [
            models.Piece(number=one.number, stream=one.stream, written_at=one.written_at, text=one.text)
            for one in pieces
        ]
        return models.Output(pieces=told, ended=state in ENDS and len(told) < asked.limit)

    def backfills(self, asked: models.OfJob) -> models.Backfills:
        """The newest backfills first."""
        made = select(func.count()).where(run.c.backfill_id == backfill.c.id).scalar_subquery()
        live = (
            select(func.count())
            .where(run.c.backfill_id == backfill.c.id, run.c.state.in_(LIVE))
            .scalar_subquery()
        )
        columns = [backfill.c[name] for name in models.BackfillState.model_fields if name in backfill.c]
        query = (
            select(schedule.c.name.label("job"), made.label("runs"), live.label("live"), *columns)
            .join(schedule, schedule.c.id == backfill.c.schedule_id)
            .where(schedule.c.scope == self._scope)
            .order_by(backfill.c.id.desc())
            .limit(asked.limit)
        )
        with self._reading() as connection:
            if asked.job is not None:
                query = query.where(schedule.c.id == self._id_of(connection, asked.job))
            rows = connection.execute(query).mappings().all()
        return models.Backfills(backfills=[models.BackfillState(**row) for row in rows])

    def has_backfill(self, backfill_id: int) -> str | None:
        """The job of that backfill, if it is one of this scheduler name."""
        query = (
            select(schedule.c.name)
            .join(backfill, backfill.c.schedule_id == schedule.c.id)
            .where(schedule.c.scope == self._scope, backfill.c.id == backfill_id)
        )
        with self._reading() as connection:
            name: str | None = connection.scalar(query)
            return name

    def revisions(self, asked: models.OfJob) -> models.Revisions:
        """What was changed about schedules, the newest first."""
        columns = [
            schedule_revision.c[name]
            for name in models.Revision.model_fields
            if name not in ("job", "definition")
        ]
        query = (
            select(schedule.c.name.label("job"), schedule_revision.c.definition, *columns)
            .join(schedule, schedule.c.id == schedule_revision.c.schedule_id)
            .where(schedule.c.scope == self._scope)
            .order_by(schedule_revision.c.changed_at.desc(), schedule_revision.c.revision.desc())
            .limit(asked.limit)
        )
        with self._reading() as connection:
            if asked.job is not None:
                query = query.where(schedule.c.id == self._id_of(connection, asked.job))
            rows = connection.execute(query).mappings().all()
        return models.Revisions(
            revisions=[models.Revision(**{**row, "definition": starred(row["definition"])}) for row in rows]
        )

    def audit(self, asked: models.Judge) -> models.Audit:
        """Every nominal fire and what became of it; one audit at a time.

        Raises BadSchedule for a `since` that is none, ProblemError for a job that is not there.
        """
        now = self.now()
        since = now - parse_duration(asked.since)
        if asked.job is not None:
            with self._reading() as connection:
                self._id_of(connection, asked.job)  # a name that is mistyped has missed nothing either
        if not self._one_audit.acquire(blocking=False):
            raise ProblemError(429, "busy", "another audit is under way: ask again when it is done")
        try:
            found = audit(self._engine, since=since, now=now, scope=self._scope, job=asked.job)
            words = [one.to_json() for one in found]
        finally:
            self._one_audit.release()
        jobs = [
            models.JobAudit(**{name: one[name] for name in models.JobAudit.model_fields}) for one in words
        ]
        missed = sum(miss.count for one in jobs for miss in one.misses)
        return models.Audit(since=since, until=now, jobs=jobs, real_misses=missed)

    def timeline(
        self, schedule_ids: Sequence[int], *, start: datetime, end: datetime, slices: int
    ) -> Timeline:
        """Of these schedules, the runs with fire times in [start, end), by slice and state.

        Of one that has had more than some `RUNS_DRAWN_MAX` of them only so many are looked at, the newest.
        """
        length = (end - start) / slices
        with self._reading() as connection:
            crowded = _crowded(connection, schedule_ids, start, end)
            quiet = [one for one in schedule_ids if one not in crowded]
            wanted = [and_(run.c.schedule_id.in_(quiet), run.c.fire_time >= start)] if quiet else []
            wanted += [and_(run.c.schedule_id == one, run.c.fire_time > cut) for one, cut in crowded.items()]
            second = _seconds(connection, run.c.fire_time) - int(start.timestamp())
            part = func.floor(second / length.total_seconds()).label("part")
            query = (
                select(run.c.schedule_id, part, run.c.state, func.count().label("many"))
                .where(or_(*wanted), run.c.kind.in_(KINDS), run.c.fire_time < end)
                .group_by(run.c.schedule_id, part, run.c.state)
            )
            rows = connection.execute(query).all() if wanted else []
        counts: dict[int, dict[int, dict[str, int]]] = {}
        for row in rows:
            counts.setdefault(row.schedule_id, {}).setdefault(int(row.part), {})[row.state] = row.many
        cells = {
            schedule_id: [Cell(part, states) for part, states in sorted(parts.items())]
            for schedule_id, parts in counts.items()
        }
        return Timeline(start, length, slices, cells, crowded)

    def _id_of(self, connection: Connection, job: str) -> int:
        found: int | None = connection.scalar(
            select(schedule.c.id).where(schedule.c.scope == self._scope, schedule.c.name == job)
        )
        if found is None:
            raise ProblemError(404, "not found", f"there is no job {job!r}")
        return found

    def _runs(self, query: Select[Any]) -> Select[Any]:
        return query.join_from(run, schedule, schedule.c.id == run.c.schedule_id).where(
            schedule.c.scope == self._scope
        )


def count_notices(connection: Connection, scope: str) -> int:
    """How many notices have not left yet and are still tried."""
    query = select(func.count()).where(outbox.c.scope == scope, outbox.c.next_try_at.is_not(None))
    return connection.scalar(query) or 0


def _crowded(
    connection: Connection, schedule_ids: Sequence[int], start: datetime, end: datetime
) -> dict[int, datetime]:
    """Schedules with too many runs to look at all, and the fire time up to which they are left out."""

    def cut(kind: str) -> ScalarSelect[datetime]:
        fires = (
            select(run.c.fire_time)
            .where(run.c.schedule_id == schedule.c.id, run.c.kind == kind)
            .where(run.c.fire_time >= start, run.c.fire_time < end)
        )
        too_many = fires.order_by(run.c.fire_time.desc()).offset(RUNS_DRAWN_MAX).limit(1)
        return too_many.correlate(schedule).scalar_subquery()

    query = select(schedule.c.id, *(cut(kind).label(kind) for kind in KINDS))
    rows = connection.execute(query.where(schedule.c.id.in_(schedule_ids))).all()
    return {
        number: max(known) for number, *cuts in rows if (known := [one for one in cuts if one is not None])
    }


def _seconds(connection: Connection, column: ColumnElement[datetime]) -> ColumnElement[int]:
    """Since 1970, as a number."""
    if connection.dialect.name in ("mysql", "mariadb"):
        return func.timestampdiff(text("SECOND"), text("'1970-01-01'"), column)
    return func.extract("epoch", column)
