"""The Python net: writes that SQLAlchemy builds are refused before they leave the process.

It knows a guarded table by its `info["lockd_guard"]`, and what a transaction has begun by what
`fenced` leaves on the connection. It sees all that is built from tables, by the ORM, by Core, in bulk,
and inside a WITH. It does not see into `text("UPDATE ...")` or `exec_driver_sql`: those the triggers in
the database stop. For "orders:{id}" it can't know the rows either, and asks for some fence of that
form; the triggers ask for the right ones.
"""

import re
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Dialect, Engine, Table, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.sql.compiler import Compiled, SQLCompiler
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.visitors import iterate

from lockd_storage.errors import OutsideFence
from lockd_storage.rejects import tell
from lockd_storage.sqlalchemy.guards import sqlite
from lockd_storage.sqlalchemy.guards.guard import Guard, declared_guard

FENCED = "lockd_fenced"

# The words of the triggers of all databases; MariaDB's have less room, and may be cut off at the end.
_REFUSAL = re.compile(
    r"lockd: (.*? needs the fence of (?:resource )?(.*?)(?:, which (?:this|is)|['\"\n]|$).*?)(?:\n|$)"
)
_ADAPTERS = {"mysql": "mariadb"}


def guard_engine(engine: Engine | AsyncEngine) -> None:
    """Refuse writes to guarded tables that this engine sends outside a fence.

    From now on they raise OutsideFence: those that the net sees before they are sent, and those that
    a trigger in the database refuses. On SQLite it also gives the engine's connections the function
    that the triggers call; without it they refuse fenced writes too. Call it once for each engine,
    right after making it; a second call changes nothing.
    """
    target = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
    # SQLAlchemy listens at the dialect. event.contains() knows engines by id(), which a later one may have.
    if target.dialect in _guarded:
        return
    _guarded.add(target.dialect)
    # Not before_execute: a fenced Connection is checked with its first statement, after that event.
    for name in ("do_execute", "do_executemany"):
        event.listen(target, name, _on_statement)
    event.listen(target, "do_execute_no_params", _on_plain_statement)
    event.listen(target, "handle_error", _on_error)
    if target.dialect.name == "sqlite":
        sqlite.give_functions(target, fenced_resources)


def fenced_resources(info: Mapping[Any, Any]) -> frozenset[str]:
    """The resources that a connection's running transaction has begun, from its `info`."""
    transaction, resources = info.get(FENCED, (None, frozenset()))
    return resources if transaction is not None and transaction.is_active else frozenset()


def outside_fence(error: BaseException | None) -> OutsideFence | None:
    """The refusal that a driver's error stands for, if a guard in the database raised it."""
    if error is None or not error.args:
        return None
    found = _REFUSAL.search(str(error.args[-1]))  # pymysql puts a number before the words
    return None if found is None else OutsideFence(found.group(1), resource=found.group(2))


def _on_statement(_cursor: Any, _statement: str, _parameters: Any, context: Any) -> None:
    compiled = context.compiled
    if compiled is None:
        return
    guards = _written.get(compiled)
    if guards is None:
        guards = _written[compiled] = _guards_written(compiled)
    if guards:
        _check(guards, fenced_resources(context.root_connection.info), context.dialect.name)


def _on_plain_statement(cursor: Any, statement: str, context: Any) -> None:
    _on_statement(cursor, statement, None, context)


def _check(guards: tuple[Guard, ...], resources: frozenset[str], dialect: str) -> None:
    for guard in guards:
        if not guard.admits(resources):
            refusal = OutsideFence(
                f"table {guard.table!r} is guarded by resource {guard.resource!r}, and this transaction holds"
                f" {_listed(resources)}: write inside fenced(session, fence, lease) with a lease of it",
                resource=guard.resource,
            )
            tell(refusal, adapter=_ADAPTERS.get(dialect, dialect), resource=guard.resource)
            raise refusal


def _on_error(context: ExceptionContext) -> None:
    refusal = outside_fence(context.original_exception)
    if refusal is not None:
        tell(
            refusal,
            adapter=_ADAPTERS.get(context.dialect.name, context.dialect.name),
            resource=refusal.resource,
        )
        raise refusal from context.original_exception


def _guards_written(compiled: Compiled) -> tuple[Guard, ...]:
    """The guards of the tables that a statement writes to, also from inside a WITH."""
    if not isinstance(compiled, SQLCompiler):
        return ()
    statements = [compiled.statement, *(cte.element for cte in compiled.ctes or ())]
    tables = (
        found
        for statement in statements
        if isinstance(statement, UpdateBase)
        for found in iterate(statement.table)
        if isinstance(found, Table)
    )
    return tuple(guard for table in tables if (guard := declared_guard(table)) is not None)


def _listed(resources: frozenset[str]) -> str:
    return f"the fences of {', '.join(map(repr, sorted(resources)))}" if resources else "no fence"


_guarded: WeakSet[Dialect] = WeakSet()
# A compiled statement is cached by SQLAlchemy and shared between threads; looking twice does no harm.
_written: WeakKeyDictionary[Compiled, tuple[Guard, ...]] = WeakKeyDictionary()
