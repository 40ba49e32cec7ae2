"""The scheduler as threads of a process: one turns the officer, one sends heartbeats, others run jobs.

No thread of it belongs to a job or to the user's event loop, so a job that blocks either can't stop
heartbeats. One boundary each: a fault of our own stops the service and is kept in `failure`; a
service that has failed says so and never pretends to run.
"""

import logging
import threading
from collections.abc import Callable
from datetime import timedelta

from lockd_scheduler.beating import beat_on, look_on
from lockd_scheduler.errors import SchedulerError
from lockd_scheduler.figures import Figures
from lockd_scheduler.officer import Officer
from lockd_scheduler.ports import Seat
from lockd_scheduler.tenure import Phase
from lockd_scheduler.threads import ThreadRunner
from lockd_scheduler.web import Standing
from lockd_scheduler.worker import Worker

logger = logging.getLogger("lockd_scheduler")

STOP_SECONDS = 15.0
"""The longest that a turn of the officer may take to notice that it is to stop."""


class Service:
    """Turns an officer and a worker until it is stopped."""

    def __init__(
        self,
        *,
        officer: Officer,
        worker: Worker,
        runner: ThreadRunner,
        close: Callable[[], None],
        lost_after: timedelta,
        figures: Figures,
    ) -> None:
        self.failure: Exception | None = None
        self.ended = threading.Event()
        """Set when the service has stopped claiming, told to or by a failure."""
        self.on_ended: Callable[[], object] = lambda: None
        self.on_stopped: Callable[[], object] = lambda: None
        """Called when attempts have ended or were left behind, while the ledger is still open."""
        self.figures = figures
        self._officer = officer
        self._worker = worker
        self._runner = runner
        self._close = close
        self._lost_after = lost_after
        self._wake = threading.Event()
        self._is_stopping = False
        self._is_drained = threading.Event()
        self._turning = threading.Thread(target=self._turn_on, name="lockd-scheduler-officer", daemon=True)
        self._beating = threading.Thread(target=self._beat_on, name="lockd-scheduler-heart", daemon=True)
        self._looking = threading.Thread(target=self._look_on, name="lockd-scheduler-parked", daemon=True)
        officer.wake = self._wake.set
        runner.on_failure = self.fail
        runner.on_finished = self._wake.set

    @property
    def is_active(self) -> bool:
        """Whether this process holds the office, as far as it knows."""
        return self._officer.tenure.phase is Phase.ACTIVE

    @property
    def standing(self) -> Standing:
        """How this process stands just now, for the HTTP side."""
        return Standing(
            phase=self._officer.tenure.phase.name.lower(),
            queued=len(self._runner.queued()),
            underway=len(self._worker.underway),
            is_stopping=self._is_stopping,
        )

    def start(self, seat: Seat | None = None) -> None:
        """Begin; with a seat that was won already, or standing by."""
        if seat is not None:
            self._officer.take_seat(seat)
        self._turning.start()
        self._beating.start()
        self._looking.start()

    def stop(self, *, drain: float) -> bool:
        """Stop claiming, hand the office over, let attempts finish for up to `drain` seconds.

        Returns whether all of them did; those left behind will be found lost. Idempotent.
        """
        self._is_stopping = True
        self._wake.set()
        self.ended.wait(STOP_SECONDS)
        is_idle = self._runner.wait_idle(drain)
        self._worker.abandoned.set()
        self._is_drained.set()
        self._beating.join(STOP_SECONDS)
        self._looking.join(STOP_SECONDS)
        self._runner.close()
        self.on_stopped()
        self._close()
        return is_idle

    def hurry(self) -> None:
        """End a drain that is going on in another thread: leave behind what has not ended."""
        self._runner.stop_waiting()

    def fail(self, error: Exception) -> None:
        """Note a fault of our own, on any thread: the service stops."""
        if self.failure is None:
            self.failure = error
            if isinstance(error, SchedulerError):
                logger.critical("scheduler stopped: %s", error)  # somebody's to mend, and not here
            else:
                logger.critical("scheduler stopped by a fault", exc_info=error)
        self._is_stopping = True
        self._wake.set()

    def _turn_on(self) -> None:
        try:
            while not self._is_stopping:
                pause = self._officer.turn()
                self._wake.wait(pause)
                self._wake.clear()
        except Exception as error:  # noqa: BLE001 - the boundary of this thread
            self.fail(error)
        finally:
            try:
                self._officer.stop()
            except Exception as error:  # noqa: BLE001 - whoever waits for the end must see it
                self.fail(error)
            self.ended.set()
            self.on_ended()

    def _beat_on(self) -> None:
        try:
            beat_on(self._worker, self._is_drained, lost_after_seconds=self._lost_after.total_seconds())
        except Exception as error:  # noqa: BLE001 - the boundary of this thread
            self.fail(error)

    def _look_on(self) -> None:
        try:
            look_on(self._worker, self._is_drained, is_active=lambda: self.is_active)
        except Exception as error:  # noqa: BLE001 - the boundary of this thread
            self.fail(error)
