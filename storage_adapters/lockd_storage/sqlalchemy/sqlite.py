"""The two verbs on SQLite: one writer at a time, so whoever holds the write lock may compare and go on."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, cast

from sqlalchemy import Connection, Engine, func, insert, update
from sqlalchemy.exc import DBAPIError, NoResultFound

from lockd.errors import Unavailable
from lockd.ids import ClusterId, Fence, FencingToken, Incarnation
from lockd_storage.fencing import Mark, judge_install, judge_write
from lockd_storage.sqlalchemy.driver import driver_row
from lockd_storage.sqlalchemy.floor import floor_of
from lockd_storage.sqlalchemy.marks import Bounds, Grant, Symptom, milliseconds, no_store
from lockd_storage.tables import fence_marks

_COMPARE = "SELECT lock, cluster, incarnation, token FROM lockd_fence WHERE resource = ?"
_FLOOR = "SELECT lockd_fence_floor.token, lockd_fence_floor.cluster FROM lockd_fence_floor"


class SqliteMarks:
    """See `MarkStore`. `Bounds` can't be kept: nothing here ends a process that is paused."""

    adapter: ClassVar[str] = "sqlite"
    dialects: ClassVar[tuple[str, ...]] = ("sqlite",)

    def install(self, engine: Engine, grant: Grant, *, timeout: float) -> Mark:
        """See `MarkStore.install`."""
        with engine.connect() as connection, busy_timeout(connection, timeout):
            try:
                with connection.begin():
                    return _install(connection, grant)
            except DBAPIError as error:
                if _is_busy(error):
                    raise Unavailable(
                        f"another process held the database for more than {timeout:g} s: {error.orig}"
                    ) from error
                if _is_missing_table(error):
                    raise no_store(grant.resource, error) from error
                raise

    def begin(self, connection: Connection, grant: Grant, bounds: Bounds) -> None:  # noqa: ARG002
        """See `MarkStore.begin`."""
        take_write_lock(connection)
        _compare(connection, grant)

    def bound(self, connection: Connection, bounds: Bounds) -> None:
        """See `MarkStore.bound`."""

    def read(self, connection: Connection, grant: Grant, bounds: Bounds) -> None:  # noqa: ARG002
        """See `MarkStore.read`.

        The transaction reads one state of the database, in which the mark is this one. An install
        waits for it, unless there is a write-ahead log.
        """
        if not _driver(connection).in_transaction:
            driver_row(connection, "BEGIN")
        _compare(connection, grant)

    def forbid_writes(self, connection: Connection) -> None:
        """See `MarkStore.forbid_writes`."""
        driver_row(connection, "PRAGMA query_only = 1")

    def allow_writes(self, connection: Connection) -> None:
        """See `MarkStore.allow_writes`: the setting is the connection's, which outlives its transaction."""
        driver_row(connection, "PRAGMA query_only = 0")

    def symptom(self, error: DBAPIError) -> Symptom | None:
        """See `MarkStore.symptom`."""
        return Symptom.READ_ONLY if _errorname(error).startswith("SQLITE_READONLY") else None


def _compare(connection: Connection, grant: Grant) -> None:
    try:
        row = driver_row(connection, _COMPARE, (grant.resource,))
    except DBAPIError as error:
        if _is_missing_table(error):
            raise no_store(grant.resource, error) from error
        raise
    fence = grant.fence
    if row is None or row[1:] != (fence.cluster, fence.incarnation, fence.token):
        judge_write(_mark(grant.resource, row), resource=grant.resource, fence=fence)


def _mark(resource: str, row: Any) -> Mark | None:
    if row is None:
        return None
    fence = Fence(ClusterId(row[1]), Incarnation(row[2]), FencingToken(row[3]))
    return Mark(resource, row[0], fence)


def _install(connection: Connection, grant: Grant) -> Mark:
    take_write_lock(connection)
    # Not by SQLAlchemy: of a SELECT that is cancelled it leaves the cursor open, and SQLite keeps a closed
    # connection's locks until the last cursor has gone, which may be the garbage collector's to say.
    before = _mark(grant.resource, driver_row(connection, _COMPARE, (grant.resource,)))
    floor = driver_row(connection, _FLOOR)
    if floor is None:
        raise NoResultFound("lockd_fence_floor has lost its only row")
    mark = judge_install(
        before,
        floor=floor_of(floor),
        resource=grant.resource,
        lock=grant.lock,
        fence=grant.fence,
    )
    values = {
        "lock": mark.lock,
        "cluster": mark.fence.cluster,
        "incarnation": mark.fence.incarnation,
        "token": mark.token,
    }
    if before is None:
        connection.execute(insert(fence_marks).values(resource=mark.resource, **values))
    elif mark != before:
        values["installed_at"] = func.now()
        connection.execute(update(fence_marks).where(fence_marks.c.resource == mark.resource).values(values))
    return mark


@contextmanager
def busy_timeout(connection: Connection, seconds: float) -> Iterator[None]:
    """Let this connection wait so long for another writer, and no longer than before afterwards."""
    before_ms = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {milliseconds(seconds)}")
    connection.rollback()
    try:
        yield
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {before_ms}")


def take_write_lock(connection: Connection) -> None:
    """Make the transaction that begins here the database's one writer, whatever began it.

    pysqlite begins nothing until the first INSERT or UPDATE. An engine with SQLAlchemy's BEGIN
    recipe has begun, but deferred: there, an update of no row takes the lock. Both wait as long as
    the connection's busy timeout says.
    """
    if _driver(connection).in_transaction:
        driver_row(connection, "UPDATE lockd_fence SET token = token WHERE 0")
    else:
        driver_row(connection, "BEGIN IMMEDIATE")


def _driver(connection: Connection) -> sqlite3.Connection:
    # aiosqlite's connection tells in_transaction as well, and at once.
    return cast("sqlite3.Connection", connection.connection.driver_connection)


def _is_busy(error: DBAPIError) -> bool:
    return _errorname(error).startswith("SQLITE_BUSY")


def _errorname(error: DBAPIError) -> str:
    return str(getattr(error.orig, "sqlite_errorname", ""))


def _is_missing_table(error: DBAPIError) -> bool:
    return str(error.orig).startswith(("no such table: lockd_fence", "no such column: lockd_fence"))
