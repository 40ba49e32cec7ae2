"""A node that does what the test says: it is on a real socket, and answers or misbehaves on cue.

    async with Peer() as peer:
        peer.script("LOCK.ACQUIRE", peer.QUEUED, HANG_UP)    # the first two; then as by default
        ...
        await peer.heard("LOCK.CANCEL")

By default it is polite and knows nothing: every acquire is granted under the next token.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Self

from lockd.protocol.resp import CommandReader, Reply, encode, encode_error, encode_push

CLUSTER = "c" * 32
INCARNATION = "1" * 8
SESSIONS = [f"{number:032x}" for number in range(1, 100)]
PATIENCE_S = 10.0


class Act(Enum):
    """What a node may do instead of answering."""

    HANG_UP = "hang up"
    SILENCE = "silence"
    """To this command, and to whatever follows on its connection."""
    GARBAGE = "garbage"


HANG_UP = Act.HANG_UP
SILENCE = Act.SILENCE
GARBAGE = Act.GARBAGE


class Error(str):
    """An error reply: its code and its text."""

    __slots__ = ()


@dataclass(frozen=True)
class Followed:
    """A reply, and pushes that come right behind it on the same connection."""

    reply: Reply
    pushes: Sequence[tuple[str, Reply]]


Answer = Reply | Error | Act | Followed | Callable[[list[str]], Any]


class Peer:
    """One node. `commands` is everything it was told, over all connections."""

    def __init__(
        self, *, cluster: str = CLUSTER, incarnation: str = INCARNATION, ttl_ms: int = 60_000
    ) -> None:
        self.cluster = cluster
        self.incarnation = incarnation
        self.ttl_ms = ttl_ms
        self.commands: list[list[str]] = []
        self.connections = 0
        self.members: list[str] = []
        self._scripts: dict[str, deque[Answer]] = defaultdict(deque)
        self._always: dict[str, Answer] = {}
        self._writers: list[asyncio.StreamWriter] = []
        self._muted: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = asyncio.Condition()
        self._tokens = 0
        self._sessions = iter(SESSIONS)
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.listen(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def listen(self, port: int, *, host: str = "127.0.0.1") -> None:
        self._server = await asyncio.start_server(self._serve, host, port)

    async def listen_at(self, path: Path) -> None:
        """On a Unix socket instead."""
        self._server = await asyncio.start_unix_server(self._serve, path)

    async def stop(self) -> None:
        """Be gone: connections too."""
        if self._server is not None:
            self._server.close()
        self.hang_up()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # What the test says.

    def script(self, verb: str, *answers: Answer) -> None:
        """Answer the next commands of this verb so, each once and in this order."""
        self._scripts[verb].extend(answers)

    def always(self, verb: str, answer: Answer) -> None:
        """Answer all of them so, when no script is left."""
        self._always[verb] = answer

    def politely(self, verb: str) -> None:
        """Answer as by default again."""
        self._always.pop(verb, None)
        self._scripts.pop(verb, None)

    def hang_up(self) -> None:
        """End all connections."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def push(self, kind: str, message: Reply) -> None:
        for writer in self._writers:
            if not writer.transport.is_closing():
                writer.write(encode_push(kind, message))

    def of(self, verb: str) -> list[list[str]]:
        """The commands of this verb so far."""
        return [words for words in self.commands if words[0] == verb]

    async def heard(self, verb: str, count: int = 1) -> list[str]:
        """Wait until the command was heard that often; return the last of them."""
        async with asyncio.timeout(PATIENCE_S), self._news:
            await self._news.wait_for(lambda: len(self.of(verb)) >= count)
        return self.of(verb)[count - 1]

    def grant(self, words: list[str], **changes: Reply) -> dict[str, Reply]:
        """A grant of what a LOCK.ACQUIRE or LOCK.ACQUIREALL asks for, under a new token."""
        self._tokens += 1
        limit = int(option(words, "LIMIT") or 0)
        reply: dict[str, Reply] = {
            "status": "granted",
            "lock": locks_of(words)[0],
            "session": option(words, "SESSION") or "f" * 32,
            "token": self._tokens,
            "fence": f"{self.cluster}/{self.incarnation}/{self._tokens}",
            "cluster": self.cluster,
            "incarnation": self.incarnation,
            "mode": "semaphore" if limit else option(words, "MODE") or "exclusive",
            "fencing": 0 if limit else 1,
            "limit": limit,
            "weight": int(option(words, "WEIGHT") or 1),
            "revision": self._tokens,
        }
        if words[0] == "LOCK.ACQUIREALL":
            reply["locks"] = locks_of(words)
        return {**reply, **changes}

    def queued(self, words: list[str]) -> dict[str, Reply]:
        """The answer to an acquisition that has to wait."""
        return {"status": "queued", "lock": locks_of(words)[0], **self.wait_of(words), "position": 0}

    def wait_of(self, words: list[str]) -> dict[str, Reply]:
        """How a push names the wait that this acquisition began."""
        request = option(words, "REQUEST")
        if option(words, "TTL"):
            return {"session": "f" * 32, "request": request}
        return {"session": option(words, "SESSION"), "request": int(request)}

    def push_grant(self, words: list[str]) -> None:
        self.push("lock.granted", self.grant(words, **self.wait_of(words)))

    # What it does.

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self._writers.append(writer)
        commands = CommandReader()
        self._muted.discard(writer)
        try:
            while data := await reader.read(65536):
                for raw in commands.feed(data):
                    if not await self._do([word.decode() for word in raw], writer):
                        return
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _do(self, words: list[str], writer: asyncio.StreamWriter) -> bool:
        async with self._news:
            self.commands.append(words)
            self._news.notify_all()
        script = self._scripts.get(words[0])
        answer = script.popleft() if script else self._always.get(words[0], self._default)
        if callable(answer):
            answer = answer(words)
        if writer in self._muted:
            return True
        match answer:
            case Act.HANG_UP:
                return False
            case Act.SILENCE:
                self._muted.add(writer)  # replies come in order: what is behind can't be answered
            case Act.GARBAGE:
                writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            case Error():
                code, _, text = answer.partition(" ")
                writer.write(encode_error(code, text))
            case Followed(reply, pushes):
                writer.write(encode(reply, 3))
                for kind, message in pushes:
                    writer.write(encode_push(kind, message))
            case _:
                writer.write(encode(answer, 3))
        return True

    def _default(self, words: list[str]) -> Answer:
        match words[0]:
            case "HELLO":
                return {"cluster": self.cluster, "incarnation": self.incarnation, "node": 1, "proto": 3}
            case "SESSION.OPEN":
                return {"session": next(self._sessions), "ttl_ms": self.ttl_ms}
            case "SESSION.KEEPALIVE":
                return {"ttl_ms": self.ttl_ms, "ended": []}
            case "LOCK.ACQUIRE" | "LOCK.ACQUIREALL":
                return self.grant(words)
            case "CLUSTER.STATUS":
                return {"members": [{"client": member} for member in self.members]}
            case "PING":
                return "PONG"
            case "LOCK.RELEASE" | "LOCK.RELEASEALL" | "LOCK.META" | "LOCK.CANCEL" | "SESSION.CLOSE":
                return 1
        return Error(f"ERR unknown command {words[0]}")


def option(words: list[str], name: str) -> str:
    """The value of an option in a command, "" when it is not there."""
    return words[words.index(name) + 1] if name in words else ""


def locks_of(words: list[str]) -> list[str]:
    """The locks that an acquisition asks for, in the order of their names."""
    if words[0] == "LOCK.ACQUIRE":
        return [words[1]]
    count = next(
        at for at in range(2, len(words)) if words[at].isdigit() and int(words[at]) == len(words) - at - 1
    )
    return sorted(words[count + 1 :])
