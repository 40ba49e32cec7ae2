"""The hunt on files: players stand still before each lock, each opening and each renaming of a file."""

import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from lockd.errors import Unavailable
from lockd_storage import HeldLease
from lockd_storage.filesystem import FileFence
from tests.storage.hunt.arena import Book, Fault, Hands
from tests.storage.hunt.history import LINES, View, Write
from tests.storage.hunt.players import Player, pause

INSTALL_SECONDS = 0.05
REGISTERS = ("a", "b")
EVENTS = frozenset({"fcntl.flock", "os.rename", "os.remove"})


def _stand_still(name: str, _: Any) -> None:
    if name in EVENTS:
        pause()


class FilesArena:
    """A line is an empty file that has its name; a register is a file with its content."""

    name = "files"
    _hooked = False

    def __init__(self, folder: Path) -> None:
        self.resources: Sequence[str] = ()
        self.folder = folder
        self.fence = FileFence(folder)
        self.hands_type: type[FilesHands] = FilesHands
        if not FilesArena._hooked:
            # The interpreter calls it before each such system call. It can't be taken away again, and
            # does nothing in threads of no player.
            sys.addaudithook(_stand_still)
            FilesArena._hooked = True

    def begin(self, game: int) -> None:
        self.resources = (f"orders-{game}", f"stock-{game}")

    def hands(self, player: Player, draw: Random) -> Hands:  # noqa: ARG002
        return self.hands_type(self)

    def look(self) -> View | None:
        """Through the fence, resource by resource: no unit spans two of them."""
        found: set[Write] = set()
        for resource in self.resources:
            try:
                with self.fence.read(resource, timeout=0):
                    found |= self.content(resource)
            except Unavailable:  # a block is under way
                return None
        return frozenset(found)

    def content(self, resource: str) -> View:
        """What lies there, without asking the fence."""
        folder = self.folder / resource
        words = [path.name for path in folder.glob("*+*")]
        words += [path.read_text() for name in REGISTERS if (path := folder / name).exists()]
        return frozenset(map(Write.decode, words))

    def waiting(self, players: Sequence[Player]) -> set[Player]:  # noqa: ARG002  they ask again and again
        return set()

    def faults(self, player: Player) -> Sequence[Fault]:  # noqa: ARG002  no server, no wire
        return ()

    def close(self) -> None: ...


class FilesHands:
    broken: tuple[type[Exception], ...] = ()

    def __init__(self, arena: FilesArena) -> None:
        self.arena = arena

    def install(self, lease: HeldLease) -> None:
        self.arena.fence.install(lease, timeout=INSTALL_SECONDS)

    def look(self) -> View:
        """Right after an install: older blocks have ended, so what is theirs is there in full."""
        return frozenset().union(*map(self.arena.content, self.arena.resources))

    def work(self, book: Book) -> None:
        book.leases = [book.leases[0]]
        with self.arena.fence.write(book.leases[0]) as files:
            for _ in range(book.draw.randint(1, 4)):
                write = book.write(book.some_place(LINES, *REGISTERS))
                if write.is_line:
                    files.write(f"{write.resource}/{write.encode()}", b"")
                else:
                    files.write(write.place, write.encode().encode())
                pause()

    def close(self) -> None: ...
