"""Watches a Session or a Connection for the length of a block, and checks each transaction it begins."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import Connection, Transaction, event
from sqlalchemy.engine import TwoPhaseTransaction
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session, SessionTransaction

from lockd.errors import LeaseLost, LockdError, OutcomeUnknown, StaleToken
from lockd_storage.errors import NotFenceable, NotInstalled, WrongCluster
from lockd_storage.fencing import Mark, check_deadline, judge_write
from lockd_storage.sqlalchemy.marks import Bounds, Grant, MarkStore, milliseconds, read_mark
from lockd_storage.sqlalchemy.postgresql import CANCELED, IDLE_TIMEOUT, sqlstate

STATEMENT_HOOK = "before_cursor_execute"
BEGIN_HOOK = "after_begin"
SECOND_BIND = "a fenced session may use one database: commits in two can't be one step"


class FencedBlock:
    """One `with fenced(...)`: which leases, and what has been checked so far.

    A transaction is identified by SQLAlchemy's root Transaction object. It is checked before its
    first statement, at the outermost level: a lock taken inside a savepoint would go with it
    (SAFETY S3). One that was refused stays refused, also when the caller swallows the error.
    """

    def __init__(
        self,
        store: MarkStore,
        grants: Sequence[Grant],
        *,
        read_now: Callable[[str], Mark | None],
        idle_timeout: float | None,
        statement_timeout: float | None,
    ) -> None:
        self._store = store
        self._grants = sorted(grants, key=lambda grant: grant.resource)  # one order, so no deadlock
        self._read_now = read_now
        self._idle_timeout = idle_timeout
        self._statement_timeout = statement_timeout
        self._checked: Transaction | None = None
        self._refused: tuple[Transaction | None, BaseException] | None = None
        self._checking = False
        self._root: SessionTransaction | None = None
        self._closed: list[Connection] = []

    @contextmanager
    def around(self, target: Session | Connection) -> Iterator[None]:
        """Check what `target` begins, commit at the end, roll back and explain on an error."""
        _refuse_open_transaction(target)
        with self._watching(target):
            try:
                yield
                target.commit()
            except BaseException as error:
                # Without its connection the transaction can't commit either; the body's error counts.
                with suppress(DBAPIError):
                    target.rollback()
                reason = self._explain(error)
                if reason is None:
                    raise
                raise reason from error

    @contextmanager
    def _watching(self, target: Session | Connection) -> Iterator[None]:
        hook: Callable[..., None]
        name, hook = (
            (BEGIN_HOOK, self._on_begin)
            if isinstance(target, Session)
            else (STATEMENT_HOOK, self._on_statement)
        )
        event.listen(target, name, hook)
        try:
            yield
        finally:
            event.remove(target, name, hook)
            for connection in self._closed:
                event.remove(connection, STATEMENT_HOOK, self._on_statement)

    def _on_begin(self, session: Session, transaction: SessionTransaction, connection: Connection) -> None:  # noqa: ARG002
        if transaction.nested:
            return
        second_bind, self._root = transaction is self._root, transaction
        try:
            if second_bind:
                self._refused = (connection.get_transaction(), NotFenceable(SECOND_BIND))
            self._admit(connection)
        except BaseException:
            # The session has the connection already and won't call us for it again.
            event.listen(connection, STATEMENT_HOOK, self._on_statement)
            self._closed.append(connection)
            raise

    def _on_statement(self, connection: Connection, *_: Any) -> None:
        # Without a transaction it is an engine's own "begin" listener that speaks, as in SQLAlchemy's
        # BEGIN recipe for SQLite: the transaction's first statement is yet to come.
        transaction = connection.get_transaction()
        if transaction is not None and transaction is not self._checked:
            self._admit(connection)

    def _admit(self, connection: Connection) -> None:
        """Return if the connection's transaction has been checked; check it if nobody did."""
        transaction = connection.get_transaction()
        if self._checking or transaction is self._checked:
            return
        if self._refused is not None and self._refused[0] is transaction:
            raise self._refused[1]
        self._checking = True
        try:
            self._check(connection)
        except BaseException as error:
            self._refused = (transaction, error)
            raise
        finally:
            self._checking = False
        self._checked = transaction

    def _check(self, connection: Connection) -> None:
        _refuse_unheld(connection)
        for grant in self._grants:
            if grant.lease.remaining() <= 0:
                # Nothing begins after the deadline (SAFETY S3). If someone newer is there, say who:
                # read without a lock, so that ended leases can't keep the new holder waiting.
                judge_write(read_mark(connection, grant.resource), resource=grant.resource, fence=grant.fence)
                check_deadline(grant.lease)
        bounds = self._bounds()
        for grant in self._grants:
            self._store.begin(connection, grant, bounds)

    def _bounds(self) -> Bounds:
        remaining = min(grant.lease.remaining() for grant in self._grants)
        return Bounds(
            idle_ms=milliseconds(remaining if self._idle_timeout is None else self._idle_timeout),
            statement_ms=milliseconds(
                remaining if self._statement_timeout is None else self._statement_timeout
            ),
        )

    def _explain(self, error: BaseException) -> LockdError | None:
        """What a database error means for the lease, or None if it means nothing for it."""
        if not isinstance(error, DBAPIError):
            return None
        state = sqlstate(error)
        if error.connection_invalidated and error.statement is None and state != IDLE_TIMEOUT:
            return OutcomeUnknown("the reply to COMMIT was lost: the transaction may have been applied")
        if error.connection_invalidated or state == IDLE_TIMEOUT:
            newer = self._newer_holder()
            if newer is not None:
                return newer
        for grant in self._grants:
            ended = grant.lease.remaining() <= 0
            if state == IDLE_TIMEOUT or (ended and (state == CANCELED or error.connection_invalidated)):
                return LeaseLost(
                    f"the database ended a transaction under lock {grant.lease.lock!r}, token"
                    f" {grant.fence.token}, that stood still for too long: {error.orig}",
                    lock=grant.lease.lock,
                    token=grant.fence.token,
                )
        return None

    def _newer_holder(self) -> LockdError | None:
        for grant in self._grants:
            try:
                judge_write(self._read_now(grant.resource), resource=grant.resource, fence=grant.fence)
            except (StaleToken, NotInstalled, WrongCluster) as refusal:
                return refusal
            except SQLAlchemyError:
                return None  # the database is still out of reach: its first error is all that is known
        return None


def _refuse_open_transaction(target: Session | Connection) -> None:
    bind = target.bind if isinstance(target, Session) else None
    if target.in_transaction() or (isinstance(bind, Connection) and bind.in_transaction()):
        raise NotFenceable(
            "a transaction is already open: it may have read before the check."
            " Commit or roll it back, or enter fenced() before the first use"
        )


def _refuse_unheld(connection: Connection) -> None:
    """Refuse a connection whose transaction would not hold the mark until its commit."""
    if isinstance(connection.get_transaction(), TwoPhaseTransaction):
        raise NotFenceable("a prepared transaction outlives every bound: two-phase commits can't be fenced")
    autocommit = getattr(connection.connection.dbapi_connection, "autocommit", False)
    if autocommit is True or connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        raise NotFenceable("in AUTOCOMMIT mode nothing holds the mark until the write is done")
