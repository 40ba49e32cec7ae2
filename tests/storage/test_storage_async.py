"""`fenced` and `SqlFence` behind asyncio: asyncpg, psycopg's async face, asyncmy and aiosqlite."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from lockd.client.decorator import lock_calls
from lockd.errors import LeaseLost, OutcomeUnknown, StaleToken, Unavailable
from lockd_storage import NotFenceable, NotInstalled, WrongMode, fenced
from lockd_storage.sqlalchemy import AsyncSqlFence, SqlFence
from tests.servers.proxy import LossyProxy, lossy_proxy
from tests.storage.leases import GivenLease
from tests.storage.stores import journal

POSTGRES_DRIVERS = ("asyncpg", "psycopg_async")
INSERT_33 = journal.insert().values(token=33)

Test = Callable[[AsyncEngine], Coroutine[Any, Any, None]]
Runner = Callable[[Test], None]


POSTGRES_PARAMS = [pytest.param(name, marks=pytest.mark.postgres) for name in POSTGRES_DRIVERS]


@pytest.fixture(params=["aiosqlite", pytest.param("asyncmy", marks=pytest.mark.mariadb), *POSTGRES_PARAMS])
def url(request: pytest.FixtureRequest) -> sa.URL:
    """A database with the fence store and an empty journal, for an asyncio driver."""
    store, dialect = {"aiosqlite": ("sqlite", "sqlite"), "asyncmy": ("mariadb", "mysql")}.get(
        request.param, ("postgres", "postgresql")
    )
    plain = sa.make_url(request.getfixturevalue(f"{store}_store_url"))
    return plain.set(drivername=f"{dialect}+{request.param}")


@pytest.fixture(params=POSTGRES_PARAMS)
def postgres(request: pytest.FixtureRequest, postgres_store_url: str) -> sa.URL:
    """The same, where there is a server."""
    return sa.make_url(postgres_store_url).set(drivername=f"postgresql+{request.param}")


@pytest.fixture
def run(url: sa.URL) -> Runner:
    """Runs a coroutine function of an engine."""

    def runner(test: Test) -> None:
        asyncio.run(on(url, test))

    return runner


async def on(url: sa.URL, test: Test) -> None:
    async with engine_of(url) as engine:
        await asyncio.wait_for(test(engine), 60)


@asynccontextmanager
async def engine_of(url: sa.URL, **options: Any) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(url, **options)
    try:
        yield engine
    finally:
        await engine.dispose()


async def lines(engine: AsyncEngine) -> list[int]:
    async with engine.connect() as connection:
        return list(await connection.scalars(sa.select(journal.c.token).order_by(journal.c.id)))


async def write_33(connection: AsyncConnection | AsyncSession) -> None:
    await connection.execute(INSERT_33)


def test_a_fence_of_an_async_engine_has_the_same_verbs_awaited(run: Runner) -> None:
    async def test(engine: AsyncEngine) -> None:
        fence = SqlFence(engine)
        assert isinstance(fence, AsyncSqlFence)
        assert await fence.mark("orders") is None
        mark = await fence.install(GivenLease(33))
        assert await fence.mark("orders") == mark
        async with fence.write(GivenLease(33)) as connection:
            await connection.execute(INSERT_33)
        await fence.install(GivenLease(34))
        for stale in (fence.install(GivenLease(33)), write_stale(fence)):
            with pytest.raises(StaleToken) as refused:
                await stale
            assert (refused.value.presented, refused.value.mark) == (33, 34)
        with pytest.raises(NotInstalled):
            async with fence.write(GivenLease(35)) as connection:
                await connection.execute(INSERT_33)
        assert await lines(engine) == [33]

    async def write_stale(fence: AsyncSqlFence) -> None:
        async with fence.write(GivenLease(33)) as connection:
            await connection.execute(INSERT_33)

    run(test)


def test_s3_every_transaction_of_an_async_session_is_checked(run: Runner) -> None:
    async def work(session: AsyncSession, fence: AsyncSqlFence) -> None:
        async with fenced(session, fence, GivenLease(33)) as same:
            assert same is session
            await write_33(session)
            await session.commit()
            await fence.install(GivenLease(34))
            for _ in range(2):
                with pytest.raises(StaleToken):
                    await write_33(session)
            await session.rollback()
            await write_33(session)

    async def test(engine: AsyncEngine) -> None:
        fence = SqlFence(engine)
        await fence.install(GivenLease(33))
        async with AsyncSession(engine) as session:
            with pytest.raises(StaleToken):
                await work(session, fence)
            await session.execute(journal.insert().values(token=0))  # outside, nothing is watched
            await session.commit()
        assert await lines(engine) == [33, 0]

    run(test)


def test_s3_every_transaction_of_an_async_connection_is_checked(run: Runner) -> None:
    async def work(connection: AsyncConnection, fence: AsyncSqlFence) -> None:
        async with fenced(connection, fence, GivenLease(33)):
            async with connection.begin_nested() as savepoint:
                await write_33(connection)
                await savepoint.rollback()
            await write_33(connection)
            await connection.commit()
            await fence.install(GivenLease(34))
            await write_33(connection)

    async def test(engine: AsyncEngine) -> None:
        fence = SqlFence(engine)
        await fence.install(GivenLease(33))
        async with engine.connect() as connection:
            with pytest.raises(StaleToken):
                await work(connection, fence)
            await connection.execute(journal.insert().values(token=0))
            await connection.commit()
        assert await lines(engine) == [33, 0]

    run(test)


def test_a_blocking_fence_serves_async_sessions_and_the_other_way_round(url: sa.URL) -> None:
    backends = {"mysql": "mysql+pymysql", "sqlite": "sqlite", "postgresql": "postgresql+psycopg"}
    driver = backends[url.get_backend_name()]
    plain = sa.create_engine(url.set(drivername=driver))
    blocking = SqlFence(plain)
    blocking.install(GivenLease(33))

    async def test(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session, fenced(session, blocking, GivenLease(33)):
            await write_33(session)
        with plain.connect() as connection, fenced(connection, SqlFence(engine), GivenLease(33)):
            connection.execute(INSERT_33)
        blocking.install(GivenLease(34))
        async with AsyncSession(engine) as session:
            with pytest.raises(StaleToken):
                async with fenced(session, blocking, GivenLease(33)):
                    await write_33(session)
        assert await lines(engine) == [33, 33]

    try:
        asyncio.run(on(url, test))
    finally:
        plain.dispose()


def test_s3_what_cant_be_fenced_is_refused(run: Runner) -> None:
    async def test(engine: AsyncEngine) -> None:
        fence, lease = SqlFence(engine), GivenLease(33)
        await fence.install(lease)
        async with engine.connect() as connection:
            await connection.execute(sa.select(journal))
            with pytest.raises(NotFenceable, match="already open"):
                async with fenced(connection, fence, lease):
                    pytest.fail("entered")
        automatic = engine.execution_options(isolation_level="AUTOCOMMIT")
        async with AsyncSession(automatic) as session:
            with pytest.raises(NotFenceable, match="AUTOCOMMIT"):
                async with fenced(session, fence, lease):
                    await write_33(session)
        with pytest.raises(NotFenceable, match="not started"):
            fenced(engine.connect(), fence, lease)
        async with (
            engine_of(engine.url) as other,
            AsyncSession(engine) as session,
            fenced(session, fence, lease),
        ):
            await write_33(session)
            with pytest.raises(NotFenceable, match="one database"):
                await session.execute(INSERT_33, bind_arguments={"bind": other.sync_engine})
        assert await lines(engine) == [33]

    run(test)


def test_s3_an_engine_in_autocommit_mode_is_refused(postgres: sa.URL) -> None:
    async def test() -> None:
        async with (
            engine_of(postgres, isolation_level="AUTOCOMMIT") as engine,
            engine.connect() as connection,
        ):
            with pytest.raises(NotFenceable, match="AUTOCOMMIT"):
                async with fenced(connection, SqlFence(engine), GivenLease(33)):
                    await write_33(connection)

    asyncio.run(test())


@pytest.mark.parametrize("moment", ["between statements", "in a statement"])
def test_a_cancelled_task_rolls_back_and_leaves_its_pool_clean(url: sa.URL, moment: str) -> None:
    async def test() -> None:
        async with engine_of(url, **({} if "sqlite" in url.drivername else {"pool_size": 1})) as engine:
            fence = SqlFence(engine)
            await fence.install(GivenLease(33))
            written = asyncio.Event()

            async def work() -> None:
                async with AsyncSession(engine) as session, fenced(session, fence, GivenLease(33)):
                    await write_33(session)
                    written.set()
                    if moment == "between statements":
                        await asyncio.Event().wait()
                    while True:
                        await session.execute(sa.select(journal))

            task = asyncio.create_task(work())
            await written.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await fence.install(GivenLease(34), timeout=0.5)  # nothing holds the mark any more
            async with fence.write(GivenLease(34)) as connection:
                await connection.execute(journal.insert().values(token=34))
            assert await lines(engine) == [34]

    asyncio.run(test())


def test_g10_an_async_reader_reads_and_writes_nothing(run: Runner) -> None:
    async def test(engine: AsyncEngine) -> None:
        fence, shared = SqlFence(engine), GivenLease(33, mode="shared")
        await fence.install(shared)
        async with AsyncSession(engine) as session:
            async with fenced(session, fence, shared, access="read"):
                assert (await session.scalars(sa.select(journal.c.token))).all() == []
            with pytest.raises(WrongMode, match="read"):
                async with fenced(session, fence, shared, access="read"):
                    await write_33(session)
        async with engine.begin() as connection:
            await write_33(connection)  # what made it read-only has not stayed on the connection
        assert await lines(engine) == [33]

    run(test)


def test_the_decorator_awaits_the_install(run: Runner) -> None:
    async def test(engine: AsyncEngine) -> None:
        fence, lease = SqlFence(engine), GivenLease(33)

        @asynccontextmanager
        async def held(_name: str) -> AsyncIterator[GivenLease]:
            yield lease

        async def work() -> None:
            async with AsyncSession(engine) as session, fenced(session, fence, lease):
                await write_33(session)

        locked: Callable[[], Awaitable[None]] = lock_calls(
            work, "orders", open_block=None, open_async_block=held, on_busy="raise", fence=fence
        )
        await locked()
        assert await lines(engine) == [33]

    run(test)


def test_s5_an_async_install_ends_those_who_block_it(postgres: sa.URL) -> None:
    async def work(session: AsyncSession, fence: AsyncSqlFence) -> None:
        async with fenced(session, fence, GivenLease(33)):
            await write_33(session)
            await fence.install(GivenLease(34), timeout=0.1)
            await write_33(session)

    async def test(engine: AsyncEngine) -> None:
        fence = SqlFence(engine)
        await fence.install(GivenLease(33))
        async with AsyncSession(engine) as session:
            with pytest.raises(StaleToken) as refused:
                await work(session, fence)
            assert refused.value.mark == 34
        assert await lines(engine) == []

    asyncio.run(on(postgres, test))


def test_s5_a_paused_async_holder_without_a_successor_has_lost_its_lease(postgres: sa.URL) -> None:
    async def work(session: AsyncSession, fence: AsyncSqlFence, lease: GivenLease) -> None:
        async with fenced(session, fence, lease):
            await write_33(session)
            await nobody_idles(session)
            lease.seconds = 0
            await write_33(session)

    async def test(engine: AsyncEngine) -> None:
        fence, lease = SqlFence(engine), GivenLease(33)
        await fence.install(lease)
        lease.seconds = 0.05
        async with AsyncSession(engine) as session:
            with pytest.raises(LeaseLost):
                await work(session, fence, lease)
        assert await lines(engine) == []

    asyncio.run(on(postgres, test))


async def nobody_idles(session: AsyncSession) -> None:
    engine = session.bind
    assert isinstance(engine, AsyncEngine)
    query = sa.text("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'")
    async with engine.connect() as connection:
        while await connection.scalar(query):
            await connection.rollback()


def test_s9_a_lost_reply_to_an_async_commit_is_an_unknown_outcome(postgres: sa.URL) -> None:
    # As it is sent: each BEGIN of an install ends in READ COMMITTED.
    commit = b"COMMIT;" if "asyncpg" in postgres.drivername else b"COMMIT\0"

    async def lose_the_reply(session: AsyncSession, fence: AsyncSqlFence, proxy: LossyProxy) -> None:
        async with fenced(session, fence, GivenLease(33)):
            await write_33(session)
            proxy.lose = commit

    async def test(engine: AsyncEngine) -> None:
        await SqlFence(engine).install(GivenLease(33))
        assert postgres.port is not None
        with lossy_proxy(postgres.port) as proxy:
            async with engine_of(postgres.set(port=proxy.port)) as behind, AsyncSession(behind) as session:
                fence = SqlFence(behind)
                with pytest.raises(OutcomeUnknown):
                    await lose_the_reply(session, fence, proxy)
                with pytest.raises(OutcomeUnknown):
                    await fence.install(GivenLease(34))
                proxy.lose = None
                await fence.install(GivenLease(34))
                proxy.lose = GivenLease(35).fence.encode()
                with pytest.raises(Unavailable):
                    await fence.install(GivenLease(35))
        assert await lines(engine) == [33]  # it was applied, and the writer can't know

    asyncio.run(on(postgres, test))
