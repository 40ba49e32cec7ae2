"""Backfills: the fires of a past range, run a few at a time."""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select, update

from lockd_scheduler.dialects import insert_if_new
from lockd_scheduler.jobs import JobSpec
from lockd_scheduler.mandates import BACKFILL
from lockd_scheduler.runs import LIVE, State
from lockd_scheduler.tables import AnyRow, backfill, run, schedule


def fill_back(connection: Connection, scope: str, now: datetime) -> None:
    """Make the next runs of every backfill that has room for them, and end those that are through.

    A fire of the range has one run for each backfill, whatever the schedule itself made of it.
    """
    rows = connection.execute(
        select(backfill, schedule.c.name, schedule.c.definition)
        .join(schedule, schedule.c.id == backfill.c.schedule_id)
        .where(schedule.c.scope == scope, schedule.c.parked_at.is_(None), backfill.c.ended_at.is_(None))
        .with_for_update(of=backfill)
    ).all()
    for row in rows:
        live = connection.scalar(
            select(func.count()).where(run.c.backfill_id == row.id, run.c.state.in_(LIVE))
        )
        assert live is not None
        spec = JobSpec.from_json(row.name, row.definition)
        fire: datetime | None = row.next_fire_at
        fires: list[datetime] = []
        while fire is not None and fire < row.end_at and live + len(fires) < row.parallel:
            fires.append(fire)
            fire = spec.trigger.next_after(fire)
        if fires:
            connection.execute(
                insert_if_new(connection, run), [_run_values(row, one, spec, now) for one in fires]
            )
        is_through = fire is None or fire >= row.end_at
        connection.execute(
            update(backfill)
            .where(backfill.c.id == row.id)
            .values(
                next_fire_at=None if is_through else fire,
                ended_at=now if is_through and live + len(fires) == 0 else None,
            )
        )


def _run_values(row: AnyRow, fire: datetime, spec: JobSpec, now: datetime) -> dict[str, Any]:
    return {
        "schedule_id": row.schedule_id,
        "kind": BACKFILL,
        "fire_time": fire,
        "key": str(row.id),
        "state": State.CLAIMED,
        "args": dict(spec.args),
        "attempts": 0,
        "next_attempt_at": now,
        "claimed_at": now,
        "backfill_id": row.id,
        "asked_by": row.asked_by,
    }
