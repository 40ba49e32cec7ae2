"""Known bugs of schedulers, put into ours for the length of a `with` block. Each must be found."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from sqlalchemy import Connection, update

from lockd_scheduler import attempts, claiming, ending, ledger, starting
from lockd_scheduler.attempts import Attempts, Finish, Started
from lockd_scheduler.ledger import Ledger
from lockd_scheduler.mandates import Claimed
from lockd_scheduler.policies import Delivery
from lockd_scheduler.runs import RunMove, State, after_attempt
from lockd_scheduler.tables import attempt, run, schedule


def _split(connection: Connection) -> None:
    """Make two transactions of one: what was done so far is committed here."""
    connection.dialect.do_commit(connection.connection)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def office_without_its_fence() -> Iterator[None]:
    """Nobody looks at the fence row."""
    with patch.object(ledger, "guard_office", lambda *_: None):
        yield


@contextmanager
def start_without_its_guard() -> Iterator[None]:
    """Whoever was told to start an attempt does, whatever became of its row."""
    start = Attempts.start

    def unguarded(self: Attempts, claims: Any, *, nonce: str, **words: Any) -> list[Started]:
        start(self, claims, nonce=nonce, **words)
        return [Started(claimed, nonce) for claimed, _ in claims]

    with patch.object(Attempts, "start", unguarded):
        yield


@contextmanager
def start_after_the_first_line() -> Iterator[None]:
    """An attempt that was running when its process died is taken for one that was only claimed (R3)."""
    mark_lost = Ledger.mark_lost

    def unclaim(self: Ledger, mandate: Any, **words: Any) -> int:
        with self.engine.begin() as connection:
            silent = attempt.c.heartbeat_at < words["silent_since"]
            moved = connection.execute(
                update(attempt)
                .where(attempt.c.state == State.RUNNING, silent)
                .values(state=State.CLAIMED)
                .returning(attempt.c.run_id)
            ).all()
            connection.execute(
                update(run).where(run.c.id.in_([row.run_id for row in moved])).values(state=State.CLAIMED)
            )
        return mark_lost(self, mandate, **words)

    with patch.object(Ledger, "mark_lost", unclaim):
        yield


@contextmanager
def schedules_moved_before_the_rows() -> Iterator[None]:
    """The claim is two transactions: the schedules are moved on, then the fires get their rows."""
    insert_runs = claiming._insert_runs

    def late(connection: Connection, mandate: Any, planned: Any, now: Any) -> Any:
        for one in planned:
            connection.execute(
                update(schedule).where(schedule.c.id == one.row.id).values(next_fire_at=one.plan.next_fire_at)
            )
        _split(connection)
        return insert_runs(connection, mandate, planned, now)

    with patch.object(claiming, "_insert_runs", late):
        yield


@contextmanager
def attempts_after_their_runs() -> Iterator[None]:
    """The runs are committed before they have their attempts."""
    insert_attempts = starting.insert_attempts

    def late(connection: Connection, *rest: Any) -> Any:
        _split(connection)
        return insert_attempts(connection, *rest)

    with patch.object(claiming, "insert_attempts", late), patch.object(starting, "insert_attempts", late):
        yield


@contextmanager
def take_over_without_a_new_token() -> Iterator[None]:
    """What was claimed is started by the new process under the old one's token."""
    take_over = Ledger.take_over

    def kept(self: Ledger, mandate: Any, **words: Any) -> tuple[Claimed, ...]:
        with self.engine.begin() as connection:
            rows = connection.execute(attempt.select()).all()
        taken = take_over(self, mandate, **words)
        old = {row.id: row for row in rows}
        with self.engine.begin() as connection:
            for one in taken:
                row = old[one.attempt_id]
                connection.execute(
                    update(attempt)
                    .where(attempt.c.id == row.id)
                    .values(office_token=row.office_token, ordinal=row.ordinal)
                )
        return tuple(
            replace(
                one,
                office_token=old[one.attempt_id].office_token,
                ordinal=old[one.attempt_id].ordinal,
            )
            for one in taken
        )

    with patch.object(Ledger, "take_over", kept):
        yield


@contextmanager
def finish_without_its_guard() -> Iterator[None]:
    """A result counts, whoever hands it in and whatever the row says."""
    with patch.object(attempts, "_judge", lambda *_: Finish.COUNTED):
        yield


@contextmanager
def lost_is_tried_again_by_all() -> Iterator[None]:
    """at_most_once is forgotten when an attempt is lost."""

    def tried(end: State, policy: Any, *, attempt_number: int) -> RunMove:
        if end is State.LOST and policy.delivery is Delivery.AT_MOST_ONCE:
            return RunMove(State.CLAIMED, policy.backoff.delay(attempt_number))
        return after_attempt(end, policy, attempt_number=attempt_number)

    with patch.object(ending, "after_attempt", tried):
        yield


@contextmanager
def success_after_the_effect() -> Iterator[None]:
    """The fenced session commits the effect, and the run's success in a transaction of its own."""
    succeed = attempts._succeed

    def late(connection: Connection, *rest: Any) -> None:
        _split(connection)
        succeed(connection, *rest)

    with patch.object(attempts, "_succeed", late):
        yield


def _after_a_split(name: str) -> Callable[..., Any]:
    function = getattr(ending, name)

    def late(connection: Connection, *rest: Any) -> Any:
        _split(connection)
        return function(connection, *rest)

    return late


@contextmanager
def notices_after_the_end() -> Iterator[None]:
    """The outbox is written once the end is committed (R7)."""
    with patch.object(ending, "_notify_ends", _after_a_split("_notify_ends")):
        yield


@contextmanager
def followers_after_the_end() -> Iterator[None]:
    """The runs after another are made once that one's end is committed."""
    with patch.object(ending, "_follow", _after_a_split("_follow")):
        yield


@contextmanager
def nothing_is_taken_over() -> Iterator[None]:
    """What was claimed by a process that is gone stays so."""
    with patch.object(Ledger, "take_over", lambda *_, **__: ()):
        yield


BUGS = [
    (office_without_its_fence, 2),
    (start_without_its_guard, 3),
    (start_after_the_first_line, 0),
    (schedules_moved_before_the_rows, 3),
    (attempts_after_their_runs, 5),
    (take_over_without_a_new_token, 1),
    (finish_without_its_guard, 0),
    (lost_is_tried_again_by_all, 0),
    (success_after_the_effect, 15),
    (notices_after_the_end, 178),
    (followers_after_the_end, 23),
    (nothing_is_taken_over, 0),
]
"""Each with a seed that showed it when this was written."""
