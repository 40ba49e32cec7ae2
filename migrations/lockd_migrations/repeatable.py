"""On MariaDB and MySQL, lets a revision that was interrupted run again over what it has made already.

There each CREATE and ALTER commits by itself, so a process that ends in the middle of an upgrade leaves
a part of it behind, and no version that says so.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, event

_TABLES = (
    (re.compile(r"^(\s*CREATE TABLE )(?!IF )"), r"\1IF NOT EXISTS "),
    (re.compile(r"^(\s*INSERT )(?=INTO lockd_fence_floor )"), r"\1IGNORE "),
)
# MySQL itself has no such words.
_MARIADB = (
    (re.compile(r"^(\s*CREATE (?:UNIQUE )?INDEX )(?!IF )"), r"\1IF NOT EXISTS "),
    (re.compile(r"^(\s*ALTER TABLE \S+ ADD COLUMN )(?!IF )"), r"\1IF NOT EXISTS "),
)


@contextmanager
def repeatable(connection: Connection) -> Iterator[None]:
    """A block in which what was made before is not made again. Nothing, where DDL rolls back."""
    if connection.dialect.name not in ("mysql", "mariadb"):
        yield
        return
    event.listen(connection, "before_cursor_execute", _reword, retval=True)
    try:
        yield
    finally:
        event.remove(connection, "before_cursor_execute", _reword)


def _reword(
    connection: Connection, _cursor: Any, statement: str, parameters: Any, *_: Any
) -> tuple[str, Any]:
    is_mariadb = connection.dialect.is_mariadb  # type: ignore[attr-defined]  # both dialects have it
    for pattern, again in _TABLES + (_MARIADB if is_mariadb else ()):
        statement = pattern.sub(again, statement)
    return statement, parameters
