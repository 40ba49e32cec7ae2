"""The two verbs on MariaDB and MySQL, as statements that any other client can send too.

Install is a READ COMMITTED transaction of its own. If it says that the mark is ours, by the SELECT
and never by a count of rows (those differ by driver setting), it may be committed:

    START TRANSACTION;
    SELECT token FROM lockd_fence_floor WHERE id = 1 LOCK IN SHARE MODE;    -- ours must be above
    INSERT INTO lockd_fence (resource, `lock`, cluster, incarnation, token, installed_at)
        VALUES ('orders', 'orders', :cluster, :incarnation, :token, UTC_TIMESTAMP())
        ON DUPLICATE KEY UPDATE resource = VALUES(resource);
    SELECT `lock`, cluster, incarnation, token FROM lockd_fence WHERE resource = 'orders' FOR UPDATE;
    -- the very same: COMMIT. Another lock or cluster, or a token not below ours: ROLLBACK. Else:
    UPDATE lockd_fence SET incarnation = :incarnation, token = :token, installed_at = UTC_TIMESTAMP()
        WHERE resource = 'orders';
    COMMIT;

A fenced transaction, at any isolation level:

    START TRANSACTION;                                                      -- not WITH CONSISTENT SNAPSHOT
    SELECT CONCAT_WS('/', cluster, incarnation, token) FROM lockd_fence
        WHERE resource = 'orders' LOCK IN SHARE MODE;                       -- equals the fence, or ROLLBACK
    SET SESSION idle_transaction_timeout = 8, SESSION max_statement_time = 8,
        @lockd_fenced = CONCAT(CHAR(0, 0 USING utf8mb4), 'orders', CHAR(0 USING utf8mb4), :fence,
                               CHAR(0 USING utf8mb4));                      -- for guarded tables
    ...
    SET @lockd_fenced = NULL, SESSION idle_transaction_timeout = DEFAULT,
        SESSION max_statement_time = DEFAULT;
    COMMIT;

The SELECT comes first, since under REPEATABLE READ the first plain read fixes what all later ones
see. A statement that commits by itself (CREATE, ALTER, TRUNCATE and such) lets the mark go, and a
deadlock rolls the whole transaction back: this adapter refuses the former, and compares again after
any statement that failed; other clients must do so themselves.

Limits. MySQL has no `idle_transaction_timeout`, and its `max_execution_time` bounds SELECTs alone: there
a paused holder lasts until an install ends it. Only what is in InnoDB tables is rolled back. The mark is
as durable as `innodb_flush_log_at_trx_commit` says. With Galera let all fenced writers use one node:
a lock for sharing is not seen by the others. What ends blockers needs PROCESS and, for sessions of
another user, CONNECTION ADMIN.
"""

from random import uniform
from time import monotonic
from typing import ClassVar

from sqlalchemy import Connection, Engine, func, select, text, update
from sqlalchemy.dialects.mysql import insert
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from lockd.errors import OutcomeUnknown, Unavailable
from lockd_storage.fencing import Mark, judge_install
from lockd_storage.sqlalchemy.beside import Beside, Pause, run_beside
from lockd_storage.sqlalchemy.driver import driver_row
from lockd_storage.sqlalchemy.floor import read_floor
from lockd_storage.sqlalchemy.marks import Bounds, Grant, Symptom, no_store, read_mark
from lockd_storage.sqlalchemy.mysql_session import MARK, FencedSession, digest, is_mariadb, mark_of
from lockd_storage.tables import fence_marks

# How long an install that ends its blockers may take to get through.
ENDING_SECONDS = 5.0
# InnoDB shows the same picture of its transactions again to whoever asks within 100 ms of anybody's last
# look. Not all at one beat, so that installs that wait at a time leave each other such a gap.
BLOCKER_POLL_SECONDS = (0.12, 0.4)

LOCK_WAIT_TIMEOUT = 1205
RECORD_CHANGED = 1020
DEADLOCK = 1213
NO_STORE = (1146, 1054)  # no such table; no such column, in an older store
INTERRUPTED = 1317
# 1969 MariaDB's max_statement_time, 3024 MySQL's max_execution_time.
TOO_SLOW = (INTERRUPTED, 1969, 3024)
# 1792 a READ ONLY transaction, 1290 a server that is read-only, 1836 a replica.
READ_ONLY = (1792, 1290, 1836)
# 4031: MySQL closed a session that was idle. MariaDB just closes.
STOOD_STILL = 4031
# 1040 too many connections, 1053 shutdown; 2000 to 2999 are the client's own.
OUT_OF_REACH = (1040, 1053, 1205, 1213, 1927)


class MysqlMarks:
    """See `MarkStore`. Serves the dialects "mysql" and "mariadb"."""

    adapter: ClassVar[str] = "mariadb"
    dialects: ClassVar[tuple[str, ...]] = ("mysql", "mariadb")

    def install(self, engine: Engine, grant: Grant, *, timeout: float) -> Mark:
        """See `MarkStore.install`.

        Transactions that still hold the old mark after `timeout` seconds are ended by the server
        (SAFETY S5): their holder's lease has passed on, and it may be paused for ever.
        """
        deadline = monotonic() + timeout
        while True:
            try:
                return _install(engine, grant, patience=max(0.0, deadline - monotonic()))
            except DBAPIError as error:
                again = error_code(error) in (DEADLOCK, LOCK_WAIT_TIMEOUT, RECORD_CHANGED)
                if again and monotonic() < deadline + ENDING_SECONDS:
                    continue
                if error_code(error) in NO_STORE:
                    raise no_store(grant.resource, error) from error
                if _is_unreachable(error):
                    raise Unavailable(f"the database can't be reached: {error.orig}") from error
                raise

    def begin(self, connection: Connection, grant: Grant, bounds: Bounds) -> None:
        """See `MarkStore.begin`."""
        try:
            FencedSession.of(connection).hold(connection, grant, bounds)
        except DBAPIError as error:
            if error_code(error) in NO_STORE:
                raise no_store(grant.resource, error) from error
            if error_code(error) != RECORD_CHANGED:
                raise
            # innodb_snapshot_isolation: the mark moved after this transaction's snapshot. Look again
            # in a new one: a blind retry would hide that someone newer has come. If nobody has, the
            # transaction is still lost, together with whatever was done in it before this check.
            connection.connection.rollback()
            FencedSession.of(connection).hold(connection, grant, bounds)
            raise

    def bound(self, connection: Connection, bounds: Bounds) -> None:
        """See `MarkStore.bound`."""
        FencedSession.of(connection).bound(connection, bounds)

    def read(self, connection: Connection, grant: Grant, bounds: Bounds) -> None:
        """See `MarkStore.read`. It has to make the transaction READ ONLY as it begins: no later."""
        FencedSession.of(connection).begin_read_only(connection)
        self.begin(connection, grant, bounds)

    def forbid_writes(self, connection: Connection) -> None:
        """See `MarkStore.forbid_writes`: `read` has done it."""

    def allow_writes(self, connection: Connection) -> None:
        """See `MarkStore.allow_writes`: READ ONLY ends with the transaction."""

    def symptom(self, error: DBAPIError) -> Symptom | None:
        """See `MarkStore.symptom`."""
        code = error_code(error)
        if code == STOOD_STILL:
            return Symptom.STOOD_STILL
        if code in TOO_SLOW:
            return Symptom.TOO_SLOW
        return Symptom.READ_ONLY if code in READ_ONLY else None


def _install(engine: Engine, grant: Grant, *, patience: float) -> Mark:
    """Install in one committed READ COMMITTED transaction (SAFETY S4)."""
    with engine.connect() as connection:
        # For this transaction alone. What is set on a connection is taken back on its way into the pool,
        # and a task that is cancelled there would take it along.
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        connection.exec_driver_sql("START TRANSACTION")
        blockers = _Blockers(
            engine, grant, waiting=connection.execute(select(func.connection_id())).scalar_one()
        )
        blockers.end_after(patience)
        try:
            mark = _raise_mark(connection, grant)
        except DBAPIError as error:
            if error_code(error) == INTERRUPTED:
                raise Unavailable(
                    f"install for resource {grant.resource!r} is blocked: {blockers.report()}"
                ) from error
            raise
        finally:
            blockers.stop()
        try:
            connection.commit()
        except DBAPIError as error:
            if error.connection_invalidated:
                raise OutcomeUnknown(
                    f"the reply to the install for {grant.resource!r} was lost: install again"
                ) from error
            raise
    return mark


def _raise_mark(connection: Connection, grant: Grant) -> Mark:
    floor = read_floor(connection)

    def judge(mark: Mark | None) -> Mark:
        return judge_install(mark, floor=floor, resource=grant.resource, lock=grant.lock, fence=grant.fence)

    # Read without a lock first. Marks only rise, so a refusal seen here is final, and an old holder
    # that installs again neither waits for the new one's transactions nor ends them.
    before = read_mark(connection, grant.resource)
    wanted = judge(before)
    if wanted == before:
        return wanted
    values = {
        "incarnation": wanted.fence.incarnation,
        "token": wanted.token,
        "installed_at": func.utc_timestamp(),  # the default would be the session's own time of day
    }
    if before is None:
        # Not INSERT IGNORE: that would leave losers of a race with a shared lock, and each of them
        # would wait for the others to let go.
        fresh = insert(fence_marks).values(
            resource=wanted.resource, lock=wanted.lock, cluster=wanted.fence.cluster, **values
        )
        connection.execute(fresh.on_duplicate_key_update(resource=fresh.inserted.resource))
    # Waits until every transaction that shares the row has ended. What it reads is the verdict.
    row = driver_row(connection, f"{MARK} FOR UPDATE", (grant.resource,))
    locked = mark_of(grant.resource, row)
    if locked is None:
        raise Unavailable(f"the mark of resource {grant.resource!r} was deleted by hand: install again")
    if judge(locked) != locked:
        connection.execute(
            update(fence_marks).where(fence_marks.c.resource == wanted.resource).values(values)
        )
    return wanted


class _Blockers:
    """Ends the sessions that one waiting session waits for, and in the end its waiting itself."""

    def __init__(self, engine: Engine, grant: Grant, *, waiting: int) -> None:
        self._engine = engine
        self._parameters = {"waiting": waiting, "digest": digest(grant.resource)}
        self._failure = "older transactions did not end"
        self._beside: Beside | None = None

    def end_after(self, patience: float) -> None:
        """Begin to end whatever blocks the waiting session in so many seconds, until `stop()`."""

        def work(pause: Pause) -> None:
            if pause(patience):
                self._run(pause)

        self._beside = run_beside(self._engine, work)

    def stop(self) -> None:
        if self._beside is not None:
            self._beside.stop()

    def report(self) -> str:
        """Why the blockers are still there, for the error's text."""
        return self._failure

    def _run(self, pause: Pause) -> None:
        give_up = monotonic() + ENDING_SECONDS
        # The driver's own errors too: SQLAlchemy hands them on when a connection ends as it is told its
        # isolation level.
        failures = (SQLAlchemyError, self._engine.dialect.loaded_dbapi.Error)
        while True:
            try:
                with self._engine.connect() as opened:
                    self._end_until(give_up, opened.execution_options(isolation_level="AUTOCOMMIT"), pause)
                    return
            except failures as error:  # also a pool that has no second connection to give
                self._failure = str(error)
            if monotonic() >= give_up or not pause(BLOCKER_POLL_SECONDS[0]):
                return

    def _end_until(self, give_up: float, connection: Connection, pause: Pause) -> None:
        while monotonic() < give_up:
            self._end(connection)
            if not pause(uniform(*BLOCKER_POLL_SECONDS)):  # noqa: S311  nothing secret
                return
        connection.exec_driver_sql(f"KILL QUERY {self._parameters['waiting']:d}")

    def _end(self, connection: Connection) -> None:
        try:
            query = _BLOCKERS_MARIADB if is_mariadb(connection) else _BLOCKERS_MYSQL
            for session in connection.scalars(query, self._parameters).all():
                connection.exec_driver_sql(f"KILL {session:d}")
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            self._failure = str(error.orig)  # told by report(): a privilege may be missing


def error_code(error: DBAPIError) -> int:
    """The server's or client's error number, or 0."""
    arguments = getattr(error.orig, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else 0


def _is_unreachable(error: DBAPIError) -> bool:
    code = error_code(error)
    return error.connection_invalidated or code in OUT_OF_REACH or 2000 <= code < 3000


# Whoever waits in the same queue is not ended: it holds nothing there, and goes when its turn comes. A
# transaction that has only read has no number (0 is everyone's): the name that `hold` takes tells which
# of those hold this mark.
_BLOCKERS_MARIADB = text("""
SELECT DISTINCT holder.trx_mysql_thread_id
  FROM information_schema.innodb_lock_waits w
  JOIN information_schema.innodb_trx waiter ON waiter.trx_id = w.requesting_trx_id
  JOIN information_schema.innodb_trx holder ON holder.trx_id = w.blocking_trx_id
 WHERE waiter.trx_mysql_thread_id = :waiting AND waiter.trx_id <> 0
   AND coalesce(holder.trx_requested_lock_id, '') <> w.blocking_lock_id
   AND (holder.trx_id <> 0
        OR is_used_lock(concat('lockd.', holder.trx_mysql_thread_id, '.', :digest))
           = holder.trx_mysql_thread_id)
""")
_BLOCKERS_MYSQL = text("""
SELECT DISTINCT holder.trx_mysql_thread_id
  FROM performance_schema.data_lock_waits w
  JOIN information_schema.innodb_trx waiter ON waiter.trx_id = w.requesting_engine_transaction_id
  JOIN information_schema.innodb_trx holder ON holder.trx_id = w.blocking_engine_transaction_id
  JOIN performance_schema.data_locks held ON held.engine_lock_id = w.blocking_engine_lock_id
 WHERE waiter.trx_mysql_thread_id = :waiting AND held.lock_status = 'GRANTED'
""")
