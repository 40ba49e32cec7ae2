"""A MariaDB or MySQL session for the length of a fenced transaction: what is set on it, and undone.

Settings, user variables and named locks outlive the transaction, and go with the connection to whoever
gets it from the pool next. So they are undone before the transaction ends.
"""

import re
from contextlib import suppress
from hashlib import md5
from math import ceil
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError

from lockd.ids import ClusterId, Fence, FencingToken, Incarnation
from lockd_storage.errors import NotFenceable
from lockd_storage.fencing import Mark, judge_write
from lockd_storage.sqlalchemy.driver import driver_row
from lockd_storage.sqlalchemy.marks import Bounds, Grant

MARK = "SELECT `lock`, cluster, incarnation, token FROM lockd_fence WHERE resource = %s"

_SHARED = f"{MARK} LOCK IN SHARE MODE"
# On MariaDB a transaction that has only read has no number, so that nobody could tell who holds the mark
# an install waits for. A lock of this name tells it: this session's own, so nobody ever waits for it.
_NAME = "CONCAT('lockd.', CONNECTION_ID(), '.', %s)"
_LIMITS_MARIADB = "@@autocommit, @@idle_transaction_timeout, @@max_statement_time"
_LIMITS_MYSQL = "@@autocommit, 0, @@max_execution_time"

# What MariaDB and MySQL commit an open transaction for. TEMPORARY tables are left out: they don't.
_COMMITS_BY_ITSELF = re.compile(
    r"\s*(?:/\*.*?\*/\s*|--[^\n]*\n\s*|#[^\n]*\n\s*)*"
    r"(?:(?:CREATE|DROP)\s+(?!(?:OR\s+REPLACE\s+)?TEMPORARY\b)"
    r"|(?:ALTER|TRUNCATE|RENAME|GRANT|REVOKE|LOCK|UNLOCK|ANALYZE|OPTIMIZE|REPAIR|CHECK|CACHE|FLUSH|RESET"
    r"|INSTALL|UNINSTALL|BEGIN|START|STOP|CHANGE|COMMIT|XA)\b"
    r"|ROLLBACK\b(?!(?:\s+WORK)?\s+TO\b)"
    r"|LOAD\s+INDEX\b|SET\s+PASSWORD\b|SET\s+(?:(?:SESSION|LOCAL)\s+|@@(?:(?:SESSION|LOCAL)\.)?)?AUTOCOMMIT\b)",
    re.IGNORECASE | re.DOTALL,
)


class FencedSession:
    """The fenced transaction that is open on one Connection.

    A late check holds its marks at the COMMIT. It listens on the Connection, which SQLAlchemy asks before
    the engine: so what it sets is undone by the listeners below.
    """

    def __init__(self, connection: Connection) -> None:
        self._mariadb = is_mariadb(connection)
        self._grants: list[Grant] = []
        self._limits: tuple[float, float] | None = None  # idle and statement, before we set any
        self._read_only = False
        self._failed = False

    @classmethod
    def of(cls, connection: Connection) -> "FencedSession":
        """The one of this Connection, until its transaction ends."""
        found = _SESSIONS.get(connection)
        if found is None:
            _watch(connection.engine)
            found = _SESSIONS[connection] = cls(connection)
        return found

    def begin_read_only(self, connection: Connection) -> None:
        """Make the transaction that begins here READ ONLY; nothing if that was done."""
        if not self._read_only:
            driver_row(connection, "START TRANSACTION READ ONLY")
            self._read_only = True

    def hold(self, connection: Connection, grant: Grant, bounds: Bounds) -> None:
        """Compare the mark, share it until the transaction ends, bound that, and tell the guards.

        Raises as `MarkStore.begin`, and NotFenceable. What earlier calls left is undone then.
        """
        try:
            self._hold(connection, grant)
            self._set(connection, bounds)
        except BaseException:
            self.undo_quietly(connection)
            raise

    def bound(self, connection: Connection, bounds: Bounds) -> None:
        """Bound the transaction alone (SAFETY S5)."""
        row = driver_row(connection, f"SELECT {_LIMITS_MARIADB if self._mariadb else _LIMITS_MYSQL}")
        self._limits = (float(row[1]), float(row[2]))
        self._set(connection, bounds)

    def statement_comes(self, connection: Connection, statement: str) -> None:
        """Refuse what would let the mark go; hold it again if the last statement has failed."""
        if _COMMITS_BY_ITSELF.match(statement):
            raise NotFenceable(
                f"{statement.split(None, 1)[0].upper()} commits by itself on this database, and would let the"
                " mark go: run it outside of fenced()"
            )
        self._hold_again(connection)
        self._failed = True  # until it has succeeded

    def statement_succeeded(self) -> None:
        self._failed = False

    def commit_comes(self, connection: Connection) -> None:
        """Undo what would outlive the transaction. An error here rolls it back."""
        try:
            self._hold_again(connection)
            self._undo(connection)
        except BaseException:
            # SQLAlchemy takes the transaction for ended from here on: let nothing of it be left.
            self.undo_quietly(connection)
            if not connection.invalidated:
                connection.connection.rollback()
            raise

    def undo_quietly(self, connection: Connection) -> None:
        """Undo what would outlive the transaction, if its connection is still there."""
        if not connection.invalidated:
            with suppress(DBAPIError):
                self._undo(connection)

    def _hold(self, connection: Connection, grant: Grant) -> None:
        if self._mariadb:
            statement = MARK.replace(" FROM", f", {_LIMITS_MARIADB}, GET_LOCK({_NAME}, 0) FROM", 1)
            parameters: tuple[str, ...] = (digest(grant.resource), grant.resource)
        else:
            statement = MARK.replace(" FROM", f", {_LIMITS_MYSQL} FROM", 1)
            parameters = (grant.resource,)
        row = driver_row(connection, f"{statement} LOCK IN SHARE MODE", parameters)
        if row is not None and self._limits is None:
            self._limits = (float(row[5]), float(row[6]))
        self._grants.append(grant)
        judge_write(mark_of(grant.resource, row), resource=grant.resource, fence=grant.fence)
        if row[4]:
            raise NotFenceable("in AUTOCOMMIT mode nothing holds the mark until the write is done")

    def _hold_again(self, connection: Connection) -> None:
        # A deadlock rolls back the whole transaction, and the lock on the mark with it; what follows
        # is a new transaction to the server. Which errors do so is not worth knowing.
        if self._failed:
            for grant in self._grants:
                mark = mark_of(grant.resource, driver_row(connection, _SHARED, (grant.resource,)))
                judge_write(mark, resource=grant.resource, fence=grant.fence)
            self._failed = False

    def _set(self, connection: Connection, bounds: Bounds) -> None:
        assert self._limits is not None
        # The server's own units: whole seconds for the one, on MySQL milliseconds for the other.
        idle = _tighter(self._limits[0], ceil(bounds.idle_ms / 1000))
        statement = _tighter(self._limits[1], bounds.statement_ms / (1000 if self._mariadb else 1))
        fenced = "".join(f"\0\0{grant.resource}\0{grant.fence}\0" for grant in self._grants)
        words = f"SET {self._limit_words(idle, statement)}, @lockd_fenced = %s"
        driver_row(connection, words, (fenced or None,))

    def _undo(self, connection: Connection) -> None:
        if self._limits is not None:
            words = [self._limit_words(*self._limits), "@lockd_fenced = NULL"]
            names = [digest(grant.resource) for grant in self._grants] if self._mariadb else []
            words += [f"@lockd_held = RELEASE_LOCK({_NAME})"] * len(names)
            driver_row(connection, f"SET {', '.join(words)}", names)
        self._limits = None
        self._grants = []

    def _limit_words(self, idle: float, statement: float) -> str:
        if self._mariadb:
            return (
                f"SESSION idle_transaction_timeout = {idle:.0f}, SESSION max_statement_time = {statement:.6f}"
            )
        return f"SESSION max_execution_time = {statement:.0f}"


def is_mariadb(connection: Connection) -> bool:
    """Whether it is a MariaDB, also where the URL says mysql."""
    return bool(connection.dialect.is_mariadb)  # type: ignore[attr-defined]  # both dialects have it


def mark_of(resource: str, row: Any) -> Mark | None:
    """The mark in a row that begins with `MARK`'s columns, or None for no row."""
    if row is None:
        return None
    fence = Fence(ClusterId(row[1]), Incarnation(row[2]), FencingToken(row[3]))
    return Mark(resource, row[0], fence)


def digest(resource: str) -> str:
    """A resource in 32 signs, for names that may have 64."""
    return md5(resource.encode(), usedforsecurity=False).hexdigest()


def _tighter(before: float, wanted: float) -> float:
    return wanted if before == 0 else min(before, wanted)


_SESSIONS: WeakKeyDictionary[Connection, FencedSession] = WeakKeyDictionary()
_WATCHED: WeakSet[Engine] = WeakSet()


def _watch(engine: Engine) -> None:
    # Once for an engine that fences: for each Connection it would cost more than the check, and for all
    # engines it would cost those that fence nothing. A Connection that is open already is watched, too.
    if engine not in _WATCHED:
        event.listen(engine, "before_cursor_execute", _statement_comes)
        event.listen(engine, "after_cursor_execute", _statement_succeeded)
        event.listen(engine, "commit", _commit_comes)
        event.listen(engine, "rollback", _rollback_comes)
        _WATCHED.add(engine)


def _statement_comes(connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
    if (session := _SESSIONS.get(connection)) is not None:
        session.statement_comes(connection, statement)


def _statement_succeeded(connection: Connection, *_: Any) -> None:
    if (session := _SESSIONS.get(connection)) is not None:
        session.statement_succeeded()


def _commit_comes(connection: Connection) -> None:
    if (session := _SESSIONS.pop(connection, None)) is not None:
        session.commit_comes(connection)


def _rollback_comes(connection: Connection) -> None:
    if (session := _SESSIONS.pop(connection, None)) is not None:
        session.undo_quietly(connection)
