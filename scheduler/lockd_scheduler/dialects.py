"""What the ledger's databases say in different words."""

from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Connection, Insert, Table, func, literal
from sqlalchemy.dialects import postgresql, sqlite

from lockd_scheduler.tables import UtcMoment


def insert_if_new(connection: Connection, table: Table) -> Insert:
    """An INSERT that leaves a row alone that is there already, by any unique key of the table."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()


def now_of(connection: Connection) -> ColumnElement[datetime]:
    """The database's time at this statement, as a column called `now`; SQLite's is this machine's."""
    if connection.dialect.name == "postgresql":
        return func.clock_timestamp(type_=UtcMoment()).label("now")
    return literal(datetime.now(UTC), UtcMoment()).label("now")
