"""An old holder's request stands still in the service while the new holder installs."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Semaphore
from typing import Annotated

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from sqlalchemy.orm import Session, sessionmaker
from starlette.types import ASGIApp, Receive, Scope, Send

from lockd_storage import HeldLease, Mark
from lockd_storage.fencing import INSTALL_SECONDS
from lockd_storage.http import FenceMiddleware, PresentedLease, fence_routes, fencing_header
from lockd_storage.http.fastapi import fence_of, fenced_by
from lockd_storage.http.presented import PresentedLeases
from lockd_storage.http.routes import INSTALLS_AT_ONCE_MAX
from lockd_storage.http.sessions import fenced_session
from lockd_storage.memory import MemoryFence
from lockd_storage.sqlalchemy import SqlFence
from tests.storage.leases import GivenLease
from tests.storage.stores import SqlStore, journal
from tests.storage.web import PATIENCE_S, serving

OLD, NEW = GivenLease(33), GivenLease(34)
STILL_WAITING_SECONDS = 0.3
THREADS_OF_THE_POOL = 40
"""anyio's default, which Starlette's handlers share."""


@dataclass
class Pause:
    """A place in a handler where a request of the old holder stands until it is let go."""

    reached: Event = field(default_factory=Event)
    go_on: Event = field(default_factory=Event)

    def stand(self, token: int) -> None:
        if token == OLD.token:
            self.reached.set()
            assert self.go_on.wait(PATIENCE_S)


class CheckingMiddleware:
    """Known bad: the token is compared before the handler runs, and not where it writes."""

    def __init__(self, app: ASGIApp, *, fence: MemoryFence) -> None:
        self._app = app
        self._fence = fence

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fences: PresentedLeases = scope["state"]["fences"]
        with self._fence.write(fences.lease("orders")):
            pass
        await self._app(scope, receive, send)


@contextmanager
def callers(app: FastAPI) -> Iterator[tuple[httpx.Client, ThreadPoolExecutor]]:
    with (
        serving(app) as url,
        httpx.Client(base_url=url, timeout=PATIENCE_S) as client,
        ThreadPoolExecutor(4) as threads,
    ):
        yield client, threads


def post(client: httpx.Client, lease: GivenLease) -> int:
    return client.post("/lines", headers=fencing_header(lease)).status_code


def install(client: httpx.Client, lease: GivenLease) -> int:
    return client.put("/fences/orders", headers=fencing_header(lease)).status_code


def test_pitfall_03_a_check_that_is_over_before_the_handler_writes_loses() -> None:
    """Known bad. Every step is answered with 200, and the old holder's line comes after the install."""
    fence, pause, lines = MemoryFence(), Pause(), list[int]()
    app = FastAPI()
    app.add_middleware(CheckingMiddleware, fence=fence)
    app.add_middleware(FenceMiddleware)

    @app.post("/lines")
    def add(lease: Annotated[PresentedLease, fence_of("orders")]) -> None:
        pause.stand(lease.token)
        lines.append(lease.token)

    fence.install(OLD)
    with callers(app) as (client, threads):
        old = threads.submit(post, client, OLD)
        assert pause.reached.wait(PATIENCE_S)
        fence.install(NEW)
        assert post(client, NEW) == 200
        pause.go_on.set()
        assert old.result() == 200
    assert lines == [34, 33]


def in_memory(pause: Pause, lines: list[int]) -> FastAPI:
    fence = MemoryFence()
    app = FastAPI()
    app.add_middleware(FenceMiddleware)
    app.mount("/fences", fence_routes(fence))

    @app.post("/lines")
    def add(
        lease: Annotated[PresentedLease, fence_of("orders")],
        within: Annotated[None, fenced_by("orders", fence.write)],
    ) -> None:
        assert within is None
        pause.stand(lease.token)
        lines.append(lease.token)

    return app


def test_an_install_waits_for_the_older_request_in_its_handler() -> None:
    pause, lines = Pause(), list[int]()
    with callers(in_memory(pause, lines)) as (client, threads):
        assert install(client, OLD) == 200
        old = threads.submit(post, client, OLD)
        assert pause.reached.wait(PATIENCE_S)
        new = threads.submit(install, client, NEW)
        with pytest.raises(TimeoutError):
            new.result(STILL_WAITING_SECONDS)
        pause.go_on.set()
        assert (old.result(), new.result()) == (200, 200)
        assert lines == [33]
        assert post(client, OLD) == 412
        assert post(client, NEW) == 200
    assert lines == [33, 34]


def test_s5_an_older_request_that_stands_still_ends_the_installs_patience_and_not_the_service() -> None:
    pause, lines = Pause(), list[int]()
    with callers(in_memory(pause, lines)) as (client, threads):
        assert install(client, OLD) == 200
        old = threads.submit(post, client, OLD)
        assert pause.reached.wait(PATIENCE_S)
        for _ in range(2):
            reply = client.put("/fences/orders?timeout=0.05", headers=fencing_header(NEW))
            assert (reply.status_code, reply.json()["type"]) == (503, "tag:lockd,2026:fence/unavailable")
        assert post(client, OLD) == 412, "the gate is shut to older ones from the first try on"
        pause.go_on.set()
        assert old.result() == 200
        assert install(client, NEW) == 200
    assert lines == [33]


def test_requests_of_one_token_go_on_side_by_side() -> None:
    pause, lines = Pause(), list[int]()
    with callers(in_memory(pause, lines)) as (client, threads):
        assert install(client, OLD) == 200
        first = threads.submit(post, client, OLD)
        assert pause.reached.wait(PATIENCE_S)
        pause.reached.clear()
        second = threads.submit(post, client, OLD)
        assert pause.reached.wait(PATIENCE_S), "the second request is in the handler beside the first"
        pause.go_on.set()
        assert (first.result(), second.result()) == (200, 200)
    assert lines == [33, 33]


class SlowFence(MemoryFence):
    """Its installs stand still until they are let go, as under many older writers."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = Event()
        self.waiting = Semaphore(0)

    def install(
        self, lease: HeldLease, resource: str | None = None, *, timeout: float = INSTALL_SECONDS
    ) -> Mark:
        self.waiting.release()
        assert self.go_on.wait(PATIENCE_S)
        return super().install(lease, resource, timeout=timeout)


def test_installs_that_wait_leave_handlers_their_threads() -> None:
    """A handler that an install waits for may need a thread of the common pool to come to its end."""
    fence = SlowFence()
    app = FastAPI()
    app.mount("/fences", fence_routes(fence))

    @app.get("/")
    def hello() -> str:
        return "hello"

    async def use(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, limits=httpx.Limits()) as client:
            header = fencing_header(NEW)
            installs = [
                asyncio.create_task(client.put("/fences/orders", headers=header))
                for _ in range(THREADS_OF_THE_POOL + INSTALLS_AT_ONCE_MAX)
            ]
            for _ in range(INSTALLS_AT_ONCE_MAX):
                assert await asyncio.to_thread(fence.waiting.acquire, timeout=PATIENCE_S)
            try:
                assert (await client.get("/", timeout=5.0)).json() == "hello"
                assert (await client.get("/fences/orders", timeout=5.0)).status_code == 404
                assert not fence.waiting.acquire(blocking=False), "more are at it than may"
            finally:
                fence.go_on.set()
            assert {(await install).status_code for install in installs} == {200}

    with serving(app) as url:
        asyncio.run(use(url))


def test_s5_the_service_bounds_how_long_an_install_waits() -> None:
    fence = MemoryFence()
    app = FastAPI()
    app.mount("/fences", fence_routes(fence, seconds=0.5))
    fence.install(OLD)
    with callers(app) as (client, _), fence.write(OLD):
        reply = client.put("/fences/orders?timeout=60", headers=fencing_header(NEW))
        assert (reply.status_code, reply.json()["type"]) == (503, "tag:lockd,2026:fence/unavailable")


def in_database(engine: sa.Engine, before: Pause, after: Pause) -> FastAPI:
    fence = SqlFence(engine)
    app = FastAPI()
    app.add_middleware(FenceMiddleware)
    app.mount("/fences", fence_routes(fence))

    @app.post("/lines")
    def add(
        lease: Annotated[PresentedLease, fence_of("orders")],
        session: Annotated[Session, fenced_session("orders", fence, sessionmaker(engine))],
    ) -> None:
        before.stand(lease.token)
        session.execute(journal.insert().values(token=lease.token))
        after.stand(lease.token)

    return app


@pytest.mark.parametrize("place", ["before", "after"])
def test_pitfall_04_the_check_is_held_until_the_handlers_commit(sql: SqlStore, place: str) -> None:
    """Paused before its first statement, the old request is refused; after it, the install waits."""
    before, after = Pause(), Pause()
    (after if place == "before" else before).go_on.set()
    paused = before if place == "before" else after
    with callers(in_database(sql.engine, before, after)) as (client, threads):
        assert install(client, OLD) == 200
        old = threads.submit(post, client, OLD)
        assert paused.reached.wait(PATIENCE_S)
        new = threads.submit(install, client, NEW)
        if place == "before":
            assert new.result() == 200
        else:
            with pytest.raises(TimeoutError):
                new.result(STILL_WAITING_SECONDS)
        seen_by_new = sql.lines()
        paused.go_on.set()
        assert old.result() == (412 if place == "before" else 200)
        assert new.result() == 200
        assert sql.lines() == ([] if place == "before" else [33])
        assert post(client, OLD) == 412
        assert post(client, NEW) == 200
    assert seen_by_new == []
    assert sql.lines() == ([34] if place == "before" else [33, 34])
