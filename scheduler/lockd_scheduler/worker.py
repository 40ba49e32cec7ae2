"""Runs one attempt from claimed to its end, whatever the database does meanwhile.

    start     claimed -> running, committed before the job's first line (SAFETY R3)
    call      the function, on this thread or on the event loop
    finish    the result, handed in until the database has answered

An unanswered transaction is asked again: each of them recognises its own earlier commit (R5).
"""

import asyncio
import concurrent.futures
import logging
import secrets
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from lockd_scheduler.attempts import Attempts, Finish, Started
from lockd_scheduler.handle import Run
from lockd_scheduler.jobs import Job
from lockd_scheduler.mandates import Claimed
from lockd_scheduler.ports import Clock
from lockd_scheduler.runs import State

logger = logging.getLogger("lockd_scheduler")

LEDGER_ERRORS = (DBAPIError, PoolTimeout)
PAUSE_FIRST_SECONDS = 0.1
PAUSE_MOST_SECONDS = 2.0

T = TypeVar("T")


class AbandonedError(Exception):
    """The process is to end now: what the ledger doesn't know, the next active one will find out."""


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
    underway: dict[int, Run]
    """The attempts that are between start and finish, by their ids."""

    def execute(self, claimed: Claimed) -> None:
        """Carry the attempt to its end. Returns early if it is somebody else's by now."""
        job = self.jobs[claimed.job]
        try:
            started = self._start(claimed)
            if started is None:
                logger.info(
                    "attempt not started, it was taken over job=%s run=%d", claimed.job, claimed.run_id
                )
                return
            run = Run(
                scope=self.scope,
                started=started,
                policy=job.spec.policy,
                attempts=self.attempts,
                now=self.clock.now,
            )
            self.underway[claimed.attempt_id] = run
            try:
                end, error = self._call(job, run, claimed.args)
                self._finish(started, job, end, error)
            finally:
                del self.underway[claimed.attempt_id]
        except AbandonedError:
            logger.warning("attempt left behind job=%s run=%d", claimed.job, claimed.run_id)

    def heartbeat(self) -> None:
        """Tell the ledger what is alive here, and the attempts that it has ended that they are fenced."""
        runs = dict(self.underway)
        if not runs:
            return
        counting = self.attempts.heartbeat(runs, worker=self.name, now=self.clock.now())
        for attempt_id in runs.keys() - counting:
            if attempt_id in self.underway:
                runs[attempt_id].mark_fenced()

    def _start(self, claimed: Claimed) -> Started | None:
        nonce = secrets.token_hex(16)
        return self._until_answered(
            lambda: self.attempts.start(claimed, nonce=nonce, worker=self.name, now=self.clock.now())
        )

    def _call(self, job: Job[..., Any], run: Run, args: Mapping[str, Any]) -> tuple[State, str | None]:
        logger.info("attempt started job=%s run=%d attempt=%d", run.job, run.id, run.attempt)
        positional = (run,) if job.takes_run else ()
        try:
            if job.is_async:
                assert self.loop is not None, "async jobs need a running event loop"
                coroutine = job.function(*positional, **args)
                asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()
            else:
                job.function(*positional, **args)
        except concurrent.futures.CancelledError:
            if self.abandoned.is_set():
                raise AbandonedError from None
            return State.FAILED, "the job's task was cancelled"
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a job raises is its result
            return State.FAILED, "".join(traceback.format_exception(error, limit=-20))
        return State.SUCCEEDED, None

    def _finish(self, started: Started, job: Job[..., Any], end: State, error: str | None) -> None:
        claimed = started.claimed
        finish = self._until_answered(
            lambda: self.attempts.finish(started, end, job.spec.policy, error=error, now=self.clock.now())
        )
        level = logging.INFO if finish is not Finish.LATE and end is State.SUCCEEDED else logging.WARNING
        last_line = "" if error is None else f" error={error.strip().splitlines()[-1]!r}"
        logger.log(
            level,
            "attempt ended job=%s run=%d attempt=%d state=%s counted=%s%s",
            claimed.job,
            claimed.run_id,
            claimed.number,
            end,
            "late" if finish is Finish.LATE else "yes",
            last_line,
        )

    def _until_answered(self, transaction: Callable[[], T]) -> T:
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
