"""The hunt on Redis and Valkey: players stand still before each command and before each reply."""

from collections.abc import Sequence
from contextlib import suppress
from random import Random
from typing import Any

import redis

from lockd_storage import HeldLease
from lockd_storage.redis import RedisFence
from tests.storage.hunt.arena import Book, Fault, Hands
from tests.storage.hunt.history import LINES, Outcome, View, Write
from tests.storage.hunt.players import Player, current, pause

REGISTERS = ("a", "b")


class HuntedConnection(redis.Connection):
    """Its player stands still with a command not yet sent, and with a reply not yet read."""

    def send_packed_command(self, command: Any, check_health: bool = True) -> Any:
        pause()
        return super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]

    def read_response(self, *arguments: Any, **named: Any) -> Any:
        pause()
        return super().read_response(*arguments, **named)

    def connect(self) -> None:
        super().connect()  # type: ignore[no-untyped-call]
        player = current()
        if player is not None:
            _OPEN.setdefault(player, []).append(self)


_OPEN: dict[Player, list[HuntedConnection]] = {}


def key(place: str) -> str:
    resource, _, name = place.partition("/")
    return f"{{{resource}}}:{name}"


class RedisArena:
    name = "redis"
    hands_type: "type[RedisHands]"

    def __init__(self, port: int) -> None:
        self.resources: Sequence[str] = ()
        self.onlooker = redis.Redis(port=port, decode_responses=True)
        self._pool = redis.ConnectionPool(connection_class=HuntedConnection, port=port)
        self.client = redis.Redis(connection_pool=self._pool)
        self.hands_type = RedisHands

    def begin(self, game: int) -> None:
        self.resources = (f"orders-{game}", f"stock-{game}")

    def hands(self, player: Player, draw: Random) -> Hands:  # noqa: ARG002
        return self.hands_type(self)

    def look(self) -> View:
        """All places in one MULTI."""
        with self.onlooker.pipeline(transaction=True) as pipeline:
            for resource in self.resources:
                pipeline.lrange(key(f"{resource}/{LINES}"), 0, -1)
                for name in REGISTERS:
                    pipeline.get(key(f"{resource}/{name}"))
            found = pipeline.execute()
        words: list[str] = []
        for reply in found:
            words += reply if isinstance(reply, list) else [reply] if reply else []
        return frozenset(map(Write.decode, words))

    def waiting(self, players: Sequence[Player]) -> set[Player]:  # noqa: ARG002  no command waits for another
        return set()

    def faults(self, player: Player) -> Sequence[Fault]:
        sockets: list[Any] = [link._sock for link in _OPEN.get(player, ()) if link._sock is not None]

        def kill() -> None:
            for socket in sockets:
                host, port = socket.getsockname()
                with suppress(redis.ResponseError):  # it has gone by itself
                    self.onlooker.client_kill(f"{host}:{port}")

        return [Fault("killed", kill)] if sockets else []

    def close(self) -> None:
        _OPEN.clear()
        self._pool.disconnect()
        self.onlooker.close()


class RedisHands:
    broken: tuple[type[Exception], ...] = ()

    def __init__(self, arena: RedisArena) -> None:
        self.arena = arena
        self._fence = RedisFence(arena.client, replicas=0)

    def install(self, lease: HeldLease) -> None:
        self._fence.install(lease)

    def look(self) -> View:
        return self.arena.look()

    def work(self, book: Book) -> None:
        """One batch, or several commands each of which is a unit."""
        lease = book.leases[0]
        book.leases = [lease]
        if book.draw.random() < 0.5:
            with self._fence.write(lease) as batch:
                for _ in range(book.draw.randint(1, 4)):
                    self._send(batch, book)
            return
        for _ in range(book.draw.randint(1, 3)):
            self._send(self._fence.of(lease), book)
            book.end(Outcome.ACKNOWLEDGED)

    def _send(self, verbs: Any, book: Book) -> None:
        write = book.write(book.some_place(LINES, *REGISTERS))
        if write.is_line:
            verbs.rpush(key(write.place), write.encode())
        else:
            verbs.set(key(write.place), write.encode())

    def close(self) -> None: ...
