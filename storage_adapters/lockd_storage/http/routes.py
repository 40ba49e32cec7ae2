"""Two routes for the callers of a service: `PUT /fences/{resource}` installs, `GET` shows the mark."""

import inspect
import math
from functools import partial
from typing import Any

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, Router

from lockd_storage.errors import MalformedToken
from lockd_storage.fencing import INSTALL_SECONDS, HeldLease, Mark
from lockd_storage.http.middleware import FenceMiddleware
from lockd_storage.http.presented import REQUEST_SECONDS, PresentedLease, PresentedLeases, resource_in_path

INSTALLS_AT_ONCE_MAX = 32


class _Installing:
    """A presented lease under its lock's own name: an install compares that with the mark's."""

    def __init__(self, lease: PresentedLease) -> None:
        self.lock = lease.lock_name
        self.fence = lease.fence
        self.token = lease.token
        self.mode = lease.mode
        self.remaining = lease.remaining


class FenceRoutes:
    """The two routes over a fence, a `FencePort` or its async twin. An ASGI application of its own.

        app.mount("/fences", fence_routes(fence))

    A resource is percent-encoded as one segment (`orders%2F42`). A caller installs right after it has
    acquired, before it reads, with its lease in `Fencing-Token`; `?timeout=` says how many seconds
    older writes under way get to end. Who may install is the service's own question: put its
    authentication in front, as for any other route (whoever may install can shut out every holder).
    """

    def __init__(self, fence: Any, *, seconds: float) -> None:
        self._fence = fence
        self._seconds = seconds
        # Installs wait for writers, and the writers may need a thread of the common pool to end.
        self._installing = CapacityLimiter(INSTALLS_AT_ONCE_MAX)

    async def install(self, request: Request) -> JSONResponse:
        """`PUT /fences/{resource}`: 200 with the mark, once it is the lease's."""
        resource = resource_in_path(request.path_params["resource"])
        presented: PresentedLeases = request.state.fences
        lease: HeldLease = _Installing(presented.lease(resource))
        install = partial(self._fence.install, lease, resource, timeout=min(_timeout(request), self._seconds))
        return _shown(await self._called(install, limiter=self._installing))

    async def mark(self, request: Request) -> JSONResponse:
        """`GET /fences/{resource}`: 200 with the mark now, 404 without one. For people and tests."""
        resource = resource_in_path(request.path_params["resource"])
        mark = await self._called(partial(self._fence.mark, resource))
        if mark is None:
            return JSONResponse({"resource": resource, "fence": None}, status_code=404)
        return _shown(mark)

    async def _called(self, verb: "partial[Any]", *, limiter: CapacityLimiter | None = None) -> Any:
        if inspect.iscoroutinefunction(verb.func):
            return await verb()
        return await to_thread.run_sync(verb, limiter=limiter)


def fence_routes(fence: Any, *, seconds: float = REQUEST_SECONDS) -> FenceMiddleware:
    """See `FenceRoutes`. `seconds` bounds an install with all its waiting."""
    routes = FenceRoutes(fence, seconds=seconds)
    path = "/{resource:path}"
    router = Router([Route(path, routes.install, methods=["PUT"]), Route(path, routes.mark, methods=["GET"])])
    return FenceMiddleware(router, seconds=seconds)


def _timeout(request: Request) -> float:
    text = request.query_params.get("timeout", str(INSTALL_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise MalformedToken(f"timeout={text[:40]!r} is no number of seconds")
    return seconds


def _shown(mark: Mark) -> JSONResponse:
    return JSONResponse({"resource": mark.resource, "lock": mark.lock, "fence": str(mark.fence)})
