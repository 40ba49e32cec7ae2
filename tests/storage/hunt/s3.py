"""The hunt on an S3 server: players stand still before each request, and replies are lost on the way."""

from collections.abc import Sequence
from contextlib import ExitStack
from random import Random
from typing import TYPE_CHECKING, Any

from lockd_storage import HeldLease
from lockd_storage.s3 import S3Fence
from tests.servers.moto import S3Server, s3_client
from tests.servers.proxy import LossyProxy, lossy_proxy
from tests.storage.hunt.arena import Book, Fault, Hands
from tests.storage.hunt.history import LINES, View, Write
from tests.storage.hunt.players import Player, pause
from tests.storage.leases import GivenLease

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


class S3Arena:
    """A resource's lines are names of objects; its one register is the mark's own body."""

    name = "s3"

    def __init__(self, server: S3Server) -> None:
        self.resources: Sequence[str] = ()
        self.bucket = server.fresh_bucket()
        self.onlooker = server.shared_client
        self.hands_type: type[S3Hands] = S3Hands
        self._server = server
        self._stack = ExitStack()
        self._wires: dict[Player, tuple[LossyProxy, S3Client]] = {}

    def begin(self, game: int) -> None:
        self.resources = (f"orders-{game}", f"stock-{game}")
        for proxy, _ in self._wires.values():
            proxy.lose = None

    def hands(self, player: Player, draw: Random) -> Hands:  # noqa: ARG002
        if player not in self._wires:
            proxy = self._stack.enter_context(lossy_proxy(self._server.port))
            client = s3_client(proxy.port)
            client.meta.events.register("before-send.s3", _stand_still)
            self._stack.callback(client.close)
            # The first install of a client tries the store out, one client at a time: not a step of a game.
            S3Fence(client, self.bucket).install(GivenLease(len(self._wires) + 1, lock="warm-up"))
            self._wires[player] = proxy, client
        return self.hands_type(self, self._wires[player][1])

    def look(self) -> View:
        return self.hands_type(self, self.onlooker).look()

    def waiting(self, players: Sequence[Player]) -> set[Player]:  # noqa: ARG002  no request waits for another
        return set()

    def faults(self, player: Player) -> Sequence[Fault]:
        proxy, _ = self._wires[player]

        def lose() -> None:
            proxy.lose = b"PUT "

        return [Fault("reply to a PUT lost", lose)]

    def close(self) -> None:
        self._stack.close()


def _stand_still(**_: Any) -> None:
    pause()


class S3Hands:
    broken: tuple[type[Exception], ...] = ()

    def __init__(self, arena: S3Arena, client: "S3Client") -> None:
        self.arena = arena
        self.client = client
        self._fence = S3Fence(client, arena.bucket)

    def install(self, lease: HeldLease) -> None:
        self._fence.install(lease, timeout=1)

    def look(self) -> View:
        """Each resource at a moment of its own: no unit spans two of them."""
        words: list[str] = []
        onlooker = S3Fence(self.arena.onlooker, self.arena.bucket)
        for resource in self.arena.resources:
            found = onlooker.read(resource)
            if found is not None:
                words += [*found.names(), found.body.decode()] if found.body else found.names()
        return frozenset(map(Write.decode, words))

    def work(self, book: Book) -> None:
        lease = book.leases[0]
        book.leases = [lease]
        with self._fence.write(lease) as objects:
            for _ in range(book.draw.randint(1, 3)):
                write = book.write(book.some_place(LINES, "body"))
                if write.is_line:
                    objects.put(write.encode(), b"")
                else:
                    objects.body = write.encode().encode()
                pause()

    def close(self) -> None: ...
