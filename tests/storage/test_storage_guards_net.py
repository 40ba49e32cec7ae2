"""The net in Python, and SQLite's triggers: which ways to write they see (SAFETY S6)."""

import asyncio
import gc
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from lockd_storage import OutsideFence, fenced
from lockd_storage.sqlalchemy import SqlFence
from lockd_storage.sqlalchemy.guards import Guard, declared_guard, guard_engine, sqlite
from lockd_storage.sqlalchemy.guards.triggers import clause, triggers
from tests.storage.leases import GivenLease
from tests.storage.stores import SqlStore

LEASE = GivenLease(33)


class Base(DeclarativeBase):
    pass


class Tag(Base):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(primary_key=True)


tagged = sa.Table(
    "tagged",
    Base.metadata,
    sa.Column("purchase", sa.ForeignKey("purchases.id"), primary_key=True),
    sa.Column("tag", sa.ForeignKey("tags.id"), primary_key=True),
    info={"lockd_guard": "orders"},
)


class Purchase(Base):
    __tablename__ = "purchases"
    __table_args__ = {"info": {"lockd_guard": "orders"}}  # noqa: RUF012  as SQLAlchemy reads it
    id: Mapped[int] = mapped_column(primary_key=True)
    total: Mapped[int] = mapped_column(default=0)
    tags: Mapped[list[Tag]] = relationship(secondary=tagged)


TABLE = Base.metadata.tables["purchases"]


@pytest.fixture
def guarded(sql: SqlStore) -> SqlStore:
    """A database with one row of each table; the net is spread, the database itself refuses nothing."""
    Base.metadata.create_all(sql.engine)
    with Session(sql.engine) as session:
        session.add_all([Purchase(id=1), Tag(id=1)])
        session.commit()
    guard_engine(sql.engine)
    sql.fence.install(LEASE)
    return sql


def attribute(session: Session) -> None:
    session.get_one(Purchase, 1).total = 5
    session.flush()


def remove(session: Session) -> None:
    session.delete(session.get_one(Purchase, 1))
    session.flush()


def many_to_many(session: Session) -> None:
    purchase = session.get_one(Purchase, 1)
    purchase.tags.append(session.get_one(Tag, 1))
    session.flush()


def add(session: Session) -> None:
    session.add(Purchase(id=2))
    session.flush()


def add_many(session: Session) -> None:
    session.add_all([Purchase(id=2), Purchase(id=3)])
    session.flush()


WAYS: dict[str, Callable[[Session], Any]] = {
    "add": add,
    "add, several": add_many,
    "attribute": attribute,
    "delete": remove,
    "m2m secondary": many_to_many,
    "bulk_save_objects": lambda s: s.bulk_save_objects([Purchase(id=2)]),
    "bulk_insert_mappings": lambda s: s.bulk_insert_mappings(sa.inspect(Purchase), [{"id": 2, "total": 1}]),
    "bulk_update_mappings": lambda s: s.bulk_update_mappings(sa.inspect(Purchase), [{"id": 1, "total": 1}]),
    "execute(update(Model))": lambda s: s.execute(sa.update(Purchase).values(total=1)),
    "execute(delete(Model))": lambda s: s.execute(sa.delete(Purchase)),
    "execute(insert(Model), many)": lambda s: s.execute(sa.insert(Purchase), [{"id": 2}, {"id": 3}]),
    "query.update": lambda s: s.query(Purchase).update({"total": 1}),
    "Table.update()": lambda s: s.execute(TABLE.update().values(total=1)),
    "connection().execute": lambda s: s.connection().execute(TABLE.update().values(total=1)),
    "executemany": lambda s: s.connection().execute(TABLE.insert(), [{"id": 2}, {"id": 3}]),
    "INSERT .. FROM SELECT": lambda s: s.execute(
        TABLE.insert().from_select(["id", "total"], sa.select(TABLE.c.id + 9, TABLE.c.total))
    ),
}
IN_TEXT: dict[str, Callable[[Session], Any]] = {
    "text()": lambda s: s.execute(sa.text("UPDATE purchases SET total = 1")),
    "exec_driver_sql": lambda s: s.connection().exec_driver_sql("UPDATE purchases SET total = 1"),
}


def in_a_with(session: Session) -> None:
    gone = sa.delete(TABLE).returning(TABLE.c.id).cte("gone")
    session.execute(sa.select(gone.c.id))


def test_s6_the_net_refuses_whatever_sqlalchemy_builds_and_lets_it_pass_inside(guarded: SqlStore) -> None:
    ways = dict(WAYS)
    if guarded.engine.dialect.name == "postgresql":
        ways["a WITH that deletes"] = in_a_with
    for name, way in ways.items():
        for _ in range(2):  # SQLAlchemy takes the second from its cache
            with Session(guarded.engine) as session, pytest.raises(OutsideFence) as error:
                way(session)
            assert "is guarded by resource 'orders'" in str(error.value), name
        with Session(guarded.engine) as session, pytest.raises(RollBack), in_fence(guarded, session):
            leave_no_trace(way, session)


class RollBack(Exception):
    pass


def leave_no_trace(way: Callable[[Session], Any], session: Session) -> None:
    """So that the next way finds the same rows."""
    way(session)
    raise RollBack


def in_fence(store: SqlStore, session: Session) -> Any:
    return fenced(session, store.fence, LEASE)


def test_s6_what_is_in_text_passes_the_net_and_is_stopped_by_the_database(guarded: SqlStore) -> None:
    for way in IN_TEXT.values():
        with Session(guarded.engine) as session:
            way(session)
    guard = declared_guard(TABLE)
    assert guard is not None
    make(guarded, guard)
    for way in IN_TEXT.values():
        with (
            Session(guarded.engine) as session,
            pytest.raises(OutsideFence, match="needs the fence") as error,
        ):
            way(session)
        assert error.value.resource == "orders"
        with Session(guarded.engine) as session, in_fence(guarded, session):
            way(session)


def make(store: SqlStore, guard: Guard) -> None:
    with store.engine.begin() as connection:
        for statement in triggers(store.engine.dialect.name).create(guard):
            connection.execute(clause(statement))


def test_reading_and_other_tables_pass_the_net(guarded: SqlStore) -> None:
    with Session(guarded.engine) as session:
        assert session.scalars(sa.select(Purchase.id)).all() == [1]
        session.add(Tag(id=2))
        session.flush()


def test_s6_after_the_block_and_after_its_commit_the_net_is_closed_again(guarded: SqlStore) -> None:
    with guarded.engine.connect() as connection:
        with fenced(connection, guarded.fence, LEASE):
            connection.execute(TABLE.update().values(total=1))
            connection.commit()
            connection.execute(TABLE.update().values(total=2))
        with pytest.raises(OutsideFence):
            connection.execute(TABLE.update().values(total=3))


def test_pitfall_20_what_a_connection_still_carries_of_an_ended_transaction_opens_nothing(
    guarded: SqlStore,
) -> None:
    with guarded.engine.connect() as connection:
        with connection.begin() as ended:
            connection.info["lockd_fenced"] = (ended, frozenset({"orders"}))
        with pytest.raises(OutsideFence):
            connection.execute(TABLE.update().values(total=3))
        del connection.info["lockd_fenced"]


def test_pitfall_15_the_net_names_the_fence_that_is_held_and_the_one_that_is_needed(
    guarded: SqlStore,
) -> None:
    bills = GivenLease(34, lock="bills")
    guarded.fence.install(bills)
    with (
        Session(guarded.engine) as session,
        pytest.raises(OutsideFence, match=r"guarded by resource 'orders', .* holds the fences of 'bills'"),
        fenced(session, guarded.fence, bills),
    ):
        add(session)


def test_a_second_guarding_of_an_engine_changes_nothing(guarded: SqlStore) -> None:
    guard_engine(guarded.engine)
    guard_engine(guarded.engine)
    with Session(guarded.engine) as session, in_fence(guarded, session):
        add(session)


def test_s6_an_engine_in_the_place_of_one_that_is_gone_is_guarded_too() -> None:
    """Python gives a new object the id() of an old one; the old one's dialect lives on in caches."""
    old = [sa.create_engine("sqlite://") for _ in range(300)]
    for engine in old:
        guard_engine(engine)
    dialects, ids = [engine.dialect for engine in old], {id(engine) for engine in old}
    del engine
    old.clear()
    gc.collect()
    new = [sa.create_engine("sqlite://") for _ in range(600)]
    for engine in [engine for engine in new if id(engine) in ids]:
        guard_engine(engine)
        Base.metadata.create_all(engine)
        with Session(engine) as session, pytest.raises(OutsideFence):
            add(session)
    assert len(dialects) == 300


def test_s6_the_net_is_spread_for_an_async_engine_too(sqlite_store: SqlStore) -> None:
    asyncio.run(write_through_an_async_engine(sqlite_store))


async def write_through_an_async_engine(sqlite_store: SqlStore) -> None:
    Base.metadata.create_all(sqlite_store.engine)
    sqlite_store.fence.install(LEASE)
    make(sqlite_store, Guard("purchases", "orders"))
    engine = create_async_engine(sqlite_store.engine.url.set(drivername="sqlite+aiosqlite"))
    guard_engine(engine)
    async with engine.connect() as connection:
        with pytest.raises(OutsideFence, match="is guarded by resource"):
            await connection.execute(TABLE.insert().values(id=2))
        with pytest.raises(OutsideFence, match="needs the fence"):
            await connection.exec_driver_sql("INSERT INTO purchases (id, total) VALUES (2, 1)")
        await connection.rollback()
        async with fenced(connection, SqlFence(engine), LEASE):
            await connection.execute(TABLE.insert().values(id=2))
            await connection.exec_driver_sql("INSERT INTO purchases (id, total) VALUES (3, 1)")
    await engine.dispose()


@pytest.fixture
def rows(sqlite_store: SqlStore) -> SqlStore:
    guard_engine(sqlite_store.engine)
    with sqlite_store.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE rows (id INTEGER PRIMARY KEY, name TEXT UNIQUE, n INT)")
        connection.exec_driver_sql("INSERT INTO rows VALUES (1, 'a', 0), (2, 'b', 0)")
    return sqlite_store


def elsewhere(store: SqlStore) -> sqlite3.Connection:
    return sqlite3.connect(str(store.engine.url.database))


SQLITE_WRITES = (
    "UPDATE rows SET n = 1",
    "UPDATE rows SET n = 1 WHERE id = 99",
    "DELETE FROM rows",
    "INSERT INTO rows VALUES (3, 'c', 0)",
    "INSERT OR REPLACE INTO rows VALUES (1, 'a', 5)",
    "INSERT OR IGNORE INTO rows VALUES (4, 'd', 5)",
    "INSERT INTO rows VALUES (1, 'a', 5) ON CONFLICT DO UPDATE SET n = 6",
)


def test_s6_sqlite_refuses_every_write_of_a_connection_that_is_not_ours(rows: SqlStore) -> None:
    make(rows, Guard("rows", "orders"))
    plain = elsewhere(rows)
    for write in SQLITE_WRITES:
        with pytest.raises(sqlite3.OperationalError, match="no such function: lockd_fenced"):
            plain.execute(write)
    assert plain.execute("SELECT count(*) FROM rows").fetchone() == (2,)
    plain.close()


@pytest.mark.parametrize("resource", ["orders", "orders:*"])
def test_s6_sqlite_refuses_ours_outside_a_fence_and_lets_them_pass_inside(
    rows: SqlStore, resource: str
) -> None:
    make(rows, Guard("rows", resource))
    lease = GivenLease(33, lock=resource.replace("*", "7"))
    rows.fence.install(lease)
    for write in SQLITE_WRITES:
        with rows.engine.connect() as connection:
            if "99" in write:  # no row: triggers here are by row, and nothing is changed
                connection.exec_driver_sql(write)
                connection.rollback()
            else:
                with pytest.raises(OutsideFence):
                    connection.exec_driver_sql(write)
        with rows.fence.write(lease) as connection:
            connection.exec_driver_sql(write)


def test_s6_sqlite_rows_need_their_own_fences_also_those_with_a_number_to_come(rows: SqlStore) -> None:
    make(rows, Guard("rows", "r:{id}"))
    for lock in ("r:1", "r:3"):
        rows.fence.install(GivenLease(33, lock=lock))
    with rows.fence.write(GivenLease(33, lock="r:3")) as connection:
        connection.exec_driver_sql("INSERT INTO rows (name) VALUES ('c')")  # gets the id 3
    for write in (
        "UPDATE rows SET n = 1",
        "UPDATE rows SET id = 9 WHERE id = 1",
        "DELETE FROM rows WHERE id = 2",
    ):
        with pytest.raises(OutsideFence), rows.fence.write(GivenLease(33, lock="r:1")) as connection:
            connection.exec_driver_sql(write)
    with rows.fence.write(GivenLease(33, lock="r:1")) as connection:
        connection.exec_driver_sql("DELETE FROM rows WHERE id = 1")


def test_s6_sqlite_known_limits_are_as_written_down(rows: SqlStore) -> None:
    make(rows, Guard("rows", "r:{id}"))
    rows.fence.install(GivenLease(33, lock="r:1"))
    pushes_out_row_2 = "INSERT OR REPLACE INTO rows VALUES (1, 'b', 5)"
    with rows.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA recursive_triggers = ON")
        connection.rollback()
        with pytest.raises(OutsideFence), fenced(connection, rows.fence, GivenLease(33, lock="r:1")):
            connection.exec_driver_sql(pushes_out_row_2)
    with rows.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA recursive_triggers = OFF")
        connection.rollback()
        with fenced(connection, rows.fence, GivenLease(33, lock="r:1")):
            connection.exec_driver_sql(pushes_out_row_2)  # not seen
    plain = elsewhere(rows)
    plain.create_function("lockd_fenced", 1, lambda _resource: True)
    plain.execute("UPDATE rows SET n = 7")  # a function of that name
    plain.execute("PRAGMA trusted_schema = OFF")
    with pytest.raises(sqlite3.OperationalError, match="unsafe use of lockd_fenced"):
        plain.execute("UPDATE rows SET n = 8")
    plain.execute("DROP TRIGGER lockd_guard_update_rows")
    plain.execute("UPDATE rows SET n = 9")
    plain.close()


def test_sqlite_guards_are_read_back_as_they_were_made(rows: SqlStore) -> None:
    for made in (Guard("rows", "orders"), Guard("rows", "o'r:{id}", truncate=False), Guard("rows", "a:%s:*")):
        make(rows, made)
        with rows.engine.connect() as connection:
            assert sqlite.existing(connection) == [made]


@pytest.mark.parametrize(
    "resource", ["", "*", "a*b", "{a}{b}", "{", "}a", "{}", "a{b}*", "x\x1f", "ü" * 300, 5, None]
)
def test_a_resource_that_can_not_be_meant_is_refused(resource: Any) -> None:
    with pytest.raises(ValueError, match="resource"):
        Guard("orders", resource)


def test_a_guard_needs_plain_names_and_a_level_that_there_is() -> None:
    for values in ({"table": ""}, {"schema": "a\nb"}, {"level": "column"}):
        with pytest.raises(ValueError, match=r"of a guard is"):
            Guard(**{"table": "orders", "resource": "orders", **values})  # type: ignore[arg-type]
