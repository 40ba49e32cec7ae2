"""The clients of a server under test: told when to act, and waited for."""

import asyncio
import contextlib
import threading
from collections.abc import Callable

from lockd.client.clock import Follower, TurnedClock
from lockd.testing.patience import PATIENCE_SECONDS


def tell_all(
    clock: TurnedClock, tell: Callable[[Follower, Callable[[], None]], None], *, and_wait: bool = True
) -> None:
    """Tell every client that goes by this clock, and wait until each has done what it was told.

    Not for one on the calling thread's own event loop, which does it when that loop goes on. Raises
    TimeoutError when one takes too long.
    """
    here = _running_loop()
    awaited: list[threading.Event] = []
    for follower in clock.followers():
        done = threading.Event()
        with contextlib.suppress(RuntimeError):  # its loop has been closed: it holds nothing
            tell(follower, done.set)
            if and_wait and follower.loop.is_running() and follower.loop is not here:
                awaited.append(done)
    for done in awaited:
        if not done.wait(PATIENCE_SECONDS):
            raise TimeoutError(f"a client has not done what was due within {PATIENCE_SECONDS:.0f} s")


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
