"""A service behind the contract suite: what it protects is another store's journal."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route, Router

from lockd_storage import HeldLease, Mark
from lockd_storage.fencing import INSTALL_SECONDS
from lockd_storage.http import FenceMiddleware, fence_routes
from lockd_storage.http.client import HttpFence
from tests.storage.stores import Store
from tests.storage.web import serving


class SendingFence:
    """An HttpFence with the port's `write`: what a block holds is sent in one request at its end."""

    def __init__(self, fence: HttpFence) -> None:
        self._fence = fence
        self.mark = fence.mark

    def install(
        self, lease: HeldLease, resource: str | None = None, *, timeout: float = INSTALL_SECONDS
    ) -> Mark:
        return self._fence.install(lease, resource, timeout=timeout)

    @contextmanager
    def write(self, lease: HeldLease, resource: str | None = None) -> Iterator[list[int]]:
        calls = self._fence.calls(lease, resource)
        lines: list[int] = []
        yield lines
        name = lease.lock if resource is None else resource
        calls.send("POST", "/lines", params={"resource": name, "lines": len(lines)}).raise_for_status()


@dataclass
class HttpStore:
    client: httpx.Client
    fence: SendingFence
    behind: Store

    def add(self, handle: list[int], lease: HeldLease) -> None:
        handle.append(lease.token)

    def lines(self) -> list[int]:
        return self.behind.lines()

    def pinned(self, cluster: str) -> SendingFence:
        return SendingFence(HttpFence(self.client, cluster=cluster))


class Sites:
    """One server for many applications, each below a path of its own."""

    def __init__(self, url: str, router: Router) -> None:
        self._url = url
        self._router = router
        self._numbers = count()

    def open(self, app: Any) -> str:
        path = f"/site{next(self._numbers)}"
        self._router.routes.append(Mount(path, app))
        return self._url + path


@contextmanager
def running_sites() -> Iterator[Sites]:
    router = Router()
    with serving(router) as url:
        yield Sites(url, router)


@contextmanager
def store_behind_http(sites: Sites, behind: Store) -> Iterator[HttpStore]:
    """A client of a service that writes into `behind`."""

    def lines(request: Request) -> Response:
        lease = request.state.fences.lease(request.query_params["resource"])
        with behind.fence.write(lease) as handle:
            for _ in range(int(request.query_params["lines"])):
                behind.add(handle, lease)
        return Response(status_code=204)

    app = Starlette(
        routes=[Route("/lines", lines, methods=["POST"]), Mount("/fences", fence_routes(behind.fence))]
    )
    app.add_middleware(FenceMiddleware, guarded=["/lines"])
    with httpx.Client(base_url=sites.open(app)) as client:
        yield HttpStore(client, SendingFence(HttpFence(client)), behind)
