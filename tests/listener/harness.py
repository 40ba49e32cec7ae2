"""Clients on real sockets against a listener, on the event loops that lockd runs on."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, Self

import hiredis
import pytest
import uvloop

from lockd.server.auth import Users
from lockd.server.config import Address
from lockd.server.connection import ConnectionLimits
from lockd.server.listener import CLIENTS_MAX, Listener
from tests.listener.single import SingleNode

PATIENCE_S = 10.0
"""How long a test waits for what must come, before it fails."""

TEST_S_MAX = 60.0

Run = Callable[[Coroutine[Any, Any, None]], None]


class Failure(Exception):
    """An error reply."""


class Client:
    """A RESP client that shows everything: pushes are replies like others."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._parser = hiredis.Reader(encoding="utf-8", replyError=Failure)

    @classmethod
    async def connect(cls, port: int, tls: ssl.SSLContext | None = None) -> Self:
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=tls))

    def send(self, *words: object) -> None:
        self.write(pack(*words))

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self) -> Any:
        """The next reply; raises EOFError when the connection has been closed."""
        while (found := self._parser.gets()) is False:
            data = await asyncio.wait_for(self.reader.read(65536), PATIENCE_S)
            if not data:
                raise EOFError
            self._parser.feed(data)
        return found

    async def replies(self, count: int) -> list[Any]:
        return [await self.reply() for _ in range(count)]

    async def ask(self, *words: object) -> Any:
        self.send(*words)
        return await self.reply()

    async def refused(self, *words: object) -> str:
        """The text of the error reply that must come."""
        found = await self.ask(*words)
        assert isinstance(found, Failure), found
        return str(found)

    async def is_closed(self) -> bool:
        """Wait for the end of the connection; what still comes is dropped."""
        with contextlib.suppress(ConnectionResetError):
            while await asyncio.wait_for(self.reader.read(65536), PATIENCE_S):
                pass
        return True

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    def abort(self) -> None:
        """Hang up without a word."""
        self.writer.transport.abort()


def pack(*words: object) -> bytes:
    raw = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(raw) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in raw)


@dataclass
class Serving:
    """A listener and the node behind it."""

    node: SingleNode
    listener: Listener
    clients: list[Client]
    tls: ssl.SSLContext | None = None

    async def client(self, *, resp: int = 2) -> Client:
        client = await Client.connect(self.listener.port, self.tls)
        self.clients.append(client)
        if resp == 3:
            assert (await client.ask("HELLO", 3))["proto"] == 3
        return client

    async def session(self, client: Client, ttl_ms: int = 10_000, *options: object) -> str:
        reply = await client.ask("SESSION.OPEN", ttl_ms, *options)
        session = as_map(reply)["session"]
        assert isinstance(session, str)
        return session

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the loop turn until the condition holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - it is in several parts of the node
                await asyncio.sleep(0)


def as_map(reply: Any) -> dict[str, Any]:
    """A map, or the flat array that RESP2 has for it."""
    if isinstance(reply, dict):
        return reply
    assert isinstance(reply, list), reply
    return dict(zip(reply[::2], reply[1::2], strict=True))


class Serve(Protocol):
    def __call__(
        self,
        *,
        users: Users | None = None,
        limits: ConnectionLimits | None = None,
        clients_max: int = CLIENTS_MAX,
    ) -> contextlib.AbstractAsyncContextManager[Serving]: ...


@contextlib.asynccontextmanager
async def serving(
    *,
    users: Users | None = None,
    limits: ConnectionLimits | None = None,
    clients_max: int = CLIENTS_MAX,
    tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None,
) -> AsyncIterator[Serving]:
    """A started listener; everything is closed at the end, and nothing may have gone wrong in callbacks."""
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    node = SingleNode()
    listener = Listener(node, users=users, limits=limits, clients_max=clients_max)
    await listener.start(Address("127.0.0.1", 0), tls=tls[0] if tls else None)
    found = Serving(node, listener, [], tls[1] if tls else None)
    try:
        yield found
    finally:
        for client in found.clients:
            await client.close()
        node.let_go()
        await listener.stop()
    assert not faults, faults


def run_on_loops() -> pytest.MarkDecorator:
    """Parametrises `run` over asyncio's own loop and uvloop."""
    return pytest.mark.parametrize(
        "run", [_runner(None), _runner(uvloop.new_event_loop)], ids=["asyncio", "uvloop"]
    )


def _runner(loop_factory: Callable[[], asyncio.AbstractEventLoop] | None) -> Run:
    def run(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(asyncio.wait_for(main, TEST_S_MAX))

    return run
