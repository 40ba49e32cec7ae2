"""Runs attempts from claimed to their ends, whatever the database does meanwhile.

    start     claimed -> running, committed before the job's first line (SAFETY R3)
    carry     the function, on the calling thread or on the event loop
    finish    the results, handed in until the database has answered

Attempts that start or finish at the same time share a transaction. An unanswered one is asked again: each
of them recognises its own earlier commit (R5).
"""

import asyncio
import concurrent.futures
import logging
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

import lockd
from lockd.errors import LockdError
from lockd_scheduler.attempts import Attempts, Finish, Result, Started
from lockd_scheduler.bounds import ENDS_AS, AbandonedError, Bounds, Stop
from lockd_scheduler.capture import Output, OutputWriter
from lockd_scheduler.errors import AttemptFenced, BadSchedule, RunCancelled, RunTimedOut
from lockd_scheduler.figures import Figures
from lockd_scheduler.handle import Run
from lockd_scheduler.jobs import Job, JobSpec
from lockd_scheduler.mandates import SCHEDULED, Claimed
from lockd_scheduler.parking import park_gone
from lockd_scheduler.policies import Delivery
from lockd_scheduler.ports import Clock
from lockd_scheduler.runners import Outcome, Work, executor_of
from lockd_scheduler.runs import State

logger = logging.getLogger("lockd_scheduler")

LEDGER_ERRORS = (DBAPIError, PoolTimeout)
PAUSE_FIRST_SECONDS = 0.1
PAUSE_MOST_SECONDS = 2.0
GRACE_SECONDS = 10.0
"""How long work may go on after it was told to stop; then it is given up."""
LOCK_SLICE_SECONDS = 1.0

T = TypeVar("T")


@dataclass
class Underway:
    """An attempt between its start and its finish."""

    started: Started
    job: Job[..., Any]
    bounds: Bounds
    deadline: float | None
    """When it times out, by this machine's monotonic clock."""
    stopped_at: float | None = None
    """When it was told to stop, by the same clock."""
    is_given_up: bool = False
    """It was told to stop and did not: its end is decided, whatever it does now."""


@dataclass(frozen=True)
class Worker:
    """Executes attempts in this process; `loop` is where async jobs run."""

    scope: str
    name: str
    """This process, as heartbeats know it: unlike any other, also after a restart."""
    jobs: Mapping[str, Job[..., Any]]
    attempts: Attempts
    clock: Clock
    loop: asyncio.AbstractEventLoop | None
    abandoned: threading.Event
    locks: lockd.Client | None = None
    """Where jobs with a `lock` take it."""
    figures: Figures = field(default_factory=Figures)
    monotonic: Callable[[], float] = time.monotonic
    underway: dict[int, Underway] = field(default_factory=dict)
    """The attempts between start and finish, by their ids."""

    @cached_property
    def outputs(self) -> OutputWriter:
        """Where what the attempts say goes."""
        return OutputWriter(self.attempts.engine, now=self.clock.now, abandoned=self.abandoned)

    def execute(self, claimed: Claimed) -> None:
        """Carry one attempt to its end. Returns early if it is somebody else's by now."""
        try:
            for started in self.start([claimed]):
                self.finish([self.carry(started)])
        except AbandonedError:
            logger.warning("attempt left behind job=%s run=%d", claimed.job, claimed.run_id)

    def start(self, claims: Sequence[Claimed]) -> list[Started]:
        """Begin these attempts; those that were taken over meanwhile are left out. Raises AbandonedError."""
        nonce = secrets.token_hex(16)
        jobs = self.until_answered(lambda: self._jobs_of(claims))
        wanted = [(claimed, jobs[claimed.job].spec.policy) for claimed in claims if claimed.job in jobs]
        begun = self.until_answered(
            lambda: self.attempts.start(wanted, nonce=nonce, worker=self.name, now=self.clock.now())
        )
        for started in begun:
            self._count_start(started.claimed)
            job = jobs[started.claimed.job]
            timeout = job.spec.policy.timeout
            deadline = None if timeout is None else self.monotonic() + timeout.total_seconds()
            self.underway[started.claimed.attempt_id] = Underway(started, job, Bounds(), deadline)
        taken = {claimed.attempt_id for claimed in claims} - {one.claimed.attempt_id for one in begun}
        if taken:
            logger.info("attempts not started, they were taken over: %s", sorted(taken))
        return begun

    def carry(self, started: Started) -> Result:
        """Do the attempt's work on this thread; what it came to. Raises AbandonedError."""
        attempt = self.underway[started.claimed.attempt_id]
        output = self.outputs.open(started.claimed.attempt_id)
        try:
            outcome = self._call(attempt, output)
        finally:
            output.close()
        spec = attempt.job.spec
        if outcome.is_gone:
            engine, why = self.attempts.engine, outcome.error or ""
            self.until_answered(lambda: park_gone(engine, self.scope, spec, why, now=self.clock.now()))
        policy = spec.policy
        return Result(started, policy, outcome.end, outcome.error, outcome.exit_status)

    def finish(self, results: Sequence[Result]) -> None:
        """Hand results in; on return the ledger has them. Raises AbandonedError."""
        finishes = self.until_answered(lambda: self.attempts.finish(results, now=self.clock.now()))
        for result, finish in zip(results, finishes, strict=True):
            self.underway.pop(result.started.claimed.attempt_id, None)
            self._note_end(result, finish)

    def heartbeat(self) -> None:
        """Tell the ledger what is alive here, and the attempts that it has ended that they are fenced."""
        underway = dict(self.underway)
        if not underway:
            return
        counting = self.attempts.heartbeat(underway, worker=self.name, now=self.clock.now())
        for attempt_id in underway.keys() - counting:
            if attempt_id in self.underway:
                self._stop(underway[attempt_id], Stop.FENCED)

    def enforce(self) -> None:
        """Tell attempts to stop that have timed out or are to be cancelled; give up those that don't.

        Of a thread that goes on nothing is known. For at_least_once its row is moved, which shuts it
        out, and the next attempt may start; for at_most_once the run is lost (SAFETY R5).
        """
        underway = dict(self.underway)
        if not underway:
            return
        now = self.monotonic()
        for attempt in underway.values():
            if attempt.deadline is not None and now >= attempt.deadline:
                self._stop(attempt, Stop.TIMED_OUT)
        for attempt_id in self.attempts.cancelled(underway):
            self._stop(underway[attempt_id], Stop.CANCELLED)
        stuck = [
            attempt
            for attempt in underway.values()
            if attempt.stopped_at is not None
            and now - attempt.stopped_at >= GRACE_SECONDS
            and not attempt.is_given_up
        ]
        if stuck:
            self._give_up(stuck)

    def _stop(self, attempt: Underway, reason: Stop) -> None:
        if attempt.stopped_at is None:
            attempt.stopped_at = self.monotonic()
            attempt.bounds.stop(reason)

    def _give_up(self, stuck: Sequence[Underway]) -> None:
        results = []
        for attempt in stuck:
            attempt.is_given_up = True
            reason = attempt.bounds.reason
            if reason is None or reason is Stop.FENCED:
                continue  # the office has ended it already
            policy = attempt.job.spec.policy
            moves = policy.delivery is Delivery.AT_LEAST_ONCE
            end = ENDS_AS[reason] if moves else State.LOST
            error = f"{reason.value}, and {GRACE_SECONDS:g} s later its work had not ended"
            results.append(Result(attempt.started, policy, end, error))
        if results:
            for result, finish in zip(
                results, self.attempts.finish(results, now=self.clock.now()), strict=True
            ):
                self._note_end(result, finish)

    def _count_start(self, claimed: Claimed) -> None:
        if claimed.kind == SCHEDULED and claimed.number == 1:
            self.figures.started((self.clock.now() - claimed.fire_time).total_seconds())

    def _note_end(self, result: Result, finish: Finish) -> None:
        _log_end(result, finish)
        if finish is not Finish.LATE:
            self.figures.ended(result.started.claimed.job, result.end)

    def _jobs_of(self, claims: Sequence[Claimed]) -> dict[str, Job[..., Any]]:
        """The claims' jobs; those that the code doesn't know are the ledger's, and have no function."""
        known = {claimed.job: self.jobs[claimed.job] for claimed in claims if claimed.job in self.jobs}
        others = [claimed.attempt_id for claimed in claims if claimed.job not in known]
        if not others:
            return known
        specs = [JobSpec.from_json(*named) for named in self.attempts.definitions(others).items()]
        return known | {spec.name: Job(None, spec) for spec in specs}

    def _call(self, attempt: Underway, output: Output) -> Outcome:
        claimed = attempt.started.claimed
        run = Run(
            scope=self.scope,
            started=attempt.started,
            policy=attempt.job.spec.policy,
            attempts=self.attempts,
            now=self.clock.now,
            bounds=attempt.bounds,
            output=output,
        )
        logger.info("attempt started job=%s run=%d attempt=%d", claimed.job, claimed.run_id, claimed.number)
        try:
            with self._lock_held(attempt, run):
                execute = executor_of(attempt.job.spec.kind)
                if execute is not None:
                    return execute(self._work(attempt, run, output))
                self._call_function(attempt, run)
        except (RunCancelled, RunTimedOut, AttemptFenced, concurrent.futures.CancelledError) as error:
            if self.abandoned.is_set() and isinstance(error, concurrent.futures.CancelledError):
                raise AbandonedError from None
            reason = attempt.bounds.reason
            if reason is None:
                return Outcome(State.FAILED, str(error) or "the job's task was cancelled")
            return Outcome(ENDS_AS[reason], str(error) or reason.value)
        except AbandonedError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a job raises is its result
            return Outcome(State.FAILED, "".join(traceback.format_exception(error, limit=-20)))
        return Outcome(State.SUCCEEDED)

    def _work(self, attempt: Underway, run: Run, output: Output) -> Work:
        return Work(
            job=attempt.job,
            started=attempt.started,
            run=run,
            bounds=attempt.bounds,
            output=output,
            db=self.attempts.engine.url.render_as_string(hide_password=False),
            abandoned=self.abandoned,
        )

    def _call_function(self, attempt: Underway, run: Run) -> None:
        job, args = attempt.job, attempt.started.claimed.args
        function = job.function
        if function is None:
            raise BadSchedule(f"job {run.job!r} has no function in the code that is served here")
        positional = (run,) if job.takes_run else ()
        if not job.is_async:
            function(*positional, **args)
            return
        loop = self.loop
        assert loop is not None, "async jobs need a running event loop"

        async def call() -> None:
            # The task is cancelled and not the future for it, which would be done before its end.
            task = asyncio.current_task()
            assert task is not None
            attempt.bounds.on_stop(lambda _: loop.call_soon_threadsafe(task.cancel))
            await function(*positional, **args)

        asyncio.run_coroutine_threadsafe(call(), loop).result()

    @contextmanager
    def _lock_held(self, attempt: Underway, run: Run) -> Iterator[None]:
        name = attempt.job.spec.policy.lock
        if name is None:
            yield
            return
        assert self.locks is not None, "refused when the service was made"
        meta = {"job": run.job, "run": run.id}
        while True:
            run.check()
            try:
                lease = self.locks.acquire(name, wait=LOCK_SLICE_SECONDS, meta=meta)
                break
            except lockd.LockTimeout:
                continue
        run.lease = lease
        try:
            yield
            lease.check()
        finally:
            try:
                lease.release()
            except LockdError as error:
                logger.info("lock %s not given back, its lease runs out by itself: %s", name, error)

    def until_answered(self, transaction: Callable[[], T]) -> T:
        """Ask the ledger until it answers. Raises AbandonedError."""
        pause, is_told = PAUSE_FIRST_SECONDS, False
        while True:
            try:
                return transaction()
            except LEDGER_ERRORS as error:
                if not is_told:
                    logger.warning("ledger does not answer, asking again: %s", first_line(error))
                    is_told = True
            if self.abandoned.wait(pause):
                raise AbandonedError
            pause = min(pause * 2, PAUSE_MOST_SECONDS)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for a log line."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _log_end(result: Result, finish: Finish) -> None:
    claimed = result.started.claimed
    is_well = finish is not Finish.LATE and result.end is State.SUCCEEDED
    last_line = "" if not result.error else f" error={result.error.strip().splitlines()[-1]!r}"
    logger.log(
        logging.INFO if is_well else logging.WARNING,
        "attempt ended job=%s run=%d attempt=%d state=%s counted=%s%s",
        claimed.job,
        claimed.run_id,
        claimed.number,
        result.end,
        "late" if finish is Finish.LATE else "yes",
        last_line,
    )
