"""The body of the claim transaction (tx1): rows for due fires, attempts for those that are to run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy import Connection, Row, Table, select, update
from sqlalchemy.dialects import postgresql, sqlite

from lockd_scheduler.jobs import JobSpec
from lockd_scheduler.mandates import SCHEDULED, Batch, Claimed, Mandate
from lockd_scheduler.planner import Fire, Plan, plan
from lockd_scheduler.runs import LIVE, State
from lockd_scheduler.tables import attempt, run, schedule

SCHEDULES_AT_ONCE_MAX = 200

AnyRow: TypeAlias = Row[*tuple[Any, ...]]


def claim_due(
    connection: Connection, mandate: Mandate, specs: Mapping[str, JobSpec], *, now: datetime
) -> Batch:
    """Write and claim what is due; the caller has guarded the office and commits."""
    due = _due_schedules(connection, mandate.scope, now)
    live = _schedules_with_live_runs(connection, [row.id for row in due])
    fires: list[tuple[JobSpec, dict[str, Any]]] = []
    moves: list[tuple[int, Plan]] = []
    for row in due:
        spec = specs[row.name]
        planned = plan(
            spec.trigger,
            spec.policy,
            next_fire_at=row.next_fire_at,
            now=now,
            running=row.id in live,
        )
        fires += [(spec, _run_values(row.id, fire, spec, now)) for fire in planned.fires]
        moves.append((row.id, planned))
    claimed, skipped = _insert_runs(connection, mandate, fires, now)
    for schedule_id, planned in moves:
        connection.execute(
            update(schedule)
            .where(schedule.c.id == schedule_id)
            .values(next_fire_at=planned.next_fire_at, last_fire_at=planned.fires[-1].time)
        )
    claimed += _claim_further(connection, mandate, now)
    return Batch(tuple(claimed), skipped, _next_due(connection, mandate.scope))


def _due_schedules(connection: Connection, scope: str, now: datetime) -> Sequence[AnyRow]:
    return connection.execute(
        select(schedule.c.id, schedule.c.name, schedule.c.next_fire_at)
        .where(schedule.c.scope == scope, schedule.c.parked_at.is_(None))
        .where(schedule.c.next_fire_at <= now)
        .order_by(schedule.c.next_fire_at)
        .limit(SCHEDULES_AT_ONCE_MAX)
        .with_for_update()
    ).all()


def _insert_runs(
    connection: Connection,
    mandate: Mandate,
    fires: list[tuple[JobSpec, dict[str, Any]]],
    now: datetime,
) -> tuple[list[Claimed], int]:
    if not fires:
        return [], 0
    specs = {values["schedule_id"]: spec for spec, values in fires}
    columns = (run.c.id, run.c.schedule_id, run.c.fire_time, run.c.state)
    # Whoever finds the row there already leaves it alone: that fire has been dealt with (P5).
    statement = insert_into(connection, run).on_conflict_do_nothing().returning(*columns)
    made = connection.execute(statement, [values for _, values in fires]).all()
    starts = [
        Start(row.id, specs[row.schedule_id].name, row.fire_time, 1, specs[row.schedule_id].args)
        for row in sorted(made, key=lambda row: (row.fire_time, row.id))
        if row.state == State.CLAIMED
    ]
    return insert_attempts(connection, mandate, starts, now), len(made) - len(starts)


def _claim_further(connection: Connection, mandate: Mandate, now: datetime) -> list[Claimed]:
    rows = connection.execute(
        select(run.c.id, schedule.c.name, run.c.fire_time, run.c.attempts, run.c.args)
        .join(schedule, schedule.c.id == run.c.schedule_id)
        .where(schedule.c.scope == mandate.scope, schedule.c.parked_at.is_(None))
        .where(run.c.state == State.CLAIMED, run.c.next_attempt_at <= now)
        .order_by(run.c.next_attempt_at)
        .limit(SCHEDULES_AT_ONCE_MAX)
        .with_for_update(of=run)
    ).all()
    starts = [Start(row.id, row.name, row.fire_time, row.attempts + 1, row.args) for row in rows]
    for start in starts:
        connection.execute(
            update(run).where(run.c.id == start.run_id).values(attempts=start.number, next_attempt_at=None)
        )
    return insert_attempts(connection, mandate, starts, now)


def _next_due(connection: Connection, scope: str) -> datetime | None:
    fires = select(schedule.c.next_fire_at.label("due")).where(
        schedule.c.scope == scope,
        schedule.c.parked_at.is_(None),
        schedule.c.next_fire_at.is_not(None),
    )
    further = (
        select(run.c.next_attempt_at)
        .join(schedule, schedule.c.id == run.c.schedule_id)
        .where(schedule.c.scope == scope, schedule.c.parked_at.is_(None))
        .where(run.c.next_attempt_at.is_not(None))
    )
    soonest = [
        connection.scalar(fires.order_by(schedule.c.next_fire_at).limit(1)),
        connection.scalar(further.order_by(run.c.next_attempt_at).limit(1)),
    ]
    return min((moment for moment in soonest if moment is not None), default=None)


@dataclass(frozen=True)
class Start:
    """A run that is to have its attempt `number`."""

    run_id: int
    job: str
    fire_time: datetime
    number: int
    args: Mapping[str, Any]


def insert_attempts(
    connection: Connection, mandate: Mandate, starts: Sequence[Start], now: datetime
) -> list[Claimed]:
    """One attempt for each of `starts`, in their order, under the next ordinals (R4)."""
    if not starts:
        return []
    rows = [(start, next(mandate.ordinals)) for start in starts]
    made = connection.execute(
        attempt.insert().returning(attempt.c.id, attempt.c.run_id),
        [
            {
                "run_id": start.run_id,
                "number": start.number,
                "office_token": mandate.token,
                "ordinal": ordinal,
                "state": State.CLAIMED,
                "claimed_at": now,
            }
            for start, ordinal in rows
        ],
    )
    ids = {row.run_id: row.id for row in made}
    return [
        Claimed(
            attempt_id=ids[start.run_id],
            run_id=start.run_id,
            job=start.job,
            fire_time=start.fire_time,
            number=start.number,
            office_token=mandate.token,
            ordinal=ordinal,
            args=start.args,
        )
        for start, ordinal in rows
    ]


def insert_into(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that can be told what to do about a conflict, in the database's own words."""
    dialect = connection.dialect.name
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


def _schedules_with_live_runs(connection: Connection, schedule_ids: Sequence[int]) -> set[int]:
    return set(
        connection.scalars(
            select(run.c.schedule_id)
            .where(run.c.state.in_(LIVE), run.c.schedule_id.in_(schedule_ids))
            .distinct()
        )
    )


def _run_values(schedule_id: int, fire: Fire, spec: JobSpec, now: datetime) -> dict[str, Any]:
    return {
        "schedule_id": schedule_id,
        "kind": SCHEDULED,
        "fire_time": fire.time,
        "key": "",
        "state": State.CLAIMED if fire.skipped is None else State.SKIPPED,
        "reason": fire.skipped,
        "skipped_until": fire.until,
        "args": dict(spec.args),
        "attempts": 1 if fire.skipped is None else 0,
        "claimed_at": now,
    }
