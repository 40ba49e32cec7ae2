"""The hunt on the in-memory twin: each write is applied by itself, while the block holds the gate."""

import sys
import threading
from collections.abc import Sequence
from random import Random
from threading import Lock

from lockd_storage import HeldLease
from lockd_storage.memory import MemoryFence
from tests.storage.hunt.arena import Book, Fault
from tests.storage.hunt.history import LINES, Outcome, View, Write
from tests.storage.hunt.players import Player, pause

INSTALL_SECONDS = 0.02


class MemoryArena:
    name = "memory"

    def __init__(self) -> None:
        self.resources: Sequence[str] = ()
        self.fence = MemoryFence()
        self._lock = Lock()
        self._lines: set[Write] = set()
        self._registers: dict[str, Write] = {}

    def begin(self, game: int) -> None:
        self.resources = (f"orders-{game}", f"stock-{game}")
        self._lines.clear()
        self._registers.clear()

    def hands(self, player: Player, draw: Random) -> "MemoryHands":  # noqa: ARG002
        return MemoryHands(self)

    def put(self, write: Write) -> None:
        with self._lock:
            if write.is_line:
                self._lines.add(write)
            else:
                self._registers[write.place] = write

    def look(self) -> View:
        with self._lock:
            return frozenset((*self._lines, *self._registers.values()))

    def waiting(self, players: Sequence[Player]) -> set[Player]:
        """Those whose thread stands in a Condition, which is how the gate waits."""
        frames = sys._current_frames()
        found = set()
        for player in players:
            frame = frames.get(player.thread.ident or 0)
            if frame is not None and frame.f_code is threading.Condition.wait.__code__:
                found.add(player)
        return found

    def faults(self, player: Player) -> Sequence[Fault]:  # noqa: ARG002
        return ()

    def close(self) -> None:
        self.fence.check_invariants()


class MemoryHands:
    broken: tuple[type[Exception], ...] = ()

    def __init__(self, arena: MemoryArena) -> None:
        self._arena = arena

    def install(self, lease: HeldLease) -> None:
        self._arena.fence.install(lease, timeout=INSTALL_SECONDS)

    def work(self, book: Book) -> None:
        lease = book.leases[0]
        book.leases = [lease]
        with self._arena.fence.write(lease):
            pause()
            for _ in range(book.draw.randint(1, 4)):
                if book.draw.random() < 0.3:
                    book.saw(self._arena.look())
                self._arena.put(book.write(book.some_place(LINES, "a", "b")))
                book.end(Outcome.ACKNOWLEDGED)
                pause()

    def look(self) -> View:
        return self._arena.look()

    def close(self) -> None: ...
