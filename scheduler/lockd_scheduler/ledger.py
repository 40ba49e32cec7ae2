"""The office's transactions: take office, keep schedules, claim, take over, find the lost.

Each of them begins by reading the fence row under a lock that lasts until its commit, and changes
nothing if another token stands there (SAFETY R1). So a process that was paused anywhere, and has been
replaced meanwhile, finds out in the database and not by a clock (R2).

    tx0  take_office     the fence row moves to my token
    tx1  claim_due       rows for every due fire, attempts for those to run, schedules moved on
         take_over       attempts that were claimed and never started become mine
         mark_lost       attempts without a heartbeat
         tell_late       notices of runs that wait for too long
         prune           the past, as far as schedules ask
"""

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from datetime import datetime

from sqlalchemy import Connection, Engine, and_, or_, select, update

from lockd_scheduler.claiming import claim_due
from lockd_scheduler.dialects import insert_if_new, now_of
from lockd_scheduler.ending import Ended, end_runs
from lockd_scheduler.engines import reading
from lockd_scheduler.errors import ForeignOffice, OfficeLost
from lockd_scheduler.jobs import JobSpec
from lockd_scheduler.lateness import tell_unbegun
from lockd_scheduler.mandates import LOCAL, Batch, Claimed, Mandate
from lockd_scheduler.policies import Policy
from lockd_scheduler.pruning import prune
from lockd_scheduler.runs import State
from lockd_scheduler.schedules import keep_schedules
from lockd_scheduler.tables import AnyRow, attempt, office, run, schedule

LOST_AT_ONCE_MAX = 200


class Ledger:
    """The tables of one scheduler name (`scope`) in one database.

    Every method is one transaction. Those that take a Mandate raise OfficeLost, having changed
    nothing, once another token holds the office. All raise SQLAlchemy's errors; after one, the outcome
    is unknown, and `take_over` finds what was claimed.
    """

    def __init__(self, engine: Engine, scope: str) -> None:
        self.engine = engine
        self.scope = scope

    def read_time(self) -> datetime:
        """The database's time (SQLite: this machine's)."""
        with reading(self.engine) as connection:
            return connection.execute(select(now_of(connection))).scalar_one()

    def last_token(self) -> int:
        """The token that holds the office now; 0 if it was never held."""
        with reading(self.engine) as connection:
            token = connection.scalar(select(office.c.token).where(office.c.scope == self.scope))
            return token or 0

    def take_office(self, mandate: Mandate, *, now: datetime) -> None:
        """Move the fence row to this mandate's token. Asking twice is fine.

        Raises OfficeLost if the row has that token or a later one of somebody else's, and
        ForeignOffice if its tokens were counted by another source.
        """
        held = office.c
        newer = or_(
            held.token < mandate.token,
            and_(held.token == mandate.token, held.holder == mandate.holder),
        )
        with self.engine.begin() as connection:
            first = {"scope": self.scope, "source": mandate.source, "token": 0, "holder": ""}
            connection.execute(insert_if_new(connection, office).values(first))
            moved = connection.execute(
                update(office)
                .where(held.scope == self.scope, held.source == mandate.source, newer)
                .values(
                    token=mandate.token,
                    holder=mandate.holder,
                    taken_at=now,
                    renewed_at=now_of(connection),
                )
            )
            if moved.rowcount == 0:
                row = connection.execute(select(office).where(held.scope == self.scope)).one()
                if row.source != mandate.source:
                    raise ForeignOffice(_foreign_text(row, mandate))
                raise OfficeLost(f"office {self.scope!r} has token {row.token}, ours is {mandate.token}")

    def claim_due(self, mandate: Mandate, *, now: datetime) -> Batch:
        """Write a row for every fire that is due at `now`, and claim those that are to run (P5).

        Also claims the further attempts that are due. On return all of it is committed.
        """
        with self._as_office(mandate) as connection:
            return claim_due(connection, mandate, now=now)

    def keep_schedules(self, mandate: Mandate, specs: Mapping[str, JobSpec], *, now: datetime) -> None:
        """Make the schedules' rows say what the code says; every change is a revision.

        A schedule whose job has gone from the code is parked, never deleted.
        """
        with self._as_office(mandate) as connection:
            keep_schedules(connection, mandate, specs, now=now)

    def take_over(self, mandate: Mandate, *, keep: Set[int], now: datetime) -> tuple[Claimed, ...]:
        """Claim again, with this mandate's token, what was claimed and never started.

        Those attempts had no effect (R3), and whoever claimed them before can't start them any
        more. `keep`: attempts that this process is about to start itself.
        """
        with self._as_office(mandate) as connection:
            rows = connection.execute(
                select(attempt.c.id, attempt.c.number, run.c.id.label("run_id"), run.c.fire_time, run.c.args)
                .add_columns(run.c.kind, run.c.key, schedule.c.name)
                .join(run, run.c.id == attempt.c.run_id)
                .join(schedule, schedule.c.id == run.c.schedule_id)
                .where(schedule.c.scope == self.scope, schedule.c.parked_at.is_(None))
                .where(attempt.c.state == State.CLAIMED, attempt.c.id.not_in(keep))
                .order_by(attempt.c.id)
                .with_for_update(of=attempt)
            ).all()
            claimed = [
                Claimed(
                    attempt_id=row.id,
                    run_id=row.run_id,
                    job=row.name,
                    kind=row.kind,
                    fire_time=row.fire_time,
                    key=row.key,
                    number=row.number,
                    office_token=mandate.token,
                    ordinal=next(mandate.ordinals),
                    args=row.args,
                )
                for row in rows
            ]
            for one in claimed:
                connection.execute(
                    update(attempt)
                    .where(attempt.c.id == one.attempt_id)
                    .values(office_token=one.office_token, ordinal=one.ordinal, claimed_at=now)
                )
            return tuple(claimed)

    def mark_lost(self, mandate: Mandate, *, silent_since: datetime, now: datetime) -> int:
        """End the running attempts whose last heartbeat is older than `silent_since`; how many.

        What follows is each job's choice of delivery. A row that is locked belongs to a live
        transaction of its attempt, which is as good as a heartbeat: it is left alone.
        """
        with self._as_office(mandate) as connection:
            rows = connection.execute(
                select(attempt.c.id, attempt.c.run_id, attempt.c.number, schedule.c.definition)
                .join(run, run.c.id == attempt.c.run_id)
                .join(schedule, schedule.c.id == run.c.schedule_id)
                .where(schedule.c.scope == self.scope, attempt.c.state == State.RUNNING)
                .where(attempt.c.heartbeat_at < silent_since)
                .limit(LOST_AT_ONCE_MAX)
                .with_for_update(of=attempt, skip_locked=True)
            ).all()
            error = "no heartbeat: the attempt's outcome is not known"
            connection.execute(
                update(attempt)
                .where(attempt.c.id.in_([row.id for row in rows]))
                .values(state=State.LOST, finished_at=now, error=error)
            )
            lost = [
                Ended(row.run_id, row.number, State.LOST, Policy.from_json(row.definition["policy"]), error)
                for row in rows
            ]
            end_runs(connection, lost, now)
            return len(rows)

    def tell_late(self, mandate: Mandate, *, after_id: int, now: datetime) -> int:
        """Tell of some runs that are late and have not begun; where to go on, 0 after the last."""
        with self._as_office(mandate) as connection:
            return tell_unbegun(connection, mandate.scope, after_id=after_id, now=now)

    def prune(self, mandate: Mandate, *, after_id: int, now: datetime) -> int:
        """Forget the past of some schedules after that id, as they ask; where to go on, 0 after the last."""
        with self._as_office(mandate) as connection:
            return prune(connection, mandate.scope, after_id=after_id, now=now)

    @contextmanager
    def _as_office(self, mandate: Mandate) -> Iterator[Connection]:
        with self.engine.begin() as connection:
            guard_office(connection, mandate)
            yield connection


def guard_office(connection: Connection, mandate: Mandate) -> None:
    """Hold the fence row as it is until this transaction ends. Raises OfficeLost."""
    row = connection.execute(
        select(office.c.source, office.c.token)
        .where(office.c.scope == mandate.scope)
        .with_for_update(read=True)
    ).one_or_none()
    if row is None or (row.source, row.token) != (mandate.source, mandate.token):
        found = "no row" if row is None else f"token {row.token}"
        raise OfficeLost(f"office {mandate.scope!r} has {found}, ours is {mandate.token}")


def _foreign_text(row: AnyRow, mandate: Mandate) -> str:
    def told(source: str) -> str:
        return "without a lock service" if source == LOCAL else f"through the lockd cluster {source}"

    return (
        f"the ledger of {mandate.scope!r} was last served {told(row.source)}, and now would be"
        f" {told(mandate.source)}: their tokens can't be compared. Use another database, or go on there"
    )
