"""A service whose handlers are coroutines, with an AsyncSession that is fenced."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI, HTTPException
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

from lockd_storage.http import FenceMiddleware, fence_routes, fencing_header
from lockd_storage.http.sessions import async_fenced_session
from lockd_storage.sqlalchemy import SqlFence
from tests.storage.leases import GivenLease
from tests.storage.stores import SqlStore, journal
from tests.storage.web import serving

OLD, NEW = GivenLease(33), GivenLease(34)
READER = GivenLease(35, mode="shared")


@pytest.fixture
def client(sqlite_store: SqlStore, tmp_path: Path) -> Iterator[httpx.Client]:
    # Nothing pooled: the connections belong to the server's event loop, which ends before this does.
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'data.db'}", poolclass=NullPool)
    assert sqlite_store.engine.url.database == engine.url.database
    fence = SqlFence(engine)
    sessions = async_sessionmaker(engine)
    app = FastAPI()
    app.add_middleware(FenceMiddleware, guarded=["/lines"])
    app.mount("/fences", fence_routes(fence))
    writing = async_fenced_session("orders", fence, sessions)
    reading = async_fenced_session("orders", fence, sessions, access="read")

    @app.post("/lines")
    async def add(token: int, session: Annotated[AsyncSession, writing]) -> None:
        await session.execute(journal.insert().values(token=token))
        if token != OLD.token and token != NEW.token:
            raise HTTPException(422)

    @app.get("/lines")
    async def lines(session: Annotated[AsyncSession, reading]) -> list[int]:
        return list(await session.scalars(sa.select(journal.c.token)))

    with serving(app) as url, httpx.Client(base_url=url) as found:
        yield found


def test_an_async_session_is_fenced_and_committed_before_the_reply(
    client: httpx.Client, sqlite_store: SqlStore
) -> None:
    for lease in (OLD, NEW):
        headers = fencing_header(lease)
        assert client.put("/fences/orders", headers=headers).json()["fence"] == lease.fence
        assert client.get("/fences/orders").json()["fence"] == lease.fence
        assert client.post(f"/lines?token={lease.token}", headers=headers).status_code == 200
        assert client.post("/lines?token=1", headers=headers).status_code == 422
    refused = client.post("/lines?token=33", headers=fencing_header(OLD))
    assert (refused.status_code, refused.json()["mark"]) == (412, 34)
    assert sqlite_store.lines() == [33, 34]


def test_g10_a_shared_lease_reads_under_its_fence(client: httpx.Client) -> None:
    for lease in (OLD, READER):
        client.put("/fences/orders", headers=fencing_header(lease)).raise_for_status()
    assert client.get("/lines", headers=fencing_header(READER)).json() == []
    assert client.post("/lines?token=33", headers=fencing_header(READER)).status_code == 409
    assert client.get("/lines", headers=fencing_header(OLD)).status_code == 412
