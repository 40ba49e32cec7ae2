"""The worker's transactions: start, heartbeat, finish, and the session that commits with the result.

They are guarded by the attempt's own row (id, state, token, nonce), which only the current office
moves. None of them reads the fence row: a change of office fences no running attempt (SAFETY R1).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, func, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from lockd.errors import OutcomeUnknown
from lockd_scheduler.dialects import among, update_rows
from lockd_scheduler.ending import Ended, end_runs, notify_late
from lockd_scheduler.engines import reading
from lockd_scheduler.errors import AttemptFenced
from lockd_scheduler.mandates import SCHEDULED, Claimed
from lockd_scheduler.policies import Policy
from lockd_scheduler.runs import State
from lockd_scheduler.tables import AnyRow, attempt, run, schedule
from lockd_storage.sqlalchemy.block import FencedBlock

ERROR_CHARACTERS_MAX = 8_000
FENCED_IDLE_SECONDS = 60.0


class Finish(Enum):
    """What became of a result that was handed in."""

    COUNTED = auto()
    """It ended the attempt."""
    ALREADY = auto()
    """The attempt had ended so before: by an unknown commit of ours, or by its fenced session."""
    LATE = auto()
    """The attempt had been ended by the office. The result is stored beside it and moves nothing (R3)."""


@dataclass(frozen=True)
class Started:
    """An attempt in the hands of its worker: the claim, and the nonce that is in its row."""

    claimed: Claimed
    nonce: str


@dataclass(frozen=True)
class Result:
    """What an attempt came to."""

    started: Started
    policy: Policy
    end: State
    error: str | None = None
    exit_status: int | None = None
    """Of a process that it ran."""

    @property
    def short_error(self) -> str | None:
        """As much of the error as the ledger keeps."""
        return None if self.error is None else self.error[:ERROR_CHARACTERS_MAX]


class Attempts:
    """The attempts' rows, as a worker may touch them.

    Each method is one transaction and can be repeated after an error that left it unknown.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def start(
        self,
        claims: Sequence[tuple[Claimed, Policy]],
        *,
        nonce: str,
        worker: str,
        now: datetime,
    ) -> list[Started]:
        """Move attempts from claimed to running; those that somebody else has moved are left out.

        Committed before the caller does anything else (R3). Called again with the same nonce after
        an unknown commit, it goes on only with those that have it in their row (R5).
        """
        with self.engine.begin() as connection:
            rows = _lock_rows(connection, [claimed.attempt_id for claimed, _ in claims])
            mine = [
                (claimed, policy)
                for claimed, policy in claims
                if (row := rows.get(claimed.attempt_id)) is not None and _is_claim(row, claimed)
            ]
            fresh = [(one, policy) for one, policy in mine if rows[one.attempt_id].state == State.CLAIMED]
            _begin(connection, fresh, nonce=nonce, worker=worker, now=now)
            return [
                Started(claimed, nonce)
                for claimed, _ in mine
                if rows[claimed.attempt_id].state == State.CLAIMED
                or (rows[claimed.attempt_id].state, rows[claimed.attempt_id].nonce) == (State.RUNNING, nonce)
            ]

    def definitions(self, attempt_ids: Iterable[int]) -> dict[str, dict[str, Any]]:
        """What the ledger says about the jobs of these attempts, by their names."""
        query = (
            select(schedule.c.name, schedule.c.definition)
            .join(run, run.c.schedule_id == schedule.c.id)
            .join(attempt, attempt.c.run_id == run.c.id)
            .where(attempt.c.id.in_(list(attempt_ids)))
        )
        with reading(self.engine) as connection:
            return {row.name: row.definition for row in connection.execute(query)}

    def not_begun(self, attempt_ids: Iterable[int]) -> set[int]:
        """Those of these attempts that are claimed still."""
        with reading(self.engine) as connection:
            is_claimed = attempt.c.id.in_(list(attempt_ids)) & (attempt.c.state == State.CLAIMED)
            return set(connection.scalars(select(attempt.c.id).where(is_claimed)))

    def heartbeat(self, attempt_ids: Iterable[int], *, worker: str, now: datetime) -> set[int]:
        """Say that these attempts are alive; returns those that still count, the others are fenced.

        A row that is locked is passed over: its own fenced session holds it, which keeps it alive.
        """
        mine = attempt.c.id.in_(list(attempt_ids)) & (attempt.c.worker == worker)
        running = select(attempt.c.id).where(mine, attempt.c.state == State.RUNNING)
        with self.engine.begin() as connection:
            free = connection.scalars(running.with_for_update(skip_locked=True)).all()
            connection.execute(update(attempt).where(attempt.c.id.in_(free)).values(heartbeat_at=now))
            return set(connection.scalars(running))

    def cancelled(self, attempt_ids: Iterable[int]) -> set[int]:
        """Those of these attempts whose runs somebody has asked to end."""
        with reading(self.engine) as connection:
            return set(
                connection.scalars(
                    select(attempt.c.id)
                    .join(run, run.c.id == attempt.c.run_id)
                    .where(attempt.c.id.in_(list(attempt_ids)), run.c.cancel_asked_at.is_not(None))
                )
            )

    def finish(self, results: Sequence[Result], *, now: datetime) -> list[Finish]:
        """End attempts, and their runs or their runs' next attempts with them, where rows are still ours."""
        with self.engine.begin() as connection:
            rows = _lock_rows(connection, [one.started.claimed.attempt_id for one in results])
            finishes = [_judge(rows.get(one.started.claimed.attempt_id), one) for one in results]
            counted = [one for one, finish in zip(results, finishes, strict=True) if finish is Finish.COUNTED]
            late = [one for one, finish in zip(results, finishes, strict=True) if finish is Finish.LATE]
            _end(connection, counted, now)
            update_rows(
                connection,
                attempt,
                [
                    {
                        "id": one.started.claimed.attempt_id,
                        "late_state": one.end,
                        "late_error": one.short_error,
                        "late_at": now,
                    }
                    for one in late
                ],
                attempt.c.late_state.is_(None),
            )
            return finishes

    @contextmanager
    def fenced_session(
        self, started: Started, policy: Policy, *, now: Callable[[], datetime], idle: float
    ) -> Iterator[Session]:
        """A session on the ledger's database whose commit is also the attempt's success.

        Every transaction that begins in it holds the attempt's row as it is. Raises AttemptFenced,
        with nothing committed, when the row has been moved, and OutcomeUnknown when the reply to the
        commit was lost.
        """

        held = _HeldAttempt(started, idle)
        with Session(self.engine) as session, FencedBlock(session, held):
            session.connection()
            yield session
            session.flush()
            _succeed(session.connection(), started, policy, now())


class _HeldAttempt:
    """A `Condition` of each transaction: the attempt's row is as it was, and stays so until its end."""

    watches_end = False

    def __init__(self, started: Started, idle: float) -> None:
        self._started = started
        self._idle = idle

    def open(self, connection: Connection) -> None:
        if connection.dialect.name == "postgresql":
            limit = f"SET LOCAL idle_in_transaction_session_timeout = {int(self._idle * 1000)}"
            connection.execute(text(limit))
        mine = _is_running(self._started.claimed, self._started.nonce)
        if connection.scalar(select(attempt.c.id).where(mine).with_for_update(read=True)) is None:
            raise AttemptFenced(_fenced_text(self._started))

    def close(self, connection: Connection) -> None:
        """Nothing more: the row has been held since the transaction began."""

    def ended(self, connection: Connection) -> None:
        """Nothing to take back: the limit was the transaction's own."""

    def left(self) -> None:
        """Nothing is kept."""

    def explain(self, error: DBAPIError, engine: Engine) -> OutcomeUnknown | None:  # noqa: ARG002
        """A lost reply is told apart from the database's own answer, which means that nothing was written."""
        if not (error.connection_invalidated and error.statement is None):
            return None
        return OutcomeUnknown(f"run {self._started.claimed.run_id}: the commit's reply was lost")


def _succeed(connection: Connection, started: Started, policy: Policy, now: datetime) -> None:
    result = Result(started, policy, State.SUCCEEDED)
    row = _lock_rows(connection, [started.claimed.attempt_id])[started.claimed.attempt_id]
    if _judge(row, result) is not Finish.COUNTED:
        raise AttemptFenced(_fenced_text(started))
    _end(connection, [result], now)


def _lock_rows(connection: Connection, attempt_ids: Sequence[int]) -> dict[int, AnyRow]:
    """The attempts' rows, held until the transaction ends; in one order, so that nobody deadlocks."""
    columns = (
        attempt.c.id,
        attempt.c.state,
        attempt.c.nonce,
        attempt.c.office_token,
        attempt.c.ordinal,
    )
    wanted = among(connection, attempt.c.id, attempt_ids)
    query = select(*columns).where(wanted).order_by(attempt.c.id).with_for_update()
    return {row.id: row for row in connection.execute(query)}


def _is_claim(row: AnyRow, claimed: Claimed) -> bool:
    return (row.office_token, row.ordinal) == (claimed.office_token, claimed.ordinal)


def _begin(
    connection: Connection,
    claims: Sequence[tuple[Claimed, Policy]],
    *,
    nonce: str,
    worker: str,
    now: datetime,
) -> None:
    if not claims:
        return
    ids = [claimed.attempt_id for claimed, _ in claims]
    connection.execute(
        update(attempt)
        .where(among(connection, attempt.c.id, ids))
        .values(state=State.RUNNING, nonce=nonce, worker=worker, started_at=now, heartbeat_at=now)
    )
    bounded = [
        {"id": claimed.attempt_id, "timeout_at": now + policy.timeout}
        for claimed, policy in claims
        if policy.timeout is not None
    ]
    update_rows(connection, attempt, bounded)
    run_ids = [claimed.run_id for claimed, _ in claims]
    began = connection.execute(
        update(run)
        .where(among(connection, run.c.id, run_ids), run.c.state == State.CLAIMED)
        .values(state=State.RUNNING, started_at=func.coalesce(run.c.started_at, now))
    )
    assert began.rowcount == len(run_ids), "a run is not claimed, though its attempt was"
    late = [
        claimed.run_id
        for claimed, policy in claims
        if claimed.number == 1 and claimed.kind == SCHEDULED and policy.tells_late(claimed.fire_time, now)
    ]
    notify_late(connection, late, now)


def _judge(row: AnyRow | None, result: Result) -> Finish:
    if row is None:
        return Finish.LATE  # the office has ended it, and the ledger has forgotten it since
    started = result.started
    is_ours = _is_claim(row, started.claimed) and row.nonce == started.nonce
    if is_ours and row.state == State.RUNNING:
        return Finish.COUNTED
    if row.nonce == started.nonce and row.state in (result.end, State.SUCCEEDED):
        return Finish.ALREADY
    return Finish.LATE


def _end(connection: Connection, results: Sequence[Result], now: datetime) -> None:
    if not results:
        return
    update_rows(
        connection,
        attempt,
        [
            {
                "id": one.started.claimed.attempt_id,
                "state": one.end,
                "error": one.short_error,
                "exit_status": one.exit_status,
                "finished_at": now,
            }
            for one in results
        ],
    )
    end_runs(
        connection,
        [
            Ended(
                one.started.claimed.run_id, one.started.claimed.number, one.end, one.policy, one.short_error
            )
            for one in results
        ],
        now,
    )


def _is_running(claimed: Claimed, nonce: str) -> ColumnElement[bool]:
    row = attempt.c
    return (
        (row.id == claimed.attempt_id)
        & (row.state == State.RUNNING)
        & (row.nonce == nonce)
        & _token_is(claimed)
    )


def _token_is(claimed: Claimed) -> ColumnElement[bool]:
    return (attempt.c.office_token == claimed.office_token) & (attempt.c.ordinal == claimed.ordinal)


def _fenced_text(started: Started) -> str:
    claimed = started.claimed
    return f"attempt {claimed.number} of run {claimed.run_id} ({claimed.job}) was ended by the office"
