"""The hunt on SQLite behind asyncio: each connection has a thread, which waits in place of its player.

No task is cancelled: the thread of a connection goes on then, while its player does so too.
"""

from pathlib import Path
from random import Random
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tests.storage.hunt.arena import Hands
from tests.storage.hunt.awaited import AsyncSqlHands, Loop, OnLoop
from tests.storage.hunt.players import Player, stand_in_for
from tests.storage.hunt.sql import SqlHands, pausing
from tests.storage.hunt.sqlite import HuntedConnection, SqliteArena


class AiosqliteArena(SqliteArena):
    hands_type: type[SqlHands] = AsyncSqlHands

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.name = "aiosqlite"
        self._engines: dict[Player, tuple[AsyncEngine, Loop]] = {}

    def hands(self, player: Player, draw: Random) -> Hands:  # noqa: ARG002
        if player not in self._engines:
            self._engines[player] = self._opened(player)
        engine, loop = self._engines[player]
        return OnLoop(self.hands_on(engine.sync_engine), loop)

    def _opened(self, player: Player) -> tuple[AsyncEngine, Loop]:
        def connect(*arguments: Any, **named: Any) -> HuntedConnection:
            stand_in_for(player)  # in the thread that the connection has for itself
            return HuntedConnection(*arguments, **named)

        loop = Loop()
        url = self.url.set(drivername="sqlite+aiosqlite")
        engine = create_async_engine(url, connect_args={"timeout": 0, "factory": connect})
        pausing(engine.sync_engine, loop.pause)
        return engine, loop

    def close(self) -> None:
        for engine, loop in self._engines.values():
            loop.run(engine.sync_engine.dispose)
            loop.close()
        super().close()
