"""Create or bring up to date lockd's own tables.

The revisions are in the package `lockd_migrations`, named here as text: libraries point one way.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, text

MIGRATIONS = "lockd_migrations:"

# Any number will do, if nobody else uses it: the first eight bytes of "lockd_migrations".
ADVISORY_LOCK_KEY = int.from_bytes(b"lockd_mi")
SESSION_LOCK = "lockd_migrations."


def upgrade(bind: Engine | Connection, *, branch: str = "fence") -> None:
    """Bring one branch of lockd's tables to its newest revision: "fence" or "scheduler".

    On return the tables are there and committed. Does nothing when they already are; safe when
    several processes call it at once, since all but one wait. With a Connection that is inside a
    transaction the work joins it, and the caller commits. With an AsyncConnection:
    `await connection.run_sync(upgrade)`.

    On PostgreSQL the caller's role comes to own the tables and functions. Another role that is
    to write under a fence needs

        GRANT SELECT ON lockd_fence TO app;
        GRANT EXECUTE ON FUNCTION lockd_fence_install, lockd_fence_begin TO app;

    On MariaDB and MySQL each CREATE and ALTER commits by itself, and with it the caller's transaction;
    an upgrade that was interrupted is ended by the next one. Another role needs

        GRANT SELECT, INSERT, UPDATE ON lockd_fence TO app; GRANT SELECT ON lockd_fence_floor TO app;

    Raises what SQLAlchemy and Alembic raise; then nothing was changed (but see MariaDB).
    """
    with _locked_transaction(bind) as connection:
        command.upgrade(_config(connection), f"{branch}@head")


def downgrade(bind: Engine | Connection, *, branch: str = "fence") -> None:
    """Drop one branch of lockd's tables, with all that is in them; for `bind` see `upgrade`.

    Raises what the database says if something of the user's still needs them, as a guarded table does on
    PostgreSQL.
    """
    with _locked_transaction(bind) as connection:
        command.downgrade(_config(connection), f"{branch}@base")


def _config(connection: Connection) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", MIGRATIONS)
    return config


@contextmanager
def _locked_transaction(bind: Engine | Connection) -> Iterator[Connection]:
    """A transaction that lets no second upgrade look at the versions before it has ended."""
    if isinstance(bind, Engine):
        with bind.connect() as connection, _locked_transaction(connection):
            yield connection
    elif bind.in_transaction():
        if bind.dialect.name == "postgresql":
            _lock(bind)
        yield bind
    else:
        with _session_lock(bind), bind.begin():
            _lock(bind)
            yield bind


@contextmanager
def _session_lock(connection: Connection) -> Iterator[None]:
    """On MariaDB and MySQL, where DDL ends the transaction and its locks, a lock of the session."""
    if connection.dialect.name not in ("mysql", "mariadb"):
        yield
        return
    name = {"name": SESSION_LOCK}
    if connection.scalar(text("SELECT GET_LOCK(CONCAT(:name, MD5(DATABASE())), 600)"), name) != 1:
        raise TimeoutError("another process has been bringing lockd's tables up to date for ten minutes")
    connection.rollback()
    try:
        yield
    finally:
        connection.execute(text("DO RELEASE_LOCK(CONCAT(:name, MD5(DATABASE())))"), name)
        connection.rollback()


def _lock(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK_KEY})
    elif connection.dialect.name == "sqlite":
        # pysqlite itself begins at the first INSERT only: DDL before that would not roll back. An
        # engine with SQLAlchemy's BEGIN recipe has begun, but deferred, and has read nothing yet.
        driver = cast("sqlite3.Connection", connection.connection.driver_connection)
        if driver.in_transaction:
            connection.exec_driver_sql("ROLLBACK")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
