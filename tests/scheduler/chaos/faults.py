"""An engine whose owner can die, sleep or lose its connection at any step."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import OperationalError


class Killed(BaseException):
    """The process is no more. Nothing of ours catches it."""


class Fault(StrEnum):
    """What happens to a process at a step."""

    KILL = "kill"
    SLEEP = "sleep"
    """Others go on meanwhile; a transaction that was open has been ended by the server."""
    BREAK = "break"
    """Its connection breaks: a transaction is gone, or the reply to its commit."""


class Where(StrEnum):
    """What a step is within."""

    BETWEEN = "between transactions"
    INSIDE = "inside a transaction"
    COMMITTED = "after a commit"
    JOB = "in a job"


@dataclass
class Steps:
    """Counts one process's steps, and lets the fault happen at the step that was drawn."""

    left: int
    """Steps until the fault; under zero: it stays well."""
    fault: Fault
    met: Callable[[str], None]
    """Told of the place when the fault happens."""
    aim: str | None = None
    """The transaction whose steps alone are counted."""
    sleep: Callable[[], None] = lambda: None
    """What the others do while it sleeps."""
    doing: str = "job"
    """The transaction that it is in, for the report."""

    def heal(self) -> None:
        """Let nothing happen any more."""
        self.left = -1

    def step(self, where: Where, what: str, end: Callable[[], object] = lambda: None) -> None:
        """One step. `end` does what the server does with a transaction whose client is gone."""
        if self.aim not in (None, self.doing):
            return
        self.left -= 1
        if self.left != 0:
            return
        self.met(f"{self.fault} {where}: {self.doing}: {what}")
        if where is Where.INSIDE:
            end()
        if self.fault is Fault.KILL:
            raise Killed
        if self.fault is Fault.SLEEP:
            self.sleep()
        if where is Where.INSIDE or (where is Where.COMMITTED and self.fault is Fault.BREAK):
            raise OperationalError(
                None, None, Exception("the simulated connection is gone"), connection_invalidated=True
            )


def watch(engine: Engine, steps: Steps) -> None:
    """Make every statement, begin and commit of the engine a step."""

    def before(connection: Connection, cursor: Any, statement: str, *_: object) -> None:
        steps.step(Where.INSIDE, f"before {_short(statement)}", lambda: _end(connection, cursor))

    def after(connection: Connection, cursor: Any, statement: str, *_: object) -> None:
        if not statement.startswith("BEGIN"):
            steps.step(Where.INSIDE, f"after {_short(statement)}", lambda: _end(connection, cursor))

    def begin(_: Connection) -> None:
        steps.step(Where.BETWEEN, "before begin")

    def commit(connection: Any) -> None:
        steps.step(Where.INSIDE, "before commit", connection.rollback)
        commit_well(connection)
        steps.step(Where.COMMITTED, "after commit")

    event.listen(engine, "begin", begin, insert=True)
    event.listen(engine, "before_cursor_execute", before)
    event.listen(engine, "after_cursor_execute", after)
    commit_well = engine.dialect.do_commit
    engine.dialect.do_commit = commit  # type: ignore[method-assign,assignment]


def _end(connection: Connection, cursor: Any) -> None:
    cursor.close()  # SQLite rolls nothing back while a statement of it is half read
    driver = connection.connection.dbapi_connection
    assert driver is not None
    driver.rollback()


def _short(statement: str) -> str:
    words = statement.split()
    verb = words[0].upper()
    marks = {"SELECT": "FROM", "INSERT": "INTO", "DELETE": "FROM", "UPDATE": "UPDATE"}
    mark = marks.get(verb)
    if mark is None or mark not in words:
        return verb
    return f"{verb} {words[words.index(mark) + 1]}"
