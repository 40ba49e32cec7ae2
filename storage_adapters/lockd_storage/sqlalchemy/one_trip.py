"""On psycopg, a transaction's BEGIN and its check go to the server in one round trip.

psycopg sends BEGIN by itself before a transaction's first statement and waits for the answer; that
is a round trip as long as the check's own. Here both are one simple query. Anything out of the
ordinary, such as a transaction that is to be READ ONLY, goes the usual way.
"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection
from sqlalchemy.util import await_only

from lockd_storage.sqlalchemy.driver import echo, refuse

if TYPE_CHECKING:
    import psycopg

_IDLE = 0  # libpq's PQTRANS_IDLE


def begin_and_call(connection: Connection, function: str, parameters: Sequence[str | int]) -> bool:
    """Begin the driver's transaction and call a function in it.

    False if nothing was done: another driver, a transaction that has begun already or one that is
    READ ONLY or DEFERRABLE. Raises DBAPIError.
    """
    if connection.dialect.driver != "psycopg":
        return False
    driver: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]
    driver = connection.connection.driver_connection  # type: ignore[assignment]
    if not _begins_plainly(driver):
        return False
    errors, generators, pq = _psycopg()
    literal = pq.Escaping(driver.pgconn).escape_literal
    words = b", ".join(
        b"%d" % value if isinstance(value, int) else bytes(literal(value.encode())) for value in parameters
    )
    level = driver.isolation_level
    begin = "BEGIN" if level is None else f"BEGIN ISOLATION LEVEL {level.name.replace('_', ' ')}"
    query = b"%s; SELECT %s(%s)" % (begin.encode(), function.encode(), words)
    echo(connection, f"{begin}; SELECT {function}(...)", parameters)
    try:
        driver.pgconn.send_query(query)
        waiting: Any = driver.wait(generators.execute(driver.pgconn))
        results = await_only(waiting) if connection.dialect.is_async else waiting
        if results[-1].status == pq.ExecStatus.FATAL_ERROR:
            raise errors.error_from_result(results[-1], encoding="utf-8")
    except BaseException as error:
        refuse(connection, error, query.decode(), parameters)
        raise
    return True


@cache
def _psycopg() -> tuple[Any, Any, Any]:
    from psycopg import errors, generators, pq  # noqa: PLC0415  optional, and here: SQLAlchemy speaks through it

    return errors, generators, pq


def _begins_plainly(driver: Any) -> bool:
    return (
        driver.pgconn.transaction_status == _IDLE
        and not driver.autocommit
        and driver.read_only is None
        and driver.deferrable is None
        and driver.pgconn.parameter_status(b"client_encoding") == b"UTF8"
    )
