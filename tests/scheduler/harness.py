"""A scheduler that a test turns by hand: processes without threads, a clock that stands still.

The office's twin here elects whom the test says, also while an earlier seat's holder knows of nothing:
that is what a process sees that was paused past its lease.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, select

from lockd_scheduler import Cron
from lockd_scheduler.attempts import Attempts
from lockd_scheduler.clocks import SettableClock
from lockd_scheduler.ledger import Ledger
from lockd_scheduler.mandates import Claimed
from lockd_scheduler.officer import Officer
from lockd_scheduler.ports import Seat
from lockd_scheduler.tables import attempt, run, schedule
from lockd_scheduler.tenure import Phase
from lockd_scheduler.worker import Worker

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
LOST_AFTER = timedelta(seconds=30)


@dataclass
class HandSeat:
    """A seat that is lost when the test says so."""

    token: int
    source: str = "local"
    lost: bool = False
    resigned: bool = False

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Tests look at `lost`."""

    def resign(self) -> None:
        self.resigned = True


class HandOffice:
    """Elects nobody by itself."""

    def campaign(self, wait: float) -> Seat | None:  # noqa: ARG002
        return None

    def close(self) -> None:
        """Nothing to close."""


@dataclass
class HeldRunner:
    """Keeps the attempts until the test runs them."""

    attempts: list[Claimed] = field(default_factory=list)

    def submit(self, claimed: Claimed) -> None:
        self.attempts.append(claimed)

    def queued(self) -> frozenset[int]:
        return frozenset(claimed.attempt_id for claimed in self.attempts)

    def drop_queued(self) -> None:
        self.attempts.clear()


@dataclass
class Process:
    """One scheduler process."""

    officer: Officer
    worker: Worker
    runner: HeldRunner

    def elect(self, token: int, source: str = "local") -> HandSeat:
        """Give it a seat with that token; it takes office with its next turns."""
        seat = HandSeat(token, source)
        self.officer.take_seat(seat)
        return seat

    def elected(self, token: int) -> "Process":
        """In office with that token, its schedules kept."""
        self.elect(token)
        self.officer.turn()
        assert self.is_active
        return self

    @property
    def is_active(self) -> bool:
        return self.officer.tenure.phase is Phase.ACTIVE

    def turn(self) -> None:
        self.officer.turn()

    def pop(self) -> Claimed:
        """The next claimed attempt, taken from the queue but not started."""
        return self.runner.attempts.pop(0)

    def run_all(self) -> None:
        """Carry every queued attempt to its end."""
        while self.runner.attempts:
            self.worker.execute(self.pop())


class World:
    """One database, one clock, any number of processes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.clock = SettableClock(NOON)
        self.cron = Cron("ops")
        self.ledger = Ledger(engine, "ops")
        self._count = 0

    def process(self, cron: Cron | None = None) -> Process:
        """A new process with the jobs there are now; it stands by."""
        cron = cron or self.cron
        self._count += 1
        name = f"process-{self._count}"
        runner = HeldRunner()
        worker = Worker(
            scope="ops",
            name=name,
            jobs=dict(cron.jobs),
            attempts=Attempts(self.engine),
            clock=self.clock,
            loop=None,
            abandoned=threading.Event(),
            monotonic=lambda: self.clock.now().timestamp(),
        )
        officer = Officer(
            ledger=self.ledger,
            office=HandOffice(),
            specs={job.spec.name: job.spec for job in cron.jobs.values()},
            clock=self.clock,
            runner=runner,
            holder=name,
            lost_after=LOST_AFTER,
        )
        return Process(officer, worker, runner)

    def runs(self) -> list[Any]:
        """All run rows in order of fire time."""
        with self.engine.connect() as connection:
            return list(connection.execute(select(run).order_by(run.c.fire_time, run.c.id)))

    def states(self) -> list[str]:
        """The runs' states, with the reason of a skip behind a colon."""
        return [row.state if row.reason is None else f"{row.state}:{row.reason}" for row in self.runs()]

    def attempts(self) -> list[Any]:
        """All attempt rows in order of making."""
        with self.engine.connect() as connection:
            return list(connection.execute(select(attempt).order_by(attempt.c.id)))

    def schedules(self) -> list[Any]:
        """All schedule rows."""
        with self.engine.connect() as connection:
            return list(connection.execute(select(schedule).order_by(schedule.c.id)))
