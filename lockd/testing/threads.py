"""An event loop on a thread of its own, to which the thread of a test gives orders."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")


class LoopThread:
    """Made running; `stop` ends it. What went wrong on the loop is raised by the next order."""

    def __init__(self, name: str) -> None:
        self._loop = uvloop.new_event_loop()
        self._loop.set_exception_handler(self._on_error)
        self._failure: BaseException | None = None
        self._resumed: threading.Event | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, order: Callable[[], T]) -> T:
        """Call it on the loop, and return what it returns. From the loop's own thread: at once."""
        if threading.current_thread() is self._thread:
            return order()

        async def carry_out() -> T:
            return order()

        return self.run(carry_out())

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run it on the loop and wait for it, at most `timeout` seconds. Raises TimeoutError."""
        if self._resumed is not None:
            coroutine.close()
            raise RuntimeError("the server is paused: it can do nothing before resume()")
        done: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            result = done.result(timeout)
        except TimeoutError:
            done.cancel()
            self._check()
            raise
        self._check()
        return result

    @property
    def is_paused(self) -> bool:
        return self._resumed is not None

    def pause(self) -> None:
        """Have the loop stand still, as a stopped process does. Returns when it does."""
        if self._resumed is not None:
            return
        stands, resumed = threading.Event(), threading.Event()

        def stand_still() -> None:
            stands.set()
            resumed.wait()

        self._loop.call_soon_threadsafe(stand_still)
        stands.wait()
        self._resumed = resumed

    def resume(self) -> None:
        """Have it go on."""
        if self._resumed is not None:
            self._resumed.set()
            self._resumed = None

    def stop(self) -> None:
        """End the loop and its thread. Raises what went wrong on it."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise RuntimeError("the server has failed") from self._failure

    def _on_error(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        found = error if isinstance(error, BaseException) else RuntimeError(str(context.get("message")))
        self._failure = self._failure or found

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            while tasks := asyncio.all_tasks(self._loop):
                for task in tasks:
                    task.cancel()
                self._loop.run_until_complete(asyncio.wait(tasks))
            # Transports that were aborted close their sockets in the next turn.
            self._loop.run_until_complete(asyncio.sleep(0))
        finally:
            self._loop.close()
