"""One client process of `fenced_sql`, and the transactions that it runs."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from itertools import pairwise
from multiprocessing.connection import Connection as Pipe
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import lockd
from lockd_storage import fenced
from lockd_storage.sqlalchemy import SqlFence
from tests.storage.leases import GivenLease

LEASE = GivenLease(33, seconds=3600.0)

metadata = sa.MetaData()


def _rows(name: str) -> sa.Table:
    return sa.Table(
        name,
        metadata,
        sa.Column(
            "id", sa.Integer, primary_key=True, autoincrement=False
        ),  # MariaDB takes a 0 for "the next"
        sa.Column("value", sa.Integer),
    )


PLAIN, GUARDED = _rows("plain_rows"), _rows("guarded_rows")

STEPS = ("bare write", "acquire", "install", "fenced write", "release", "whole")


class Work(NamedTuple):
    """What a client does, over and over."""

    url: str
    face: str
    """connection, session or async_session"""
    statements: int
    table: str
    fenced: bool


def update(table: str, row: int) -> sa.Update:
    rows = metadata.tables[table]
    return rows.update().where(rows.c.id == row).values(value=rows.c.value + 1)


def main(pipe: Pipe, number: int) -> None:
    """Run what is sent, and answer with transactions a second; None ends."""
    loop = asyncio.Runner()
    kinds: dict[Work, Callable[[], None]] = {}
    with loop, contextlib.ExitStack() as stack:
        while (order := pipe.recv()) is not None:
            work, seconds = order
            if work not in kinds:
                kinds[work] = _transaction(work, number, loop, stack)
            transaction = kinds[work]
            done, start = 0, time.perf_counter()
            while (took := time.perf_counter() - start) < seconds:
                transaction()
                done += 1
            pipe.send(done / took)


def _transaction(
    work: Work, row: int, loop: asyncio.Runner, stack: contextlib.ExitStack
) -> Callable[[], None]:
    statement = update(work.table, row)
    if work.face == "async_session":
        run = _async_transaction(work, statement, loop, stack)
        return lambda: loop.run(run())
    engine = sa.create_engine(work.url, **_patience(work.url))
    stack.callback(engine.dispose)
    fence = SqlFence(engine)

    def open_target() -> Session | sa.Connection:
        return Session(engine) if work.face == "session" else engine.connect()

    def fenced_transaction() -> None:
        with open_target() as target, fenced(target, fence, LEASE):
            for _ in range(work.statements):
                target.execute(statement)

    def plain_transaction() -> None:
        with open_target() as target:
            for _ in range(work.statements):
                target.execute(statement)
            target.commit()

    return fenced_transaction if work.fenced else plain_transaction


def _async_transaction(
    work: Work, statement: sa.Update, loop: asyncio.Runner, stack: contextlib.ExitStack
) -> Callable[[], Coroutine[Any, Any, None]]:
    engine = create_async_engine(work.url)
    stack.callback(lambda: loop.run(engine.dispose()))
    fence = SqlFence(engine)

    async def fenced_transaction() -> None:
        async with AsyncSession(engine) as session, fenced(session, fence, LEASE):
            for _ in range(work.statements):
                await session.execute(statement)

    async def plain_transaction() -> None:
        async with AsyncSession(engine) as session:
            for _ in range(work.statements):
                await session.execute(statement)
            await session.commit()

    return fenced_transaction if work.fenced else plain_transaction


def _patience(url: str) -> dict[str, Any]:
    """Clients of one SQLite file wait for each other: for long, rather than fail."""
    return {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}


def whole(holder: lockd.Client, engine: sa.Engine, fence: SqlFence, row: int) -> dict[str, float]:
    """A bare write, then a lock's whole life around one write: the seconds that each step took."""
    moments = [time.perf_counter()]
    with Session(engine) as session:
        session.execute(update("plain_rows", row))
        session.commit()
    moments.append(time.perf_counter())
    with holder.lock("whole") as lease:
        moments.append(time.perf_counter())
        fence.install(lease)
        moments.append(time.perf_counter())
        with Session(engine) as session, fenced(session, fence, lease):
            session.execute(update("plain_rows", row))
        moments.append(time.perf_counter())
    moments.append(time.perf_counter())
    steps = [end - begin for begin, end in pairwise(moments)]
    return dict(zip(STEPS, [*steps, sum(steps[1:])], strict=True))
