"""The hunt on SQL databases: tables, engines that pause between statements, and a holder's work."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from random import Random
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.orm import Session

from lockd_storage import HeldLease, fenced
from lockd_storage.sqlalchemy import SqlFence
from tests.storage.hunt.arena import Book
from tests.storage.hunt.history import LINES, Outcome, View, Write
from tests.storage.hunt.players import pause

metadata = sa.MetaData()

WRITE_COLUMNS = ("place", "token", "holder", "unit", "ordinal")


def _columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("holder", sa.Integer, nullable=False),
        sa.Column("unit", sa.Integer, nullable=False),
        sa.Column("ordinal", sa.Integer, nullable=False),
    ]


def _lines(name: str) -> sa.Table:
    """A table that keeps every write."""
    return sa.Table(
        name,
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("place", sa.String(60), nullable=False, index=True),
        *_columns(),
    )


# The first resource's lines, those of all others, and rows that are written over.
ORDERS, STOCK = _lines("hunt_orders"), _lines("hunt_stock")
REGISTERS = sa.Table(
    "hunt_registers", metadata, sa.Column("place", sa.String(60), primary_key=True), *_columns()
)


class Places:
    """The places of one game."""

    registers = ("a", "b")

    def __init__(self, resources: Sequence[str]) -> None:
        self.names = [f"{resource}/{name}" for resource in resources for name in (LINES, *self.registers)]

    def empty(self, connection: sa.Connection) -> None:
        rows = [
            {"place": name, "token": 0, "holder": -1, "unit": 0, "ordinal": 0}
            for name in self.names
            if not name.endswith(f"/{LINES}")
        ]
        connection.execute(REGISTERS.insert(), rows)

    def view(self) -> sa.TextClause:
        """One statement, so one snapshot, that selects all that is visible."""
        columns = ", ".join(WRITE_COLUMNS)
        names = ", ".join(f"'{name}'" for name in self.names)
        return sa.text(
            " UNION ALL ".join(
                f"SELECT {columns} FROM {table.name} WHERE place IN ({names}) AND token > 0"
                for table in (ORDERS, STOCK, REGISTERS)
            )
        )


def look(engine: sa.Engine, places: Places) -> View:
    """What is visible now. With an engine that does not pause, one step with what it follows."""
    with engine.connect() as connection:
        return as_view(connection.execute(places.view()).all())


def as_view(rows: Sequence[Any]) -> View:
    return frozenset(Write(*row) for row in rows)


def statement(write: Write) -> sa.Insert | sa.Update:
    """What applies a write: a new line, or the new content of a row that is there."""
    values = {name: getattr(write, name) for name in WRITE_COLUMNS}
    if write.is_line:
        return (ORDERS if write.resource.startswith("orders") else STOCK).insert().values(values)
    return REGISTERS.update().where(REGISTERS.c.place == write.place).values(values)


def pausing(engine: sa.Engine, stand_still: Callable[[], None] = pause) -> sa.Engine:
    """Stand still after each statement, also those that the fence sends by itself, and after its check.

    The check goes to the driver, and nobody is told of it: the first statement of a transaction follows it.
    """

    def before(connection: sa.Connection, *_: object) -> None:
        transaction = connection.get_transaction()
        if connection.info.get(pausing) is not transaction:
            connection.info[pausing] = transaction
            stand_still()

    def after(*_: object) -> None:
        stand_still()

    event.listen(engine, "before_cursor_execute", before)
    event.listen(engine, "after_cursor_execute", after)
    return engine


class Target(Protocol):
    """What Session and Connection have in common."""

    def execute(self, statement: sa.Executable, /) -> Any: ...
    def commit(self) -> None: ...
    def rollback(self) -> None: ...
    def begin_nested(self) -> Any: ...


Opened = Callable[[sa.Engine], AbstractContextManager[Session | sa.Connection]]


class SqlHands:
    """A holder's hands on one engine; fenced by `SqlFence`. Known-bad ones override a method."""

    broken: tuple[type[Exception], ...] = (DBAPIError, InvalidRequestError)
    levels: tuple[str, ...] = ()
    steps = (1, 4)
    """At least and at most, of a block."""

    def __init__(
        self, engine: sa.Engine, places: Places, *, looking: sa.Engine, install_seconds: float
    ) -> None:
        self.engine = engine
        self.fence = SqlFence(engine)
        self.places = places
        self._looking = looking
        self._install_seconds = install_seconds

    def install(self, lease: HeldLease) -> None:
        self.fence.install(lease, timeout=self._install_seconds)

    def look(self) -> View:
        return look(self._looking, self.places)

    def close(self) -> None: ...

    def work(self, book: Book) -> None:
        with self.opened(book.draw) as target:
            with self.block(target, book):
                for _ in range(book.draw.randint(*self.steps)):
                    self._step(target, book)
            # What comes after the block says nothing of it: SQLAlchemy resets the isolation level of a
            # connection that it takes back, and hands on the driver's error if that has gone meanwhile.
            book.end(Outcome.ACKNOWLEDGED)

    @contextmanager
    def opened(self, draw: Random) -> Iterator[Session | sa.Connection]:
        engine = self.levelled(draw)
        if draw.random() < 0.5:
            with Session(engine) as session:
                yield session
        else:
            with engine.connect() as connection:
                yield connection

    def levelled(self, draw: Random) -> sa.Engine:
        """The engine, at one of the isolation levels that are tried."""
        return (
            self.engine.execution_options(isolation_level=draw.choice(self.levels))
            if self.levels
            else self.engine
        )

    def block(self, target: Session | sa.Connection, book: Book) -> AbstractContextManager[Any]:
        return fenced(target, self.fence, *book.leases)

    def _step(self, target: Target, book: Book) -> None:
        match book.draw.randint(0, 8):
            case 0:
                book.saw(as_view(target.execute(self.places.view()).all()))
            case 1 | 2:
                self.commit(target)
                book.end(Outcome.ACKNOWLEDGED)
                pause()
            case 3:
                savepoint = target.begin_nested()
                write = self._write(target, book)
                if book.draw.random() < 0.5:
                    savepoint.rollback()
                    book.taken_back(write)
                else:
                    savepoint.commit()
            case _:
                self._write(target, book)

    def _write(self, target: Target, book: Book) -> Write:
        write = book.write(book.some_place(LINES, *Places.registers))
        self.apply(target, write, book)
        return write

    def commit(self, target: Target) -> None:
        target.commit()

    def apply(self, target: Target, write: Write, book: Book) -> None:  # noqa: ARG002  for known-bad hands
        target.execute(statement(write))
