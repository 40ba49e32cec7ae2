"""What becomes of each job when the active process dies, or sleeps, at the wrong moment.

A scheduler has few places where its death matters. Each is replayed on a private ledger, once for every
job and choice of delivery: the first process comes to that place in the job's next fire, a second
one takes over and goes on until all has ended; one that only slept then wakes and goes on too.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import product
from typing import Any

from sqlalchemy import Engine, select

from lockd_scheduler.attempts import Result, Started
from lockd_scheduler.clocks import SettableClock
from lockd_scheduler.engines import reading
from lockd_scheduler.errors import BadSchedule, SchedulerError
from lockd_scheduler.jobs import Job
from lockd_scheduler.ledger import Ledger
from lockd_scheduler.policies import Delivery
from lockd_scheduler.runs import LIVE
from lockd_scheduler.tables import AnyRow, attempt, run
from lockd_scheduler.testing.hands import LOST_AFTER, LoopThread, Process
from lockd_scheduler.testing.ledgers import private_ledger
from lockd_scheduler.testing.moments import moment
from lockd_scheduler.triggers import AfterTrigger, AtTrigger

LEASE = timedelta(seconds=10)
STEPS_MAX = 200


class Hole(StrEnum):
    """Up to where the first process comes; what it does there has been committed."""

    OFFICE = "office"
    """It holds the office, and a fire is due."""
    CLAIM = "claim"
    """The fire has its row, and nobody has begun it."""
    START = "start"
    """The attempt is running, and the job's first line has not."""
    EFFECT = "effect"
    """The job's function has returned, and the ledger doesn't know."""
    FINISH = "finish"
    """The ledger has the result, and the process has not heard so."""


@dataclass(frozen=True)
class Verdict:
    """What became of one run."""

    job: str
    delivery: Delivery
    is_own_choice: bool
    """Whether that is the job's own delivery; the other one is tried for comparison."""
    state: str
    """Of the run, once all was over."""
    calls: int
    """How often the job's function was begun."""
    attempts: tuple[str, ...]
    """The states of the run's attempts."""
    late: str | None
    """What an attempt came to whose result no longer counted."""

    def __str__(self) -> str:
        times = {0: "not called", 1: "called once"}.get(self.calls, f"called {self.calls} times")
        late = "" if self.late is None else f"; a late result ({self.late}) moved nothing"
        mark = "*" if self.is_own_choice else " "
        return f"{mark} {self.job}  {self.delivery}: {self.state}, {times}{late}"


@dataclass(frozen=True)
class Report:
    """The verdicts of one hole. As text it is a line for each; `*` marks the job's own choice."""

    hole: Hole
    wakes: bool
    """Whether the first process only slept."""
    verdicts: tuple[Verdict, ...]

    def __getitem__(self, job: Job[..., Any] | str) -> Verdict:
        """The verdict on a job as it is declared."""
        name = job if isinstance(job, str) else job.spec.name
        return next(one for one in self.verdicts if one.job == name and one.is_own_choice)

    def __str__(self) -> str:
        how = "slept past its lease" if self.wakes else "was killed"
        return "\n".join([f"the active process {how} after: {self.hole}", *map(str, self.verdicts)])


def replay(
    scope: str,
    jobs: Mapping[str, Job[..., Any]],
    *,
    kill_after: str | None,
    pause_after: str | None,
    start: str | datetime,
) -> Report:
    """See Cron.chaos."""
    place = kill_after or pause_after
    if place is None or (kill_after and pause_after) or place not in list(Hole):
        choices = ", ".join(Hole)
        raise BadSchedule(f"chaos needs one of kill_after= and pause_after=, from: {choices}")
    hole, wakes = Hole(place), pause_after is not None
    verdicts = []
    # A run after another is made by that one's end, and carried like any.
    timed = [job for job in jobs.values() if not isinstance(job.spec.trigger, AfterTrigger)]
    with LoopThread() as loop:
        for job, delivery in product(timed, Delivery):
            with private_ledger() as engine:
                fire = _Replay(engine, scope, job, delivery, moment(start))
                verdicts.append(fire.run(hole, loop, wakes=wakes))
    return Report(hole, wakes, tuple(verdicts))


class _Replay:
    """One job's next fire, and two processes."""

    def __init__(
        self, engine: Engine, scope: str, job: Job[..., Any], delivery: Delivery, start: datetime
    ) -> None:
        fire = job.spec.first_fire(start)
        if fire is None:
            raise BadSchedule(f"job {job.spec.name!r} has no fire from {start.isoformat()} on")
        self._fire, self._own_choice, self._delivery = fire, job.spec.policy.delivery, delivery
        policy = replace(job.spec.policy, delivery=delivery, jitter=None, lock=None)
        self._job = copy(job)
        self._job.spec = replace(job.spec, policy=policy, trigger=AtTrigger(fire))
        self._clock = SettableClock(start)
        self._ledger = Ledger(engine, scope)
        self._calls = 0

    def run(self, hole: Hole, loop: asyncio.AbstractEventLoop | None, *, wakes: bool) -> Verdict:
        first = self._process("first", 1, loop)
        self._clock.set(self._fire)
        rest = self._come_to(first, hole)
        self._clock.turn(LEASE)
        self._finish_run(self._process("second", 2, loop))
        if wakes:
            rest()
        return self._verdict()

    def _process(self, name: str, token: int, loop: asyncio.AbstractEventLoop | None) -> Process:
        process = Process.make(
            ledger=self._ledger,
            jobs={self._job.spec.name: self._job},
            clock=self._clock,
            name=name,
            loop=loop,
        )
        return process.elected(token)

    def _come_to(self, process: Process, hole: Hole) -> Callable[[], object]:
        """Let it act up to there; returns what it will do if it wakes."""

        def act() -> Iterator[Hole]:
            yield Hole.OFFICE
            process.turn()
            claims = process.runner.attempts
            yield Hole.CLAIM
            begun = process.worker.start(list(claims))
            yield Hole.START
            results = [self._carry(process, started) for started in begun]
            yield Hole.EFFECT
            process.worker.finish(results)
            yield Hole.FINISH

        acting = act()
        while next(acting) is not hole:
            pass
        return lambda: deque(acting, maxlen=0)

    def _finish_run(self, process: Process) -> None:
        """Let a healthy process go on until the run has ended."""
        for _ in range(STEPS_MAX):
            process.worker.heartbeat()
            process.turn()
            begun = process.worker.start(list(process.runner.attempts))
            process.runner.drop_queued()
            process.worker.finish([self._carry(process, started) for started in begun])
            row = self._row()
            if row.state not in LIVE:
                return
            if row.next_attempt_at is not None:
                self._clock.set(max(row.next_attempt_at, self._clock.now()))
            else:
                self._clock.turn(LOST_AFTER)
        raise SchedulerError(f"job {self._job.spec.name!r} has not ended after {STEPS_MAX} attempts")

    def _carry(self, process: Process, started: Started) -> Result:
        self._calls += 1
        return process.worker.carry(started)

    def _row(self) -> AnyRow:
        with reading(self._ledger.engine) as connection:
            return connection.execute(select(run)).one()

    def _verdict(self) -> Verdict:
        with reading(self._ledger.engine) as connection:
            attempts = connection.execute(select(attempt).order_by(attempt.c.number)).all()
        return Verdict(
            job=self._job.spec.name,
            delivery=self._delivery,
            is_own_choice=self._delivery is self._own_choice,
            state=self._row().state,
            calls=self._calls,
            attempts=tuple(one.state for one in attempts),
            late=next((one.late_state for one in attempts if one.late_state is not None), None),
        )
