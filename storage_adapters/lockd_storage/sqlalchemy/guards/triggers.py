"""The triggers of each database behind one interface, and how their statements are sent."""

from importlib import import_module
from typing import Protocol, cast

from sqlalchemy import Connection, TextClause, text

from lockd_storage.errors import NotFenceable
from lockd_storage.sqlalchemy.guards.guard import Guard

_MODULES = {"postgresql": "postgresql", "sqlite": "sqlite", "mysql": "mysql", "mariadb": "mysql"}
GUARDED_DIALECTS = tuple(_MODULES)


class Triggers(Protocol):
    """What the module of a database offers. Statements are plain SQL, one to a string."""

    def create(self, guard: Guard) -> list[str]:
        """The statements that guard a table, in place of any guard that it has."""
        ...

    def drop(self, guard: Guard) -> list[str]:
        """The statements that take any guard of this table away, if it has one."""
        ...

    def existing(self, connection: Connection) -> list[Guard]:
        """The guards that hold in this database; schema=None where it is the connection's default."""
        ...


def triggers(dialect_name: str) -> Triggers:
    """The triggers of a dialect. Raises NotFenceable where there are none."""
    if dialect_name not in _MODULES:
        raise NotFenceable(f"tables can be guarded on {', '.join(sorted(_MODULES))}, not on {dialect_name}")
    module = import_module(f"lockd_storage.sqlalchemy.guards.{_MODULES[dialect_name]}")
    return cast("Triggers", module)


def clause(statement: str) -> TextClause:
    """A statement in a form that reaches the server as it is.

    `text()` takes a colon for a parameter, and a driver that is given plain SQL takes a percent sign
    for one: psycopg made "$1" of the "%s" in a function's body.
    """
    return text(statement.replace(":", "\\:"))
