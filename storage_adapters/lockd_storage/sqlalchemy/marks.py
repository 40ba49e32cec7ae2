"""What `SqlFence` needs from a database, and the reading of marks that is alike in all of them."""

from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import Connection, Engine, bindparam, select
from sqlalchemy.exc import DBAPIError

from lockd.ids import ClusterId, Fence, FencingToken, Incarnation
from lockd_storage.errors import NotInstalled
from lockd_storage.fencing import HeldLease, Mark
from lockd_storage.tables import fence_marks

INTERVAL_MS_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease as it is presented for one resource."""

    lease: HeldLease
    resource: str
    fence: Fence


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long a fenced transaction may stand still (SAFETY S5)."""

    idle_ms: int
    statement_ms: int


class MarkStore(Protocol):
    """The two verbs in one SQL dialect."""

    def install(self, engine: Engine, grant: Grant, *, timeout: float) -> Mark:
        """Raise the mark in a committed transaction of its own. Raises as `FencePort.install`."""
        ...

    def begin(self, connection: Connection, grant: Grant, bounds: Bounds) -> None:
        """As the first step of a transaction: compare, and hold the mark until the transaction ends.

        Raises StaleToken, NotInstalled, WrongCluster.
        """
        ...


def read_mark(connection: Connection, resource: str) -> Mark | None:
    """The mark as this transaction sees it, without holding it."""
    row = connection.execute(_READ_MARK, {"resource": resource}).one_or_none()
    if row is None:
        return None
    fence = Fence(ClusterId(row.cluster), Incarnation(row.incarnation), FencingToken(row.token))
    return Mark(resource, row.lock, fence)


def milliseconds(seconds: float) -> int:
    """Whole milliseconds that a server takes as a limit: 0 would switch the limit off."""
    return int(max(1, min(seconds * 1000, INTERVAL_MS_MAX)))


def no_store(resource: str, error: DBAPIError) -> NotInstalled:
    """The refusal for a database that has no fence store."""
    return NotInstalled(
        f"this database has no fence store: call lockd_storage.schema.upgrade(engine) ({error.orig})",
        resource=resource,
    )


_READ_MARK = select(
    fence_marks.c.lock, fence_marks.c.cluster, fence_marks.c.incarnation, fence_marks.c.token
).where(fence_marks.c.resource == bindparam("resource"))
