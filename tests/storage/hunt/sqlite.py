"""The hunt on SQLite: who waits for the write lock says so itself, and time-outs are the conductor's."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from lockd_storage.schema import upgrade
from tests.storage.hunt.arena import Fault, Hands
from tests.storage.hunt.history import View
from tests.storage.hunt.players import Player, blocked
from tests.storage.hunt.sql import Places, SqlHands, look, metadata, pausing


class HuntedCursor(sqlite3.Cursor):
    """Returns at once when the database is busy, and tries again when another player has moved."""

    def execute(self, sql: str, parameters: Any = (), /) -> "HuntedCursor":
        if sql.startswith("PRAGMA busy_timeout ="):
            sql = "PRAGMA busy_timeout = 0"
        while True:
            try:
                super().execute(sql, parameters)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or not blocked():
                    raise
            else:
                return self


class HuntedConnection(sqlite3.Connection):
    """A connection of such cursors. A COMMIT waits for readers in the same way."""

    def cursor(self, factory: Any = HuntedCursor) -> Any:
        return super().cursor(factory)

    def commit(self) -> None:
        while True:
            try:
                return super().commit()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or not blocked():
                    raise


class SqliteArena:
    """`journal` is the journal mode: delete (the default of SQLite) or wal."""

    hands_type: type[SqlHands] = SqlHands

    def __init__(self, folder: Path, *, journal: str = "delete") -> None:
        self.name = "sqlite" if journal == "delete" else f"sqlite-{journal}"
        self.resources: Sequence[str] = ()
        self.url = sa.make_url(f"sqlite:///{folder / 'hunt.db'}")
        arguments = {"timeout": 0, "factory": HuntedConnection, "check_same_thread": False}
        self._engine = sa.create_engine(self.url, connect_args=arguments)
        self._pausing = pausing(sa.create_engine(self.url, connect_args=arguments))
        with self._engine.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA journal_mode = {journal}")
            connection.exec_driver_sql("PRAGMA synchronous = off")
        upgrade(self._engine)
        metadata.create_all(self._engine)
        self._places = Places(())

    def begin(self, game: int) -> None:
        self.resources = (f"orders-{game}", f"stock-{game}")
        self._places = Places(self.resources)
        with self._engine.begin() as connection:
            self._places.empty(connection)

    def hands(self, player: Player, draw: Random) -> Hands:  # noqa: ARG002
        return self.hands_on(self._pausing)

    def hands_on(self, engine: sa.Engine) -> SqlHands:
        """A holder's hands on an engine that pauses."""
        return self.hands_type(engine, self._places, looking=self._engine, install_seconds=1)

    def look(self) -> View | None:
        try:
            return look(self._engine, self._places)
        except OperationalError:  # a writer stands in the middle of its COMMIT, for readers to end
            return None

    def waiting(self, players: Sequence[Player]) -> set[Player]:  # noqa: ARG002  they say so themselves
        return set()

    def faults(self, player: Player) -> Sequence[Fault]:  # noqa: ARG002  no server, no wire
        return ()

    def close(self) -> None:
        self._pausing.dispose()
        self._engine.dispose()
