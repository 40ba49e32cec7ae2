"""Storage that refuses a writer whose lock has passed on.

A lease ends while its holder is paused; the holder wakes and writes. A lock can't stop that, the
storage can: it keeps, for each resource, the fencing token last installed there, and takes writes
under that token alone.

    fence = SqlFence(engine)                              # lockd_storage.sqlalchemy
    with client.lock("orders") as lease:
        fence.install(lease)                              # before reading anything
        with fenced(Session(engine), fence, lease) as session:
            session.execute(...)                          # StaleToken if someone newer has come

Promised: no write is applied whose token is not the one installed for its resource, while the store
keeps what it acknowledged (SAFETY P4). Once `install` has returned, no older holder's write becomes
visible. Refused: what can't be checked in one step with the write (AUTOCOMMIT, two databases, two-phase
commits). Not covered: effects outside the store, such as mail; write those to an outbox table in the
same transaction.

Start reading at `fencing`, the rule and the port. `memory` is the port's twin for tests. The adapters:
`sqlalchemy` (PostgreSQL, MariaDB and MySQL, SQLite; its `guards` make everybody write under a fence),
`redis`, `s3`, `filesystem`, `http`. `schema` makes the tables, `alembic` puts them and the guards into a
user's migrations, `upkeep` says what an operator may do, `rejects` what is told of refusals.
"""

from typing import TYPE_CHECKING, Any

from lockd_storage.errors import (
    MalformedToken,
    NotDurable,
    NotFenceable,
    NotInstalled,
    OutsideFence,
    WrongCluster,
    WrongLock,
    WrongMode,
)
from lockd_storage.fencing import FencePort, HeldLease, Mark

if TYPE_CHECKING:
    from lockd_storage.sqlalchemy import fenced

__all__ = [
    "FencePort",
    "HeldLease",
    "MalformedToken",
    "Mark",
    "NotDurable",
    "NotFenceable",
    "NotInstalled",
    "OutsideFence",
    "WrongCluster",
    "WrongLock",
    "WrongMode",
    "fenced",
]


def __getattr__(name: str) -> Any:
    # Loaded when asked for, so that the other adapters work without SQLAlchemy.
    if name == "fenced":
        from lockd_storage.sqlalchemy import fenced  # noqa: PLC0415

        return fenced
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
