"""What follows when an attempt ends, or a run is to end that has not begun: all in one transaction."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, select, update

from lockd_scheduler.dialects import among, insert_if_new, update_rows
from lockd_scheduler.jobs import JobSpec
from lockd_scheduler.mandates import AFTER
from lockd_scheduler.policies import Notice, Overlap, Policy
from lockd_scheduler.runs import ENDS, LIVE, SkipReason, State, after_attempt
from lockd_scheduler.tables import AnyRow, attempt, outbox, run, schedule
from lockd_scheduler.triggers import After

CANCELS_AT_ONCE_MAX = 500

_NOTICES = {State.FAILED: Notice.FAILED, State.TIMED_OUT: Notice.FAILED, State.LOST: Notice.LOST}
_COUNTS_AS = {
    State.SUCCEEDED: (After.SUCCEEDED, After.ENDED),
    State.CANCELLED: (After.ENDED,),
    **dict.fromkeys((State.FAILED, State.TIMED_OUT, State.LOST), (After.FAILED, After.ENDED)),
}


@dataclass(frozen=True)
class Ended:
    """Attempt `number` of a running run has ended as `end`."""

    run_id: int
    number: int
    end: State
    policy: Policy
    error: str | None


def end_runs(connection: Connection, ended: Sequence[Ended], now: datetime) -> None:
    """Move the runs on whose attempts have ended: to their end, or to a further attempt.

    A run that somebody asked to cancel has no further attempt. What follows an end, the runs of other
    jobs and the notices, is in the same transaction (SAFETY R7).
    """
    if not ended:
        return
    whose = {
        row.id: row
        for row in connection.execute(
            _whose_runs().where(among(connection, run.c.id, [one.run_id for one in ended]))
        )
    }
    moves = []
    for one in ended:
        move = after_attempt(one.end, one.policy, attempt_number=one.number)
        is_further = move.retry_in is not None and whose[one.run_id].cancel_asked_at is None
        moves.append(
            {
                "id": one.run_id,
                "state": move.state if is_further else one.end,
                "error": one.error,
                "finished_at": None if is_further else now,
                "next_attempt_at": now + (move.retry_in or timedelta()) if is_further else None,
            }
        )
    moved = update_rows(connection, run, moves, run.c.state == State.RUNNING)
    assert moved in (len(moves), None), "a run is not running, though its attempt was"
    final = [one for one, move in zip(ended, moves, strict=True) if move["finished_at"] is not None]
    _follow(connection, [(whose[one.run_id], one.end) for one in final], now)
    _notify_ends(connection, final, now)


def cancel_unbegun(connection: Connection, scope: str, now: datetime) -> None:
    """End the runs that somebody asked to cancel and that no attempt has begun.

    An attempt that was claimed can't begin any more: its row has moved (SAFETY R1).
    """
    rows = connection.execute(
        _whose_runs()
        .where(schedule.c.scope == scope)
        .where(run.c.cancel_asked_at.is_not(None), run.c.state == State.CLAIMED)
        .limit(CANCELS_AT_ONCE_MAX)
        .with_for_update(of=run)
    ).all()
    if not rows:
        return
    ids = [row.id for row in rows]
    connection.execute(
        update(attempt)
        .where(among(connection, attempt.c.run_id, ids), attempt.c.state == State.CLAIMED)
        .values(state=State.CANCELLED, finished_at=now)
    )
    connection.execute(
        update(run)
        .where(among(connection, run.c.id, ids), run.c.state == State.CLAIMED)
        .values(state=State.CANCELLED, finished_at=now, queued_at=None, next_attempt_at=None)
    )
    _follow(connection, [(row, State.CANCELLED) for row in rows], now)


def notify_late(connection: Connection, run_ids: Sequence[int], now: datetime) -> None:
    """Tell of runs that begin later than their jobs allow, or have not begun; of each once."""
    if not run_ids:
        return
    was_told = select(outbox.c.run_id).where(
        among(connection, outbox.c.run_id, run_ids), outbox.c.event == Notice.LATE
    )
    untold = set(run_ids) - set(connection.scalars(was_told))
    _notify(connection, dict.fromkeys(sorted(untold), Notice.LATE), now)


def _whose_runs() -> Select[Any]:
    """Runs, each with its job's name: what `_follow` must know of those that have ended."""
    return select(run.c.id, run.c.fire_time, run.c.cancel_asked_at, schedule.c.scope, schedule.c.name).join(
        schedule, schedule.c.id == run.c.schedule_id
    )


def _follow(connection: Connection, final: Sequence[tuple[AnyRow, State]], now: datetime) -> None:
    """Make the runs of the jobs that come after those that have ended, one for each end."""
    if not final:
        return
    # By the names alone: joined with the runs, databases without statistics compare all jobs with all.
    children = connection.execute(
        select(schedule)
        .where(schedule.c.scope == final[0][0].scope, schedule.c.parked_at.is_(None))
        .where(among(connection, schedule.c.after_job, {ended.name for ended, _ in final}))
        .order_by(schedule.c.id)
    ).all()
    children_of: dict[str, list[AnyRow]] = {}
    for child in children:
        children_of.setdefault(child.after_job, []).append(child)
    rows = []
    ends = ((one, end, child) for one, end in final for child in children_of.get(one.name, ()))
    for ended, end, child in ends:
        if child.after_end not in _COUNTS_AS[end]:
            continue
        spec = JobSpec.from_json(child.name, child.definition)
        skipped = _skipped(connection, child.id, spec.policy.overlap, is_paused=child.paused_at is not None)
        waits = skipped is None and spec.policy.overlap is not Overlap.ALLOW
        rows.append(
            {
                "schedule_id": child.id,
                "kind": AFTER,
                "fire_time": ended.fire_time,
                "key": str(ended.id),
                "state": State.CLAIMED if skipped is None else State.SKIPPED,
                "reason": skipped,
                "args": dict(spec.args),
                "attempts": 0,
                "next_attempt_at": now if skipped is None and not waits else None,
                "queued_at": now if waits else None,
                "claimed_at": now,
                "parent_run_id": ended.id,
            }
        )
    if rows:
        connection.execute(insert_if_new(connection, run), rows)


def _skipped(
    connection: Connection, schedule_id: int, overlap: Overlap, *, is_paused: bool
) -> SkipReason | None:
    if is_paused:
        return SkipReason.PAUSED
    if overlap in (Overlap.SKIP, Overlap.QUEUE_ONE):
        live = connection.execute(
            select(run.c.queued_at).where(run.c.schedule_id == schedule_id, run.c.state.in_(LIVE))
        ).all()
        is_full = any(row.queued_at is not None for row in live) if overlap is Overlap.QUEUE_ONE else live
        return SkipReason.OVERLAP if is_full else None
    return None


def _notify_ends(connection: Connection, ended: Sequence[Ended], now: datetime) -> None:
    told = {
        one.run_id: notice
        for one in ended
        if (notice := _NOTICES.get(one.end)) is not None and notice in one.policy.notify
    }
    _notify(connection, told, now)


def _notify(connection: Connection, told: dict[int, Notice], now: datetime) -> None:
    if not told:
        return
    rows = connection.execute(
        select(run, schedule.c.scope, schedule.c.name)
        .join(schedule, schedule.c.id == run.c.schedule_id)
        .where(among(connection, run.c.id, told))
    ).all()
    connection.execute(
        outbox.insert(),
        [
            {
                "scope": row.scope,
                "event": told[row.id],
                "run_id": row.id,
                "payload": _payload(row, told[row.id]),
                "made_at": now,
                "next_try_at": now,
                "tries": 0,
            }
            for row in rows
        ],
    )


def _payload(row: Any, notice: Notice) -> dict[str, Any]:
    return {
        "event": notice.value,
        "scheduler": row.scope,
        "job": row.name,
        "run": row.id,
        "kind": row.kind,
        "fire_time": row.fire_time.isoformat(),
        "state": row.state,
        "attempts": row.attempts,
        "error": row.error,
    }


assert set(_COUNTS_AS) == ENDS
