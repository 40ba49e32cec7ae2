"""Runs that have not begun though their jobs call them late by now: told while they still wait.

Whatever keeps a run from beginning, a queue, a full service, an engine without workers, a job that is
parked, is what somebody should know before it has passed. A run that begins late is told as it begins
(`attempts`), unless it was told here.
"""

from datetime import datetime

from sqlalchemy import Connection, Text, cast, select

from lockd_scheduler.ending import notify_late
from lockd_scheduler.jobs import JobSpec
from lockd_scheduler.mandates import SCHEDULED
from lockd_scheduler.runs import State
from lockd_scheduler.tables import run, schedule

RUNS_AT_ONCE_MAX = 500


def tell_unbegun(connection: Connection, scope: str, *, after_id: int, now: datetime) -> int:
    """Look at some runs after the one with that id; returns where to go on, 0 after the last.

    A run whose worker is just beginning it is passed over: that tells of it, if it is late.
    """
    definition = cast(schedule.c.definition, Text)
    rows = connection.execute(
        select(run.c.id, run.c.fire_time, schedule.c.name, definition.label("definition"))
        .join(schedule, schedule.c.id == run.c.schedule_id)
        .where(schedule.c.scope == scope, run.c.kind == SCHEDULED, run.c.state == State.CLAIMED)
        .where(run.c.started_at.is_(None), run.c.fire_time < now, run.c.id > after_id)
        # Few jobs ask for it; what else has these letters in it is sorted out below.
        .where(definition.contains("alert_if_late"))
        .order_by(run.c.id)
        .limit(RUNS_AT_ONCE_MAX)
        .with_for_update(of=run, skip_locked=True)
    ).all()
    late = [
        row.id
        for row in rows
        if JobSpec.from_text(row.name, row.definition).policy.tells_late(row.fire_time, now)
    ]
    notify_late(connection, late, now)
    return rows[-1].id if len(rows) == RUNS_AT_ONCE_MAX else 0
