"""What `SqlFence` needs from a database, and the reading of marks that is alike in all of them."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar, Literal, Protocol

from sqlalchemy import Connection, Engine, bindparam, select
from sqlalchemy.exc import DBAPIError

from lockd.ids import ClusterId, Fence, FencingToken, Incarnation
from lockd_storage.errors import NotInstalled
from lockd_storage.fencing import HeldLease, Mark, lock_of
from lockd_storage.tables import fence_marks

INTERVAL_MS_MAX = 2**31 - 1

Access = Literal["write", "read"]
Check = Literal["early", "late"]


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease as it is presented for one resource."""

    lease: HeldLease
    resource: str
    fence: Fence

    @property
    def lock(self) -> str:
        """The lock that guards the resource."""
        return lock_of(self.lease, self.resource)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long a fenced transaction may stand still (SAFETY S5)."""

    idle_ms: int
    statement_ms: int


class Symptom(Enum):
    """What a database's error says of the fence around it."""

    STOOD_STILL = auto()
    """The server ended the transaction because it was idle for too long."""
    TOO_SLOW = auto()
    """A statement ran into its time limit, or was cancelled."""
    READ_ONLY = auto()
    """A write in a transaction that may only read, or a mark asked for in one (a replica)."""


class MarkStore(Protocol):
    """The verbs in one SQL dialect.

    Written for blocking drivers. Behind an asyncio engine the same code runs in SQLAlchemy's
    greenlet, with the engine's blocking face; what must run beside it goes through `beside`.
    """

    adapter: ClassVar[str]
    """Its label in the metrics of rejects: "postgresql"."""
    dialects: ClassVar[tuple[str, ...]]
    """SQLAlchemy's names of the databases that it speaks to."""

    def install(self, engine: Engine, grant: Grant, *, timeout: float) -> Mark:
        """Raise the mark in a committed transaction of its own. Raises as `FencePort.install`."""
        ...

    def begin(self, connection: Connection, grant: Grant, bounds: Bounds) -> None:
        """Compare, hold the mark until the transaction ends, and bound the transaction.

        It is the transaction's first step, or its last with a late check. With several grants it is
        called once for each, sorted by resource. Raises StaleToken, NotInstalled, WrongCluster.
        """
        ...

    def bound(self, connection: Connection, bounds: Bounds) -> None:
        """Bound a transaction that begins here and is checked late. Nothing, where that can't be done."""
        ...

    def read(self, connection: Connection, grant: Grant, bounds: Bounds) -> None:
        """As `begin`, for a transaction that will only read: several of them share the mark."""
        ...

    def forbid_writes(self, connection: Connection) -> None:
        """Let this transaction, whose marks have been compared, only read from here on."""
        ...

    def allow_writes(self, connection: Connection) -> None:
        """Undo what `forbid_writes` left on the connection, as its transaction is about to end."""
        ...

    def symptom(self, error: DBAPIError) -> Symptom | None:
        """What a database error means for the transaction's fence, or None."""
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
        "this database has no fence store, or an older one: call lockd_storage.schema.upgrade(engine)"
        f" ({error.orig})",
        resource=resource,
    )


_READ_MARK = select(
    fence_marks.c.lock, fence_marks.c.cluster, fence_marks.c.incarnation, fence_marks.c.token
).where(fence_marks.c.resource == bindparam("resource"))
