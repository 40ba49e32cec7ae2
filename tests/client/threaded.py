"""The real listener over a cluster of one in memory, on a thread of its own: for tests that block."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from tests.listener.harness import Serving, serving

T = TypeVar("T")


@dataclass
class ThreadedListener:
    """A listener that other threads can use; `do` reaches into its node."""

    serving: Serving
    loop: asyncio.AbstractEventLoop

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.serving.listener.port}"

    def do(self, action: Callable[[Serving], T]) -> T:
        """Run it on the listener's loop."""
        done: Future[T] = Future()
        self.loop.call_soon_threadsafe(lambda: done.set_result(action(self.serving)))
        return done.result(10)


@contextlib.contextmanager
def threaded_listener() -> Iterator[ThreadedListener]:
    started: Future[ThreadedListener] = Future()
    end = asyncio.Event()

    async def main() -> None:
        async with serving() as found:
            started.set_result(ThreadedListener(found, asyncio.get_running_loop()))
            await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    listener = started.result(10)
    try:
        yield listener
    finally:
        listener.loop.call_soon_threadsafe(end.set)
        thread.join()
