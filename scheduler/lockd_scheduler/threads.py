"""Runs attempts on threads of this process, a bounded number at a time.

One thread starts them, as many in a transaction as there is room for; one hands in what they came to, as
much as there is; the others do their work. All are daemons: a job can't be killed, and must not
keep a process alive that was told to end.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

from lockd_scheduler.attempts import Result, Started
from lockd_scheduler.bounds import AbandonedError
from lockd_scheduler.mandates import Claimed
from lockd_scheduler.worker import Worker

logger = logging.getLogger("lockd_scheduler")

RESULTS_WAIT_SECONDS = 0.25
"""So long results wait at most while fires are due that have not started."""
TOGETHER_MAX = 500
"""So many attempts share a transaction at most."""


class ThreadRunner:
    """Carries submitted attempts to their ends, at most `limit` at once, in order of submission."""

    def __init__(self, worker: Worker, *, limit: int) -> None:
        self.on_failure: Callable[[Exception], None] | None = None
        """Told of a fault of ours; without it the thread dies of it."""
        self.on_finished: Callable[[], object] = lambda: None
        """Told when the ledger has results: a run that waited may begin."""
        self._worker = worker
        self._limit = limit
        self._claimed: deque[Claimed] = deque()
        self._started: SimpleQueue[Started | None] = SimpleQueue()
        self._results: SimpleQueue[Result | None] = SimpleQueue()
        self._carrying = 0
        """Attempts that are started and whose work has not ended."""
        self._unfinished = 0
        """Attempts that were submitted and have not ended in the ledger."""
        self._threads = 0
        self._is_waited_for_no_more = False
        self._is_more_to_come = False
        self._is_open = self._is_closed = False
        self._changed = threading.Condition()

    def submit(self, claims: Sequence[Claimed], *, more: bool = False) -> None:
        """Queue attempts; they start as soon as there is room. `more`: others follow at once."""
        with self._changed:
            if claims and not self._is_open:
                self._is_open = True
                self._spawn(self._start_on, "lockd-scheduler-start")
                self._spawn(self._finish_on, "lockd-scheduler-finish")
            self._claimed += claims
            self._unfinished += len(claims)
            self._is_more_to_come = more
            self._changed.notify_all()

    def queued(self) -> frozenset[int]:
        """The ids of attempts that have not left the queue."""
        with self._changed:
            return frozenset(claimed.attempt_id for claimed in self._claimed)

    def drop_queued(self) -> None:
        """Forget what has not left the queue: nobody has started it, the next active one will."""
        with self._changed:
            self._unfinished -= len(self._claimed)
            self._claimed.clear()
            self._is_more_to_come = False
            self._changed.notify_all()

    def wait_idle(self, seconds: float) -> bool:
        """Wait until nothing is queued or under way; False if that took too long, or `stop_waiting` came."""
        with self._changed:
            self._changed.wait_for(lambda: self._unfinished == 0 or self._is_waited_for_no_more, seconds)
            return self._unfinished == 0

    def stop_waiting(self) -> None:
        """Let `wait_idle` return at once, now and from now on."""
        with self._changed:
            self._is_waited_for_no_more = True
            self._changed.notify_all()

    def close(self) -> None:
        """Let the threads that do nothing end; the others are left to their work."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            threads = self._threads
        for _ in range(threads):
            self._started.put(None)
        self._results.put(None)

    def _spawn(self, target: Callable[[], None], name: str) -> None:
        threading.Thread(target=self._guarded, args=(target,), name=name, daemon=True).start()

    def _start_on(self) -> None:
        while batch := self._next_batch():
            begun = self._start(batch)
            for started in begun:
                self._started.put(started)
            with self._changed:
                not_begun = len(batch) - len(begun)
                self._carrying -= not_begun
                self._unfinished -= not_begun
                self._changed.notify_all()
            while not self._started.empty() and self._is_thread_wanted():
                self._spawn(self._carry_on, "lockd-scheduler-job")

    def _is_thread_wanted(self) -> bool:
        """Whether there are more attempts than threads; then another is counted, which is to be spawned."""
        with self._changed:
            is_wanted = self._threads < self._carrying
            self._threads += is_wanted
            return is_wanted

    def _next_batch(self) -> list[Claimed]:
        """As many of the queue as there is room for; none once this is closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_closed or (self._claimed and self._carrying < self._limit)
            )
            if self._is_closed:
                return []
            room = min(self._limit - self._carrying, TOGETHER_MAX, len(self._claimed))
            self._carrying += room
            return [self._claimed.popleft() for _ in range(room)]

    def _start(self, batch: Sequence[Claimed]) -> list[Started]:
        try:
            return self._worker.start(batch)
        except AbandonedError:
            logger.warning("attempts left behind: %s", [claimed.attempt_id for claimed in batch])
            return []

    def _carry_on(self) -> None:
        while (started := self._started.get()) is not None:
            try:
                self._results.put(self._worker.carry(started))
            except AbandonedError:
                claimed = started.claimed
                logger.warning("attempt left behind job=%s run=%d", claimed.job, claimed.run_id)
            with self._changed:
                self._carrying -= 1
                self._changed.notify_all()

    def _finish_on(self) -> None:
        while (first := self._results.get()) is not None:
            self._let_starts_go_first()
            batch = [first]
            try:
                while len(batch) < TOGETHER_MAX and (another := self._results.get_nowait()) is not None:
                    batch.append(another)
            except Empty:
                pass
            try:
                self._worker.finish(batch)
            except AbandonedError:
                logger.warning("results left behind: %s", [one.started.claimed.attempt_id for one in batch])
                return
            with self._changed:
                self._unfinished -= len(batch)
                self._changed.notify_all()
            self.on_finished()

    def _let_starts_go_first(self) -> None:
        """While attempts are queued, or about to be, results can wait: fires can't."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_closed or not (self._claimed or self._is_more_to_come),
                RESULTS_WAIT_SECONDS,
            )

    def _guarded(self, target: Callable[[], None]) -> None:
        try:
            target()
        except Exception as error:
            if self.on_failure is None:
                raise
            self.on_failure(error)
