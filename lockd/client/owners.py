"""Who within a session: every thread and every task is an owner of its own.

An owner's text is never used twice in a client's life. Thread idents and task addresses are, so
neither will do: a new thread could re-enter what a dead one still held.
"""

import asyncio
import itertools
import threading
from weakref import WeakKeyDictionary


class Owners:
    """The owners of one client."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._threads = threading.local()
        self._tasks: WeakKeyDictionary[asyncio.Task[object], str] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def of_thread(self) -> str:
        """The owner that the calling thread is."""
        owner: str | None = getattr(self._threads, "owner", None)
        if owner is None:
            owner = self._threads.owner = f"thread-{next(self._numbers)}"
        return owner

    def of_task(self) -> str:
        """The owner that the running task is. Raises RuntimeError outside of one."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("locks are held by tasks: this runs in no task")
        # Tasks of several loops, in several threads, may share one client.
        with self._lock:
            owner = self._tasks.get(task)
            if owner is None:
                owner = self._tasks[task] = f"task-{next(self._numbers)}"
            return owner

    def after_fork(self) -> None:
        """In a forked child: another thread of the parent may have held the lock."""
        self._lock = threading.Lock()
