"""The hunt on MariaDB: connections are killed, and some write around the fence, which the guards refuse.

A step that takes some ms is taken to wait.
"""

from collections.abc import Sequence
from contextlib import suppress
from random import Random
from typing import Any, ClassVar

import pymysql
import sqlalchemy as sa
from sqlalchemy import event

from lockd.errors import StaleToken
from lockd_storage.schema import upgrade
from lockd_storage.sqlalchemy.guards import Guard
from lockd_storage.sqlalchemy.guards.triggers import clause, triggers
from tests.storage.hunt.arena import Book, Fault
from tests.storage.hunt.history import LINES, Outcome, View
from tests.storage.hunt.players import Player, current
from tests.storage.hunt.sql import ORDERS, STOCK, Places, SqlHands, look, metadata, pausing, statement

INSTALL_SECONDS = 0.05
TRIES_AROUND = 4
"""How often one that was refused tries without the fence: each time on the pool's next connection."""


class MariadbHands(SqlHands):
    # SQLAlchemy hands on the driver's own error when a dead connection is told its isolation level.
    broken = (*SqlHands.broken, pymysql.err.Error)
    levels = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")

    def work(self, book: Book) -> None:
        try:
            super().work(book)
        except StaleToken:
            book.end(Outcome.REFUSED)
            for _ in range(TRIES_AROUND):
                with suppress(*self.broken):
                    self._write_around(book)
            raise

    def _write_around(self, book: Book) -> None:
        """Write a line outside of any fence, on a connection that others have used in theirs."""
        write = book.write(book.some_place(LINES))
        outcome = Outcome.REFUSED
        try:
            with self.engine.begin() as connection:
                connection.execute(statement(write))
            outcome = Outcome.ACKNOWLEDGED
        finally:
            book.end(outcome)


class MariadbArena:
    name = "mariadb"
    hands_type: type[SqlHands] = MariadbHands
    connect_args: ClassVar[dict[str, Any]] = {}
    """Of the holders' connections."""

    def __init__(self, url: str) -> None:
        self.resources: Sequence[str] = ()
        self._engine = sa.create_engine(url)
        upgrade(self._engine)
        metadata.create_all(self._engine)
        with self._engine.begin() as connection:
            for table, family in ((ORDERS, "orders-*"), (STOCK, "stock-*")):
                for trigger in triggers("mariadb").create(Guard(table.name, family)):
                    connection.execute(clause(trigger))
        self._pausing = pausing(sa.create_engine(url, pool_size=12, connect_args=self.connect_args))
        self._open: dict[Any, Player] = {}
        event.listen(self._pausing, "checkout", self._checked_out)
        event.listen(self._pausing, "checkin", self._checked_in)
        self._places = Places(())

    def _checked_out(self, driver: Any, *_: object) -> None:
        player = current()
        if player is not None:
            self._open[driver] = player

    def _checked_in(self, driver: Any, *_: object) -> None:
        self._open.pop(driver, None)

    def begin(self, game: int) -> None:
        self.resources = (f"orders-{game}", f"stock-{game}")
        self._places = Places(self.resources)
        with self._engine.begin() as connection:
            self._places.empty(connection)

    def hands(self, player: Player, draw: Random) -> SqlHands:  # noqa: ARG002
        return self.hands_type(
            self._pausing, self._places, looking=self._engine, install_seconds=INSTALL_SECONDS
        )

    def look(self) -> View:
        return look(self._engine, self._places)

    def waiting(self, players: Sequence[Player]) -> None:  # noqa: ARG002
        """The server's list of waiting transactions is refreshed ten times a second: too late to ask."""
        return

    def faults(self, player: Player) -> Sequence[Fault]:
        drivers = [driver for driver, whose in list(self._open.items()) if whose is player]

        def kill() -> None:
            with self._engine.connect() as connection:
                for driver in drivers:
                    with suppress(sa.exc.DBAPIError, pymysql.err.Error):  # it has ended by itself
                        connection.exec_driver_sql(f"KILL {driver.thread_id()}")

        def hang_up() -> None:
            for driver in drivers:
                if driver.open:
                    driver._force_close()

        return [Fault("killed", kill), Fault("hung up", hang_up, in_its_thread=True)] if drivers else []

    def close(self) -> None:
        self._pausing.dispose()
        self._engine.dispose()
