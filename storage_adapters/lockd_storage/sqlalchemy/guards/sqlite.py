"""Guards on SQLite: triggers that call a function which only fenced connections answer with yes.

`guard_engine(engine)` gives that function to the engine's connections. Everybody else, the `sqlite3`
command too, has no such function and can't even prepare a write to the table: "no such function:
lockd_fenced", also for one that would touch no row, a DELETE without WHERE, or INSERT OR REPLACE.

Limits. Triggers here are by row whatever `level` says: on a connection of ours, outside a fence, an
UPDATE that finds no row passes and changes nothing. INSERT OR REPLACE and UPDATE OR REPLACE are
checked for the row they write; for the rows they push out only with `PRAGMA recursive_triggers = ON`,
which matters for "orders:{id}". With `PRAGMA trusted_schema = OFF` every write is refused, fenced ones
too. Whoever may write the file may DROP TRIGGER, or bring a function of that name. Recreating a
table, as Alembic's batch mode does, loses its triggers: guard it again afterwards.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, event, text

from lockd_storage.sqlalchemy.guards.guard import Guard

FENCED = "lockd_fenced"
_SIDES = {"insert": ("NEW",), "update": ("NEW", "OLD"), "delete": ("OLD",)}
_GIVEN = "lockd_functions"


def create(guard: Guard) -> list[str]:
    """The statements that guard a table, in place of any guard that it has. Plain SQL."""
    made = []
    for verb, sides in _SIDES.items():
        refusal = _literal(
            f"lockd: {verb.upper()} of {guard.table} needs the fence of resource {guard.resource},"
            " which this transaction has not begun"
        )
        answers = " OR ".join(f"{_call(guard, side)} IS NOT 1" for side in sides)
        made.append(
            f"CREATE TRIGGER {_trigger(guard, verb)} AFTER {verb.upper()} ON {_quoted(guard.table)}"
            f" WHEN {answers} /* {guard.note()} */ BEGIN SELECT RAISE(ABORT, {refusal}); END"
        )
    return [*drop(guard), *made]


def drop(guard: Guard) -> list[str]:
    """The statements that take any guard of this table away."""
    return [f"DROP TRIGGER IF EXISTS {_trigger(guard, verb)}" for verb in _SIDES]


def existing(connection: Connection) -> list[Guard]:
    """The guards of this database file. One with a trigger missing no longer holds and is left out."""
    found: dict[str, list[Guard]] = {}
    for table, sql in connection.execute(_TRIGGERS):
        guard = Guard.from_note(sql, table=table)
        if guard is not None:
            found.setdefault(table, []).append(guard)
    return [guards[0] for guards in found.values() if len(guards) == len(_SIDES)]


def give_functions(engine: Engine, resources_of: Callable[[Any], frozenset[str]]) -> None:
    """Let the engine's connections answer the triggers, from their next checkout on.

    `resources_of(info)` tells from a connection's `info` which resources its transaction has begun.
    """

    def give(driver: Any, record: Any, _proxy: Any) -> None:
        info = record.info  # emptied when the pool opens a new connection for this record
        if _GIVEN in info:
            return

        def fenced(resource: str | None) -> bool:
            return resource in resources_of(info)

        def fenced_family(prefix: str) -> bool:
            return any(resource.startswith(prefix) for resource in resources_of(info))

        driver.create_function(FENCED, 1, fenced)
        driver.create_function(f"{FENCED}_family", 1, fenced_family)
        info[_GIVEN] = True

    event.listen(engine, "checkout", give)


def _call(guard: Guard, side: str) -> str:
    if guard.prefix is not None:
        return f"{FENCED}_family({_literal(guard.prefix)})"
    wanted = " || ".join(
        _literal(part) if kind == "text" else f"CAST({side}.{_quoted(part)} AS TEXT)"
        for kind, part in guard.pieces
    )
    return f"{FENCED}({wanted})"


def _trigger(guard: Guard, verb: str) -> str:
    name = _quoted(f"lockd_guard_{verb}_{guard.table}")
    return name if guard.schema is None else f"{_quoted(guard.schema)}.{name}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(words: str) -> str:
    return "'" + words.replace("'", "''") + "'"


_TRIGGERS = text("SELECT tbl_name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY tbl_name, name")
