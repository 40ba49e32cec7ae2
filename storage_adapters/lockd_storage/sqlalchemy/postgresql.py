"""The two verbs on PostgreSQL: functions in the database, called as SAFETY S3 to S5 say."""

import re
from typing import ClassVar

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from lockd.errors import LockdError, OutcomeUnknown, StaleToken, Unavailable
from lockd_storage.errors import NotFenceable, NotInstalled, WrongCluster, WrongLock
from lockd_storage.fencing import Mark
from lockd_storage.sqlalchemy.beside import Beside, Pause, run_beside
from lockd_storage.sqlalchemy.driver import driver_row
from lockd_storage.sqlalchemy.marks import Bounds, Grant, Symptom, milliseconds, no_store
from lockd_storage.sqlalchemy.one_trip import begin_and_call

SERIALIZATION_FAILURE = "40001"
CANCELED = "57014"
READ_ONLY = "25006"
SYMPTOMS = {
    "25P03": Symptom.STOOD_STILL,
    "25P04": Symptom.STOOD_STILL,  # transaction_timeout, which somebody set: PostgreSQL 17 and later
    CANCELED: Symptom.TOO_SLOW,
    READ_ONLY: Symptom.READ_ONLY,
}

# How long an install that ends its blockers may take to get through.
ENDING_SECONDS = 5.0
BLOCKER_POLL_SECONDS = 0.02

_INSTALL = text("SELECT lockd_fence_install(:resource, :lock, :fence)")
_BEGIN = "lockd_fence_begin"
# A limit that is already tighter stays, as in lockd_fence_begin.
_BOUND = text(
    "SELECT set_config(name, :ms, true) FROM pg_settings"
    " WHERE name = :name AND setting::numeric NOT BETWEEN 1 AND :limit"
)
_PREPARE_INSTALL = text(
    # Not lock_timeout: it counts anew for each sharer waited for, so overlapping ones outlast it.
    "SELECT pg_backend_pid(), set_config('lock_timeout', '0', true),"
    " set_config('statement_timeout', :timeout_ms, true),"
    " set_config('idle_in_transaction_session_timeout', :timeout_ms, true)"
)
_END_BLOCKERS = text(
    "SELECT pid, pg_terminate_backend(pid) FROM unnest(pg_blocking_pids(:pid)) AS blocker(pid) WHERE pid > 0"
)
_MARK_IN_TEXT = re.compile(r"mark (\d+)$", re.MULTILINE)


class PostgresMarks:
    """See `MarkStore`."""

    adapter: ClassVar[str] = "postgresql"
    dialects: ClassVar[tuple[str, ...]] = ("postgresql",)

    def install(self, engine: Engine, grant: Grant, *, timeout: float) -> Mark:
        """See `MarkStore.install`.

        Transactions that still hold the old mark after `timeout` seconds are ended by the server
        (SAFETY S5): their holder's lease has passed on, and it may be paused for ever.
        """
        try:
            if not _install(engine, grant, timeout=timeout, blockers=None):
                blockers = Blockers(engine)
                if not _install(engine, grant, timeout=ENDING_SECONDS, blockers=blockers):
                    raise Unavailable(
                        f"install for resource {grant.resource!r} is blocked: {blockers.report()}"
                    )
        except DBAPIError as error:
            if _is_unreachable(error):
                raise Unavailable(f"the database can't be reached: {error.orig}") from error
            raise
        except OSError as error:  # asyncpg connects bare
            raise Unavailable(f"the database can't be reached: {error}") from error
        return Mark(grant.resource, grant.lock, grant.fence)

    def begin(self, connection: Connection, grant: Grant, bounds: Bounds) -> None:
        """See `MarkStore.begin`."""
        try:
            _begin(connection, grant, bounds)
        except DBAPIError as error:
            if sqlstate(error) != SERIALIZATION_FAILURE:
                raise
            # Under REPEATABLE READ the mark moved after this transaction's snapshot. Look again in a
            # new snapshot: a blind retry would hide that someone newer has come. If nobody has, the
            # transaction is still lost, together with whatever was done in it before this check.
            connection.connection.rollback()
            _begin(connection, grant, bounds)
            raise

    def bound(self, connection: Connection, bounds: Bounds) -> None:
        """See `MarkStore.bound`."""
        for name, limit_ms in (
            ("idle_in_transaction_session_timeout", bounds.idle_ms),
            ("statement_timeout", bounds.statement_ms),
        ):
            connection.execute(_BOUND, {"name": name, "ms": str(limit_ms), "limit": limit_ms})

    def read(self, connection: Connection, grant: Grant, bounds: Bounds) -> None:
        """See `MarkStore.read`: the lock on the mark is one that is shared anyway."""
        self.begin(connection, grant, bounds)

    def forbid_writes(self, connection: Connection) -> None:
        """See `MarkStore.forbid_writes`. Only now: FOR SHARE is a write for a READ ONLY transaction."""
        driver_row(connection, "SET TRANSACTION READ ONLY")

    def allow_writes(self, connection: Connection) -> None:
        """See `MarkStore.allow_writes`: the setting ends with its transaction."""

    def symptom(self, error: DBAPIError) -> Symptom | None:
        """See `MarkStore.symptom`."""
        return SYMPTOMS.get(sqlstate(error))


def sqlstate(error: DBAPIError) -> str:
    """The SQLSTATE, or "" where the driver or the failure has none."""
    return str(getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None) or "")


class Blockers:
    """Ends the sessions that one waiting backend waits for, beside it and on a second connection."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._failure = "older transactions did not end"

    def end_for(self, waiting_pid: int) -> Beside:
        """Start ending whatever blocks that backend, until stopped."""

        def work(pause: Pause) -> None:
            try:
                with self._engine.connect() as connection:
                    while pause(BLOCKER_POLL_SECONDS):
                        connection.execute(_END_BLOCKERS, {"pid": waiting_pid})
                        connection.rollback()
            except DBAPIError as error:  # told by report(): the role may lack pg_signal_backend
                self._failure = str(error.orig)
            except SQLAlchemyError as error:  # and so is a pool that has no second connection to give
                self._failure = str(error)

        return run_beside(self._engine, work)

    def report(self) -> str:
        """Why the blockers are still there, for the error's text."""
        return self._failure


def _install(engine: Engine, grant: Grant, *, timeout: float, blockers: Blockers | None) -> bool:
    """Install in one committed READ COMMITTED transaction (SAFETY S4). False: blocked for `timeout` s."""
    with engine.connect() as opened:
        connection = opened.execution_options(isolation_level="READ COMMITTED")
        pid = connection.scalar(_PREPARE_INSTALL, {"timeout_ms": str(milliseconds(timeout))})
        ending = None if blockers is None else blockers.end_for(pid)
        try:
            connection.execute(
                _INSTALL, {"resource": grant.resource, "lock": grant.lock, "fence": str(grant.fence)}
            )
        except DBAPIError as error:
            if sqlstate(error) == CANCELED:
                return False
            refusal = _refusal(error, grant)
            if refusal is None:
                raise
            raise refusal from error
        finally:
            if ending is not None:
                ending.stop()
        try:
            connection.commit()
        except DBAPIError as error:
            if error.connection_invalidated:
                raise OutcomeUnknown(
                    f"the reply to the install for {grant.resource!r} was lost: install again"
                ) from error
            raise
    return True


def _begin(connection: Connection, grant: Grant, bounds: Bounds) -> None:
    parameters = (grant.resource, str(grant.fence), bounds.idle_ms, bounds.statement_ms)
    try:
        if not begin_and_call(connection, _BEGIN, parameters):
            places = (
                "$1, $2, $3, $4" if connection.dialect.paramstyle == "numeric_dollar" else "%s, %s, %s, %s"
            )
            driver_row(connection, f"SELECT {_BEGIN}({places})", parameters)
    except DBAPIError as error:
        refusal = _refusal(error, grant)
        if refusal is None:
            raise
        raise refusal from error


def _refusal(error: DBAPIError, grant: Grant) -> LockdError | None:
    """The error that a SQLSTATE of ours stands for, or None."""
    words = str(error.orig).splitlines()[0].removeprefix("lockd: ")
    found = _MARK_IN_TEXT.findall(str(error.orig))
    match sqlstate(error):
        case "LF001":
            mark = int(found[-1]) if found else 0  # the last: a resource's name may look like one
            return StaleToken(words, resource=grant.resource, presented=grant.fence.token, mark=mark)
        case "LF002":
            return NotInstalled(words, resource=grant.resource)
        case "LF003":
            return WrongCluster(words, resource=grant.resource)
        case "LF004":
            return WrongLock(words, resource=grant.resource)
        case "25006":
            return NotFenceable(
                "a fence's mark can't be held in a database that only reads, such as a replica, nor in a"
                f' transaction begun READ ONLY: use the primary, and access="read" to read ({error.orig})'
            )
        case "42883" | "42P01":  # undefined function, undefined table
            return no_store(grant.resource, error)
    return None


def _is_unreachable(error: DBAPIError) -> bool:
    # Class 08 connection, 53 resources, 57P shutdown; no SQLSTATE at all when nobody answers.
    state = sqlstate(error)
    return error.connection_invalidated or not state or state.startswith(("08", "53", "57P"))
