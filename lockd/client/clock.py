"""The client's clock: it counts the time that the machine sleeps (SAFETY K1).

A laptop that was closed for an hour must see an hour pass. CLOCK_MONOTONIC stands still in
suspend on Linux; CLOCK_BOOTTIME does not. Elsewhere the monotonic clock is the best there is: on
macOS and Windows it may or may not count sleep.
"""

import time
from typing import Final

_BOOTTIME: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)


def now() -> float:
    """Seconds since some fixed moment; never goes back."""
    return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)
