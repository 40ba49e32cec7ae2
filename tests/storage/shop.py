"""A web service for the tests: FastAPI over SQLite, with each way to write under a caller's fence."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import sqlalchemy as sa
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session, sessionmaker

from lockd.errors import LockdError
from lockd_storage import fenced
from lockd_storage.http import (
    FENCE_RESPONSES,
    FenceMiddleware,
    PresentedLease,
    fence_routes,
    fencing_header,
)
from lockd_storage.http.fastapi import fence_of
from lockd_storage.http.sessions import fenced_session
from lockd_storage.sqlalchemy import SqlFence
from tests.storage.leases import GivenLease
from tests.storage.stores import journal, sql_store, sqlite_url
from tests.storage.web import serving

metadata = sa.MetaData()
parent = sa.Table("parent", metadata, sa.Column("id", sa.Integer, primary_key=True))
child = sa.Table(
    "child",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("parent", sa.ForeignKey(parent.c.id, deferrable=True, initially="DEFERRED"), nullable=False),
)
"""A row without its parent is refused by the COMMIT, and not before."""


@dataclass
class Shop:
    app: FastAPI
    client: httpx.Client
    fence: SqlFence
    engine: sa.Engine
    raised: list[LockdError] = field(default_factory=list)
    """What the handlers of /raise and /raise-late raise."""

    def post(self, path: str, *leases: GivenLease, **options: Any) -> httpx.Response:
        return self.client.post(path, headers=fencing_header(*leases) if leases else {}, **options)

    def lines(self) -> list[int]:
        with self.engine.connect() as connection:
            return list(connection.scalars(sa.select(journal.c.token).order_by(journal.c.id)))


@contextmanager
def open_shop(folder: Path) -> Iterator[Shop]:
    """The service while it is served, with nothing installed."""
    with sql_store(sqlite_url(folder)) as store:
        sa.event.listen(store.engine, "connect", lambda raw, _: raw.execute("PRAGMA foreign_keys=ON"))
        store.engine.dispose()
        metadata.create_all(store.engine)
        raised: list[LockdError] = []
        app = application(store.engine, store.fence, raised)
        with serving(app) as url, httpx.Client(base_url=url) as client:
            yield Shop(app, client, store.fence, store.engine, raised)


def application(engine: sa.Engine, fence: SqlFence, raised: list[LockdError]) -> FastAPI:
    app = FastAPI(responses=FENCE_RESPONSES)
    app.add_middleware(FenceMiddleware, guarded=["/orders"])
    app.mount("/fences", fence_routes(fence))
    sessions = sessionmaker(engine)
    orders = fenced_session("orders", fence, sessions)
    order = fenced_session("orders:{order_id}", fence, sessions)

    @app.post("/orders")
    def add(token: int, session: Annotated[Session, orders]) -> dict[str, int]:
        session.execute(journal.insert().values(token=token))
        return {"added": token}

    @app.post("/orders/by-hand")
    def add_by_hand(lease: Annotated[PresentedLease, fence_of("orders")]) -> None:
        with Session(engine) as session, fenced(session, fence, lease):
            session.execute(journal.insert().values(token=lease.token))

    @app.post("/orders/{order_id}/lines")
    def add_line(order_id: int, session: Annotated[Session, order]) -> None:
        session.execute(journal.insert().values(token=order_id))

    add_failing_routes(app, orders, engine, fence)
    add_raising_routes(app, raised)
    return app


def add_failing_routes(app: FastAPI, orders: Any, engine: sa.Engine, fence: SqlFence) -> None:
    @app.post("/orders/changed-my-mind")
    def change_mind(session: Annotated[Session, orders]) -> None:
        session.execute(journal.insert().values(token=1))
        raise HTTPException(422, "no such order")

    @app.post("/orders/refused-by-commit")
    def add_orphan(session: Annotated[Session, orders]) -> str:
        session.execute(child.insert().values(parent=404))
        return "stored"

    def usual_dependency(lease: Annotated[PresentedLease, fence_of("orders")]) -> Iterator[Session]:
        with Session(engine) as session, fenced(session, fence, lease):
            yield session

    @app.post("/orders/replied-before-commit")
    def add_orphan_and_reply(session: Annotated[Session, Depends(usual_dependency)]) -> str:
        session.execute(child.insert().values(parent=404))
        return "stored"


def add_raising_routes(app: FastAPI, raised: list[LockdError]) -> None:
    @app.post("/misnamed")
    def misname(lease: Annotated[PresentedLease, fence_of("orders:{order_id}")]) -> int:
        return lease.token

    @app.post("/raise")
    def refuse() -> None:
        raise raised.pop()

    @app.post("/raise-late")
    def refuse_late() -> StreamingResponse:
        def body() -> Iterator[bytes]:
            yield b"begun"
            raise raised.pop()

        return StreamingResponse(body())

    @app.get("/orders")
    def look(request: Request) -> bool:
        return bool(request.state.fences)
