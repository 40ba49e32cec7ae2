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

    Raises what SQLAlchemy and Alembic raise; then nothing was changed.
    """
    with _locked_transaction(bind) as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", MIGRATIONS)
        command.upgrade(config, f"{branch}@head")


@contextmanager
def _locked_transaction(bind: Engine | Connection) -> Iterator[Connection]:
    """A transaction that lets no second upgrade look at the versions before it has ended."""
    if isinstance(bind, Engine):
        with bind.begin() as connection:
            _lock(connection)
            yield connection
    elif bind.in_transaction():
        if bind.dialect.name == "postgresql":
            _lock(bind)
        yield bind
    else:
        with bind.begin():
            _lock(bind)
            yield bind


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
