"""The clock that a test turns, and the scheduler that goes by it."""

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from copy import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Engine, func, select

from lockd_scheduler.asking import Asking
from lockd_scheduler.attempts import Result
from lockd_scheduler.clocks import SettableClock
from lockd_scheduler.durations import parse_duration
from lockd_scheduler.engines import reading
from lockd_scheduler.errors import SchedulerError
from lockd_scheduler.jobs import Job
from lockd_scheduler.ledger import Ledger
from lockd_scheduler.mandates import Batch, Mandate
from lockd_scheduler.reports import RunLine, list_runs
from lockd_scheduler.tables import run, schedule
from lockd_scheduler.testing.hands import LoopThread, Process
from lockd_scheduler.testing.ledgers import private_ledger
from lockd_scheduler.testing.moments import moment, moment_after
from lockd_scheduler.testing.strands import Strand
from lockd_scheduler.worker import GRACE_SECONDS

RUNS_SHOWN_MAX = 1_000_000


class TurnedClock:
    """One scheduler process, and the time it lives in. Use it as a context manager, on one thread.

    Whatever is due on the way happens at its own moment, in order of time, when the clock is turned.
    Jobs are really called; between two moments nothing is done, so a year may take seconds. A job's
    `run.wait(60)` waits by this clock; `time.sleep` and `asyncio.sleep` are real. Its
    `lock` is not taken.
    """

    def __init__(
        self,
        scope: str,
        jobs: Mapping[str, Job[..., Any]],
        start: str | datetime,
        *,
        engine: Engine | None = None,
    ) -> None:
        """See Cron.clock. Raises BadSchedule for a moment that can't be."""
        self._scope, self._jobs = scope, jobs
        self._clock = SettableClock(moment(start))
        self._given_engine = engine
        self._open = ExitStack()
        self._strands: dict[int, Strand] = {}
        """The attempts under way, by their ids, in order of their starts."""
        self._lengths: dict[str, timedelta] = {}
        self._is_in_job = False

    def __enter__(self) -> Self:
        self.engine = self._given_engine or self._open.enter_context(private_ledger())
        """The ledger's database: `run.fenced_session()` writes there."""
        self._ledger = _WatchedLedger(self.engine, self._scope)
        self.asking = Asking(self.engine, self._scope)
        """Pause, resume, backfill: what people ask of a scheduler. `now=clock.now`."""
        self._abandoned = threading.Event()
        self._process = Process.make(
            ledger=self._ledger,
            jobs={name: _without_lock(job) for name, job in self._jobs.items()},
            clock=self._clock,
            name="clock",
            loop=self._open.enter_context(LoopThread()) if self._needs_loop() else None,
            abandoned=self._abandoned,
        )
        self._process.elected(self._ledger.last_token() + 1)
        for job in self._jobs.values():
            job.turned_by = self
        self._settle()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._abandoned.set()
        for strand in self._strands.values():
            strand.abandon()
        for job in self._jobs.values():
            job.turned_by = None
        self._open.close()

    @property
    def now(self) -> datetime:
        """What the clock shows, in UTC."""
        return self._clock.now()

    def turn(self, by: str | timedelta) -> None:
        """Turn the clock on by so much ("5m"): all that is due on the way has happened on return."""
        self.run_until(self.now + (by if isinstance(by, timedelta) else parse_duration(by)))

    def run_until(self, until: str | datetime) -> None:
        """Turn the clock to a moment ("2026-03-30 00:00 Europe/Berlin"), or on by so much ("+2d").

        On return all that was due up to and at it has happened; jobs that wait for later are under way.
        """
        if self._is_in_job:
            raise SchedulerError("a job can't turn the clock that it runs by: it waits with run.wait")
        end = moment_after(until, self.now)
        while True:
            self._settle()
            following = self._next_moment()
            if following is None or following > end:
                break
            self._clock.set(following)
        self._clock.set(end)
        self._settle()

    def takes(self, job: Job[..., Any] | str, length: str) -> None:
        """From now on let each run of the job go on for so long after its function has returned."""
        self._lengths[_name(job)] = parse_duration(length)

    def start(self, job: Job[..., Any] | str, *, key: str = "by hand", **args: Any) -> int:
        """Ask for a run with these arguments now; its id. The same key is the same run."""
        run_id = self.asking.start(_name(job), args=args, key=key, by="clock", now=self.now)
        self._settle()
        return run_id

    def cancel(self, run_id: int) -> None:
        """Ask for the end of a run."""
        self.asking.cancel(run_id, now=self.now)
        self._settle()

    def runs(self, job: Job[..., Any] | str | None = None, *, state: str | None = None) -> list[RunLine]:
        """The ledger's rows in order of fire time, also of fires that were skipped, with the reason."""
        name = None if job is None else _name(job)
        lines = list_runs(self.engine, job=name, state=state, limit=RUNS_SHOWN_MAX)
        return [line for line in reversed(lines) if line.scheduler == self._scope]

    def fires(self, job: Job[..., Any] | str) -> list[datetime]:
        """The nominal fire times, in UTC, of the job's runs that have begun; see Job.fires."""
        query = (
            select(run.c.fire_time)
            .join(schedule, schedule.c.id == run.c.schedule_id)
            .where(schedule.c.scope == self._scope, schedule.c.name == _name(job))
            .where(run.c.started_at.is_not(None))
            .order_by(run.c.fire_time, run.c.id)
        )
        with reading(self.engine) as connection:
            return list(connection.scalars(query))

    def _needs_loop(self) -> bool:
        return any(job.is_async for job in self._jobs.values())

    def _settle(self) -> None:
        """Do all that can be done at this moment."""
        worker, officer = self._process.worker, self._process.officer
        while True:
            worker.heartbeat()
            worker.enforce()
            officer.turn()
            self._begin()
            ended = self._go_on()
            if ended:
                worker.finish(ended)
            elif not self._is_due():
                return

    def _begin(self) -> None:
        """Start what was claimed."""
        claims = list(self._process.runner.attempts)
        self._process.runner.drop_queued()
        if not claims:
            return
        worker = self._process.worker
        for started in worker.start(claims):
            strand = Strand(
                worker.carry,
                started,
                now=self._clock.now,
                takes=self._lengths.get(started.claimed.job, timedelta()),
            )
            worker.underway[started.claimed.attempt_id].bounds = strand.bounds
            self._strands[started.claimed.attempt_id] = strand

    def _go_on(self) -> list[Result]:
        """Let each attempt go that would; the results of those that ended."""
        results = []
        for attempt_id, strand in list(self._strands.items()):
            if not strand.is_ready:
                continue
            self._is_in_job = True
            try:
                strand.go()
            finally:
                self._is_in_job = False
            if strand.is_ended:
                del self._strands[attempt_id]
                results.append(strand.result)
        return [result for result in results if result is not None]

    def _is_due(self) -> bool:
        """Whether another turn would find something to do at this moment."""
        if any(strand.is_ready for strand in self._strands.values()):
            return True
        due = self._ledger.next_due
        return due is not None and due <= self.now

    def _next_moment(self) -> datetime | None:
        """When the next thing happens, after now; None: nothing will, by itself."""
        moments = [self._ledger.next_due, self._next_resumption()]
        moments += [strand.wakes_at for strand in self._strands.values()]
        for attempt in self._process.worker.underway.values():
            policy = attempt.job.spec.policy
            if attempt.stopped_at is not None:
                if not attempt.is_given_up:
                    moments.append(_at(attempt.stopped_at + GRACE_SECONDS))
            elif policy.timeout is not None and attempt.deadline is not None:
                moments.append(_at(attempt.deadline))
        return min((one for one in moments if one is not None and one > self.now), default=None)

    def _next_resumption(self) -> datetime | None:
        query = select(func.min(schedule.c.paused_until)).where(schedule.c.scope == self._scope)
        with reading(self.engine) as connection:
            found: datetime | None = connection.scalar(query)
            return found


class _WatchedLedger(Ledger):
    """Remembers when the last claim said that the next thing is due."""

    next_due: datetime | None = None

    def claim_due(self, mandate: Mandate, *, now: datetime) -> Batch:
        batch = super().claim_due(mandate, now=now)
        self.next_due = batch.next_due
        return batch


def _without_lock(job: Job[..., Any]) -> Job[..., Any]:
    if job.spec.policy.lock is None:
        return job
    alike = copy(job)
    alike.spec = replace(job.spec, policy=replace(job.spec.policy, lock=None))
    return alike


def _name(job: Job[..., Any] | str) -> str:
    return job if isinstance(job, str) else job.spec.name


def _at(seconds: float) -> datetime:
    """The first moment at which the worker's clock has passed so many seconds."""
    found = datetime.fromtimestamp(seconds, UTC)
    return found if found.timestamp() >= seconds else found + timedelta(microseconds=1)
