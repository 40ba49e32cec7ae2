"""Runs a piece of blocking-style work beside its caller: on a thread, or in an asyncio task.

The stores are written once, for blocking drivers. Behind an asyncio engine they run in a greenlet
of SQLAlchemy's, where a driver's call awaits; a thread has no such greenlet, a task of its own has.
"""

import asyncio
from collections.abc import Callable
from threading import Event, Thread
from typing import Protocol

from sqlalchemy import Engine
from sqlalchemy.util import await_only, greenlet_spawn

Pause = Callable[[float], bool]


class Beside(Protocol):
    """Work under way beside its caller."""

    def stop(self) -> None:
        """Ask it to end, and return when it has."""
        ...


def run_beside(engine: Engine, work: Callable[[Pause], None]) -> Beside:
    """Start `work(pause)`, which may use `engine` while the caller waits in a driver's call.

    `pause(seconds)` waits and then tells whether to go on; False once `stop()` was called. `work`
    reports its own failures: nobody catches what it raises.
    """
    return _Task(work) if engine.dialect.is_async else _OnThread(work)


class _OnThread:
    def __init__(self, work: Callable[[Pause], None]) -> None:
        self._done = Event()
        self._thread = Thread(target=work, args=(self._pause,), name="lockd-beside", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _pause(self, seconds: float) -> bool:
        return not self._done.wait(seconds)


class _Task:
    def __init__(self, work: Callable[[Pause], None]) -> None:
        self._done = asyncio.Event()
        self._task = asyncio.create_task(greenlet_spawn(work, self._pause), name="lockd-beside")

    def stop(self) -> None:
        self._done.set()
        await_only(self._task)

    def _pause(self, seconds: float) -> bool:
        return bool(await_only(self._wait(seconds)))

    async def _wait(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._done.wait()
        except TimeoutError:
            return True
        return False
