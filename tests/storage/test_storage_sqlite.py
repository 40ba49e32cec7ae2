"""What the SQLite adapter does beyond the contract: it takes the write lock however the engine begins."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from lockd.errors import StaleToken, Unavailable
from lockd_storage import fenced
from lockd_storage.sqlalchemy import SqlFence
from tests.storage.leases import GivenLease
from tests.storage.stores import SqlStore, journal, sql_store, sqlite_url


def with_begin_recipe(engine: sa.Engine) -> sa.Engine:
    """SQLAlchemy's documented recipe: the driver begins nothing, the engine says BEGIN."""

    @sa.event.listens_for(engine, "connect")
    def leave_it_to_us(connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


def with_write_ahead_log(engine: sa.Engine) -> sa.Engine:
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode = wal")
    return engine


@pytest.fixture(params=["driver begins", "BEGIN recipe", "write-ahead log", "both"])
def engine(request: pytest.FixtureRequest, sqlite_store: SqlStore) -> Iterator[sa.Engine]:
    engine = sa.create_engine(sqlite_store.engine.url)
    if request.param in ("write-ahead log", "both"):
        engine = with_write_ahead_log(engine)
    if request.param in ("BEGIN recipe", "both"):
        engine = with_begin_recipe(engine)
    yield engine
    engine.dispose()


def test_s3_the_write_lock_is_held_from_the_check_to_the_commit(engine: sa.Engine) -> None:
    fence = SqlFence(engine)
    fence.install(GivenLease(33))
    with Session(engine) as session, fenced(session, fence, GivenLease(33)):
        session.scalars(sa.select(journal.c.id)).all()  # nothing but a read: the lock came with the check
        with pytest.raises(Unavailable):
            fence.install(GivenLease(34), timeout=0.01)
        session.execute(journal.insert().values(token=33))
    fence.install(GivenLease(34))
    with Session(engine) as session, pytest.raises(StaleToken), fenced(session, fence, GivenLease(33)):
        session.execute(journal.insert().values(token=33))
    with engine.connect() as connection:
        assert connection.scalars(sa.select(journal.c.token)).all() == [33]


def test_the_engine_keeps_its_own_ways(engine: sa.Engine) -> None:
    fence = SqlFence(engine)
    with engine.connect() as connection:
        before = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
    fence.install(GivenLease(33), timeout=0.25)
    with fence.write(GivenLease(33)) as connection:
        for _ in range(2):
            connection.execute(journal.insert().values(token=33))
            connection.commit()
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == before
        connection.execute(journal.insert().values(token=0))
        connection.rollback()
        assert connection.scalars(sa.select(journal.c.token)).all() == [33, 33]


def test_s1_two_installs_do_not_interleave(engine: sa.Engine) -> None:
    """34 must not be written over a 35 that came between 34's look at the mark and its write."""
    second = sa.create_engine(engine.url)
    fence, other = SqlFence(engine), SqlFence(second)
    fence.install(GivenLease(33))
    refused: list[Unavailable] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def install_35_meanwhile(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE lockd_fence"):
            with pytest.raises(Unavailable) as error:
                other.install(GivenLease(35), timeout=0.01)
            refused.append(error.value)

    fence.install(GivenLease(34))
    assert refused
    sa.event.remove(engine, "before_cursor_execute", install_35_meanwhile)
    other.install(GivenLease(35))
    second.dispose()


def test_s2_a_token_at_or_under_the_floor_is_not_installed(sql: SqlStore) -> None:
    with sql.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE lockd_fence_floor SET token = 33")
    with pytest.raises(StaleToken) as refused:
        sql.fence.install(GivenLease(33))
    assert refused.value.mark == 33
    assert sql.fence.install(GivenLease(34)).token == 34


def test_a_database_in_memory_works_too() -> None:
    with sql_store("sqlite://") as store:
        store.fence.install(GivenLease(33))
        with store.fence.write(GivenLease(33)) as connection:
            store.add(connection, GivenLease(33))
        assert store.lines() == [33]


def test_an_existing_file_is_made_ready_in_place(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "data.db") as existing:
        existing.execute("CREATE TABLE mine (a)")
    existing.close()
    with sql_store(sqlite_url(tmp_path)) as store:
        assert {"mine", "lockd_fence"} <= set(sa.inspect(store.engine).get_table_names())
