"""An install whose task is cancelled, at each point where it waits (SAFETY S1)."""

import asyncio
import gc
import sqlite3
from collections.abc import Awaitable, Callable, Generator
from contextlib import closing
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from lockd_storage.sqlalchemy import SqlFence
from tests.storage.leases import GivenLease
from tests.storage.stores import SqlStore


class CancelledAt(Awaitable[bool]):
    """Runs a coroutine and cancels it where it waits for the n-th time. True: it waited so often."""

    def __init__(self, work: Any, step: int) -> None:
        self._work = work
        self._step = step

    def __await__(self) -> Generator[Any, Any, bool]:
        task = asyncio.current_task()
        assert task is not None
        resume: Callable[[Any], Any] = self._work.send
        value: object = None
        while True:
            try:
                waited_for = resume(value)
            except StopIteration:
                return self._step <= 0
            except asyncio.CancelledError:
                return bool(task.uncancel() == 0)
            self._step -= 1
            if self._step == 0:
                task.cancel()
            try:
                resume, value = self._work.send, (yield waited_for)
            except BaseException as error:  # noqa: BLE001  it is the work's
                resume, value = self._work.throw, error


@pytest.mark.parametrize(
    ("store", "driver"),
    [
        pytest.param("postgres", "postgresql+asyncpg", marks=pytest.mark.postgres),
        pytest.param("mariadb", "mysql+asyncmy", marks=pytest.mark.mariadb),
    ],
)
def test_a_cancelled_install_keeps_no_connection_and_no_lock(
    request: pytest.FixtureRequest, store: str, driver: str
) -> None:
    url = sa.make_url(request.getfixturevalue(f"{store}_store_url")).set(drivername=driver)

    async def cancel_each() -> int:
        engine = create_async_engine(url, pool_size=2, max_overflow=0, pool_timeout=5)
        fence = SqlFence(engine)
        try:
            for step in range(1, 100):
                if not await CancelledAt(fence.install(GivenLease(step)), step):
                    return step
                assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # it is a QueuePool
        finally:
            await engine.dispose()
        raise AssertionError

    assert asyncio.run(cancel_each()) > 10


def test_a_cancelled_install_on_sqlite_leaves_the_file_to_others(sqlite_store: SqlStore) -> None:
    """Also while nobody collects garbage: SQLite keeps a closed connection's locks for an open cursor."""
    url = sqlite_store.engine.url.set(drivername="sqlite+aiosqlite")
    sqlite_store.fence.install(GivenLease(1))

    async def cancel_each() -> int:
        for step in range(1, 100):
            engine = create_async_engine(url)
            try:
                if not await CancelledAt(SqlFence(engine).install(GivenLease(step + 1)), step):
                    return step
            finally:
                await engine.dispose()
            with closing(sqlite3.connect(str(url.database), timeout=0)) as other:
                other.execute("BEGIN EXCLUSIVE")
        raise AssertionError

    gc.disable()
    try:
        assert asyncio.run(cancel_each()) > 10
    finally:
        gc.enable()
