"""Attempts whose jobs wait by a clock that somebody turns.

Each job is on a thread of its own, and one thread goes at a time: whoever turns the clock, or one job
until it ends or waits (`run.wait`). So what happens, and in which order, is the same in each run.
"""

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from lockd_scheduler.attempts import Result, Started
from lockd_scheduler.bounds import ENDS_AS, AbandonedError, Bounds, Stop
from lockd_scheduler.runs import State


class Strand:
    """One attempt under way: it goes when it is told to, and gives the turn back when it waits or ends."""

    def __init__(
        self,
        carry: Callable[[Started], Result],
        started: Started,
        *,
        now: Callable[[], datetime],
        takes: timedelta,
    ) -> None:
        self.bounds: Bounds = _TurnedBounds(self)
        self.result: Result | None = None
        """What it came to; None while it goes on, and for one that was abandoned."""
        self.is_ended = False
        self.failure: BaseException | None = None
        """A fault that is not the job's."""
        self.wakes_at: datetime | None = None
        """When its wait is over."""
        self._carry, self._started, self._now, self._takes = carry, started, now, takes
        self._may_go, self._is_back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._go_on, name="lockd-scheduler-strand", daemon=True)
        self._is_begun = False

    @property
    def is_ready(self) -> bool:
        """Whether it would go on now."""
        if self.is_ended:
            return False
        return self.wakes_at is None or self.wakes_at <= self._now() or self.bounds.reason is not None

    def go(self) -> None:
        """Let it go until it waits or ends."""
        if not self._is_begun:
            self._is_begun = True
            self._thread.start()
        self._may_go.release()
        self._is_back.acquire()
        if self.is_ended:
            self._thread.join()
        if self.failure is not None:
            raise self.failure

    def wait(self, seconds: float) -> None:
        """Called on the job's own thread: give the turn back for so long, or until it is to stop."""
        self.wakes_at = self._now() + timedelta(seconds=seconds)
        while not self.is_ready:
            self._is_back.release()
            self._may_go.acquire()
        self.wakes_at = None

    def abandon(self) -> None:
        """Let a job that waits find out that nobody counts on it any more."""
        self.bounds.stop(Stop.FENCED)
        if self._is_begun and not self.is_ended:
            self.go()

    def is_on_own_thread(self) -> bool:
        """Whether the caller is the job, and not a thread that it has made."""
        return threading.current_thread() is self._thread

    def _go_on(self) -> None:
        self._may_go.acquire()
        try:
            result = self._carry(self._started)
            if self._takes and result.end is State.SUCCEEDED:
                self.wait(self._takes.total_seconds())
                if (reason := self.bounds.reason) is not None:
                    result = replace(result, end=ENDS_AS[reason], error=reason.value)
            self.result = result
        except AbandonedError:
            self.result = None
        except BaseException as error:  # noqa: BLE001 - told on the thread that turns
            self.failure = error
        finally:
            self.is_ended = True
            self._is_back.release()


class _TurnedBounds(Bounds):
    """Waits by the clock that is turned."""

    def __init__(self, strand: Strand) -> None:
        super().__init__()
        self._strand = strand

    def wait(self, seconds: float) -> Stop | None:
        if not self._strand.is_on_own_thread():
            return super().wait(seconds)
        self._strand.wait(seconds)
        return self.reason
