"""The column that remembers under which token a row was written."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from lockd_storage import fenced
from lockd_storage.sqlalchemy.audit import token_column
from tests.storage.leases import GivenLease
from tests.storage.stores import SqlStore

HIGH = 2**53 - 1


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "audited"
    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[int]
    lockd_token = token_column()


pairs = sa.Table(
    "pairs", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), token_column("by", resource="b")
)


@pytest.fixture
def audited(sql: SqlStore) -> Iterator[SqlStore]:
    Base.metadata.create_all(sql.engine)
    pairs.create(sql.engine)
    for token, resource in ((33, "a"), (HIGH, "b")):
        sql.fence.install(GivenLease(token, lock=resource))
    yield sql
    pairs.drop(sql.engine)
    Base.metadata.drop_all(sql.engine)


def tokens(store: SqlStore) -> list[int | None]:
    with store.engine.connect() as connection:
        return list(connection.scalars(sa.select(Order.lockd_token).order_by(Order.id)))


def test_pitfall_17_rows_remember_the_token_with_all_its_bits(audited: SqlStore) -> None:
    with fenced(Session(audited.engine), audited.fence, GivenLease(33, lock="a")) as session:
        session.add_all([Order(id=1, price=1), Order(id=2, price=1)])
    assert tokens(audited) == [33, 33]
    with fenced(Session(audited.engine), audited.fence, GivenLease(HIGH, lock="b"), check="late") as session:
        session.execute(sa.update(Order).where(Order.id == 2).values(price=2))
    assert tokens(audited) == [33, HIGH]


def test_a_write_outside_a_fence_shows(audited: SqlStore) -> None:
    with audited.fence.write(GivenLease(33, lock="a")) as connection:
        connection.execute(sa.insert(Order).values(id=1, price=1))
    with audited.engine.begin() as connection:  # maybe on the same connection of the pool
        connection.execute(sa.update(Order).values(price=2))
    assert tokens(audited) == [None]


def test_of_several_leases_the_named_one_is_remembered(audited: SqlStore) -> None:
    leases = (GivenLease(33, lock="a"), GivenLease(HIGH, lock="b"))
    with audited.engine.connect() as connection, fenced(connection, audited.fence, *leases):
        connection.execute(sa.insert(Order).values(id=1, price=1))
        connection.execute(sa.insert(pairs).values(id=1))
        assert connection.scalar(sa.select(pairs.c.by)) == HIGH
    assert tokens(audited) == [None]
