"""Three ways to be elected: a lock file beside the database, a row in it, a lock of a lockd cluster.

Each only chooses who tries. What a seat may do is decided by the fence row in the ledger.
"""

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO

from sqlalchemy import ColumnElement, Connection, Engine, select, update
from sqlalchemy.exc import SQLAlchemyError

import lockd
from lockd.errors import AccessDenied, LockdError, LockTimeout, Rejected, Unavailable
from lockd.ids import LOCK_NAME_BYTES_MAX
from lockd_scheduler.dialects import now_of
from lockd_scheduler.engines import reading
from lockd_scheduler.errors import SchedulerError
from lockd_scheduler.mandates import LOCAL
from lockd_scheduler.ports import Seat
from lockd_scheduler.tables import office

logger = logging.getLogger("lockd_scheduler")

POLL_SECONDS = 0.05
ROW_POLL_SECONDS = 0.25
RENEWALS_PER_LEASE = 4
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


class RowOffice:
    """Elects by the office's own row: whoever finds it not renewed for `lease_ttl` may take it.

    Several may find that at once; the one whose `take_office` moves the row first has it, and the
    others are told so there. The database's clock alone is read, and only for when to try (SAFETY R2).
    """

    def __init__(self, engine: Engine, scope: str, *, lease_ttl: timedelta, holder: str) -> None:
        self._engine = engine
        self._scope = scope
        self._lease_ttl = lease_ttl
        self._holder = holder

    def campaign(self, wait: float) -> Seat | None:
        """See ports.Office. Raises SQLAlchemy's errors."""
        give_up = time.monotonic() + wait
        while (token := self._free_token()) is None:
            if time.monotonic() >= give_up:
                return None
            time.sleep(min(ROW_POLL_SECONDS, max(give_up - time.monotonic(), 0.0)))
        return RowSeat(self._engine, self._scope, token, holder=self._holder, lease_ttl=self._lease_ttl)

    def _free_token(self) -> int | None:
        """The token after the last one, if the office is free as far as the row tells."""
        with reading(self._engine) as connection:
            row = connection.execute(
                select(office.c.token, office.c.holder, office.c.renewed_at, now_of(connection)).where(
                    office.c.scope == self._scope
                )
            ).one_or_none()
        if row is None:
            return 1
        is_held = row.renewed_at is not None and row.now - row.renewed_at < self._lease_ttl
        return None if is_held else row.token + 1

    def close(self) -> None:
        """Nothing is open between campaigns."""


class RowSeat:
    """A row that is renewed by a thread of its own, a few times within the lease."""

    source = LOCAL

    def __init__(self, engine: Engine, scope: str, token: int, *, holder: str, lease_ttl: timedelta) -> None:
        self.token = token
        self.lost = False
        self._engine = engine
        self._scope = scope
        self._holder = holder
        self._pause = lease_ttl.total_seconds() / RENEWALS_PER_LEASE
        self._callbacks: list[Callable[[], None]] = []
        self._is_over = threading.Event()
        self._renewing = threading.Thread(target=self._renew_on, name="lockd-scheduler-seat", daemon=True)
        self._renewing.start()

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Called on the renewing thread."""
        self._callbacks.append(callback)

    def resign(self) -> None:
        """Let the next one try at once; if the database can't be told, the lease runs out by itself."""
        self._is_over.set()
        if threading.current_thread() is not self._renewing:
            self._renewing.join()
        try:
            self._write(lambda _: None)
        except SQLAlchemyError as error:
            logger.info("office not given back, its lease runs out by itself: %s", error)

    def _renew_on(self) -> None:
        while not self._is_over.wait(self._pause):
            try:
                is_lost = not self._write(now_of) and self._is_anothers()
            except SQLAlchemyError as error:
                logger.info("office not renewed, trying on: %s", error)
                continue
            if is_lost:
                self.lost = True
                for callback in self._callbacks:
                    callback()
                return

    def _write(self, moment: Callable[[Connection], ColumnElement[datetime] | None]) -> bool:
        with self._engine.begin() as connection:
            renewed = connection.execute(
                update(office)
                .where(office.c.scope == self._scope, office.c.token == self.token)
                .where(office.c.holder == self._holder)
                .values(renewed_at=moment(connection))
            )
            return renewed.rowcount == 1

    def _is_anothers(self) -> bool:
        """Whether somebody else has moved the row to our token or beyond; before that it waits for us."""
        with reading(self._engine) as connection:
            token = connection.scalar(select(office.c.token).where(office.c.scope == self._scope))
            return token is not None and token >= self.token


class LockdOffice:
    """Elects the holder of the lock `lockd-scheduler/<name>`, kept alive by the client."""

    def __init__(self, endpoints: str, *, name: str, lease_ttl: float, holder: str) -> None:
        """No I/O yet. Raises ValueError for endpoints, a name or a TTL that can't be."""
        self._lock = LOCK_PREFIX + name
        if len(self._lock.encode()) > LOCK_NAME_BYTES_MAX:
            raise ValueError(
                f"the scheduler's name is too long for a lock of lockd: {self._lock[:40]!r} and so on has"
                f" {len(self._lock.encode())} bytes, at most {LOCK_NAME_BYTES_MAX}"
            )
        self._holder = holder
        self._client = lockd.Client(endpoints, ttl=lease_ttl)
        self._is_admitted = False
        """The cluster has once answered this process as it was asked: what it refuses then may pass."""

    def campaign(self, wait: float) -> Seat | None:
        """See ports.Office. Raises Unavailable for what may be better at the next try.

        Raises SchedulerError for a process that the cluster does not let in, or does not understand:
        its configuration is wrong, and no try of it will be better.
        """
        try:
            lease = self._client.acquire(self._lock, wait=wait, meta={"holder": self._holder})
        except LockTimeout:
            self._is_admitted = True
            return None
        except Rejected as error:
            if type(error) in _HOPELESS and not self._is_admitted:
                raise SchedulerError(f"lockd refuses this scheduler: {error}") from error
            raise Unavailable(f"lockd refuses the office: {error}") from error
        except LockdError as error:
            raise Unavailable(str(error)) from error  # the client withdraws what may have been asked
        self._is_admitted = True
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


_HOPELESS = (AccessDenied, Rejected)
"""No repeat as it stands helps against these very ones. Limits and sessions, which are Rejected too, pass."""


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
