"""The hunt on a service behind HTTP: a real server, whose handlers stand still between check and write.

The handler runs in a thread of the server while its player's own waits for the reply, and pauses in its
place. The service keeps its mark and its state in memory.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from random import Random
from threading import Lock
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from lockd_storage import HeldLease
from lockd_storage.http import FenceMiddleware, PresentedLease, fence_routes
from lockd_storage.http.client import HttpFence
from lockd_storage.memory import MemoryFence
from tests.storage.hunt.arena import Book, Fault
from tests.storage.hunt.history import LINES, Outcome, View, Write
from tests.storage.hunt.players import Player, in_place_of, pause
from tests.storage.web import serving

INSTALL_SECONDS = 0.05
PLAYER = "X-Player"
REPLIES_LOST = 0.05


class HttpArena:
    name = "http"

    def __init__(self) -> None:
        self.resources: Sequence[str] = ()
        self.fence = MemoryFence()
        self._lock = Lock()
        self._lines: set[Write] = set()
        self._registers: dict[str, Write] = {}
        self._players: dict[str, Player] = {}
        app = Starlette(
            routes=[
                Mount("/fences", fence_routes(self.fence)),
                Route("/write", self._write, methods=["POST"]),
            ]
        )
        app.add_middleware(FenceMiddleware, guarded=["/write"])
        self._up = ExitStack()
        self.url = self._up.enter_context(serving(app))

    def begin(self, game: int) -> None:
        self.resources = (f"orders-{game}", f"stock-{game}")
        with self._lock:
            self._lines.clear()
            self._registers.clear()

    def hands(self, player: Player, draw: Random) -> "HttpHands":
        self._players[str(player.number)] = player
        return HttpHands(self, player, draw)

    def block(self, lease: PresentedLease) -> AbstractContextManager[Any]:
        """What the handler does its work in."""
        return self.fence.write(lease)

    def _write(self, request: Request) -> Response:
        write = Write.decode(request.query_params["write"])
        with in_place_of(self._players[request.headers[PLAYER]]):
            pause()
            with self.block(request.state.fences.lease(write.resource)):
                pause()
                with self._lock:
                    if write.is_line:
                        self._lines.add(write)
                    else:
                        self._registers[write.place] = write
                pause()
        return Response()

    def look(self) -> View:
        with self._lock:
            return frozenset((*self._lines, *self._registers.values()))

    def waiting(self, players: Sequence[Player]) -> None:  # noqa: ARG002
        """A request may wait in the server, or be on its way."""
        return

    def faults(self, player: Player) -> Sequence[Fault]:  # noqa: ARG002  replies are lost by the hands
        return ()

    def close(self) -> None:
        self._up.close()
        self.fence.check_invariants()


class HttpHands:
    broken: tuple[type[Exception], ...] = ()

    def __init__(self, arena: HttpArena, player: Player, draw: Random) -> None:
        self._arena = arena
        self._draw = draw
        self._web = httpx.Client(
            base_url=arena.url,
            headers={PLAYER: str(player.number)},
            event_hooks={"request": [self._stand_still], "response": [self._perhaps_lose]},
        )
        self._fence = HttpFence(self._web)

    def _stand_still(self, _: httpx.Request) -> None:
        pause()

    def _perhaps_lose(self, response: httpx.Response) -> None:
        pause()
        if self._draw.random() < REPLIES_LOST:
            raise httpx.ReadError("the reply is lost on its way", request=response.request)

    def install(self, lease: HeldLease) -> None:
        self._fence.install(lease, timeout=INSTALL_SECONDS)

    def work(self, book: Book) -> None:
        """Requests of one write each, which are units of their own."""
        lease = book.leases[0]
        book.leases = [lease]
        calls = self._fence.calls(lease)
        for _ in range(book.draw.randint(1, 3)):
            write = book.write(book.some_place(LINES, "a", "b"))
            calls.send("POST", "/write", params={"write": write.encode()}).raise_for_status()
            book.end(Outcome.ACKNOWLEDGED)

    def look(self) -> View:
        return self._arena.look()

    def close(self) -> None:
        self._web.close()
