"""How a fenced transaction can end or be entered otherwise than through `fenced` (SAFETY S3)."""

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session

from lockd_storage import NotFenceable, fenced
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
