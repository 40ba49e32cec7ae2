"""How a fenced transaction can end or be entered otherwise than through `fenced` (SAFETY S3)."""

import asyncio

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session

from lockd.errors import StaleToken, Unavailable
from lockd_storage import NotFenceable, NotInstalled, fenced
from lockd_storage.sqlalchemy import SqlFence
from lockd_storage.sqlalchemy.marks import Check
from tests.storage.leases import GivenLease
from tests.storage.stores import SqlStore, journal


class Base(DeclarativeBase):
    pass


class Line(Base):
    __table__ = journal
    id: Mapped[int]
    token: Mapped[int]


@pytest.fixture
def lease(sql: SqlStore) -> GivenLease:
    lease = GivenLease(33)
    sql.fence.install(lease)
    return lease


@pytest.mark.parametrize("words", ["COMMIT", " -- enough\n/* of it */ rollback", "ROLLBACK WORK"])
def test_s3_sql_text_that_ends_the_transaction_is_refused(
    sql: SqlStore, lease: GivenLease, words: str
) -> None:
    def work(session: Session) -> None:
        with fenced(session, sql.fence, lease):
            session.add(Line(token=33))
            session.flush()
            with pytest.raises(NotFenceable):
                session.execute(sa.text(words))
            session.add(Line(token=33))  # still in the transaction that was checked

    with Session(sql.engine) as session:
        work(session)
        assert sql.lines() == [33, 33]


def test_s3_savepoints_may_be_sql_text(sql: SqlStore, lease: GivenLease) -> None:
    with sql.engine.connect() as connection, fenced(connection, sql.fence, lease):
        connection.exec_driver_sql("SAVEPOINT here")
        connection.execute(journal.insert().values(token=33))
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT here")
    assert sql.lines() == []


@pytest.mark.parametrize("check", ["early", "late"])
@pytest.mark.parametrize("join", ["conditional_savepoint", "create_savepoint"])
def test_s3_a_session_joins_no_transaction_that_would_commit_after_the_block(
    sql: SqlStore, lease: GivenLease, check: Check, join: str
) -> None:
    def work(connection: sa.Connection, session: Session) -> None:
        with fenced(session, sql.fence, lease, check=check):
            connection.execute(sa.select(1))
            session.add(Line(token=33))

    with sql.engine.connect() as connection:
        session = Session(connection, join_transaction_mode=join)  # type: ignore[arg-type]  # two of its words
        with pytest.raises(NotFenceable, match="already open"):
            work(connection, session)
        connection.rollback()
    assert sql.lines() == []


def test_a_session_that_never_begins_by_itself_is_left_in_peace(sql: SqlStore, lease: GivenLease) -> None:
    with Session(sql.engine, autobegin=False) as session, fenced(session, sql.fence, lease):
        with session.begin():
            session.add(Line(token=33))
        assert sql.lines() == [33]


def test_an_error_of_a_hook_after_the_commit_is_not_masked(sql: SqlStore, lease: GivenLease) -> None:
    session = Session(sql.engine)

    @event.listens_for(session, "after_commit")
    def fail(_: Session) -> None:
        raise ZeroDivisionError

    with session:
        with pytest.raises(ZeroDivisionError), fenced(session, sql.fence, lease):
            session.add(Line(token=33))
        assert sql.lines() == [33]


def test_a_session_of_another_kind_of_database_is_refused(sql: SqlStore, lease: GivenLease) -> None:
    fence = SqlFence(sa.create_engine("postgresql+psycopg://")) if sql.engine.name == "sqlite" else sql.fence
    with (
        sa.create_engine("sqlite://").connect() as connection,
        pytest.raises(NotFenceable, match="this is sqlite"),
        fenced(connection, fence, lease),
    ):
        connection.execute(sa.select(1))


def test_the_mark_that_a_refusal_tells_is_not_read_from_the_name(sql: SqlStore) -> None:
    name = "a\nmark 7\nb"
    sql.fence.install(GivenLease(34, lock=name))
    with pytest.raises(StaleToken) as refused:
        sql.fence.install(GivenLease(33, lock=name))
    assert refused.value.mark == 34


def test_a_store_of_an_older_version_says_what_to_call(sql: SqlStore) -> None:
    if sql.engine.dialect.name == "postgresql":
        return  # there the function is of the store's own version
    with sql.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE lockd_fence_floor DROP COLUMN cluster")
    with pytest.raises(NotInstalled, match="or an older one: call"):
        sql.fence.install(GivenLease(34))


@pytest.mark.parametrize("driver", ["postgresql+asyncpg", "postgresql+psycopg", "mysql+asyncmy"])
def test_an_asyncio_driver_that_reaches_nobody_is_unavailable(driver: str) -> None:
    async def install() -> None:
        engine = create_async_engine(f"{driver}://nobody@127.0.0.1:1/none")
        try:
            await SqlFence(engine).install(GivenLease(33))
        finally:
            await engine.dispose()

    with pytest.raises(Unavailable, match="can't be reached"):
        asyncio.run(install())
