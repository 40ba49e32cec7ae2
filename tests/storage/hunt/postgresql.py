"""The hunt on PostgreSQL: the server itself says who waits, and connections are killed and lost."""

from collections.abc import Sequence
from contextlib import ExitStack
from random import Random
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy import event

from lockd_storage.schema import upgrade
from tests.servers.proxy import LossyProxy, lossy_proxy
from tests.storage.hunt.arena import Fault, Hands
from tests.storage.hunt.history import View
from tests.storage.hunt.players import Player, current
from tests.storage.hunt.sql import Places, SqlHands, look, metadata, pausing

LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
INSTALL_SECONDS = 0.05
THROUGH_PROXY = 0.15

LOSABLE = (b"lockd_fence_install", b"lockd_fence_begin", b"COMMIT", b"hunt_", b"SAVEPOINT")


class PostgresHands(SqlHands):
    levels = LEVELS


class Wires:
    """One player's engines: straight to the server, and through a proxy that can lose a reply."""

    def __init__(self, url: sa.URL, proxy: LossyProxy) -> None:
        self.proxy = proxy
        self.straight = self.open(url)
        self.proxied = self.open(url.set(port=proxy.port))
        self._open: dict[int, Any] = {}
        for engine in (self.straight, self.proxied):
            event.listen(engine, "checkout", self._checked_out)
            event.listen(engine, "checkin", self._checked_in)

    def _checked_out(self, driver: Any, *_: object) -> None:
        if current() is not None:  # not the thread in which an install ends its blockers
            self._open[id(driver)] = driver

    def _checked_in(self, driver: Any, *_: object) -> None:
        self._open.pop(id(driver), None)

    def open(self, url: sa.URL) -> sa.Engine:
        """An engine that pauses."""
        return pausing(sa.create_engine(url, pool_size=3))

    def pid(self, driver: Any) -> int | None:
        """The server process behind a connection, unless that is closed."""
        return None if driver.closed else driver.info.backend_pid

    def cut(self, driver: Any) -> None:
        """Close a connection's socket."""
        driver.close()

    def pids(self) -> list[int]:
        """The server processes that work for the player now."""
        found = map(self.pid, list(self._open.values()))
        return [pid for pid in found if pid is not None]

    def hang_up(self) -> None:
        """Close the player's sockets under its feet."""
        for driver in list(self._open.values()):
            self.cut(driver)

    def close(self) -> None:
        self.straight.dispose()
        self.proxied.dispose()


class PostgresArena:
    name = "postgresql"
    hands_type: type[SqlHands] = PostgresHands
    wires_type: type[Wires] = Wires
    losable: tuple[bytes, ...] = LOSABLE

    def __init__(self, url: str) -> None:
        self.resources: Sequence[str] = ()
        self._url = sa.make_url(url)
        self.engine = sa.create_engine(url)
        upgrade(self.engine)
        metadata.create_all(self.engine)
        self._stack = ExitStack()
        self._monitor = self._stack.enter_context(
            psycopg.connect(
                host=self._url.host,
                port=self._url.port,
                user=self._url.username,
                dbname=self._url.database,
                autocommit=True,
            )
        )
        self._wires: dict[Player, Wires] = {}
        self._places = Places(())

    def begin(self, game: int) -> None:
        self.resources = (f"orders-{game}", f"stock-{game}")
        self._places = Places(self.resources)
        for wires in self._wires.values():
            wires.proxy.lose = None
        with self.engine.begin() as connection:
            self._places.empty(connection)

    def hands(self, player: Player, draw: Random) -> Hands:
        if player not in self._wires:
            assert self._url.port is not None
            proxy = self._stack.enter_context(lossy_proxy(self._url.port))
            self._wires[player] = self.wires_type(self._url, proxy)
            self._stack.callback(self._wires[player].close)
        wires = self._wires[player]
        engine = wires.proxied if draw.random() < THROUGH_PROXY else wires.straight
        return self.hands_type(engine, self._places, looking=self.engine, install_seconds=INSTALL_SECONDS)

    def look(self) -> View:
        return look(self.engine, self._places)

    def waiting(self, players: Sequence[Player]) -> set[Player]:
        """Those with a lock that is asked for and not granted. Granting is the releaser's act: no lag."""
        pids = {pid: player for player in players for pid in self._wires[player].pids()}
        rows = self._monitor.execute(
            "SELECT pid FROM pg_locks WHERE NOT granted AND pid = ANY(%s)", (list(pids),)
        ).fetchall()
        return {pids[pid] for (pid,) in rows}

    def faults(self, player: Player) -> Sequence[Fault]:
        wires = self._wires[player]

        def kill() -> None:
            for pid in wires.pids():
                self._monitor.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))

        found = [Fault("killed", kill), Fault("hung up", wires.hang_up, in_its_thread=True)]
        for words in self.losable:

            def lose(words: bytes = words) -> None:
                wires.proxy.lose = words

            found.append(Fault(f"reply to {words.decode()} lost", lose))
        return found

    def close(self) -> None:
        self._stack.close()
        self.engine.dispose()
