"""Dependencies for FastAPI and SQLAlchemy: a session that is fenced, and committed before the reply.

    Orders = Annotated[Session, fenced_session("orders", SqlFence(engine), sessionmaker(engine))]

    @app.post("/orders", responses=FENCE_RESPONSES)
    def add(order: Order, session: Orders) -> None:
        session.add(...)

`access="read"` is for handlers that only read: a shared lease may do that (SAFETY G10).
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

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
        with sessions() as session, fenced(session, fence, lease, access=access):
            yield session

    return fenced_by(resource, block)


def async_fenced_session(
    resource: str, fence: SqlFence, sessions: Callable[[], AsyncSession], *, access: Access = "write"
) -> Any:
    """A dependency whose value is a fenced AsyncSession, for an `async def`. See `fenced_by`."""

    @asynccontextmanager
    async def block(lease: PresentedLease) -> AsyncIterator[AsyncSession]:
        async with sessions() as session, fenced(session, fence, lease, access=access):
            yield session

    return async_fenced_by(resource, block)
