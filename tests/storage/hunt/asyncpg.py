"""The hunt on PostgreSQL behind asyncio, by asyncpg: tasks are cancelled, too."""

from collections.abc import Sequence
from random import Random
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from tests.servers.proxy import LossyProxy
from tests.storage.hunt.arena import Fault, Hands
from tests.storage.hunt.awaited import AsyncSqlHands, Loop, OnLoop
from tests.storage.hunt.players import Player
from tests.storage.hunt.postgresql import LEVELS, PostgresArena, Wires
from tests.storage.hunt.sql import SqlHands, pausing
from tests.storage.leases import CLUSTER


class AsyncpgHands(AsyncSqlHands):
    levels = LEVELS


class AsyncWires(Wires):
    """One player's engines, and the loop that they belong to."""

    def __init__(self, url: sa.URL, proxy: LossyProxy) -> None:
        self.loop = Loop()
        super().__init__(url.set(drivername="postgresql+asyncpg"), proxy)

    def open(self, url: sa.URL) -> sa.Engine:
        return pausing(create_async_engine(url, pool_size=3).sync_engine, self.loop.pause)

    def pid(self, driver: Any) -> int | None:
        connection = driver.driver_connection
        return None if connection.is_closed() else connection.get_server_pid()

    def cut(self, driver: Any) -> None:
        driver.driver_connection.terminate()

    def close(self) -> None:
        self.loop.run(self._dispose)
        self.loop.close()

    def _dispose(self) -> None:
        super().close()


class AsyncpgArena(PostgresArena):
    name = "asyncpg"
    hands_type: type[SqlHands] = AsyncpgHands
    wires_type = AsyncWires
    # A statement's text goes to the server once, when it is prepared; after that, only what it is given.
    losable = (
        b"lockd_fence_install",
        b"lockd_fence_begin",
        CLUSTER.encode(),
        b"COMMIT;",
        b"orders-",
        b"SAVEPOINT",
    )

    def hands(self, player: Player, draw: Random) -> Hands:
        return OnLoop(super().hands(player, draw), self._loop(player))

    def faults(self, player: Player) -> Sequence[Fault]:
        found = [*super().faults(player)]
        loop = self._loop(player)
        if loop.in_a_verb():
            # As likely as all replies together that may get lost: it is what asyncio adds.
            found += [Fault("cancelled", loop.cancel, in_its_thread=True)] * len(self.losable)
        return found

    def _loop(self, player: Player) -> Loop:
        wires = self._wires[player]
        assert isinstance(wires, AsyncWires)
        return wires.loop
