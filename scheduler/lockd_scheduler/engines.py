"""Opening the ledger's database so that its transactions mean what the ledger relies on.

SQLite: every writing transaction is BEGIN IMMEDIATE, which takes the place of row locks; readers
see a snapshot beside it (WAL). PostgreSQL and MariaDB: READ COMMITTED, and the server ends a transaction
of ours that idles, so that a paused process can't hold the fence row against its successor (S5).
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import ConnectionPoolEntry

from lockd_scheduler.errors import BadSchedule

IDLE_IN_TRANSACTION_MS = 5_000
SQLITE_BUSY_MS = 5_000
DRIVERS = {
    "postgresql": "postgresql+psycopg",
    "mariadb": "mariadb+pymysql",
    "mysql": "mysql+pymysql",
}
"""The driver of a URL that names none."""
POOL_SIZE = 16
"""Connections kept open; as many again may be opened when attempts crowd."""


def open_engine(url: str) -> Engine:
    """An engine for a sqlite:// (file), postgresql:// or mariadb:// URL; nothing is connected yet.

    Raises BadSchedule that says what is wrong with the URL, or which driver is missing.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise BadSchedule("--db is not a database URL; write it like postgresql://user@host/name") from None
    if parsed.drivername in DRIVERS:
        parsed = parsed.set(drivername=DRIVERS[parsed.drivername])
    backend = parsed.get_backend_name()
    try:
        if backend == "sqlite":
            if parsed.database in (None, "", ":memory:"):
                raise BadSchedule("the ledger needs a file: sqlite:///lockd-scheduler.db, not memory")
            engine = create_engine(parsed, connect_args={"timeout": SQLITE_BUSY_MS / 1000})
            event.listen(engine, "connect", _open_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        if backend == "postgresql":
            options = f"-c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_MS}"
            return _pooled(parsed, {"options": options, "connect_timeout": 5})
        if backend in ("mariadb", "mysql"):
            engine = _pooled(parsed, {"connect_timeout": 5, "charset": "utf8mb4"})
            event.listen(engine, "connect", _open_mariadb)
            return engine
    except ModuleNotFoundError as error:
        raise BadSchedule(f"{parsed.drivername} needs the package {error.name!r}") from None
    except NoSuchModuleError:
        raise BadSchedule(f"unknown database driver {parsed.drivername!r}") from None
    if backend == "postgres":
        raise BadSchedule("--db: write postgresql:// in place of postgres://")
    raise BadSchedule(f"{backend} is not available for the ledger; choose sqlite, postgresql or mariadb")


def _pooled(url: URL, connect_args: dict[str, Any]) -> Engine:
    return create_engine(
        url,
        pool_size=POOL_SIZE,
        max_overflow=POOL_SIZE,
        pool_pre_ping=True,
        isolation_level="READ COMMITTED",
        connect_args=connect_args,
    )


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection that only reads: it waits for no writer, on SQLite either."""
    with engine.connect().execution_options(lockd_reads=True) as connection:
        yield connection


def _open_sqlite(connection: Any, _record: ConnectionPoolEntry) -> None:
    driver = cast("sqlite3.Connection", connection)
    driver.isolation_level = None  # transactions begin when we say so, not at the first INSERT
    driver.execute("PRAGMA journal_mode = WAL")
    driver.execute("PRAGMA synchronous = FULL")
    driver.execute("PRAGMA foreign_keys = ON")


def _open_mariadb(connection: Any, _record: ConnectionPoolEntry) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET time_zone = '+00:00'")
        # MySQL itself has no such bound.
        cursor.execute("SHOW VARIABLES LIKE 'idle_transaction_timeout'")
        if cursor.fetchone() is not None:
            cursor.execute(f"SET idle_transaction_timeout = {IDLE_IN_TRANSACTION_MS // 1000}")


def _begin_sqlite(connection: Connection) -> None:
    reads = connection.get_execution_options().get("lockd_reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
