"""`fenced` around Sessions and Connections, on SQLite and PostgreSQL (SAFETY S3)."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session

from lockd.errors import LeaseLost, StaleToken
from lockd_storage import NotFenceable, NotInstalled, fenced
from lockd_storage.sqlalchemy import SqlFence
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


@pytest.fixture
def session(sql: SqlStore) -> Iterator[Session]:
    with Session(sql.engine) as session:
        yield session


def test_a_session_commits_when_the_block_is_left(sql: SqlStore, session: Session, lease: GivenLease) -> None:
    with fenced(session, sql.fence, lease) as same:
        assert same is session
        session.add(Line(token=33))
    assert sql.lines() == [33]


def test_an_error_of_the_body_rolls_back_and_is_never_masked(
    sql: SqlStore, session: Session, lease: GivenLease
) -> None:
    def work() -> None:
        with fenced(session, sql.fence, lease):
            session.add(Line(token=33))
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert sql.lines() == []


def test_a_database_error_that_says_nothing_of_the_lease_stays_what_it_is(
    sql: SqlStore, session: Session, lease: GivenLease
) -> None:
    with pytest.raises(sa.exc.IntegrityError), fenced(session, sql.fence, lease):
        session.execute(sa.insert(journal), [{"id": 1, "token": 33}, {"id": 1, "token": 33}])
    assert sql.lines() == []


def test_s3_every_transaction_of_the_block_is_checked(
    sql: SqlStore, session: Session, lease: GivenLease
) -> None:
    def work() -> None:
        with fenced(session, sql.fence, lease):
            session.add(Line(token=33))
            session.commit()
            sql.fence.install(GivenLease(34))
            session.add(Line(token=33))
            session.flush()

    with pytest.raises(StaleToken):
        work()
    assert sql.lines() == [33]


def test_s3_a_session_that_swallows_the_refusal_still_writes_nothing(
    sql: SqlStore, session: Session, lease: GivenLease
) -> None:
    sql.fence.install(GivenLease(34))
    with fenced(session, sql.fence, lease):
        for _ in range(2):
            with pytest.raises(StaleToken):
                session.execute(journal.insert().values(token=33))
        with pytest.raises(StaleToken):
            session.connection().exec_driver_sql("INSERT INTO journal (token) VALUES (33)")
    assert sql.lines() == []


def test_s3_a_connection_that_swallows_the_refusal_still_writes_nothing(
    sql: SqlStore, lease: GivenLease
) -> None:
    sql.fence.install(GivenLease(34))
    with sql.engine.connect() as connection, fenced(connection, sql.fence, lease):
        for _ in range(2):
            with pytest.raises(StaleToken):
                connection.exec_driver_sql("INSERT INTO journal (token) VALUES (33)")
        connection.commit()
        with pytest.raises(StaleToken):
            connection.exec_driver_sql("INSERT INTO journal (token) VALUES (33)")
    assert sql.lines() == []


def test_s3_every_transaction_of_a_connection_is_checked(sql: SqlStore, lease: GivenLease) -> None:
    def work(connection: sa.Connection) -> None:
        with fenced(connection, sql.fence, lease):
            connection.execute(journal.insert().values(token=33))
            connection.commit()
            sql.fence.install(GivenLease(34))
            connection.execute(journal.insert().values(token=33))

    with sql.engine.connect() as connection:
        with pytest.raises(StaleToken):
            work(connection)
        connection.execute(journal.insert().values(token=0))  # outside, nothing is watched any more
        connection.commit()
    assert sql.lines() == [33, 0]


def test_s3_a_session_on_a_connection_is_checked_and_let_go(sql: SqlStore, lease: GivenLease) -> None:
    with sql.engine.connect() as connection, Session(connection) as session:
        sql.fence.install(GivenLease(34))
        with pytest.raises(StaleToken), fenced(session, sql.fence, lease):
            session.execute(journal.insert().values(token=33))
        with fenced(session, sql.fence, GivenLease(34)):
            session.execute(journal.insert().values(token=34))
    assert sql.lines() == [34]


def test_s3_savepoints_neither_check_again_nor_let_the_mark_go(
    sql: SqlStore, session: Session, lease: GivenLease
) -> None:
    with fenced(session, sql.fence, lease):
        savepoint = session.begin_nested()
        session.add(Line(token=1))
        session.flush()
        savepoint.rollback()
        # The transaction's first act was inside the savepoint that is gone; the mark must be held.
        session.add(Line(token=33))
        session.flush()
        assert not can_install_at_once(sql, GivenLease(34))
    assert sql.lines() == [33]


def test_s3_a_connections_savepoint_comes_after_the_check(sql: SqlStore, lease: GivenLease) -> None:
    with sql.engine.connect() as connection, fenced(connection, sql.fence, lease):
        nested = connection.begin_nested()
        connection.execute(journal.insert().values(token=1))
        nested.rollback()
        connection.execute(journal.insert().values(token=33))
        assert not can_install_at_once(sql, GivenLease(34))
    assert sql.lines() == [33]


def test_s3_an_open_transaction_is_refused(sql: SqlStore, session: Session, lease: GivenLease) -> None:
    session.execute(sa.select(journal))
    with pytest.raises(NotFenceable), fenced(session, sql.fence, lease):
        pytest.fail("entered")
    session.rollback()
    with sql.engine.begin() as connection:
        with pytest.raises(NotFenceable), fenced(connection, sql.fence, lease):
            pytest.fail("entered")
        with pytest.raises(NotFenceable), fenced(Session(connection), sql.fence, lease):
            pytest.fail("entered")


def test_s3_autocommit_is_refused(sql: SqlStore, lease: GivenLease) -> None:
    automatic = sql.engine.execution_options(isolation_level="AUTOCOMMIT")
    with Session(automatic) as session:
        with pytest.raises(NotFenceable), fenced(session, sql.fence, lease):
            session.execute(journal.insert().values(token=33))
        with fenced(session, sql.fence, lease), pytest.raises(NotFenceable):
            session.execute(journal.insert().values(token=33))
    with Session(sql.engine) as session, pytest.raises(NotFenceable), fenced(session, sql.fence, lease):
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
    with automatic.connect() as connection, pytest.raises(NotFenceable), fenced(connection, sql.fence, lease):
        connection.execute(journal.insert().values(token=33))
    assert sql.lines() == []


def test_s3_a_second_bind_is_refused_and_the_first_goes_on(sql: SqlStore, lease: GivenLease) -> None:
    other = sa.create_engine(sql.engine.url)
    with Session(sql.engine) as session, fenced(session, sql.fence, lease):
        session.execute(journal.insert().values(token=33))
        for _ in range(2):
            with pytest.raises(NotFenceable):
                session.execute(journal.insert().values(token=33), bind_arguments={"bind": other})
        session.execute(journal.insert().values(token=33))
    other.dispose()
    assert sql.lines() == [33, 33]


def test_s3_no_transaction_begins_after_the_deadline(
    sql: SqlStore, session: Session, lease: GivenLease
) -> None:
    def work() -> None:
        with fenced(session, sql.fence, lease):
            session.add(Line(token=33))
            session.commit()
            lease.seconds = 0
            session.add(Line(token=33))

    with pytest.raises(LeaseLost):
        work()
    assert sql.lines() == [33]


def test_a_transaction_that_began_in_time_may_commit(
    sql: SqlStore, session: Session, lease: GivenLease
) -> None:
    with fenced(session, sql.fence, lease):
        session.add(Line(token=33))
        session.flush()
        lease.seconds = 0  # nobody newer can have installed: this transaction holds the mark
    assert sql.lines() == [33]


def test_several_leases_must_all_be_current(sql: SqlStore, session: Session, lease: GivenLease) -> None:
    stock = GivenLease(40, lock="stock")
    sql.fence.install(stock)
    with fenced(session, sql.fence, stock, lease):
        session.add(Line(token=33))
    sql.fence.install(GivenLease(41, lock="stock"))
    with pytest.raises(StaleToken) as refused, fenced(session, sql.fence, lease, stock):
        session.add(Line(token=33))
    assert refused.value.resource == "stock"
    sql.fence.install(GivenLease(34))
    with pytest.raises(StaleToken) as refused, fenced(session, sql.fence, stock, lease):
        session.add(Line(token=33))
    assert refused.value.resource == "orders"  # whatever their order here, marks are taken in one order
    with pytest.raises(ValueError, match="resource="):
        fenced(session, sql.fence, lease, stock, resource="orders")
    assert sql.lines() == [33]


def test_a_session_is_usable_after_the_block(sql: SqlStore, session: Session, lease: GivenLease) -> None:
    line = Line(token=33)
    with fenced(session, sql.fence, lease):
        session.add(line)
    sql.fence.install(GivenLease(34))
    assert line.token == 33
    session.rollback()
    with pytest.raises(StaleToken), fenced(session, sql.fence, lease):
        session.delete(line)
    with fenced(session, sql.fence, GivenLease(34)):
        session.delete(session.get_one(Line, line.id))
    assert sql.lines() == []


def test_a_database_without_the_store_says_what_to_call(sql: SqlStore, lease: GivenLease) -> None:
    with sql.engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("DROP FUNCTION lockd_fence_begin, lockd_fence_install")
        connection.exec_driver_sql("DROP TABLE lockd_fence")
    with pytest.raises(NotInstalled, match=r"schema\.upgrade"), sql.fence.write(lease) as connection:
        sql.add(connection, lease)
    with pytest.raises(NotInstalled, match=r"schema\.upgrade"):
        sql.fence.install(GivenLease(34))


def test_other_databases_are_refused_by_name() -> None:
    with pytest.raises(NotFenceable, match="oracle"):
        SqlFence(sa.create_mock_engine("oracle://", lambda *_: None))  # type: ignore[call-overload]


def can_install_at_once(sql: SqlStore, lease: GivenLease) -> bool:
    """Whether the mark is free to move: asked of the row lock itself, so that nobody is ended for it."""
    try:
        with sql.engine.connect() as connection:
            if connection.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA busy_timeout = 0")
                connection.rollback()
            else:
                connection.exec_driver_sql("SET LOCAL lock_timeout = '50ms'")
            connection.exec_driver_sql(f"UPDATE lockd_fence SET token = {lease.token}")
            connection.rollback()
    except sa.exc.OperationalError:
        return False
    return True
