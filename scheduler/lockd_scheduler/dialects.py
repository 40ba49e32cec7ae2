"""What the ledger's databases say in different words, and how many rows are written at once.

On PostgreSQL rows travel as one JSON parameter: a statement with thousands of placeholders costs its
driver more than the server needs for the rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from sqlalchemy import (
    ARRAY,
    Column,
    ColumnElement,
    Connection,
    Insert,
    Table,
    TableValuedAlias,
    Text,
    any_,
    bindparam,
    cast,
    column,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite

from lockd_scheduler.tables import AnyRow, UtcMoment

T = TypeVar("T")
Rows = Sequence[Mapping[str, Any]]


def insert_if_new(connection: Connection, table: Table) -> Insert:
    """An INSERT that leaves a row alone that is there already, by any unique key of the table."""
    match connection.dialect.name:
        case "postgresql":
            return postgresql.insert(table).on_conflict_do_nothing()
        case "mariadb" | "mysql":
            return mysql.insert(table).prefix_with("IGNORE")
    return sqlite.insert(table).on_conflict_do_nothing()


def insert_rows(
    connection: Connection,
    table: Table,
    rows: Rows,
    *,
    returning: Iterable[Column[Any]],
    if_new: bool = False,
) -> Sequence[AnyRow]:
    """Insert rows that have the same columns; with `if_new` those only that are not there yet.

    Returns the columns asked for, of the rows that were made, in no order.
    """
    if not rows:
        return []
    statement = insert_if_new(connection, table) if if_new else insert(table)
    if connection.dialect.name == "postgresql":
        names = list(rows[0])
        given = _given(table, names)
        statement = statement.from_select(names, select(*(given.c[name] for name in names)))
        made = connection.execute(statement.returning(*returning), {"given": _as_json(rows)})
    else:
        made = connection.execute(statement.returning(*returning), rows)
    return made.all()


def update_rows(
    connection: Connection, table: Table, rows: Rows, *conditions: ColumnElement[bool]
) -> int | None:
    """Update rows by their `id`, each to its own values, where the conditions hold; how many it were.

    None where the driver can't tell.
    """
    if not rows:
        return 0
    names = [name for name in rows[0] if name != "id"]
    if connection.dialect.name == "postgresql":
        given = _given(table, [*names, "id"])
        changed = update(table).where(table.c.id == given.c.id, *conditions)
        done = connection.execute(
            changed.values({name: given.c[name] for name in names}), {"given": _as_json(rows)}
        )
        return done.rowcount
    changed = update(table).where(table.c.id == bindparam("row_id"), *conditions)
    done = connection.execute(
        changed.values({name: bindparam(f"new_{name}", type_=table.c[name].type) for name in names}),
        [{"row_id": row["id"], **{f"new_{name}": row[name] for name in names}} for row in rows],
    )
    return done.rowcount if done.rowcount >= 0 else None


def among(connection: Connection, place: ColumnElement[T], values: Iterable[T]) -> ColumnElement[bool]:
    """Whether a column's value is one of these; one statement's text, however many they are."""
    if connection.dialect.name == "postgresql":
        return place == any_(literal(list(values), ARRAY(place.type)))
    return place.in_(list(values))


def now_of(connection: Connection) -> ColumnElement[datetime]:
    """The database's time at this statement, as a column called `now`; SQLite's is this machine's."""
    if connection.dialect.name == "postgresql":
        return func.clock_timestamp(type_=UtcMoment()).label("now")
    if connection.dialect.name in ("mariadb", "mysql"):
        return func.utc_timestamp(6, type_=UtcMoment()).label("now")
    return literal(datetime.now(UTC), UtcMoment()).label("now")


def _given(table: Table, names: Sequence[str]) -> TableValuedAlias:
    rows = func.json_to_recordset(cast(bindparam("given", type_=Text), postgresql.JSON))
    columns = [column(name, table.c[name].type) for name in names]
    return rows.table_valued(*columns).render_derived(name="given", with_types=True)


def _as_json(rows: Rows) -> str:
    return msgspec.json.encode(rows).decode()
