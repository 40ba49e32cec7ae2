"""One database, one clock that stands still, and processes that a test turns by hand."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, select

from lockd_scheduler import Cron
from lockd_scheduler.clocks import SettableClock
from lockd_scheduler.ledger import Ledger
from lockd_scheduler.tables import attempt, run, schedule
from lockd_scheduler.testing.hands import LOST_AFTER, Process

__all__ = ["LOST_AFTER", "MINUTE", "NOON", "SECOND", "Process", "World"]

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


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
        return Process.make(
            ledger=self.ledger, jobs=cron.jobs, clock=self.clock, name=f"process-{self._count}"
        )

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
