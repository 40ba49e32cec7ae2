"""One statement straight through the driver, at a third of what SQLAlchemy's execution costs.

The check is an extra statement of every fenced transaction, so its cost is the fence's cost. Errors,
the echo and the invalidation of broken connections are as SQLAlchemy's own; events are not sent.
"""

import logging
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError


def driver_row(connection: Connection, statement: str, parameters: Sequence[Any] = ()) -> Any:
    """Run a statement in the driver's own parameter style. Its first row, or None. Raises DBAPIError."""
    echo(connection, statement, parameters)
    try:
        cursor = connection.connection.cursor()
        try:
            cursor.execute(statement, parameters)
            return cursor.fetchone() if cursor.description else None
        finally:
            cursor.close()
    except BaseException as error:
        refuse(connection, error, statement, parameters)
        raise


def echo(connection: Connection, statement: str, parameters: Sequence[Any]) -> None:
    """Show the statement where `echo=True` or a logger of SQLAlchemy's shows statements."""
    logger = connection.engine.logger
    if logger.isEnabledFor(logging.INFO):
        logger.info(statement)
        logger.info("[lockd] %r", tuple(parameters))


def refuse(connection: Connection, error: BaseException, statement: str, parameters: Sequence[Any]) -> None:
    """Raise a driver's error as SQLAlchemy would; give up a connection that was left in the middle."""
    dialect = connection.dialect
    driver_error = dialect.loaded_dbapi.Error
    if not isinstance(error, driver_error):
        connection.invalidate(error)  # cancelled or interrupted: nobody will read what the server sends
        return
    gone = dialect.is_disconnect(error, connection.connection.dbapi_connection, None)
    if gone:
        connection.invalidate(error)
    raise DBAPIError.instance(
        statement,
        tuple(parameters),
        error,
        driver_error,
        hide_parameters=connection.engine.hide_parameters,
        connection_invalidated=gone,
        dialect=dialect,
    ) from error
