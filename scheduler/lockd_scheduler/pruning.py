"""Forgetting the past of schedules, as far as their `keep` allows."""

from datetime import datetime, timedelta

from sqlalchemy import Connection, Row, delete, func, select, update

from lockd_scheduler.policies import Keep, Policy
from lockd_scheduler.runs import LIVE
from lockd_scheduler.tables import attempt, output, run, schedule

SCHEDULES_AT_ONCE_MAX = 200
RUNS_AT_ONCE_MAX = 500


def prune(connection: Connection, scope: str, *, after_id: int, now: datetime) -> int:
    """Look at some schedules after the one with that id; returns where to go on, 0 after the last.

    Runs that live are kept, and so is the newest of each schedule. How far a schedule's past was
    forgotten stands in its row, so that an audit doesn't take it for missed fires.
    """
    rows = connection.execute(
        select(schedule.c.id, schedule.c.definition, schedule.c.pruned_until)
        .where(schedule.c.scope == scope, schedule.c.id > after_id)
        .order_by(schedule.c.id)
        .limit(SCHEDULES_AT_ONCE_MAX)
    ).all()
    for row in rows:
        keep = Policy.from_json(row.definition["policy"]).keep
        if keep != Keep():
            _prune_one(connection, row.id, keep, now)
    return rows[-1].id if len(rows) == SCHEDULES_AT_ONCE_MAX else 0


def _prune_one(connection: Connection, schedule_id: int, keep: Keep, now: datetime) -> None:
    ended = (
        select(run.c.id, run.c.fire_time, run.c.skipped_until)
        .where(run.c.schedule_id == schedule_id, run.c.state.not_in(LIVE))
        .order_by(run.c.fire_time.desc(), run.c.id.desc())
    )
    gone: list[Row[int, datetime, datetime | None]] = []
    if keep.runs is not None:
        gone += connection.execute(ended.offset(keep.runs).limit(RUNS_AT_ONCE_MAX)).all()
    if keep.days is not None:
        newest = connection.scalar(select(func.max(run.c.id)).where(run.c.schedule_id == schedule_id))
        old = ended.where(run.c.fire_time < now - timedelta(days=keep.days), run.c.id != newest)
        gone += connection.execute(old.limit(RUNS_AT_ONCE_MAX)).all()
    newest_ids = _newest_ids(connection)
    gone = [row for row in gone if row.id not in newest_ids]
    if not gone:
        return
    ids = [row.id for row in gone]
    attempts = select(attempt.c.id).where(attempt.c.run_id.in_(ids))
    connection.execute(delete(output).where(output.c.attempt_id.in_(attempts)))
    connection.execute(delete(attempt).where(attempt.c.run_id.in_(ids)))
    connection.execute(delete(run).where(run.c.id.in_(ids)))
    until = max(row.skipped_until or row.fire_time for row in gone)
    is_further = (schedule.c.pruned_until.is_(None)) | (schedule.c.pruned_until < until)
    connection.execute(
        update(schedule).where(schedule.c.id == schedule_id, is_further).values(pruned_until=until)
    )


def _newest_ids(connection: Connection) -> set[int | None]:
    """The runs with the highest ids: SQLite would give those out again, and a stale worker may know them."""
    newest_attempt = select(func.max(attempt.c.id)).scalar_subquery()
    return {
        connection.scalar(select(func.max(run.c.id))),
        connection.scalar(select(attempt.c.run_id).where(attempt.c.id == newest_attempt)),
    }
