"""After the handler: its session is shut. Where an application is mounted; and what its log says."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import BackgroundTasks, FastAPI
from fastapi.responses import StreamingResponse
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool

from lockd.errors import OutcomeUnknown
from lockd_storage import OutsideFence
from lockd_storage.http import FenceMiddleware, fencing_header
from lockd_storage.http.fastapi import fence_of
from lockd_storage.http.sessions import async_fenced_session, fenced_session
from lockd_storage.sqlalchemy import SqlFence
from tests.storage.leases import GivenLease
from tests.storage.stores import SqlStore, journal

LEASE = GivenLease(33)
HEADERS = fencing_header(LEASE)
LINE = journal.insert().values(token=33)


def ask(app: Any, path: str, *, root: str = "", **options: Any) -> httpx.Response:
    """A POST to an application without a server. Raises what the application raises."""

    async def reply() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, root_path=root)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            return await client.post(path, **options)

    return asyncio.run(reply())


@pytest.fixture
def app(sqlite_store: SqlStore, tmp_path: Path) -> Iterator[FastAPI]:
    engine = sa.create_engine(sqlite_store.engine.url, poolclass=NullPool)
    async_engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'data.db'}", poolclass=NullPool)
    app = FastAPI()
    app.add_middleware(FenceMiddleware)
    writing = fenced_session("orders", SqlFence(engine), sessionmaker(engine))
    awaited = async_fenced_session("orders", SqlFence(async_engine), async_sessionmaker(async_engine))

    @app.post("/task")
    def task(session: Annotated[Session, writing], tasks: BackgroundTasks) -> None:
        session.execute(LINE)
        tasks.add_task(session.execute, LINE)

    @app.post("/body")
    def body(session: Annotated[Session, writing]) -> StreamingResponse:
        session.execute(LINE)
        return StreamingResponse(str(session.execute(LINE).rowcount) for _ in range(1))  # type: ignore[attr-defined]

    @app.post("/async")
    async def awaiting(session: Annotated[AsyncSession, awaited], tasks: BackgroundTasks) -> None:
        await session.execute(LINE)
        tasks.add_task(session.execute, LINE)

    @app.post("/unknown")
    def unknown(lease: Annotated[Any, fence_of("orders")]) -> None:
        raise OutcomeUnknown(f"the reply to the commit of {lease.token} was lost")

    SqlFence(engine).install(LEASE)
    yield app
    engine.dispose()


@pytest.mark.parametrize("path", ["/task", "/body", "/async"])
def test_what_runs_after_the_reply_does_not_write_through_the_handlers_session(
    app: FastAPI, sqlite_store: SqlStore, path: str
) -> None:
    with pytest.raises(OutsideFence, match="ended with its reply"):
        ask(app, path, headers=HEADERS)
    assert sqlite_store.lines() == [33]


def test_an_outcome_that_is_unknown_is_in_the_services_log(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        assert ask(app, "/unknown", headers=HEADERS).status_code == 500
    (record,) = caplog.records
    assert "POST /unknown was answered 500, outcome unknown" in record.getMessage()
    assert record.exc_info is not None


@pytest.mark.parametrize("root", ["", "/api"])
def test_guarded_paths_are_the_applications_own_wherever_it_is_served(root: str) -> None:
    app = FastAPI()
    app.add_middleware(FenceMiddleware, guarded=["/orders"])
    outer = FastAPI()
    outer.mount("/v1", app)
    at_once = [(app, "/orders"), (app, f"{root}/orders")]
    mounted = [(outer, f"{root}/v1/orders"), (outer, f"{root}/v1/orders/1")]
    for served, path in at_once + mounted:
        assert ask(served, path, root=root).status_code == 428, path
    assert ask(app, "/ordersx", root=root).status_code == 404
    assert ask(outer, "/v1x/orders", root=root).status_code == 404
