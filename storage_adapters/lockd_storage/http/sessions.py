"""Dependencies for FastAPI and SQLAlchemy: a session that is fenced, and committed before the reply.

Orders = Annotated[Session, fenced_session("orders", SqlFence(engine), sessionmaker(engine))]

@app.post("/orders", responses=FENCE_RESPONSES)
def add(order: Order, session: Orders) -> None:
    session.add(...)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.orm import Session

from lockd_storage.http.fastapi import fenced_by
from lockd_storage.http.presented import PresentedLease
from lockd_storage.sqlalchemy import SqlFence, fenced


def fenced_session(resource: str, fence: SqlFence, sessions: Callable[[], Session]) -> Any:
    """A dependency whose value is a fenced Session, for a handler that is a `def`. See `fenced_by`."""

    @contextmanager
    def block(lease: PresentedLease) -> Iterator[Session]:
        with sessions() as session, fenced(session, fence, lease):
            yield session

    return fenced_by(resource, block)
