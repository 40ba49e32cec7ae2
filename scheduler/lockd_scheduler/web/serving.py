"""The HTTP side as a thread of a service: one that it can't block, and that it outlives."""

import asyncio
import contextlib
import ipaddress
import logging
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from lockd_scheduler.errors import BadSchedule

logger = logging.getLogger("lockd_scheduler")

CONNECTIONS_MAX = 128
STALL_SECONDS = 30.0
"""A connection on which no answer leaves for so long is ended; answers take milliseconds."""
_GRACE_SECONDS = 2
_STOP_SECONDS = 10.0
_PORT_MAX = 65_535


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "127.0.0.1:7423" or "[::1]:7423". Raises BadSchedule."""
        host, colon, port = text.rpartition(":")
        host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not (colon and host and port.isascii() and port.isdigit() and int(port) <= _PORT_MAX):
            raise BadSchedule(f"--listen-http {text[:80]!r}: write it like 127.0.0.1:7423, or off")
        return cls(host, int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def bind(self) -> socket.socket:
        """A socket that listens there. Raises OSError."""
        family, kind, proto, _, address = socket.getaddrinfo(
            self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, proto)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(128)
        except BaseException:
            bound.close()
            raise
        return bound

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class HttpSide:
    """Serves an application on a socket that listens already, on a thread and a loop of its own."""

    def __init__(self, app: Starlette, bound: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            http=_Connection,
            ws="none",
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        self._server = _Server(config)
        self._bound = bound
        self._thread = threading.Thread(target=self._serve, name="lockd-scheduler-http", daemon=True)

    @property
    def port(self) -> int:
        """Of use when port 0 was asked for."""
        return int(self._bound.getsockname()[1])

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """End every connection, those with an answer on its way after a short grace. Idempotent."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(_STOP_SECONDS)
        self._bound.close()

    def _serve(self) -> None:
        try:
            asyncio.run(self._server.serve([self._bound]))
        except Exception:  # the scheduler goes on without its page, and says so
            logger.exception("the HTTP side has failed; jobs go on without it")


class _Server(uvicorn.Server):
    """Signals belong to the process, not to its HTTP side."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Connection(H11Protocol):
    """One connection. There is no room for one too many, nor for one that is only kept (SAFETY P6)."""

    _answers = 0
    _answers_before = -1
    _watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS_MAX:
            transport.abort()
        else:
            self._check_progress()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._answers += 1
        super().on_response_complete()

    def _check_progress(self) -> None:
        cycle = self.cycle
        is_answering = cycle is not None and not cycle.more_body and not cycle.response_started
        if self._answers == self._answers_before and not is_answering:
            self.transport.abort()
            return
        self._answers_before = self._answers
        self._watch = asyncio.get_running_loop().call_later(STALL_SECONDS, self._check_progress)
