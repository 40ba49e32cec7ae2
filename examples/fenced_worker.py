"""A worker whose writes are refused once its lock has passed on. Needs `pip install 'lockd[sqlalchemy]'`."""

import sys

from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine
from sqlalchemy.orm import Session

import lockd
from lockd_storage import fenced
from lockd_storage.schema import upgrade
from lockd_storage.sqlalchemy import SqlFence

orders = Table(
    "orders",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("state", String(20), nullable=False),
)


def main(database: str) -> None:
    """Close order 1 under the lock `orders`, and say under which token."""
    engine = create_engine(database)
    upgrade(engine)  # lockd's own tables; does nothing when they are there
    orders.metadata.create_all(engine)
    fence = SqlFence(engine)

    with lockd.Client(ttl=10) as client, client.lock("orders", wait=5) as lease:
        fence.install(lease)  # from here on, nobody with an older token can write
        with fenced(Session(engine), fence, lease) as session:
            session.execute(orders.delete().where(orders.c.id == 1))
            session.execute(orders.insert().values(id=1, state="closed"))
        print(f"order 1 is closed, under token {lease.token}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "sqlite:///orders.db")
