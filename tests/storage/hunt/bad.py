"""Designs that are known to lose writes, put in on purpose: a hunt that misses one proves nothing.

Each is what people publish, or what a slip would make of ours, on the real server. They speak SQL by
themselves, so that a change of ours doesn't quietly repair them.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, ClassVar

import pymysql
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from lockd.errors import OutcomeUnknown, StaleToken
from lockd_storage import HeldLease
from tests.storage.hunt.arena import Book
from tests.storage.hunt.history import View, Write
from tests.storage.hunt.mariadb import MariadbArena
from tests.storage.hunt.postgresql import PostgresArena
from tests.storage.hunt.sql import SqlHands, Target, as_view, statement

_BEGIN = sa.text("SELECT lockd_fence_begin(:resource, :fence, 30000, 30000)")
_INSTALL = sa.text("SELECT lockd_fence_install(:resource, :resource, :fence)")
_IS_MARK = "EXISTS (SELECT 1 FROM lockd_fence WHERE resource = :resource AND token = :mine)"
_RAISE = sa.text(
    "INSERT INTO lockd_fence (resource, lock, cluster, incarnation, token)"
    " VALUES (:resource, :resource, :cluster, :incarnation, :token)"
    " ON CONFLICT (resource) DO UPDATE SET token = excluded.token WHERE lockd_fence.token <= excluded.token"
)


def _words(lease: HeldLease) -> dict[str, Any]:
    cluster, incarnation, _ = lease.fence.split("/")
    return {
        "resource": lease.lock,
        "fence": lease.fence,
        "cluster": cluster,
        "incarnation": incarnation,
        "token": lease.token,
        "mine": lease.token,
    }


def _run(target: Target, query: sa.TextClause, lease: HeldLease) -> Any:
    return target.execute(query.bindparams(**{name: _words(lease)[name] for name in query._bindparams}))


def _stale(lease: HeldLease) -> StaleToken:
    return StaleToken("refused", resource=lease.lock, presented=lease.token, mark=0)


class OwnCheck(SqlHands):
    """Hands that check by themselves what `fenced` would, at the beginning of a block."""

    @contextmanager
    def block(self, target: Any, book: Book) -> Iterator[None]:
        try:
            for lease in sorted(book.leases, key=lambda lease: lease.lock):
                self.check(target, lease)
            yield
            self.commit(target)
        except BaseException:
            target.rollback()
            raise

    def check(self, target: Target, lease: HeldLease) -> None: ...

    def commit(self, target: Target) -> None:
        try:
            target.commit()
        except DBAPIError as error:
            raise OutcomeUnknown("the reply to COMMIT was lost") from error


class UnlockedExists(OwnCheck):
    """The check is in the statement and locks nothing: PostgreSQL doesn't read the mark again."""

    def apply(self, target: Target, write: Write, book: Book) -> None:
        lease = next(lease for lease in book.leases if lease.lock == write.resource)
        is_mark = sa.text(_IS_MARK).bindparams(resource=lease.lock, mine=lease.token)
        plain = statement(write)
        if isinstance(plain, sa.Update):
            checked: Any = plain.where(is_mark)
        else:
            columns = list(plain.compile().params)
            values = [sa.literal(getattr(write, name)) for name in columns]
            checked = sa.insert(plain.table).from_select(columns, sa.select(*values).where(is_mark))
        if target.execute(checked).rowcount == 0:
            raise _stale(lease)


class OnlyTheFirstTransaction(OwnCheck):
    """The block's first transaction is checked, and those after a commit are not."""

    steps = (4, 8)  # more transactions to a block: it is found sooner

    def check(self, target: Target, lease: HeldLease) -> None:
        _run(target, _BEGIN, lease)


class MarkMovedAtFirstWrite(OwnCheck):
    """Acquiring installs nothing; each block raises the mark as it begins to write."""

    def install(self, lease: HeldLease) -> None: ...

    def check(self, target: Target, lease: HeldLease) -> None:
        _run(target, _INSTALL, lease)


class AutoAdvance(OwnCheck):
    """A write with a newer token moves the mark: a number too high shuts all others out."""

    def check(self, target: Target, lease: HeldLease) -> None:
        if _run(target, _RAISE, lease).rowcount == 0:
            raise _stale(lease)


class InstallAndWorkInOne(OwnCheck):
    """Installs, reads and begins to work in one REPEATABLE READ transaction.

    Its snapshot is older than its wait for the transactions of before. Later ones are checked as ours are.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._connection: sa.Connection | None = None

    def install(self, lease: HeldLease) -> None:
        if self._connection is None:
            self._connection = self.engine.execution_options(isolation_level="REPEATABLE READ").connect()
        try:
            self._connection.exec_driver_sql("SET LOCAL statement_timeout = '50ms'")
            if _run(self._connection, _RAISE, lease).rowcount == 0:
                raise _stale(lease)
        except BaseException:
            self.close()
            raise

    def look(self) -> View:
        if self._connection is None:
            return super().look()
        return as_view(self._connection.execute(self.places.view()).all())

    def work(self, book: Book) -> None:
        if self._connection is None:
            super().work(book)
        else:
            with closing(self._connection) as connection:
                self._connection = None
                self._write(connection, book)
                self.commit(connection)

    def check(self, target: Target, lease: HeldLease) -> None:
        _run(target, _BEGIN, lease)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class NoWriteLock(OwnCheck):
    """On SQLite: compares before the transaction has become the one writer."""

    def check(self, target: Target, lease: HeldLease) -> None:
        query = sa.text(f"SELECT 1 WHERE {_IS_MARK}")
        if _run(target, query, lease).one_or_none() is None:
            raise _stale(lease)


def weakened(arena: PostgresArena) -> PostgresArena:
    """The store's own function, with a KEY SHARE lock, which lets the mark move under a writer."""
    with arena.engine.begin() as connection:
        body = connection.exec_driver_sql("SELECT pg_get_functiondef('lockd_fence_begin'::regproc)")
        weaker = body.scalar_one().replace("FOR SHARE", "FOR KEY SHARE")
        assert weaker.count("FOR KEY SHARE") == 1
        connection.execute(sa.text(weaker.replace(":", r"\:")))
    return arena


class _ForgetfulCursor(pymysql.cursors.Cursor):
    def execute(self, query: str, args: Any = None) -> int:
        return super().execute(query.replace(", @lockd_fenced = NULL", ""), args)


class LeftoverVariable(MariadbArena):
    """What opens the guards stays on the session, for whoever gets the connection from the pool next."""

    connect_args: ClassVar[dict[str, Any]] = {"cursorclass": _ForgetfulCursor}


def behind_asyncio(hands: type[OwnCheck], awaited: type[SqlHands]) -> type[SqlHands]:
    """The same design, on a store of asyncio's."""
    return type(f"Async{hands.__name__}", (hands, awaited), {})
