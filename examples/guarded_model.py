"""An existing model that takes writes under a fence only. Needs `pip install 'lockd[sqlalchemy]'`.

Five lines, marked (1) to (5), and one migration: that is what a program without fences needs.
"""

import sys

from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import lockd
from lockd_storage import OutsideFence, fenced
from lockd_storage.sqlalchemy import SqlFence
from lockd_storage.sqlalchemy.guards import guard_engine


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    __table_args__ = ({"info": {"lockd_guard": "orders"}},)  # (1) which fence a write needs
    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str]


def migrate(engine: Engine) -> None:
    """What `alembic revision --autogenerate` writes into a project whose env.py names "lockd.fences"."""
    with engine.begin() as connection:
        op = Operations(MigrationContext.configure(connection))
        op.create_fence_store()
        op.guard_table("orders", resource="orders")


def main(database: str) -> None:
    """Write as before, which is refused, then close order 1 under the lock `orders`."""
    engine = create_engine(database)
    Base.metadata.create_all(engine)
    migrate(engine)
    guard_engine(engine)  # (2) the same refusal from Python, earlier and with better words
    fence = SqlFence(engine)  # (3)

    try:
        with Session(engine) as session:
            session.execute(text("INSERT INTO orders (id, state) VALUES (2, 'new')"))
    except OutsideFence as refusal:
        print(f"refused: {refusal}")

    with lockd.Client(ttl=10) as client, client.lock("orders", wait=5) as lease:
        fence.install(lease)  # (4)
        with fenced(Session(engine), fence, lease) as session:  # (5)
            session.merge(Order(id=1, state="closed"))
        print(f"order 1 is closed, under token {lease.token}")
    engine.dispose()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "sqlite:///guarded.db")
