"""The worker's transactions: start, heartbeat, finish, and the session that commits with the result.

They are guarded by the attempt's own row (id, state, token, nonce), which only the current office
moves. None of them reads the fence row: a change of office fences no running attempt (SAFETY R1).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto

from sqlalchemy import ColumnElement, Connection, Engine, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from lockd.errors import OutcomeUnknown
from lockd_scheduler.ending import Ended, end_runs
from lockd_scheduler.errors import AttemptFenced
from lockd_scheduler.mandates import Claimed
from lockd_scheduler.policies import Policy
from lockd_scheduler.runs import State
from lockd_scheduler.tables import attempt, run
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


class Attempts:
    """The attempts' rows, as a worker may touch them.

    Each method is one transaction and can be repeated after an error that left it unknown.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def start(self, claimed: Claimed, *, nonce: str, worker: str, now: datetime) -> Started | None:
        """Move the attempt from claimed to running; None if somebody else has moved it.

        Committed before the caller does anything else (R3). Called again with the same nonce after
        an unknown commit, it goes on only if it reads its own nonce (R5).
        """
        row = attempt.c
        with self.engine.begin() as connection:
            moved = connection.execute(
                update(attempt)
                .where(row.id == claimed.attempt_id, row.state == State.CLAIMED, _token_is(claimed))
                .values(state=State.RUNNING, nonce=nonce, worker=worker, started_at=now, heartbeat_at=now)
            )
            if moved.rowcount == 1:
                began = update(run).where(run.c.id == claimed.run_id, run.c.state == State.CLAIMED)
                first = {} if claimed.number > 1 else {"started_at": now}
                assert connection.execute(began.values(state=State.RUNNING, **first)).rowcount == 1
                return Started(claimed, nonce)
            mine = connection.scalar(select(row.id).where(_is_running(claimed, nonce)))
            return None if mine is None else Started(claimed, nonce)

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

    def finish(
        self, started: Started, end: State, policy: Policy, *, error: str | None, now: datetime
    ) -> Finish:
        """End the attempt, and its run or its run's next attempt with it, if the row is still ours."""
        claimed = started.claimed
        error = None if error is None else error[:ERROR_CHARACTERS_MAX]
        with self.engine.begin() as connection:
            if _end(connection, started, end, error=error, now=now):
                end_runs(connection, [Ended(claimed.run_id, claimed.number, end, policy, error)], now)
                return Finish.COUNTED
            row = connection.execute(select(attempt).where(attempt.c.id == claimed.attempt_id)).one()
            ours = row.nonce == started.nonce
            if ours and row.state in (end, State.SUCCEEDED):
                return Finish.ALREADY
            connection.execute(
                update(attempt)
                .where(attempt.c.id == claimed.attempt_id, attempt.c.late_state.is_(None))
                .values(late_state=end, late_error=error, late_at=now)
            )
            return Finish.LATE

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
        with Session(self.engine) as session, FencedBlock(session, held).around():
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
    if not _end(connection, started, State.SUCCEEDED, error=None, now=now):
        raise AttemptFenced(_fenced_text(started))
    claimed = started.claimed
    end_runs(connection, [Ended(claimed.run_id, claimed.number, State.SUCCEEDED, policy, None)], now)


def _end(connection: Connection, started: Started, end: State, *, error: str | None, now: datetime) -> bool:
    moved = connection.execute(
        update(attempt)
        .where(_is_running(started.claimed, started.nonce))
        .values(state=end, error=error, finished_at=now)
    )
    return moved.rowcount == 1


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
