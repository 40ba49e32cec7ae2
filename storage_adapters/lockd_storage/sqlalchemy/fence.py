"""`SqlFence`, the fence of one database, and `fenced`, the block in which its holder writes."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from lockd_storage.errors import NotFenceable
from lockd_storage.fencing import (
    INSTALL_SECONDS,
    HeldLease,
    Mark,
    check_deadline,
    presented_fence,
    resource_of,
    writing_fence,
)
from lockd_storage.sqlalchemy.block import FencedBlock
from lockd_storage.sqlalchemy.marks import Grant, MarkStore, read_mark
from lockd_storage.sqlalchemy.postgresql import PostgresMarks
from lockd_storage.sqlalchemy.sqlite import SqliteMarks

STORES: dict[str, type[MarkStore]] = {"postgresql": PostgresMarks, "sqlite": SqliteMarks}

TargetT = TypeVar("TargetT", Session, Connection)


class SqlFence:
    """The marks in one database. A `FencePort`; cheap to make, safe to share between threads.

    `cluster` pins the lockd cluster whose leases are taken; without it the first install of each
    resource does. Raises NotFenceable for a database that this version can't fence.
    """

    def __init__(self, engine: Engine, *, cluster: str | None = None) -> None:
        if engine.dialect.name not in STORES:
            raise NotFenceable(f"SqlFence knows {', '.join(sorted(STORES))}, not {engine.dialect.name}")
        self._engine = engine
        self._cluster = cluster
        self._store = STORES[engine.dialect.name]()

    def install(
        self, lease: HeldLease, resource: str | None = None, *, timeout: float = INSTALL_SECONDS
    ) -> Mark:
        """Make the lease's token the mark of `resource`. See `FencePort.install`.

        Call it right after acquiring and before reading: rows read earlier may still be changed
        by the previous holder. On PostgreSQL its transactions that have not ended after `timeout`
        seconds are ended by the server; that needs the same role, or pg_signal_backend.
        """
        check_deadline(lease)
        name = resource_of(lease, resource)
        fence = presented_fence(lease, resource=name, cluster=self._cluster)
        return self._store.install(self._engine, Grant(lease, name, fence), timeout=timeout)

    def mark(self, resource: str) -> Mark | None:
        """See `FencePort.mark`."""
        with self._engine.connect() as connection:
            return read_mark(connection, resource)

    @contextmanager
    def write(self, lease: HeldLease, resource: str | None = None) -> Iterator[Connection]:
        """A fenced Connection of the fence's own engine, committed and closed at the end."""
        with self._engine.connect() as connection, fenced(connection, self, lease, resource=resource):
            yield connection

    def block(
        self,
        leases: tuple[HeldLease, ...],
        *,
        resource: str | None,
        idle_timeout: float | None,
        statement_timeout: float | None,
    ) -> FencedBlock:
        """What `fenced` wraps around its target."""
        if resource is not None and len(leases) > 1:
            raise ValueError("resource= names the resource of one lease; several guard those of their locks")
        return FencedBlock(
            self._store,
            [self._writing(lease, resource) for lease in leases],
            read_now=self.mark,
            idle_timeout=idle_timeout,
            statement_timeout=statement_timeout,
        )

    def _writing(self, lease: HeldLease, resource: str | None) -> Grant:
        name = resource_of(lease, resource)
        return Grant(lease, name, writing_fence(lease, resource=name, cluster=self._cluster))


def fenced(
    target: TargetT,
    fence: SqlFence,
    lease: HeldLease,
    *more_leases: HeldLease,
    resource: str | None = None,
    idle_timeout: float | None = None,
    statement_timeout: float | None = None,
) -> AbstractContextManager[TargetT]:
    """A block in which every transaction of a Session or Connection is held to the lease's token.

    Each transaction that `target` begins inside is checked first and holds the mark until it ends,
    so no newer holder comes between the check and the commit (SAFETY S3). The block commits when it
    is left, and rolls back on an error; a commit inside ends one transaction, and the next is
    checked again. With several leases all must be current. The target is not closed.

    On PostgreSQL a transaction may stand idle for `idle_timeout` seconds and a statement may run for
    `statement_timeout`, then the server ends it; both are what the lease has left when the
    transaction begins, unless told (SAFETY S5). A tighter limit of the session stays.

    Raises, from the first statement of a transaction or on leaving:
    StaleToken: someone newer has installed. Nothing of this transaction was written.
    NotInstalled, WrongCluster: `install` was not called here, or not with this lease.
    WrongMode: the lease is shared or a semaphore's, which may not write (SAFETY G10).
    LeaseLost: the lease's deadline has passed, or the server ended a transaction that stood still.
    OutcomeUnknown: the reply to the COMMIT was lost; it may have been applied (SAFETY S9).
    NotFenceable: AUTOCOMMIT, a second database, two-phase, or a transaction that was open before.
    Anything else is the body's or the database's own error, unchanged.

    What goes around SQLAlchemy goes around the check: a driver's own cursor or commit() is not seen.
    """
    block = fence.block(
        (lease, *more_leases),
        resource=resource,
        idle_timeout=idle_timeout,
        statement_timeout=statement_timeout,
    )
    return _entered(block, target)


@contextmanager
def _entered(block: FencedBlock, target: TargetT) -> Iterator[TargetT]:
    with block.around(target):
        yield target
