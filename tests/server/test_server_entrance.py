"""Strangers at a TLS port: so many may be in their handshake, and for so long (SAFETY P6, C10)."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from lockd.server.config import Address
from lockd.server.entrance import TlsServer
from tests.server.test_server_process_tls import make_authority, make_certificate

HANDSHAKES_MAX = 3
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]
Stranger = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Greeter(asyncio.Protocol):
    """Says hello, which shows that the handshake was over."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(b"hello")  # type: ignore[attr-defined]  # uvloop's are no subclasses
        transport.close()


class Scene:
    def __init__(self, server: TlsServer, client: ssl.SSLContext) -> None:
        self.server = server
        self._client = client
        self._strangers: list[asyncio.StreamWriter] = []

    @property
    def _port(self) -> int:
        return int(self.server.sockets[0].getsockname()[1])

    async def stranger(self) -> asyncio.StreamReader:
        """Connects and says nothing."""
        before = self.server.handshakes
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._strangers.append(writer)
        while self.server.handshakes == before < HANDSHAKES_MAX:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)
        return reader

    async def greeting(self) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, ssl=self._client)
        try:
            return await reader.read()
        finally:
            writer.close()

    def leave(self) -> None:
        for writer in self._strangers:
            writer.close()


def on_both_loops(folder: Path, scenario: Callable[[Scene], Awaitable[None]], *, seconds: float = 60) -> None:
    authority = make_authority(folder, "ours")
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(*make_certificate(folder, "node", authority))
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE

    @contextlib.asynccontextmanager
    async def scene() -> AsyncIterator[Scene]:
        listening = TlsServer(Greeter, server, handshake_seconds_max=seconds, handshakes_max=HANDSHAKES_MAX)
        await listening.start(Address("127.0.0.1", 0))
        made = Scene(listening, client)
        try:
            yield made
        finally:
            made.leave()
            listening.close()
            await listening.wait_closed()
            assert listening.handshakes == 0

    async def main() -> None:
        async with asyncio.timeout(20), scene() as made:
            await scenario(made)

    for make_loop in LOOPS:
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(main())


async def ended(reader: asyncio.StreamReader) -> bool:
    with contextlib.suppress(ConnectionError):
        return await reader.read() == b""
    return True


def test_p6_c10_who_says_nothing_makes_room_for_who_comes_later(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        oldest, *others = [await scene.stranger() for _ in range(HANDSHAKES_MAX)]
        assert scene.server.handshakes == HANDSHAKES_MAX
        assert await scene.greeting() == b"hello"
        assert await ended(oldest)
        assert scene.server.handshakes == HANDSHAKES_MAX - 1
        assert not any(other.at_eof() for other in others)

    on_both_loops(tmp_path, scenario)


def test_p6_c10_a_crowd_is_let_in_one_by_one(tmp_path: Path) -> None:
    """Those who wait to be accepted are not taken in at one go, and others have their turns between."""

    async def scenario(scene: Scene) -> None:
        address = scene.server.sockets[0].getsockname()
        crowd = [socket.create_connection(address) for _ in range(50)]
        most = 0
        greeted = asyncio.create_task(scene.greeting())
        while not greeted.done():
            names = [task.get_name() for task in asyncio.all_tasks()]
            most = max(most, names.count("TLS handshake"))  # those that are being ended, too
            await asyncio.sleep(0)
        assert await greeted == b"hello"
        assert HANDSHAKES_MAX <= most <= HANDSHAKES_MAX + 10
        for stranger in crowd:
            stranger.close()

    on_both_loops(tmp_path, scenario)


def test_p6_who_says_nothing_is_cut_off_in_time(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        assert await ended(await scene.stranger())
        while scene.server.handshakes:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)

    on_both_loops(tmp_path, scenario, seconds=0.1)


def test_p6_who_does_not_speak_tls_costs_nobody_anything(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", scene.server.sockets[0].getsockname()[1])
        writer.write(b"PING\r\n" * 100)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        assert await scene.greeting() == b"hello"

    on_both_loops(tmp_path, scenario)


def test_a_port_in_use_is_an_error_of_the_system(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        second = TlsServer(Greeter, context, handshake_seconds_max=1, handshakes_max=1)
        with pytest.raises(OSError, match="in use"):
            await second.start(Address("127.0.0.1", scene.server.sockets[0].getsockname()[1]))

    on_both_loops(tmp_path, scenario)
