"""What people ask of the ledger: run now, cancel, pause, resume, backfill.

These are rows that the office finds at its next turn, so they may be written by any process that reaches
the database: the command line, the HTTP side, a test. Each is one transaction.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, select, update

from lockd_scheduler.dialects import insert_if_new
from lockd_scheduler.errors import BadSchedule, SchedulerError
from lockd_scheduler.jobs import JobSpec, checked_args
from lockd_scheduler.mandates import MANUAL
from lockd_scheduler.policies import Overlap
from lockd_scheduler.revisions import change_schedule
from lockd_scheduler.runs import LIVE, State
from lockd_scheduler.tables import AnyRow, backfill, run, schedule

KEY_CHARACTERS_MAX = 200
PARALLEL_MAX = 1_000


class Asking:
    """Requests about the schedules of one scheduler name (`scope`) in one database.

    Moments are aware; `by` is whoever asks, as text for the ledger. All raise SchedulerError for a job
    or run that is not there.
    """

    def __init__(self, engine: Engine, scope: str) -> None:
        self._engine = engine
        self._scope = scope

    def start(
        self,
        job: str,
        *,
        args: Mapping[str, Any] | None = None,
        key: str,
        at: datetime | None = None,
        by: str | None = None,
        now: datetime,
    ) -> int:
        """Ask for a run of the job now, or at a moment; returns the run's id.

        `args` are added to the job's own. `key` names the request: asked again with the same key, it
        is the same run. It waits its turn behind runs under way, unless the job allows overlap. Raises
        BadSchedule for arguments that are not JSON, and a key that can't be one.
        """
        if not (key and key.isprintable() and len(key) <= KEY_CHARACTERS_MAX):
            raise BadSchedule(f"key {key[:40]!r}: 1 to {KEY_CHARACTERS_MAX} printable characters")
        given = checked_args(args)
        with self._engine.begin() as connection:
            row = self._schedule(connection, job)
            asked = self._asked(connection, row.id, key)
            if asked is not None:
                return asked
            spec = JobSpec.from_json(row.name, row.definition)
            waits = at is None and spec.policy.overlap is not Overlap.ALLOW
            values = {
                "schedule_id": row.id,
                "kind": MANUAL,
                "fire_time": at or now,
                "key": key,
                "state": State.CLAIMED,
                "args": {**spec.args, **given},
                "attempts": 0,
                "next_attempt_at": None if waits else (at or now),
                "queued_at": now if waits else None,
                "claimed_at": now,
                "asked_by": by,
            }
            connection.execute(insert_if_new(connection, run), values)
            made = self._asked(connection, row.id, key)
            assert made is not None
            return made

    def cancel(self, run_id: int, *, reason: str | None = None, now: datetime) -> State:
        """Ask for the end of a run; returns the state it was in. One that has ended stays as it is.

        A run that has not begun ends at the office's next turn, one that runs when its worker has
        ended it.
        """
        with self._engine.begin() as connection:
            row = connection.execute(
                select(run.c.state)
                .join(schedule, schedule.c.id == run.c.schedule_id)
                .where(run.c.id == run_id, schedule.c.scope == self._scope)
            ).one_or_none()
            if row is None:
                raise SchedulerError(f"the ledger of {self._scope!r} has no run {run_id}")
            connection.execute(
                update(run)
                .where(run.c.id == run_id, run.c.state.in_(LIVE), run.c.cancel_asked_at.is_(None))
                .values(cancel_asked_at=now, cancel_reason=reason)
            )
            return State(row.state)

    def pause(
        self,
        job: str,
        *,
        note: str | None = None,
        until: datetime | None = None,
        by: str | None = None,
        now: datetime,
    ) -> bool:
        """Let the job fire no more, until it is resumed or `until`; False if it is paused already.

        What falls into the pause gets its row, skipped, when it is over. Runs under way go on.
        """
        if until is not None and until <= now:
            raise BadSchedule(f"--until {until.isoformat()} has passed")
        with self._engine.begin() as connection:
            row = self._schedule(connection, job)
            was_paused = row.paused_at is not None
            values = {"paused_at": row.paused_at or now, "paused_until": until, "pause_note": note}
            change_schedule(connection, row, "paused", values, by=by, note=note, now=now)
            return not was_paused

    def resume(self, job: str, *, note: str | None = None, by: str | None = None, now: datetime) -> bool:
        """Let the job fire again, from its next fire on; False if it is not paused."""
        with self._engine.begin() as connection:
            row = self._schedule(connection, job)
            if row.paused_at is None:
                return False
            values = {"paused_at": None, "paused_until": None, "pause_note": None, "resumed_at": now}
            change_schedule(connection, row, "unpaused", values, by=by, note=note, now=now)
            return True

    def backfill(
        self,
        job: str,
        *,
        start: datetime,
        end: datetime,
        parallel: int = 1,
        by: str | None = None,
        now: datetime,
    ) -> int:
        """Ask for a run of every fire in [start, end), at most `parallel` at a time; its id.

        Raises BadSchedule for a range that is empty or not past, or has no fire.
        """
        if not 1 <= parallel <= PARALLEL_MAX:
            raise BadSchedule(f"parallel {parallel}: from 1 to {PARALLEL_MAX}")
        if not start < end <= now:
            raise BadSchedule("a backfill needs a range that is past, with its start before its end")
        with self._engine.begin() as connection:
            row = self._schedule(connection, job)
            first = JobSpec.from_json(row.name, row.definition).trigger.first(start)
            if first is None or first >= end:
                raise BadSchedule(f"{job!r} has no fire from {start.isoformat()} to {end.isoformat()}")
            made = connection.execute(
                backfill.insert().values(
                    schedule_id=row.id,
                    start_at=start,
                    end_at=end,
                    next_fire_at=first,
                    parallel=parallel,
                    asked_by=by,
                    asked_at=now,
                )
            )
            assert made.inserted_primary_key is not None
            return int(made.inserted_primary_key[0])

    def cancel_backfill(self, backfill_id: int, *, now: datetime) -> None:
        """Make no further run of a backfill, and ask for the end of those it has made."""
        ours = select(schedule.c.id).where(schedule.c.scope == self._scope)
        with self._engine.begin() as connection:
            found = connection.execute(
                update(backfill)
                .where(backfill.c.id == backfill_id, backfill.c.cancelled_at.is_(None))
                .where(backfill.c.schedule_id.in_(ours))
                .values(cancelled_at=now, next_fire_at=None)
            )
            if found.rowcount == 0:
                raise SchedulerError(f"there is no backfill {backfill_id} to cancel")
            connection.execute(
                update(run)
                .where(
                    run.c.backfill_id == backfill_id,
                    run.c.state.in_(LIVE),
                    run.c.cancel_asked_at.is_(None),
                )
                .values(cancel_asked_at=now, cancel_reason="its backfill was cancelled")
            )

    def _schedule(self, connection: Connection, job: str) -> AnyRow:
        row = connection.execute(
            select(schedule).where(schedule.c.scope == self._scope, schedule.c.name == job).with_for_update()
        ).one_or_none()
        if row is None:
            raise SchedulerError(f"the ledger of {self._scope!r} has no job {job!r}")
        if row.parked_at is not None:
            raise SchedulerError(
                f"job {job!r} is parked: nothing declares it any more, or its function has gone"
            )
        return row

    def _asked(self, connection: Connection, schedule_id: int, key: str) -> int | None:
        found: int | None = connection.scalar(
            select(run.c.id).where(run.c.schedule_id == schedule_id, run.c.kind == MANUAL, run.c.key == key)
        )
        return found
