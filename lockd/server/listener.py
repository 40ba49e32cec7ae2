"""Where clients come in: the TCP or TLS port, how many may be there, and their end."""

import asyncio
import contextlib
import logging
import resource
import ssl
from typing import cast

from lockd.protocol.resp import encode_error
from lockd.server.auth import EVERYONE, Users
from lockd.server.config import Address
from lockd.server.connection import Connection, ConnectionLimits
from lockd.server.entrance import TlsServer
from lockd.server.port import Driver
from lockd.server.service import Service

log = logging.getLogger(__name__)

CLIENTS_MAX = 10_000
_DESCRIPTORS_KEPT = 256
"""For the log's files, peers, HTTP, and connections that are being refused."""
_BACKLOG = 1024
_TLS_HANDSHAKE_S = 10.0
_TLS_HANDSHAKES_MAX = 1024
"""TLS connections that are not clients yet, out of the same descriptors as these (P6)."""


class Listener:
    """Serves clients on behalf of one driver. `start`, then `stop`, once."""

    def __init__(
        self,
        driver: Driver,
        *,
        users: Users | None = None,
        limits: ConnectionLimits | None = None,
        clients_max: int = CLIENTS_MAX,
    ) -> None:
        self._users = users
        self._limits = limits or ConnectionLimits()
        self._clients_max = clients_max
        self._connections: dict[int, Connection] = {}
        self._refused = 0
        """Since they were last logged: one line for many, or refusing would fill the log (P6)."""
        self.service = Service(driver, users, count_clients=lambda: len(self._connections))
        self._server: asyncio.Server | TlsServer | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._all_gone = asyncio.Event()

    @property
    def clients(self) -> int:
        """How many connections there are."""
        return len(self._connections)

    @property
    def port(self) -> int:
        """The port that is listened on: of use when port 0 was asked for."""
        assert self._server is not None, "not started"
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self, listen: Address, *, tls: ssl.SSLContext | None = None) -> None:
        """Listen. Raises OSError when the address can't be bound."""
        descriptors = _descriptors_for_clients()
        if tls is None:
            self._clients_max = min(self._clients_max, descriptors)
            self._server = await asyncio.get_running_loop().create_server(
                self._come_in, listen.host, listen.port, backlog=_BACKLOG
            )
        else:
            handshakes_max = max(1, min(_TLS_HANDSHAKES_MAX, descriptors // 4))
            self._clients_max = min(self._clients_max, max(1, descriptors - handshakes_max))
            self._server = TlsServer(
                self._come_in,
                tls,
                handshake_seconds_max=_TLS_HANDSHAKE_S,
                handshakes_max=handshakes_max,
            )
            await self._server.start(listen, backlog=_BACKLOG)
        self._check_time()

    async def stop(self, *, grace_s: float = 2.0) -> None:
        """Take nobody in, let answers that are due leave for at most `grace_s`, close everything."""
        if self._server is None:
            return
        self._server.close()
        if self._watch is not None:
            self._watch.cancel()
        for connection in list(self._connections.values()):
            connection.finish()
        if self._connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_gone.wait(), grace_s)
        self.cut_off("this node stops")
        if self._users is not None:
            self._users.close()

    def cut_off(self, reason: str) -> None:
        """End every connection now. Whoever connects again is let in."""
        for connection in list(self._connections.values()):
            connection.abort(reason)

    def _come_in(self) -> asyncio.Protocol:
        if len(self._connections) >= self._clients_max:
            self._refused += 1
            return _Turned(encode_error("LIMIT", f"clients of this node: at most {self._clients_max}"))
        return Connection(
            self.service,
            number=next(self.service.numbers),
            user=EVERYONE if self._users is None else None,
            limits=self._limits,
            on_begin=self._began,
            on_end=self._ended,
        )

    def _began(self, connection: Connection) -> None:
        self._connections[connection.client.number] = connection
        self._all_gone.clear()

    def _ended(self, connection: Connection) -> None:
        del self._connections[connection.client.number]
        if not self._connections:
            self._all_gone.set()

    def _check_time(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self._connections.values()):
            connection.check_time(now)
        if self._refused:
            log.warning("%d clients were refused: at most %d are let in", self._refused, self._clients_max)
            self._refused = 0
        limits = self._limits
        interval = min(limits.partial_s, limits.stall_s, limits.login_s) / 4
        self._watch = loop.call_later(interval, self._check_time)


class _Turned(asyncio.Protocol):
    """A client that finds no room: it is told why."""

    def __init__(self, reply: bytes) -> None:
        self._reply = reply

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        refused = cast("asyncio.WriteTransport", transport)  # uvloop's are no subclasses
        refused.write(self._reply)
        refused.close()


def _descriptors_for_clients() -> int:
    """Raise the limit of open files as far as it goes; without one left, not even a refusal could be sent."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(1, min(hard, 2**31) - _DESCRIPTORS_KEPT)
