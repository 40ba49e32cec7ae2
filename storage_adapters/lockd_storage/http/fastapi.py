"""Dependencies for FastAPI: the presented lease, and a block that is left before the reply goes out.

    @app.post("/orders", responses=FENCE_RESPONSES)
    def add(order: Order, lease: Annotated[PresentedLease, fence_of("orders")]) -> None:
        with fenced(Session(engine), fence, lease) as session:
            session.add(...)

or, with the block as the dependency (`lockd_storage.http.sessions` has it ready for SQLAlchemy):

    Journal = Annotated[None, fenced_by("orders", memory_fence.write)]

The check is part of the handler's own transaction. Needs `FenceMiddleware` on the application.
"""

import string
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Annotated, Any

try:
    from fastapi import Depends, Header, Request
except ImportError as error:
    raise ImportError(
        "lockd_storage.http.fastapi needs FastAPI 0.121 or newer: pip install fastapi"
    ) from error

from lockd_storage.http.header import HEADER
from lockd_storage.http.openapi import HEADER_DESCRIPTION, HEADER_EXAMPLE
from lockd_storage.http.presented import PresentedLease, PresentedLeases, resource_in_path

OpenBlock = Callable[[PresentedLease], AbstractContextManager[Any]]
OpenAsyncBlock = Callable[[PresentedLease], AbstractAsyncContextManager[Any]]
_DocumentedHeader = Annotated[
    str | None,
    Header(alias=HEADER, description=HEADER_DESCRIPTION, examples=[HEADER_EXAMPLE]),
]


def fence_of(resource: str) -> Any:
    """A dependency whose value is the `PresentedLease` for a resource. The API's document shows the header.

    `resource` may name parameters of the path: `"orders:{order_id}"`. Without a lease for it the request
    is answered 428. Raises ValueError for a template with anything but names in it.
    """
    return Depends(_presented_for(resource))


def fenced_by(resource: str, block: OpenBlock) -> Any:
    """A dependency whose value is what `block(lease)` yields, around the handler's function.

    The block is left, and so committed, after the handler has returned and before the reply is sent:
    a refused commit is answered with the refusal, never with the handler's 200. FastAPI's usual
    dependencies with `yield` end after the reply. What the handler hands over to run later, a streamed
    body or a background task, runs outside the block: nothing of it is fenced. A raised error, an
    HTTPException too, rolls back.
    """
    presented = _presented_for(resource)

    def entered(lease: Annotated[PresentedLease, Depends(presented)]) -> Iterator[Any]:
        with block(lease) as value:
            yield value

    return _before_the_reply(entered)


def async_fenced_by(resource: str, block: OpenAsyncBlock) -> Any:
    """As `fenced_by`, of an async context manager."""
    presented = _presented_for(resource)

    async def entered(lease: Annotated[PresentedLease, Depends(presented)]) -> AsyncIterator[Any]:
        async with block(lease) as value:
            yield value

    return _before_the_reply(entered)


def _before_the_reply(dependency: Callable[..., Any]) -> Any:
    try:
        return Depends(dependency, scope="function")
    except TypeError as error:
        raise ImportError(
            "this FastAPI would send the reply before the commit: lockd_storage.http needs 0.121 or newer"
        ) from error


def _presented_for(template: str) -> Callable[..., Awaitable[PresentedLease]]:
    for _, field, spec, conversion in string.Formatter().parse(template):
        if field is not None and (not field.isidentifier() or spec or conversion):
            raise ValueError(f"{template!r}: name parameters of the path, like {{order_id}}")

    async def presented(request: Request, fencing_token: _DocumentedHeader = None) -> PresentedLease:  # noqa: ARG001  it is in the API's document; the middleware has read it
        fences: PresentedLeases | None = getattr(request.state, "fences", None)
        if fences is None:
            raise RuntimeError("the application lacks the middleware: app.add_middleware(FenceMiddleware)")
        try:
            resource = template.format(**request.path_params)
        except KeyError as missing:
            raise RuntimeError(f"{template!r}: the route's path has no parameter {missing}") from None
        return fences.lease(resource_in_path(resource))

    return presented
