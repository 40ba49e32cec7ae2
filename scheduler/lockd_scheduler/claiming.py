"""The body of the claim transaction (tx1): rows for due fires, attempts for those that are to run."""

import json
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Text, cast, or_, select, update

from lockd_scheduler.backfilling import fill_back
from lockd_scheduler.dialects import among, insert_rows, update_rows
from lockd_scheduler.ending import cancel_unbegun
from lockd_scheduler.jobs import JobSpec
from lockd_scheduler.mandates import SCHEDULED, Batch, Claimed, Mandate
from lockd_scheduler.planner import Fire, Plan, plan
from lockd_scheduler.policies import jitter_of
from lockd_scheduler.revisions import Revision, write_revisions
from lockd_scheduler.runs import LIVE, State
from lockd_scheduler.starting import Start, claim_startable, insert_attempts, let_in_waiting
from lockd_scheduler.tables import AnyRow, backfill, run, schedule

SCHEDULES_AT_ONCE_MAX = 500

_DUE_COLUMNS = (
    schedule.c.id,
    schedule.c.name,
    cast(schedule.c.definition, Text).label("definition"),
    schedule.c.revision,
    schedule.c.next_fire_at,
    schedule.c.paused_at,
    schedule.c.paused_until,
    schedule.c.resumed_at,
)


def claim_due(connection: Connection, mandate: Mandate, *, now: datetime) -> Batch:
    """Write and claim what is due; the caller has guarded the office and commits."""
    skipped, claimed = _claim_fires(connection, mandate, _due_schedules(connection, mandate.scope, now), now)
    waiting = _what_waits(connection, mandate.scope)
    if waiting.backfills:
        fill_back(connection, mandate.scope, now)
    if waiting.cancels:
        cancel_unbegun(connection, mandate.scope, now)
    if waiting.queued or waiting.cancels:
        let_in_waiting(connection, mandate.scope, now)
    if waiting.startable or waiting.queued or waiting.backfills:
        claimed += claim_startable(connection, mandate, now)
    return Batch(tuple(claimed), skipped, _next_due(connection, mandate.scope))


def settle_fires(connection: Connection, mandate: Mandate, schedule_id: int, *, now: datetime) -> None:
    """Give what is due of one schedule its rows, before its trigger is changed (SAFETY P5)."""
    while due := _due_schedules(connection, mandate.scope, now, schedule_id):
        _claim_fires(connection, mandate, due, now)
    left = select(*_DUE_COLUMNS).where(schedule.c.id == schedule_id, schedule.c.next_fire_at <= now)
    # What is due and was not claimed is paused: it fell into the pause, which goes on.
    for row in connection.execute(left.where(schedule.c.parked_at.is_(None))).all():
        spec = JobSpec.from_text(row.name, row.definition)
        end = now + timedelta.resolution
        skipped = plan(
            spec.trigger, spec.policy, next_fire_at=row.next_fire_at, now=now, running=False, paused_until=end
        )
        _insert_runs(connection, mandate, [_Planned(row, spec, skipped)], now)


def _what_waits(connection: Connection, scope: str) -> AnyRow:
    """In one question, what else there may be to do: mostly nothing."""
    ours = (
        select(run.c.id).join(schedule, schedule.c.id == run.c.schedule_id).where(schedule.c.scope == scope)
    )
    claimed = ours.where(run.c.state == State.CLAIMED)
    filling = (
        select(backfill.c.id)
        .join(schedule, schedule.c.id == backfill.c.schedule_id)
        .where(schedule.c.scope == scope, backfill.c.ended_at.is_(None))
    )
    return connection.execute(
        select(
            filling.exists().label("backfills"),
            claimed.where(run.c.cancel_asked_at.is_not(None)).exists().label("cancels"),
            claimed.where(run.c.queued_at.is_not(None)).exists().label("queued"),
            claimed.where(run.c.next_attempt_at.is_not(None)).exists().label("startable"),
        )
    ).one()


def _due_schedules(
    connection: Connection, scope: str, now: datetime, schedule_id: int | None = None
) -> Sequence[AnyRow]:
    query = (
        select(*_DUE_COLUMNS)
        .where(schedule.c.scope == scope, schedule.c.parked_at.is_(None))
        .where(schedule.c.next_fire_at <= now)
        .where(or_(schedule.c.paused_at.is_(None), schedule.c.paused_until <= now))
        .order_by(schedule.c.next_fire_at)
        .limit(SCHEDULES_AT_ONCE_MAX)
        .with_for_update()
    )
    if schedule_id is not None:
        query = query.where(schedule.c.id == schedule_id)
    return connection.execute(query).all()


@dataclass(frozen=True)
class _Planned:
    """One schedule with what its due fires come to."""

    row: AnyRow
    spec: JobSpec
    plan: Plan

    @property
    def ends_pause(self) -> bool:
        """Whether a pause with an end to it is over with this claim."""
        return self.row.paused_at is not None


def _claim_fires(
    connection: Connection, mandate: Mandate, due: Sequence[AnyRow], now: datetime
) -> tuple[int, list[Claimed]]:
    """Write the due fires and move their schedules on; how many were skipped, and the attempts made."""
    if not due:
        return 0, []
    live = _live_runs(connection, [row.id for row in due])
    planned = [_planned(row, *live.get(row.id, (False, False)), now=now) for row in due]
    replaced = [one.row.id for one in planned if one.plan.replaces]
    if replaced:
        connection.execute(
            update(run)
            .where(run.c.schedule_id.in_(replaced), run.c.state.in_(LIVE), run.c.cancel_asked_at.is_(None))
            .values(cancel_asked_at=now, cancel_reason="replaced by a later fire")
        )
    claimed, skipped = _insert_runs(connection, mandate, planned, now)
    update_rows(
        connection,
        schedule,
        [
            {
                "id": one.row.id,
                "next_fire_at": one.plan.next_fire_at,
                "last_fire_at": one.plan.fires[-1].time,
                "revision": one.row.revision + one.ends_pause,
                **dict.fromkeys(("paused_at", "paused_until", "pause_note", "resumed_at")),
            }
            for one in planned
        ],
    )
    pauses_over = [
        Revision(
            one.row.id,
            one.row.revision + 1,
            "unpaused",
            json.loads(one.row.definition),
            mandate.token,
            note="its time was over",
        )
        for one in planned
        if one.ends_pause
    ]
    write_revisions(connection, pauses_over, now)
    return skipped, claimed


def _planned(row: AnyRow, running: bool, waiting: bool, *, now: datetime) -> _Planned:  # noqa: FBT001
    spec = JobSpec.from_text(row.name, row.definition)
    planned = plan(
        spec.trigger,
        spec.policy,
        next_fire_at=row.next_fire_at,
        now=now,
        running=running,
        waiting=waiting,
        paused_until=row.paused_until if row.paused_at is not None else row.resumed_at,
    )
    return _Planned(row, spec, planned)


def _insert_runs(
    connection: Connection, mandate: Mandate, planned: Iterable[_Planned], now: datetime
) -> tuple[list[Claimed], int]:
    specs = {one.row.id: one.spec for one in planned}
    rows = [
        _run_values(mandate, one.row.id, fire, one.spec, now) for one in planned for fire in one.plan.fires
    ]
    columns = (run.c.id, run.c.schedule_id, run.c.fire_time, run.c.state, run.c.attempts)
    # Whoever finds the row there already leaves it alone: that fire has been dealt with (P5).
    made = insert_rows(connection, run, rows, returning=columns, if_new=True)
    starts = [
        Start(
            run_id=row.id,
            job=specs[row.schedule_id].name,
            kind=SCHEDULED,
            fire_time=row.fire_time,
            key="",
            number=1,
            args=deepcopy(specs[row.schedule_id].args),
        )
        for row in sorted(made, key=lambda row: (row.fire_time, row.id))
        if row.attempts == 1
    ]
    skipped = sum(row.state == State.SKIPPED for row in made)
    return insert_attempts(connection, mandate, starts, now), skipped


def _run_values(
    mandate: Mandate, schedule_id: int, fire: Fire, spec: JobSpec, now: datetime
) -> dict[str, Any]:
    delay = jitter_of(spec.policy, f"{mandate.scope}/{spec.name}/{fire.time.isoformat()}")
    is_run = fire.skipped is None
    # What is not the office starts nothing; the office claims such a run at its next turn.
    starts_now = is_run and not fire.waits and fire.time + delay <= now and mandate.is_office
    starts_later = is_run and not fire.waits and not starts_now
    return {
        "schedule_id": schedule_id,
        "kind": SCHEDULED,
        "fire_time": fire.time,
        "key": "",
        "state": State.CLAIMED if is_run else State.SKIPPED,
        "reason": fire.skipped,
        "skipped_until": fire.until,
        "args": dict(spec.args),
        "attempts": 1 if starts_now else 0,
        "next_attempt_at": fire.time + delay if starts_later else None,
        "queued_at": now if fire.waits else None,
        "claimed_at": now,
    }


def _live_runs(connection: Connection, schedule_ids: Sequence[int]) -> dict[int, tuple[bool, bool]]:
    """For schedules with runs that have not ended: whether there are any, and whether one waits."""
    rows = connection.execute(
        select(run.c.schedule_id, run.c.queued_at)
        .where(run.c.state.in_(LIVE), among(connection, run.c.schedule_id, schedule_ids))
        .distinct()
    )
    live: dict[int, tuple[bool, bool]] = {}
    for row in rows:
        _, waits = live.get(row.schedule_id, (True, False))
        live[row.schedule_id] = (True, waits or row.queued_at is not None)
    return live


def _next_due(connection: Connection, scope: str) -> datetime | None:
    fires = select(schedule.c.next_fire_at.label("due")).where(
        schedule.c.scope == scope,
        schedule.c.parked_at.is_(None),
        schedule.c.paused_at.is_(None),
        schedule.c.next_fire_at.is_not(None),
    )
    further = (
        select(run.c.next_attempt_at)
        .join(schedule, schedule.c.id == run.c.schedule_id)
        .where(schedule.c.scope == scope, schedule.c.parked_at.is_(None))
        .where(run.c.next_attempt_at.is_not(None))
    )
    soonest = connection.execute(
        select(
            fires.order_by(schedule.c.next_fire_at).limit(1).scalar_subquery(),
            further.order_by(run.c.next_attempt_at).limit(1).scalar_subquery(),
        )
    ).one()
    return min((moment for moment in soonest if moment is not None), default=None)
