"""Runs attempts on threads of this process, a bounded number at a time.

The threads are daemons: a job can't be killed, and must not keep a process alive that was told
to end.
"""

import threading
from collections import deque
from collections.abc import Callable

from lockd_scheduler.mandates import Claimed


class ThreadRunner:
    """Calls `execute` for each submitted attempt, at most `limit` at once, in order of submission."""

    def __init__(self, execute: Callable[[Claimed], None], *, limit: int) -> None:
        self.on_failure: Callable[[Exception], None] | None = None
        """Told of what `execute` raises, which is a fault of ours; without it the thread dies of it."""
        self._execute = execute
        self._limit = limit
        self._queue: deque[Claimed] = deque()
        self._busy = 0
        self._is_waited_for_no_more = False
        self._changed = threading.Condition()

    def submit(self, claimed: Claimed) -> None:
        """Queue an attempt; it starts as soon as a thread is free."""
        with self._changed:
            self._queue.append(claimed)
            if self._busy < self._limit:
                self._busy += 1
                name = f"lockd-scheduler-{self._busy}"
                threading.Thread(target=self._serve, name=name, daemon=True).start()

    def queued(self) -> frozenset[int]:
        """The ids of attempts that have not left the queue."""
        with self._changed:
            return frozenset(claimed.attempt_id for claimed in self._queue)

    def drop_queued(self) -> None:
        """Forget what has not left the queue: nobody has started it, the next active one will."""
        with self._changed:
            self._queue.clear()

    def wait_idle(self, seconds: float) -> bool:
        """Wait until nothing is queued or executing; False if that took too long, or `stop_waiting` came."""
        with self._changed:
            self._changed.wait_for(lambda: self._busy == 0 or self._is_waited_for_no_more, seconds)
            return self._busy == 0

    def stop_waiting(self) -> None:
        """Let `wait_idle` return at once, now and from now on."""
        with self._changed:
            self._is_waited_for_no_more = True
            self._changed.notify_all()

    def _serve(self) -> None:
        while True:
            with self._changed:
                if not self._queue:
                    self._busy -= 1
                    self._changed.notify_all()
                    return
                claimed = self._queue.popleft()
            try:
                self._execute(claimed)
            except Exception as error:
                if self.on_failure is None:
                    raise
                self.on_failure(error)
