"""One committed transaction for an operator's verb: bounded, durable, and with errors that say what to do.

The transaction takes its locks as rows are, at READ COMMITTED: what it reads behind a lock is what
the lock holds still.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from lockd.errors import AccessDenied, LockdError, OutcomeUnknown, Unavailable
from lockd_storage.errors import NotInstalled
from lockd_storage.sqlalchemy.marks import milliseconds
from lockd_storage.sqlalchemy.postgresql import CANCELED, ENDING_SECONDS, Blockers, sqlstate
from lockd_storage.sqlalchemy.sqlite import busy_timeout, take_write_lock

ResultT = TypeVar("ResultT")

NEEDED_RIGHTS = "SELECT, UPDATE and DELETE on lockd_fence, SELECT and UPDATE on lockd_fence_floor"

# PostgreSQL's SQLSTATEs, MariaDB's and MySQL's numbers, SQLite's names.
NO_STORE = ("42P01", "42703", "1146", "1054")
NO_RIGHT = ("42501", "25006", "1044", "1142", "1143", "1227", "1290", "1792", "1836", "SQLITE_READONLY")
IN_THE_WAY = (CANCELED, "55P03", "40P01", "40001", "1020", "1205", "1213", "1969", "3024", "SQLITE_BUSY")

_PREPARE = text(
    "SELECT pg_backend_pid(), set_config('lock_timeout', '0', true),"
    " set_config('statement_timeout', :timeout_ms, true),"
    " set_config('idle_in_transaction_session_timeout', '0', true),"
    # A floor that a crash takes back would let in again what it has shut out.
    " set_config('synchronous_commit', CASE current_setting('synchronous_commit')"
    "  WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)"
)


def in_one_step(engine: Engine, work: Callable[[Connection], ResultT], *, timeout: float) -> ResultT:
    """Call `work(connection)` inside a transaction and commit it.

    On PostgreSQL a statement of it waits for `timeout` seconds; then the transaction is begun anew,
    and the sessions that block it are ended (SAFETY S5): what they write under is about to be taken
    from them. Elsewhere it waits for `timeout` seconds and gives up.

    Raises Unavailable, OutcomeUnknown, AccessDenied, NotInstalled (no fence store), and what `work`
    raises; only after OutcomeUnknown may anything have changed.
    """
    by_dialect = {"postgresql": _on_postgresql, "sqlite": _on_sqlite}.get(engine.dialect.name, _on_mysql)
    with explained():
        return by_dialect(engine, work, timeout=timeout)


def reading(engine: Engine, work: Callable[[Connection], ResultT]) -> ResultT:
    """Call `work(connection)`, which only looks and waits for nobody. Raises as `in_one_step` does."""
    with explained(), engine.connect() as connection:
        return work(connection)


def no_more_waits(connection: Connection) -> None:
    """All locks have been taken: what is left to do in this step may last as long as it takes."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT set_config('statement_timeout', '0', true)"))


@contextmanager
def explained() -> Iterator[None]:
    """Raise what a database's error means to an operator in its place, where that is known."""
    try:
        yield
    except DBAPIError as error:
        reason = _meaning(error)
        if reason is None:
            raise
        raise reason from error


def _on_postgresql(engine: Engine, work: Callable[[Connection], ResultT], *, timeout: float) -> ResultT:
    blockers = Blockers(engine)
    for seconds, ends_them in ((timeout, False), (max(timeout, ENDING_SECONDS), True)):
        with engine.connect() as opened:
            connection = opened.execution_options(isolation_level="READ COMMITTED")
            pid = connection.scalar(_PREPARE, {"timeout_ms": str(milliseconds(seconds))})
            ending = blockers.end_for(pid) if ends_them else None
            try:
                result = work(connection)
            except DBAPIError as error:
                if sqlstate(error) != CANCELED:
                    raise
                continue
            finally:
                if ending is not None:
                    ending.stop()
            _commit(connection)
            return result
    raise Unavailable(f"somebody holds a mark and can't be ended: {blockers.report()}")


def _on_sqlite(engine: Engine, work: Callable[[Connection], ResultT], *, timeout: float) -> ResultT:
    with engine.connect() as connection, busy_timeout(connection, timeout), connection.begin():
        take_write_lock(connection)
        return work(connection)


def _on_mysql(engine: Engine, work: Callable[[Connection], ResultT], *, timeout: float) -> ResultT:
    with engine.connect() as opened:
        connection = opened.execution_options(isolation_level="READ COMMITTED")
        before = connection.scalar(text("SELECT @@innodb_lock_wait_timeout"))
        seconds = max(1, round(timeout))
        connection.execute(text("SET SESSION innodb_lock_wait_timeout = :seconds"), {"seconds": seconds})
        try:
            result = work(connection)
            _commit(connection)
        finally:
            if not connection.invalidated:
                connection.rollback()
                connection.execute(
                    text("SET SESSION innodb_lock_wait_timeout = :seconds"), {"seconds": before}
                )
    return result


def _commit(connection: Connection) -> None:
    try:
        connection.commit()
    except DBAPIError as error:
        if error.connection_invalidated:
            raise OutcomeUnknown(
                "the reply to the COMMIT was lost: do it again, it may be repeated"
            ) from error
        raise


def _meaning(error: DBAPIError) -> LockdError | None:
    """The error of ours that a database's error stands for, or None."""
    words = " ".join(str(error.orig).split())
    state = _state(error)
    if state in NO_STORE or words.startswith(("no such table: lockd_", "no such column: lockd_")):
        return NotInstalled(
            "this database has no fence store, or an older one: `lockd fences upgrade` brings it"
            f" up to date ({words})",
            resource="",
        )
    if state.startswith(NO_RIGHT):
        return AccessDenied(f"this needs {NEEDED_RIGHTS}, as the store's owner has them ({words})")
    if state.startswith(IN_THE_WAY):
        return Unavailable(
            f"somebody else is using the fence store, and nothing was changed: again ({words})"
        )
    if error.connection_invalidated or error.statement is None or state.startswith(("08", "53", "57P", "20")):
        return Unavailable(f"the database can't be reached: {words}")
    return None


def _state(error: DBAPIError) -> str:
    """PostgreSQL's SQLSTATE, MariaDB's number or SQLite's name for what went wrong."""
    arguments = getattr(error.orig, "args", ())
    if arguments and isinstance(arguments[0], int):
        return str(arguments[0])
    return str(getattr(error.orig, "sqlite_errorname", None) or sqlstate(error))
