"""The Starlette application: which paths there are, and what stands around them."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

import anyio.to_thread
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lockd_scheduler.asking import Asking
from lockd_scheduler.errors import SchedulerError
from lockd_scheduler.figures import Figures
from lockd_scheduler.web.access import Access
from lockd_scheduler.web.api import api_routes, tell_problem
from lockd_scheduler.web.endpoints import Desk
from lockd_scheduler.web.guard import HEADERS, Guard
from lockd_scheduler.web.health import Standing, health_routes
from lockd_scheduler.web.openapi import document
from lockd_scheduler.web.page import Page
from lockd_scheduler.web.problems import ProblemError
from lockd_scheduler.web.queries import Queries
from lockd_scheduler.web.users import Users

THREADS = 4
"""So many requests ask the ledger at a time; the others wait their turn."""


def app(
    engine: Engine,
    scope: str,
    *,
    users: Users | None = None,
    local_names_only: bool = True,
    standing: Callable[[], Standing | None] = lambda: None,
    figures: Figures | None = None,
) -> Starlette:
    """The HTTP side of one scheduler name (`scope`) in the ledger of `engine`, an engine of its own.

    `users`: who may come in; None lets everyone do everything, and then `local_names_only` keeps
    other sites' names out. `standing` and `figures` are of the service in the same process, if there
    is one. It asks the ledger on `THREADS` threads.
    """
    version = _version()
    queries = Queries(engine, scope, version=version)

    def here() -> str | None:
        now = standing()
        return None if now is None else now.phase

    desk = Desk(Asking(engine, scope), queries, here)
    access = Access(users)
    openapi = document(version)

    async def openapi_text(_: Request) -> Response:
        return Response(openapi, media_type="application/json")

    page = Page(desk, access)

    async def tell(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            error = ProblemError(error.status_code, "not found", str(error.detail))
        is_for_people = not request.url.path.startswith(("/api/", "/metrics"))
        response = await (page.tell_problem if is_for_people else tell_problem)(request, error)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)  # a fault is told outside of the guard
        return response

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        yield

    return Starlette(
        routes=[
            *health_routes(queries, access, standing, figures or Figures()),
            Route("/api/v1/openapi.json", openapi_text),
            *api_routes(desk, access),
            *page.routes,
        ],
        middleware=[Middleware(Guard, local_names_only=local_names_only and users is None)],
        exception_handlers=dict.fromkeys(
            (Exception, HTTPException, ProblemError, SchedulerError, SQLAlchemyError), tell
        ),
        lifespan=lifespan,
    )


def _version() -> str:
    try:
        return version("lockd")
    except PackageNotFoundError:
        return "unknown"
