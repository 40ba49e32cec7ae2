"""Dependencies for FastAPI and SQLAlchemy: a session that is fenced, and committed before the reply.

    Orders = Annotated[Session, fenced_session("orders", SqlFence(engine), sessionmaker(engine))]

    @app.post("/orders", responses=FENCE_RESPONSES)
    def add(order: Order, session: Orders) -> None:
        session.add(...)

When the handler has returned the session is shut: a background task or a streamed body that goes on with
it gets OutsideFence. `access="read"` is for handlers that only read: a shared lease may do that (SAFETY G10).
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NoReturn

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from lockd_storage.errors import OutsideFence
from lockd_storage.http.fastapi import async_fenced_by, fenced_by
from lockd_storage.http.presented import PresentedLease
from lockd_storage.sqlalchemy import SqlFence, fenced
from lockd_storage.sqlalchemy.marks import Access


def fenced_session(
    resource: str, fence: SqlFence, sessions: Callable[[], Session], *, access: Access = "write"
) -> Any:
    """A dependency whose value is a fenced Session, for a handler that is a `def`. See `fenced_by`."""

    @contextmanager
    def block(lease: PresentedLease) -> Iterator[Session]:
        with sessions() as session:
            with fenced(session, fence, lease, access=access):
                yield session
            _shut(session, resource)

    return fenced_by(resource, block)


def async_fenced_session(
    resource: str, fence: SqlFence, sessions: Callable[[], AsyncSession], *, access: Access = "write"
) -> Any:
    """A dependency whose value is a fenced AsyncSession, for an `async def`. See `fenced_by`."""

    @asynccontextmanager
    async def block(lease: PresentedLease) -> AsyncIterator[AsyncSession]:
        async with sessions() as session:
            async with fenced(session, fence, lease, access=access):
                yield session
            _shut(session.sync_session, resource)

    return async_fenced_by(resource, block)


def _shut(session: Session, resource: str) -> None:
    """Find no database any more: what a handler left to run later would write without a fence."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise OutsideFence(
            "the handler's fenced session has ended with its reply: a streamed body or a background task"
            " needs a session of its own, and a fence if it writes",
            resource=resource,
        )

    session.get_bind = refuse  # type: ignore[method-assign]  # asked before any connection is taken
