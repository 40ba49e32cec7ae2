"""Watches a Session or a Connection for the length of a block, and checks each transaction it begins.

What is checked is a `Condition`: the marks of a fence (`held`), or a row of the scheduler's. The
listeners are registered once, for all engines and sessions of the process, and look into one table
for whether a block is there: registering them anew for each block would cost more than the check.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, Transaction, event
from sqlalchemy.engine import TwoPhaseTransaction
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction

from lockd_storage.errors import NotFenceable

SECOND_BIND = "a fenced session may use one database: commits in two can't be one step"


class Condition(Protocol):
    """What must hold of every transaction of a block. Each method may refuse by raising."""

    def open(self, connection: Connection) -> None:
        """The first step of a transaction, at the outermost level."""
        ...

    def close(self, connection: Connection) -> None:
        """The last step before its COMMIT. A refusal here rolls it back."""
        ...

    def ended(self, connection: Connection) -> None:
        """COMMIT or ROLLBACK is next: take back what would outlive the transaction."""
        ...

    def explain(self, error: DBAPIError, engine: Engine) -> Exception | None:
        """What a database error that ended the block means, or None. The transaction is over."""
        ...


class FencedBlock:
    """One `with fenced(...)`: its target, and what has been checked so far.

    A transaction is identified by SQLAlchemy's root Transaction object. It is checked before its
    first statement, at the outermost level: a lock taken inside a savepoint would go with it
    (SAFETY S3). One that was refused stays refused, also when the caller swallows the error.
    """

    def __init__(self, target: Session | Connection, condition: Condition) -> None:
        self._target = target
        self._condition = condition
        self._checked: Transaction | None = None
        self._refused: tuple[Transaction | None, BaseException] | None = None
        self._checking = False
        self._beginning = False
        self._root: SessionTransaction | None = None
        self._engine: Engine | None = None
        self._connections: list[Connection] = []

    @contextmanager
    def around(self) -> Iterator[None]:
        """Check what the target begins, commit at the end, roll back and explain on an error."""
        self.enter()
        try:
            yield
        except BaseException as error:
            self.leave(error)
            raise
        self.leave(None)

    def enter(self) -> None:
        """Begin to watch. Raises NotFenceable for a target that has begun already."""
        _refuse_open_transaction(self._target)
        if self._target in _WATCHED:
            raise NotFenceable("this is inside a fenced() block already: give one block all of the leases")
        _WATCHED[self._target] = self

    def leave(self, error: BaseException | None) -> None:
        """Commit, or roll back because of `error`, and watch no longer.

        Raises what the commit raised, or what an error means for the fence; returns if it means nothing.
        """
        try:
            if error is None:
                self._commit()
            else:
                self._roll_back(error)
        finally:
            self._forget_connections()
            _WATCHED.pop(self._target, None)

    def _commit(self) -> None:
        try:
            self._target.commit()
        except BaseException as error:
            self._roll_back(error)
            raise

    def _roll_back(self, error: BaseException) -> None:
        # Without its connection the transaction can't commit either; the first error counts.
        with suppress(DBAPIError):
            self._target.rollback()
        if not isinstance(error, DBAPIError):
            return
        reason = None if self._engine is None else self._condition.explain(error, self._engine)
        if reason is not None:
            raise reason from error

    def session_began(self, transaction: SessionTransaction, connection: Connection) -> None:
        """The session has taken a connection for its transaction: check it before anybody uses it."""
        if transaction.nested:
            return
        second_bind, self._root = transaction is self._root, transaction
        if not second_bind:
            self._forget_connections()
        if _WATCHED.get(connection, self) is not self:
            raise NotFenceable("the session's connection is inside another fenced() block")
        # Watched too, since the session won't call us again for a connection that was refused.
        _WATCHED[connection] = self
        self._connections.append(connection)
        if second_bind:
            self._refused = (connection.get_transaction(), NotFenceable(SECOND_BIND))
        self._admit(connection)

    def connection_begins(self) -> None:
        """BEGIN is next: what an engine's own listeners then say comes before the first statement."""
        self._beginning = True

    def statement_comes(self, connection: Connection) -> None:
        """A statement is about to be sent: check its transaction, and begin it if there is none."""
        if connection.get_transaction() is None:
            if self._beginning or self._checking:
                return
            connection.begin()
        self._beginning = False
        self._admit(connection)

    def commit_comes(self, connection: Connection) -> None:
        """COMMIT is next. A transaction in which nothing was sent was not checked, and needs not be."""
        transaction = connection.get_transaction()
        if transaction is not self._checked:
            return
        self._checking = True
        try:
            self._condition.close(connection)
            self._condition.ended(connection)
        except BaseException as error:
            self._refused, self._checked = (transaction, error), None
            # SQLAlchemy takes the transaction for ended, whatever a listener raises.
            if not connection.invalidated:
                connection.connection.rollback()
            raise
        finally:
            self._checking = False

    def rollback_comes(self, connection: Connection) -> None:
        """ROLLBACK is next."""
        if connection.get_transaction() is self._checked and not connection.invalidated:
            with suppress(DBAPIError):  # a connection that is gone keeps nothing
                self._condition.ended(connection)

    def _admit(self, connection: Connection) -> None:
        """Return if the connection's transaction has been checked; check it if nobody did."""
        transaction = connection.get_transaction()
        if self._checking or transaction is self._checked:
            return
        if self._refused is not None and self._refused[0] is transaction:
            raise self._refused[1]
        self._checking = True
        self._engine = connection.engine
        try:
            _refuse_unheld(connection)
            self._condition.open(connection)
        except BaseException as error:
            self._refused = (transaction, error)
            raise
        finally:
            self._checking = False
        self._checked = transaction

    def _forget_connections(self) -> None:
        for connection in self._connections:
            _WATCHED.pop(connection, None)
        self._connections.clear()


_WATCHED: dict[Session | Connection, FencedBlock] = {}


@event.listens_for(Session, "after_begin")
def _session_began(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    if (block := _WATCHED.get(session)) is not None:
        block.session_began(transaction, connection)


@event.listens_for(Engine, "begin")
def _connection_begins(connection: Connection) -> None:
    if (block := _WATCHED.get(connection)) is not None:
        block.connection_begins()


# The first comes before the application's own listeners for Core's statements, such as the net that
# refuses writes outside a fence; the second comes for plain text as well.
@event.listens_for(Engine, "before_execute")
@event.listens_for(Engine, "before_cursor_execute")
def _statement_comes(connection: Connection, *_: Any) -> None:
    if (block := _WATCHED.get(connection)) is not None:
        block.statement_comes(connection)


@event.listens_for(Engine, "commit")
def _commit_comes(connection: Connection) -> None:
    if (block := _WATCHED.get(connection)) is not None:
        block.commit_comes(connection)


@event.listens_for(Engine, "rollback")
def _rollback_comes(connection: Connection) -> None:
    if (block := _WATCHED.get(connection)) is not None:
        block.rollback_comes(connection)


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
