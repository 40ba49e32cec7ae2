"""Watches a Session or a Connection for the length of a block, and checks each transaction it begins.

What is checked is a `Condition`: the marks of a fence (`held`), or a row of the scheduler's. Watching
must cost less than the check, and nothing outside of blocks. Listeners on an engine would be asked
for every statement of the process, and take longer to register than a check takes. So a Session tells
of its transactions through one listener for all sessions, and a Connection through its own `begin()`,
which SQLAlchemy calls for those that begin by themselves, too. Listeners come in where a transaction
was refused, or has something to do at its end; and one, on a dialect that was ever fenced, looks at SQL
that came as text, which could end the transaction behind SQLAlchemy's back.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, NoReturn, Protocol, TypeVar
from weakref import WeakSet

from sqlalchemy import Connection, Dialect, Engine, RootTransaction, Transaction, event
from sqlalchemy.engine import TwoPhaseTransaction
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session, SessionTransaction

from lockd_storage.errors import NotFenceable

TargetT = TypeVar("TargetT", bound=Session | Connection)

SECOND_BIND = "a fenced session may use one database: commits in two can't be one step"
ANOTHER_BLOCK = "this is inside a fenced() block already: give one block all of the leases"
OPEN_BEFORE = (
    "a transaction is already open: it may have read before the check."
    " Commit or roll it back, or enter fenced() before the first use"
)

# What ends a transaction that SQLAlchemy takes for open: the driver would begin another, unchecked.
_ENDS_BY_ITSELF = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
    r"(COMMIT|END|ABORT|PREPARE\s+TRANSACTION|ROLLBACK(?!(?:\s+(?:WORK|TRANSACTION))?\s+TO\b))\b",
    re.IGNORECASE | re.DOTALL,
)


class Condition(Protocol):
    """What must hold of every transaction of a block. `open` and `close` refuse by raising."""

    @property
    def watches_end(self) -> bool:
        """Whether `close` and `ended` have anything to do."""
        ...

    def open(self, connection: Connection) -> None:
        """The first step of a transaction, at the outermost level."""
        ...

    def close(self, connection: Connection) -> None:
        """The last step before its COMMIT. A refusal here rolls it back."""
        ...

    def ended(self, connection: Connection) -> None:
        """COMMIT or ROLLBACK is next: take back what would outlive the transaction."""
        ...

    def left(self) -> None:
        """The block is over."""
        ...

    def explain(self, error: DBAPIError, engine: Engine) -> Exception | None:
        """What a database error that ended the block means, or None. The transaction is over."""
        ...


class FencedBlock(Generic[TargetT]):
    """One `with fenced(...)`: its target, and the transaction that was checked last.

    A transaction is identified by SQLAlchemy's root Transaction object. It is checked when it begins,
    at the outermost level: a lock taken inside a savepoint would go with it (SAFETY S3). One that
    was refused stays refused, also when the caller swallows the error.
    """

    def __init__(self, target: TargetT, condition: Condition) -> None:
        self._target = target
        self._condition = condition
        self._checked: Transaction | None = None
        self._root: SessionTransaction | None = None
        self._connection: Connection | None = None
        self._listeners: list[tuple[Connection, str, Callable[..., None]]] = []

    def __enter__(self) -> TargetT:
        """Begin to watch. Raises NotFenceable for a target that has begun already, or is watched."""
        target = self._target
        _refuse_open_transaction(target)
        if target in _BLOCKS:
            raise NotFenceable(ANOTHER_BLOCK)
        _BLOCKS[target] = self
        if isinstance(target, Connection):
            self._watch_begin(target)
        return target

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit, or roll back because of `error`, and watch no longer.

        Raises what the commit raised, or what an error means for the fence; returns if it means nothing.
        """
        try:
            if error is None:
                self._commit()
            else:
                self._roll_back(error)
        finally:
            self._condition.left()
            if self._listeners:
                self._stop_listening()
            del _BLOCKS[self._target]
            _CONNECTIONS.pop(self._connection, None)
            if isinstance(self._target, Connection):
                del self._target.begin, self._target.begin_twophase

    def _commit(self) -> None:
        if not self._target.in_transaction():
            return  # a Session would begin one for it, or refuse to: autobegin=False
        try:
            self._target.commit()
        except BaseException as error:
            self._roll_back(error)
            raise

    def _roll_back(self, error: BaseException) -> None:
        # Without its connection the transaction can't commit either, and a session whose own hook failed
        # after its COMMIT won't roll back; the first error counts.
        with suppress(SQLAlchemyError):
            self._target.rollback()
        if not isinstance(error, DBAPIError):
            return
        connection = self._connection
        reason = None if connection is None else self._condition.explain(error, connection.engine)
        if reason is not None:
            raise reason from error

    def _watch_begin(self, connection: Connection) -> None:
        begin, begin_twophase = connection.begin, connection.begin_twophase

        def checked_begin() -> RootTransaction:
            transaction = begin()
            self._admit(connection)
            return transaction

        def refused_twophase(xid: Any = None) -> TwoPhaseTransaction:
            transaction = begin_twophase(xid)
            self._admit(connection)
            return transaction

        connection.begin = checked_begin  # type: ignore[method-assign]
        connection.begin_twophase = refused_twophase  # type: ignore[method-assign]

    def _watch_text(self, connection: Connection) -> None:
        if connection is not self._connection:
            _CONNECTIONS.pop(self._connection, None)
            self._connection = connection
            _CONNECTIONS[connection] = self
        if connection.dialect not in _DIALECTS:
            _DIALECTS.add(connection.dialect)
            event.listen(connection.dialect, "do_execute", _text_comes)
            event.listen(connection.dialect, "do_execute_no_params", _bare_text_comes)

    def has_checked(self, transaction: Transaction | None) -> bool:
        """Whether it is the running transaction, which was checked."""
        return transaction is not None and transaction is self._checked

    def session_began(self, transaction: SessionTransaction, connection: Connection) -> None:
        """The session has taken a connection for its transaction: check it before anybody uses it."""
        if transaction.nested:
            return
        second_bind, self._root = transaction is self._root, transaction
        if self._listeners and not second_bind:
            self._stop_listening()
        _, _, is_own, _ = transaction._connections[connection]  # noqa: SLF001  nothing public tells
        if not is_own or connection.in_nested_transaction():
            self._refuse(connection, NotFenceable(OPEN_BEFORE))  # its COMMIT would come after the block
        if connection in _BLOCKS:
            self._refuse(
                connection, NotFenceable("the session's connection is inside another fenced() block")
            )
        if second_bind:
            self._refuse(connection, NotFenceable(SECOND_BIND))
        self._admit(connection)

    def _admit(self, connection: Connection) -> None:
        """Check a transaction that has just begun, and has sent nothing yet."""
        self._watch_text(connection)
        transaction = connection.get_transaction()
        try:
            _refuse_unheld(connection, transaction)
            self._condition.open(connection)
        except BaseException as error:  # noqa: BLE001  it is raised again, now and later
            self._refuse(connection, error)
        self._checked = transaction
        if self._condition.watches_end:
            self._listen(connection, "commit", self._commit_comes)
            self._listen(connection, "rollback", self._rollback_comes)

    def _refuse(self, connection: Connection, error: BaseException) -> NoReturn:
        """Raise, now and for whatever else is tried in this transaction: it is there, and unchecked."""
        refused = connection.get_transaction()

        def refuse_again(connection: Connection, *_: Any) -> None:
            if connection.get_transaction() is refused:
                raise error

        self._listen(connection, "before_cursor_execute", refuse_again)
        raise error

    def _commit_comes(self, connection: Connection) -> None:
        if connection.get_transaction() is not self._checked:
            return
        try:
            self._condition.close(connection)
            self._condition.ended(connection)
        except BaseException:
            # SQLAlchemy takes the transaction for ended, whatever a listener raises.
            if not connection.invalidated:
                connection.connection.rollback()
            raise

    def _rollback_comes(self, connection: Connection) -> None:
        if connection.get_transaction() is self._checked and not connection.invalidated:
            with suppress(DBAPIError):  # a connection that is gone keeps nothing
                self._condition.ended(connection)

    def _listen(self, connection: Connection, name: str, hook: Callable[..., None]) -> None:
        if (connection, name, hook) not in self._listeners:
            event.listen(connection, name, hook)
            self._listeners.append((connection, name, hook))

    def _stop_listening(self) -> None:
        for connection, name, hook in self._listeners:
            event.remove(connection, name, hook)
        self._listeners.clear()


_BLOCKS: dict[Session | Connection, FencedBlock[Any]] = {}
_CONNECTIONS: dict[Connection | None, FencedBlock[Any]] = {}
_DIALECTS: WeakSet[Dialect] = WeakSet()


@event.listens_for(Session, "after_begin")
def _session_began(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    if (block := _BLOCKS.get(session)) is not None:
        block.session_began(transaction, connection)


def _text_comes(_cursor: Any, statement: str, _parameters: Any, context: Any) -> None:
    if context is not None and context.is_text and (found := _ENDS_BY_ITSELF.match(statement)):
        block = _CONNECTIONS.get(context.root_connection)
        if block is not None and block.has_checked(context.root_connection.get_transaction()):
            raise NotFenceable(
                f"{found[1].upper()} as text would end the fenced transaction, and what follows would be in"
                " no fence: call commit() or rollback()"
            )


def _bare_text_comes(cursor: Any, statement: str, context: Any) -> None:
    _text_comes(cursor, statement, None, context)


def _refuse_open_transaction(target: Session | Connection) -> None:
    bind = target.bind if isinstance(target, Session) else None
    if target.in_transaction() or (isinstance(bind, Connection) and bind.in_transaction()):
        raise NotFenceable(OPEN_BEFORE)


def _refuse_unheld(connection: Connection, transaction: Transaction | None) -> None:
    """Refuse a connection whose transaction would not hold the mark until its commit."""
    if isinstance(transaction, TwoPhaseTransaction):
        raise NotFenceable("a prepared transaction outlives every bound: two-phase commits can't be fenced")
    autocommit = getattr(connection.connection.dbapi_connection, "autocommit", False)
    if autocommit is True or connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        raise NotFenceable("in AUTOCOMMIT mode nothing holds the mark until the write is done")
