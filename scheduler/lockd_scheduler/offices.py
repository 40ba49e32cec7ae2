"""Two ways to be elected: a lock file beside the database, and a lock of a lockd cluster.

Either only chooses who tries. What a seat may do is decided by the fence row in the ledger.
"""

import fcntl
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import lockd
from lockd.errors import LockdError, LockTimeout, OutcomeUnknown, SessionExpired, Unavailable
from lockd_scheduler.mandates import LOCAL
from lockd_scheduler.ports import Seat

logger = logging.getLogger("lockd_scheduler")

POLL_SECONDS = 0.05
LOCK_PREFIX = "lockd-scheduler/"


class FileOffice:
    """Elects the process that holds an operating-system lock on `path`; the lock dies with it.

    Tokens go on from the last one in the ledger: whoever has the file is alone with it.
    """

    def __init__(self, path: Path, *, last_token: Callable[[], int]) -> None:
        self.path = path
        self._last_token = last_token

    def campaign(self, wait: float) -> Seat | None:
        """See ports.Office. Raises OSError if the file can't be made."""
        give_up = time.monotonic() + wait
        file = self.path.open("a+")
        try:
            while not _try_lock(file):
                if time.monotonic() >= give_up:
                    return None
                time.sleep(POLL_SECONDS)
            seat = FileSeat(file, token=self._last_token() + 1)
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            file = None  # type: ignore[assignment]  # the seat's from here on
            return seat
        finally:
            if file is not None:
                file.close()

    def occupant(self) -> str:
        """The process id that the holder of the file left in it; "" if it can't be read."""
        try:
            return self.path.read_text().strip()
        except OSError:
            return ""

    def close(self) -> None:
        """Nothing is open between campaigns."""


class FileSeat:
    """A held lock file."""

    source = LOCAL

    def __init__(self, file: IO[str], *, token: int) -> None:
        self._file = file
        self.token = token

    @property
    def lost(self) -> bool:
        """An operating-system lock stays until it is let go."""
        return self._file.closed

    def on_lost(self, callback: Callable[[], None]) -> None:
        """It is never lost while this process lives."""

    def resign(self) -> None:
        """Let the file go."""
        self._file.close()


class LockdOffice:
    """Elects the holder of the lock `lockd-scheduler/<name>`, kept alive by the client."""

    def __init__(self, endpoints: str, *, name: str, lease_ttl: float, holder: str) -> None:
        """No I/O yet. Raises ValueError for endpoints or a TTL that can't be."""
        self._lock = LOCK_PREFIX + name
        self._holder = holder
        self._client = lockd.Client(endpoints, ttl=lease_ttl)

    def campaign(self, wait: float) -> Seat | None:
        """See ports.Office."""
        try:
            lease = self._client.acquire(self._lock, wait=wait, meta={"holder": self._holder})
        except LockTimeout:
            return None
        except (OutcomeUnknown, SessionExpired) as error:
            raise Unavailable(str(error)) from error  # the client withdraws it: try again
        return LockdSeat(lease)

    def close(self) -> None:
        """End the session, and with it whatever it still holds."""
        self._client.close()


class LockdSeat:
    """A lease on the office's lock."""

    def __init__(self, lease: lockd.Lease) -> None:
        self._lease = lease
        self.token = int(lease.token)
        self.source = str(lease.fence).split("/", 1)[0]

    @property
    def lost(self) -> bool:
        """By the client's clock, so it is true in time even if nobody could tell us."""
        return self._lease.lost

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Passed on to the lease."""
        self._lease.on_lost(lambda *_: callback())

    def resign(self) -> None:
        """Release the lock; if the cluster can't be told, the lease runs out by itself."""
        try:
            self._lease.release()
        except LockdError as error:
            logger.info("office not given back, its lease runs out by itself: %s", error)


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
