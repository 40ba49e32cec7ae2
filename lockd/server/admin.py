"""The HTTP side of a node: is it alive, is it ready, what does it measure.

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

from lockd.ids import NO_NODE
from lockd.server.config import Address
from lockd.server.driver import Driver
from lockd.server.metrics import NodeMetrics


class Served(Protocol):
    """What the HTTP side looks at."""

    @property
    def driver(self) -> Driver: ...

    @property
    def is_stopping(self) -> bool: ...


class AdminServer:
    """Serves HTTP on the node's own loop."""

    def __init__(self, node: Served) -> None:
        self._node = node
        self._metrics = NodeMetrics(node.driver)
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self.app = Starlette(
            routes=[
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._metrics_text),
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
            ssl_certfile=cert,
            ssl_keyfile=key,
        )
        self._server = _Server(config)
        socket = await _bind(listen)
        self._task = asyncio.get_running_loop().create_task(self._server.serve([socket]), name="http")

    async def stop(self) -> None:
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            await self._task

    async def _healthz(self, _: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def _readyz(self, _: Request) -> Response:
        status = self._node.driver.status()
        if self._node.is_stopping:
            reason = "this node is stopping"
        elif status.leader == NO_NODE:
            reason = "no leader is known"
        elif status.last_applied < status.commit_index:
            reason = f"applied {status.last_applied} of {status.commit_index} committed entries"
        else:
            return PlainTextResponse("ready\n")
        return PlainTextResponse(f"not ready: {reason}\n", status_code=503)

    async def _metrics_text(self, _: Request) -> Response:
        return Response(self._metrics.render(), media_type=self._metrics.content_type)


class _Server(uvicorn.Server):
    """Signals belong to the node, not to its HTTP side."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _bind(listen: Address) -> socket.socket:
    family, kind, proto, _, address = (
        await asyncio.get_running_loop().getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)
    )[0]
    bound = socket.socket(family, kind, proto)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    bound.settimeout(0)
    return bound
