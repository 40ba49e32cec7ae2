"""Runs that may have their next attempt: those let in from a queue, after a delay, or to try again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, exists, select, update

from lockd_scheduler.dialects import among, insert_rows, update_rows
from lockd_scheduler.mandates import Claimed, Mandate
from lockd_scheduler.runs import LIVE, State
from lockd_scheduler.tables import attempt, run, schedule

STARTS_AT_ONCE_MAX = 500


@dataclass(frozen=True)
class Start:
    """A run that is to have its attempt `number`."""

    run_id: int
    job: str
    kind: str
    fire_time: datetime
    key: str
    number: int
    args: Mapping[str, Any]


def let_in_waiting(connection: Connection, scope: str, now: datetime) -> None:
    """Give the first of each queue its turn, if no other run of its schedule is under way."""
    other = run.alias("other")
    under_way = exists().where(
        other.c.schedule_id == run.c.schedule_id, other.c.state.in_(LIVE), other.c.queued_at.is_(None)
    )
    waiting = connection.execute(
        select(run.c.id, run.c.schedule_id)
        .join(schedule, schedule.c.id == run.c.schedule_id)
        .where(schedule.c.scope == scope, schedule.c.parked_at.is_(None))
        .where(run.c.queued_at.is_not(None), run.c.state == State.CLAIMED, ~under_way)
        .order_by(run.c.fire_time, run.c.id)
        .limit(STARTS_AT_ONCE_MAX)
    ).all()
    first: dict[int, int] = {}
    for row in waiting:
        first.setdefault(row.schedule_id, row.id)
    if first:
        connection.execute(
            update(run)
            .where(among(connection, run.c.id, first.values()), run.c.state == State.CLAIMED)
            .values(queued_at=None, next_attempt_at=now)
        )


def claim_startable(connection: Connection, mandate: Mandate, now: datetime) -> list[Claimed]:
    """Claim an attempt of every run whose moment for it has come."""
    rows = connection.execute(
        select(run.c.id, schedule.c.name, run.c.kind, run.c.fire_time, run.c.key, run.c.attempts, run.c.args)
        .join(schedule, schedule.c.id == run.c.schedule_id)
        .where(schedule.c.scope == mandate.scope, schedule.c.parked_at.is_(None))
        .where(run.c.state == State.CLAIMED, run.c.next_attempt_at <= now, run.c.cancel_asked_at.is_(None))
        .order_by(run.c.next_attempt_at)
        .limit(STARTS_AT_ONCE_MAX)
        .with_for_update(of=run)
    ).all()
    starts = [
        Start(row.id, row.name, row.kind, row.fire_time, row.key, row.attempts + 1, row.args) for row in rows
    ]
    update_rows(
        connection,
        run,
        [{"id": start.run_id, "attempts": start.number, "next_attempt_at": None} for start in starts],
    )
    return insert_attempts(connection, mandate, starts, now)


def insert_attempts(
    connection: Connection, mandate: Mandate, starts: Sequence[Start], now: datetime
) -> list[Claimed]:
    """One attempt for each of `starts`, in their order, under the next ordinals (R4)."""
    if not starts:
        return []
    rows = [(start, next(mandate.ordinals)) for start in starts]
    made = insert_rows(
        connection,
        attempt,
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
        returning=(attempt.c.id, attempt.c.run_id),
    )
    ids = {row.run_id: row.id for row in made}
    return [
        Claimed(
            attempt_id=ids[start.run_id],
            run_id=start.run_id,
            job=start.job,
            kind=start.kind,
            fire_time=start.fire_time,
            key=start.key,
            number=start.number,
            office_token=mandate.token,
            ordinal=ordinal,
            args=start.args,
        )
        for start, ordinal in rows
    ]
