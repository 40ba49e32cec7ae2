"""A private event loop on a thread of its own, for those who have none: the way in and back.

What comes back must arrive or be undone: a caller who is interrupted (KeyboardInterrupt, a
cancelled task) while its answer is on the way would leave a lock held by nobody. So a call says how its
result is given back, and exactly one of the two happens (SAFETY K4).
"""

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
GiveBack = Callable[[T], Coroutine[Any, Any, object]]


class Portal:
    """The thread and its loop. Made in any thread and usable from all, but not after a fork."""

    def __init__(self) -> None:
        self._loop = _new_loop()
        self._lock = threading.Lock()
        self._is_stopped = False
        self._giving_back: set[asyncio.Task[object]] = set()
        self._thread = threading.Thread(target=self._run, name="lockd-client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T], give_back: GiveBack[T] | None = None) -> T:
        """Run it on the loop and wait. An exception in the waiting thread cancels or undoes it."""
        future = self._begin(coroutine, give_back)
        try:
            return future.result()
        except BaseException:
            self._abandon(future, give_back)
            raise

    async def run_from_task(
        self, coroutine: Coroutine[Any, Any, T], give_back: GiveBack[T] | None = None
    ) -> T:
        """As `run`, for a task of another loop, which goes on meanwhile."""
        future = self._begin(coroutine, give_back)
        try:
            return await asyncio.wrap_future(future)
        except BaseException:
            self._abandon(future, give_back)
            raise

    def check_may_wait(self) -> None:
        """Raise RuntimeError on the portal's own thread, which would wait for itself."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("a callback can't wait for its client")

    def stop(self) -> None:
        """Cancel what still runs, stop the loop and wait for its thread."""
        with self._lock:
            self._is_stopped = True
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def stop_after(self, last: Callable[[Callable[[], None]], None]) -> None:
        """Have `last(stop)` called on the loop, which stops when it calls `stop`. Waits for nothing and
        takes no lock: for a finalizer, which may run in any thread, in the middle of anything."""
        with contextlib.suppress(RuntimeError):  # it was stopped before
            self._loop.call_soon_threadsafe(last, self._loop.stop)

    def _begin(self, coroutine: Coroutine[Any, Any, T], give_back: GiveBack[T] | None) -> Future[T]:
        future: Future[T] = Future()

        def launch() -> None:
            task = self._loop.create_task(coroutine)
            future.add_done_callback(lambda done: self._cancel_with(done, task))
            task.add_done_callback(lambda done: self._hand_over(done, future, give_back))

        with self._lock:
            try:
                if self._is_stopped:
                    raise RuntimeError("the client was closed")
                self.check_may_wait()
            except RuntimeError:
                coroutine.close()
                raise
            self._loop.call_soon_threadsafe(launch)
        return future

    def _cancel_with(self, future: Future[T], task: asyncio.Task[T]) -> None:
        if future.cancelled() and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(task.cancel)

    def _hand_over(self, task: asyncio.Task[T], future: Future[T], give_back: GiveBack[T] | None) -> None:
        is_wanted = future.set_running_or_notify_cancel()
        error = RuntimeError("the client was closed") if task.cancelled() else task.exception()
        if error is not None:
            if is_wanted:
                future.set_exception(error)
        elif is_wanted:
            future.set_result(task.result())
        elif give_back is not None:
            self._give_back(task.result(), give_back)

    def _abandon(self, future: Future[T], give_back: GiveBack[T] | None) -> None:
        """Nobody takes this result any more: whether it is there already or still comes, undo it."""
        if future.cancel() or give_back is None:
            return

        def undo(done: Future[T]) -> None:
            if done.exception() is None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._give_back, done.result(), give_back)

        future.add_done_callback(undo)

    def _give_back(self, result: T, give_back: GiveBack[T]) -> None:
        task = self._loop.create_task(give_back(result))
        self._giving_back.add(task)
        task.add_done_callback(self._given_back)

    def _given_back(self, task: asyncio.Task[object]) -> None:
        self._giving_back.discard(task)
        if not task.cancelled():
            task.exception()  # an unanswered release ends with its session

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            while tasks := asyncio.all_tasks(self._loop):
                for task in tasks:
                    task.cancel()
                self._loop.run_until_complete(asyncio.wait(tasks))
        finally:
            self._loop.close()


def _new_loop() -> asyncio.AbstractEventLoop:
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop  # noqa: PLC0415 - it does not exist on Windows

    return uvloop.new_event_loop()
