"""The HTTP side of a node: is it alive, is it ready, what does it measure, and /v1 with its page.

`/healthz` answers for the process, `/readyz` for the node: a leader is known, everything known
to be committed is applied, and it is not stopping. `/metrics` is Prometheus' text form.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from lockd.ids import NO_NODE
from lockd.server.auth import Users
from lockd.server.config import Address
from lockd.server.connection import find_dead_peer
from lockd.server.driver import Driver
from lockd.server.http.api import Api
from lockd.server.http.openapi import document
from lockd.server.http.page import page_routes
from lockd.server.listener import Listener
from lockd.server.metrics import NodeMetrics

CONNECTIONS_MAX = 128
STALL_S = 5.0
"""A connection on which no answer leaves for so long is ended; answers take milliseconds."""
_GRACE_S = 2


class Served(Protocol):
    """What the HTTP side looks at."""

    @property
    def driver(self) -> Driver: ...

    @property
    def listener(self) -> Listener: ...

    @property
    def is_stopping(self) -> bool: ...


class AdminServer:
    """Serves HTTP on the node's own loop."""

    def __init__(self, node: Served, *, users: Users | None, version: str) -> None:
        self._node = node
        self._openapi = document(version)
        self._api = Api(node.listener.service, node.driver.history, users)
        self._metrics = NodeMetrics(node.driver)
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self.app = Starlette(
            routes=[
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._metrics_text),
                Route("/v1/openapi.json", self._openapi_text),
                *self._api.routes,
                *page_routes(),
            ]
        )

    async def start(self, listen: Address, cert: Path | None, key: Path | None) -> None:
        """Listen. Raises OSError when the address cannot be bound."""
        config = uvicorn.Config(
            self.app,
            host=listen.host,
            port=listen.port,
            lifespan="off",
            log_config=None,
            access_log=False,
            http=_Connection,
            ws="none",
            timeout_graceful_shutdown=_GRACE_S,
            ssl_certfile=cert,
            ssl_keyfile=key,
        )
        self._server = _Server(config)
        bound = await _bind(listen)
        self._task = asyncio.get_running_loop().create_task(self._server.serve([bound]), name="http")
        self._task.add_done_callback(_report_failure)

    async def stop(self) -> None:
        """Close every connection, those with an answer on its way after a short grace."""
        self._api.stop()
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            done, _ = await asyncio.wait([self._task], timeout=2 * _GRACE_S)
            if not done:
                self._task.cancel()

    async def _healthz(self, _: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def _readyz(self, _: Request) -> Response:
        status = self._node.driver.status()
        if self._node.is_stopping:
            reason = "this node is stopping"
        elif self._node.driver.disk_is_full:
            reason = "the disk is full"
        elif status.leader == NO_NODE:
            reason = "no leader is known"
        elif status.last_applied < status.commit_index:
            reason = f"applied {status.last_applied} of {status.commit_index} committed entries"
        else:
            return PlainTextResponse("ready\n")
        return PlainTextResponse(f"not ready: {reason}\n", status_code=503)

    async def _metrics_text(self, _: Request) -> Response:
        return Response(self._metrics.render(), media_type=self._metrics.content_type)

    async def _openapi_text(self, _: Request) -> Response:
        return Response(self._openapi, media_type="application/json")


class _Connection(H11Protocol):
    """One connection. There is no room for one too many, nor for one that is only kept (P6).

    One that has sent its request and waits for this node is not at fault.
    """

    _answers = 0
    _answers_before = -1
    _watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's signature
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS_MAX:
            transport.abort()
        else:
            find_dead_peer(transport)
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
        self._watch = asyncio.get_running_loop().call_later(STALL_S, self._check_progress)


class _Server(uvicorn.Server):
    """Signals belong to the node, not to its HTTP side."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _report_failure(task: asyncio.Task[None]) -> None:
    """Nobody awaits the task while the node runs: what ends it must be heard of all the same."""
    if not task.cancelled() and (error := task.exception()) is not None:
        report = {"message": "the HTTP side has failed", "exception": error}
        task.get_loop().call_exception_handler(report)


async def _bind(listen: Address) -> socket.socket:
    family, kind, proto, _, address = (
        await asyncio.get_running_loop().getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)
    )[0]
    bound = socket.socket(family, kind, proto)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)  # here, where it can be told that someone else has the port
    except OSError:
        bound.close()
        raise
    bound.settimeout(0)
    return bound
