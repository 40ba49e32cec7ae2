"""Jobs as they are shown: a schedule's row, with what its runs say about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, ScalarSelect, case, func, select

from lockd_scheduler.declared import SHELL
from lockd_scheduler.jobs import JobSpec
from lockd_scheduler.mandates import AFTER, BACKFILL, MANUAL, SCHEDULED
from lockd_scheduler.runs import LIVE, State
from lockd_scheduler.tables import AnyRow, run, schedule
from lockd_scheduler.web import models
from lockd_scheduler.web.wording import schedule_words, zone_of

KINDS = (SCHEDULED, MANUAL, AFTER, BACKFILL)
STARS = "***"


@dataclass(frozen=True)
class Facts:
    """What runs say about schedules, by the schedules' ids."""

    running: Mapping[int, int]
    waiting: Mapping[int, int]
    last: Mapping[int, AnyRow]


def facts_of(connection: Connection, rows: Sequence[AnyRow]) -> Facts:
    ids = [row.id for row in rows]
    if not ids:
        return Facts({}, {}, {})
    live = connection.execute(
        select(run.c.schedule_id)
        .add_columns(func.sum(case((run.c.state == State.RUNNING, 1), else_=0)).label("running"))
        .add_columns(func.sum(case((run.c.state == State.CLAIMED, 1), else_=0)).label("waiting"))
        .where(run.c.state.in_(LIVE), run.c.schedule_id.in_(ids))
        .group_by(run.c.schedule_id)
    ).all()
    # Of each kind the newest fire, by its index; of these the one that was made last.
    newest = [_newest_of(kind).label(kind) for kind in KINDS]
    made = connection.execute(select(schedule.c.id, *newest).where(schedule.c.id.in_(ids))).all()
    last_ids = [max(found) for _, *kinds in made if (found := [one for one in kinds if one is not None])]
    columns = (run.c.schedule_id, run.c.id, run.c.state, run.c.reason, run.c.fire_time, run.c.finished_at)
    last_runs = connection.execute(select(*columns).where(run.c.id.in_(last_ids)))
    last = {row.schedule_id: row for row in last_runs}
    return Facts(
        {row.schedule_id: int(row.running) for row in live},
        {row.schedule_id: int(row.waiting) for row in live},
        last,
    )


def _newest_of(kind: str) -> ScalarSelect[int]:
    """The id of a schedule's run of that kind with the newest fire time."""
    of_kind = select(run.c.id).where(run.c.schedule_id == schedule.c.id, run.c.kind == kind)
    return of_kind.order_by(run.c.fire_time.desc()).limit(1).correlate(schedule).scalar_subquery()


def job_of(row: AnyRow, facts: Facts, fires: int) -> models.Job:
    spec = JobSpec.from_json(row.name, row.definition)
    last = facts.last.get(row.id)
    if row.parked_at is not None:
        state = "parked"
    elif row.paused_at is not None:
        state = "paused"
    elif row.next_fire_at is None and row.after_job is None:
        state = "ended"
    else:
        state = "active"
    return models.Job(
        name=row.name,
        revision=row.revision,
        kept_by=row.kept_by or "code",
        schedule=schedule_words(row.definition["trigger"]),
        zone=zone_of(row.definition["trigger"]),
        state=state,
        paused_at=row.paused_at,
        paused_until=row.paused_until,
        pause_note=row.pause_note,
        kind=runner_kind(row.definition),
        needs_admin=needs_admin(row.definition),
        next_fires=_next_fires(spec, row.next_fire_at, fires) if state in ("active", "paused") else [],
        waiting=facts.waiting.get(row.id, 0),
        running=facts.running.get(row.id, 0),
        last_run=None
        if last is None
        else models.LastRun(
            run=last.id,
            state=last.state,
            reason=last.reason,
            fire_time=last.fire_time,
            finished_at=last.finished_at,
        ),
    )


def runner_kind(definition: Mapping[str, Any]) -> str:
    """How a definition's work is done; a function of the code unless it says something else."""
    kind: str = definition.get("runner", {}).get("kind", "function")
    return kind


def needs_admin(definition: Mapping[str, Any]) -> bool:
    """Whether the ledger says what is run, a command or any function by its name, and not the code."""
    runner = definition.get("runner", {})
    return runner.get("kind") == SHELL or "function" in runner


def _next_fires(spec: JobSpec, first: datetime | None, fires: int) -> list[datetime]:
    found: list[datetime] = []
    fire = first
    while fire is not None and len(found) < fires:
        found.append(fire)
        fire = spec.trigger.next_after(fire)
    return found


def starred(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Without what may be a secret: the values of a runner's environment and headers."""
    runner = dict(definition.get("runner", {}))
    for name in ("env", "headers"):
        if name in runner:
            runner[name] = dict.fromkeys(runner[name], STARS)
    return {**definition, **({"runner": runner} if runner else {})}
