"""A scheduler process that is turned by hand: no thread of its own, and elected when it is told so.

Its office elects whom the test says, also while an earlier seat's holder knows of nothing: that is what a
process sees that was paused past its lease.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from lockd_scheduler.attempts import Attempts
from lockd_scheduler.clocks import SettableClock
from lockd_scheduler.jobs import Job
from lockd_scheduler.ledger import Ledger
from lockd_scheduler.mandates import LOCAL, Claimed
from lockd_scheduler.officer import Officer
from lockd_scheduler.ports import Seat
from lockd_scheduler.tenure import Phase
from lockd_scheduler.worker import Worker

LOST_AFTER = timedelta(seconds=30)
"""The silence after which an attempt is lost, as `serve` has it unless told."""


@dataclass
class HandSeat:
    """A seat that is lost when the test says so."""

    token: int
    source: str = LOCAL
    lost: bool = False
    resigned: bool = False

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Whoever turns the process looks at `lost`."""

    def resign(self) -> None:
        """Note it."""
        self.resigned = True


class HandOffice:
    """Elects nobody by itself."""

    def campaign(self, wait: float) -> Seat | None:  # noqa: ARG002
        """See ports.Office."""
        return None

    def close(self) -> None:
        """Nothing to close."""


@dataclass
class HeldRunner:
    """Keeps the attempts until somebody runs them."""

    attempts: list[Claimed] = field(default_factory=list)

    def submit(self, claims: Sequence[Claimed], *, more: bool = False) -> None:  # noqa: ARG002
        """See ports.Runner."""
        self.attempts += claims

    def queued(self) -> frozenset[int]:
        """See ports.Runner."""
        return frozenset(claimed.attempt_id for claimed in self.attempts)

    def drop_queued(self) -> None:
        """See ports.Runner."""
        self.attempts.clear()


@dataclass
class Process:
    """One scheduler process."""

    officer: Officer
    worker: Worker
    runner: HeldRunner

    @classmethod
    def make(
        cls,
        *,
        ledger: Ledger,
        jobs: Mapping[str, Job[..., Any]],
        clock: SettableClock,
        name: str,
        loop: asyncio.AbstractEventLoop | None = None,
        abandoned: threading.Event | None = None,
    ) -> "Process":
        """A process that stands by. It reads no clock but `clock`, also for time-outs."""
        runner = HeldRunner()
        worker = Worker(
            scope=ledger.scope,
            name=name,
            jobs=dict(jobs),
            attempts=Attempts(ledger.engine),
            clock=clock,
            loop=loop,
            abandoned=abandoned or threading.Event(),
            monotonic=lambda: clock.now().timestamp(),
        )
        officer = Officer(
            ledger=ledger,
            office=HandOffice(),
            specs={name: job.spec for name, job in jobs.items()},
            clock=clock,
            runner=runner,
            holder=name,
            lost_after=LOST_AFTER,
        )
        return cls(officer, worker, runner)

    def elect(self, token: int, source: str = LOCAL) -> HandSeat:
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
        """Whether it believes to hold the office."""
        return self.officer.tenure.phase is Phase.ACTIVE

    def turn(self) -> None:
        """Let the officer do its next duty."""
        self.officer.turn()

    def pop(self) -> Claimed:
        """The next claimed attempt, taken from the queue but not started."""
        return self.runner.attempts.pop(0)

    def run_all(self) -> None:
        """Carry every queued attempt to its end."""
        while self.runner.attempts:
            self.worker.execute(self.pop())


class LoopThread:
    """An event loop on a thread of its own, for async jobs."""

    def __enter__(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="lockd-scheduler-loop", daemon=True
        )
        self._thread.start()
        return self._loop

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
