"""A port for TLS whose handshakes are counted: how many may be under way, and for how long.

A server that asyncio makes tells its protocol of a connection only once the handshake is over. Until
then nobody knows of it, and each has a descriptor, of which the log needs some too (SAFETY P6, C10). So
connections are accepted here, and shake hands each in a task of its own.
"""

import asyncio
import functools
import logging
import socket
import ssl
from collections.abc import Callable

from lockd.server.config import Address

log = logging.getLogger(__name__)

_ACCEPT_PAUSE_S = 0.1
"""After an accept that failed, as when no descriptors are left."""


class TlsServer:
    """Listens, until it is closed. What `asyncio.Server` has of the same name means the same."""

    def __init__(
        self,
        make: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext,
        *,
        handshake_seconds_max: float,
        handshakes_max: int,
    ) -> None:
        """`make` gives a connection's protocol. One handshake too many costs the oldest its place."""
        self._make = make
        self._context = context
        self._handshake_seconds_max = handshake_seconds_max
        self._handshakes_max = handshakes_max
        self._handshakes: dict[asyncio.Task[None], None] = {}
        self._accepting: list[asyncio.Task[None]] = []
        self.sockets: tuple[socket.socket, ...] = ()

    async def start(self, listen: Address, *, backlog: int = 100) -> None:
        """Listen on every address of that name. Raises OSError when one can't be bound."""
        self.sockets = await _listening(listen, backlog)
        for listening in self.sockets:
            task = asyncio.get_running_loop().create_task(self._accept(listening), name="accept TLS")
            task.add_done_callback(functools.partial(_close, listening))
            self._accepting.append(task)

    @property
    def handshakes(self) -> int:
        """How many are under way."""
        return len(self._handshakes)

    def close(self) -> None:
        """Accept nobody any more, and end the handshakes that are under way."""
        for task in (*self._accepting, *self._handshakes):
            task.cancel()

    async def wait_closed(self) -> None:
        await asyncio.gather(*self._accepting, *self._handshakes, return_exceptions=True)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError as error:
                log.warning("a connection could not be accepted: %s", error)
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            handshake = loop.create_task(self._shake_hands(connection), name="TLS handshake")
            self._handshakes[handshake] = None
            handshake.add_done_callback(functools.partial(self._shaken, connection))
            if len(self._handshakes) > self._handshakes_max:
                oldest = next(iter(self._handshakes))
                del self._handshakes[oldest]
                oldest.cancel()
            await asyncio.sleep(0)  # an accept that need not wait gives nobody else a turn

    async def _shake_hands(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._make,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._handshake_seconds_max,
            )
        except OSError as error:  # of TLS, of the connection, or a time-out
            log.debug("no TLS with a connection: %s", error)
            connection.close()

    def _shaken(self, connection: socket.socket, handshake: asyncio.Task[None]) -> None:
        self._handshakes.pop(handshake, None)
        if handshake.cancelled():  # maybe before it had begun
            connection.close()


def _close(listening: socket.socket, _: asyncio.Task[None]) -> None:
    listening.close()


async def _listening(listen: Address, backlog: int) -> tuple[socket.socket, ...]:
    found = await asyncio.get_running_loop().getaddrinfo(
        listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listening = socket.socket(family, kind, protocol)
            sockets.append(listening)
            listening.settimeout(0)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind(address)
            listening.listen(backlog)
    except OSError:
        for listening in sockets:
            listening.close()
        raise
    return tuple(sockets)
