"""What may end an attempt before its work is done, as its runner and its function see it."""

import threading
from collections.abc import Callable
from enum import StrEnum

from lockd_scheduler.runs import State


class AbandonedError(Exception):
    """The process is to end now: what the ledger doesn't know, the next active one will find out."""


class Stop(StrEnum):
    """Why an attempt is to end."""

    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    FENCED = "fenced"
    """The office has ended it: its result will not count."""


ENDS_AS = {Stop.TIMED_OUT: State.TIMED_OUT, Stop.CANCELLED: State.CANCELLED, Stop.FENCED: State.FAILED}


class Bounds:
    """Tells the work of one attempt when to stop. Safe between threads; the first reason stays."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._reason: Stop | None = None
        self._callbacks: list[Callable[[Stop], object]] = []

    @property
    def reason(self) -> Stop | None:
        """Why the work is to stop; None: it is not."""
        return self._reason

    def stop(self, reason: Stop) -> None:
        """Tell the work to stop, once."""
        with self._changed:
            if self._reason is not None:
                return
            self._reason = reason
            callbacks, self._callbacks = self._callbacks, []
            self._changed.notify_all()
        for callback in callbacks:
            callback(reason)

    def wait(self, seconds: float) -> Stop | None:
        """Wait up to so long for a reason to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._reason is not None, seconds)
            return self._reason

    def on_stop(self, callback: Callable[[Stop], object]) -> None:
        """Call back once on the thread that tells it; at once if there is a reason already."""
        with self._changed:
            if self._reason is None:
                self._callbacks.append(callback)
                return
            reason = self._reason
        callback(reason)
