"""`SqlFence`, the fence of one database, and `fenced`, the block in which its holder works."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from types import TracebackType
from typing import Any, Generic, TypeVar, overload

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from lockd.errors import LockdError
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
from lockd_storage.rejects import tell, told
from lockd_storage.sqlalchemy.block import FencedBlock, TargetT
from lockd_storage.sqlalchemy.held import HeldMarks
from lockd_storage.sqlalchemy.marks import Access, Check, Grant, MarkStore, read_mark
from lockd_storage.sqlalchemy.mysql import MysqlMarks
from lockd_storage.sqlalchemy.postgresql import PostgresMarks
from lockd_storage.sqlalchemy.sqlite import SqliteMarks

STORES: dict[str, Callable[[], MarkStore]] = {
    "mariadb": MysqlMarks,
    "mysql": MysqlMarks,
    "postgresql": PostgresMarks,
    "sqlite": SqliteMarks,
}

AsyncTargetT = TypeVar("AsyncTargetT", bound=AsyncSession | AsyncConnection)


class FencedDatabase:
    """What SqlFence and AsyncSqlFence know: the database, its dialect's verbs, the pinned cluster."""

    def __init__(self, engine: Engine | AsyncEngine, *, cluster: str | None = None) -> None:
        self._engine = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
        name = self._engine.dialect.name
        if name not in STORES:
            raise NotFenceable(f"SqlFence knows {', '.join(sorted(STORES))}, not {name}")
        self._cluster = cluster
        self._store = STORES[name]()

    def condition(
        self,
        leases: tuple[HeldLease, ...],
        *,
        resource: str | None,
        check: Check,
        access: Access,
        idle: float | None,
        statement_timeout: float | None,
    ) -> HeldMarks:
        """What `fenced` holds the transactions of its target to."""
        if resource is not None and len(leases) > 1:
            raise ValueError("resource= names the resource of one lease; several guard those of their locks")
        if check not in ("early", "late") or access not in ("write", "read"):
            raise ValueError(
                f'check is "early" or "late", access "write" or "read": not {check!r}, {access!r}'
            )
        if check == "late" and access == "read":
            raise ValueError('access="read" is checked early: what was read after that can be relied on')
        return HeldMarks(
            self._store,
            [self._grant(lease, resource, access) for lease in leases],
            check=check,
            access=access,
            idle=idle,
            statement_timeout=statement_timeout,
        )

    def _grant(self, lease: HeldLease, resource: str | None, access: Access) -> Grant:
        name = resource_of(lease, resource)
        allowed = writing_fence if access == "write" else presented_fence
        try:
            return Grant(lease, name, allowed(lease, resource=name, cluster=self._cluster))
        except LockdError as refusal:
            tell(refusal, adapter=self._store.adapter, resource=name)
            raise


class SqlFence(FencedDatabase):
    """The marks in one database. A `FencePort`; cheap to make, safe to share between threads.

    `cluster` pins the lockd cluster whose leases are taken; without it the first install of each
    resource does. Of an AsyncEngine it makes an AsyncSqlFence. Raises NotFenceable for a database
    that this version can't fence.
    """

    @overload
    def __new__(cls, engine: Engine, *, cluster: str | None = None) -> "SqlFence": ...
    @overload
    def __new__(cls, engine: AsyncEngine, *, cluster: str | None = None) -> "AsyncSqlFence": ...
    def __new__(cls, engine: Engine | AsyncEngine, *, cluster: str | None = None) -> "SqlFence":  # noqa: ARG004
        """An AsyncSqlFence for an AsyncEngine."""
        return super().__new__(AsyncSqlFence if isinstance(engine, AsyncEngine) else cls)

    def install(
        self, lease: HeldLease, resource: str | None = None, *, timeout: float = INSTALL_SECONDS
    ) -> Mark:
        """Make the lease's token the mark of `resource`. See `FencePort.install`.

        Call it right after acquiring and before reading: rows read earlier may still be changed
        by the previous holder. On PostgreSQL its transactions that have not ended after `timeout`
        seconds are ended by the server; that needs the same role, or pg_signal_backend.
        """
        name = resource_of(lease, resource)
        with told(self._store.adapter, name):
            check_deadline(lease)
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


class AsyncSqlFence(SqlFence):
    """A SqlFence of an AsyncEngine: the same verbs, awaited. Made by `SqlFence(async_engine)`."""

    async def install(  # type: ignore[override]  # the same verbs, awaited
        self,
        lease: HeldLease,
        resource: str | None = None,
        *,
        timeout: float = INSTALL_SECONDS,  # noqa: ASYNC109  the older writers' time, not the caller's
    ) -> Mark:
        """See `SqlFence.install`. Cancelled, it may or may not have installed: install again."""
        return await greenlet_spawn(super().install, lease, resource, timeout=timeout)

    async def mark(self, resource: str) -> Mark | None:  # type: ignore[override]
        """See `FencePort.mark`."""
        return await greenlet_spawn(super().mark, resource)

    @asynccontextmanager
    async def write(  # type: ignore[override]
        self, lease: HeldLease, resource: str | None = None
    ) -> AsyncIterator[AsyncConnection]:
        """A fenced AsyncConnection of the fence's own engine, committed and closed at the end."""
        async with (
            AsyncEngine(self._engine).connect() as connection,
            fenced(connection, self, lease, resource=resource),
        ):
            yield connection


@overload
def fenced(
    target: TargetT,
    fence: SqlFence,
    lease: HeldLease,
    *more_leases: HeldLease,
    resource: str | None = ...,
    check: Check = ...,
    access: Access = ...,
    idle: float | None = ...,
    statement_timeout: float | None = ...,
) -> AbstractContextManager[TargetT]: ...
@overload
def fenced(
    target: AsyncTargetT,
    fence: SqlFence,
    lease: HeldLease,
    *more_leases: HeldLease,
    resource: str | None = ...,
    check: Check = ...,
    access: Access = ...,
    idle: float | None = ...,
    statement_timeout: float | None = ...,
) -> AbstractAsyncContextManager[AsyncTargetT]: ...
def fenced(
    target: Any,
    fence: SqlFence,
    lease: HeldLease,
    *more_leases: HeldLease,
    resource: str | None = None,
    check: Check = "early",
    access: Access = "write",
    idle: float | None = None,
    statement_timeout: float | None = None,
) -> Any:
    """A block in which every transaction of a Session or Connection is held to the lease's token.

    Each transaction that `target` begins inside is checked first and holds the mark until it ends,
    so no newer holder comes between the check and the commit (SAFETY S3). The block commits when it
    is left, and rolls back on an error; a commit inside ends one transaction, and the next is
    checked again. With several leases all must be current. The target is not closed. An AsyncSession
    or AsyncConnection takes `async with`, and a fence of either kind; cancelled, it rolls back.

    `check="late"` compares as the last step before each COMMIT instead. A holder that is paused then
    keeps no successor from installing, only from the rows it has changed; work of a stale holder is
    done in vain, and the guards of a table, which ask for an early check, refuse it.

    `access="read"` is for a shared lease (SAFETY G10), or for an exclusive one that only reads: the
    transaction is checked, and can't write after that.

    On PostgreSQL a transaction may stand idle for `idle` seconds and a statement may run for
    `statement_timeout`, then the server ends it; both are what the lease has left when the
    transaction begins, unless told (SAFETY S5); with a late check it may idle for a minute at least.
    A tighter limit of the session stays.

    Raises, from the first statement of a transaction or on leaving:
    StaleToken: someone newer has installed. Nothing of this transaction was written.
    NotInstalled, WrongCluster: `install` was not called here, or not with this lease.
    WrongMode: a semaphore's lease; a shared one that is to write; a write under `access="read"`.
    LeaseLost: the lease's deadline has passed, or the server ended a transaction that stood still.
    OutcomeUnknown: the reply to the COMMIT was lost; it may have been applied (SAFETY S9).
    NotFenceable: AUTOCOMMIT, a second database, two-phase, a replica, a transaction that was open
    before, or SQL text that would end this one.
    Anything else is the body's or the database's own error, unchanged.

    What goes around SQLAlchemy goes around the check: a driver's own cursor or commit() is not seen, nor
    is a COMMIT behind another statement of the same text, or in a procedure of MariaDB's. What follows
    it the guards of a table refuse.
    """
    condition = fence.condition(
        (lease, *more_leases),
        resource=resource,
        check=check,
        access=access,
        idle=idle,
        statement_timeout=statement_timeout,
    )
    if isinstance(target, Session | Connection):
        return FencedBlock(target, condition)
    if isinstance(target, AsyncSession):
        return _AsyncFenced(target, FencedBlock(target.sync_session, condition))
    if isinstance(target, AsyncConnection):
        if target.sync_connection is None:
            raise NotFenceable("this AsyncConnection is not started: `async with engine.connect() as ...`")
        return _AsyncFenced(target, FencedBlock(target.sync_connection, condition))
    raise TypeError(
        f"fenced() takes a Session, Connection, AsyncSession or AsyncConnection, not a"
        f" {type(target).__name__}; of a scoped session, call it for the session behind it"
    )


class _AsyncFenced(Generic[AsyncTargetT]):
    def __init__(self, target: AsyncTargetT, block: FencedBlock[Any]) -> None:
        self._target = target
        self._block = block

    async def __aenter__(self) -> AsyncTargetT:
        self._block.__enter__()
        return self._target

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await greenlet_spawn(self._block.__exit__, kind, error, trace)
