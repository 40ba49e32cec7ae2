"""What holds of a fenced transaction: its leases' tokens are the marks, and stay so until it has ended."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from lockd.errors import LeaseLost, LockdError, OutcomeUnknown, StaleToken
from lockd_storage.errors import NotFenceable, NotInstalled, WrongCluster, WrongMode
from lockd_storage.fencing import check_deadline, judge_write
from lockd_storage.rejects import tell, told
from lockd_storage.sqlalchemy.guards.net import outside_fence
from lockd_storage.sqlalchemy.marks import (
    Access,
    Bounds,
    Check,
    Grant,
    MarkStore,
    Symptom,
    milliseconds,
    read_mark,
)

FENCED = "lockd_fenced"
TOKENS = "lockd_tokens"
# A transaction that holds no mark keeps no install waiting, only those who want the same rows.
LATE_IDLE_SECONDS = 60.0


class HeldMarks:
    """A `Condition`. `connection.info["lockd_fenced"]` says what a transaction may write:

    the root transaction, and the frozenset of resources that were compared in it. In "lockd_tokens" are
    the root transaction and a dict of the tokens that it writes under, by resource.
    """

    def __init__(
        self,
        store: MarkStore,
        grants: Sequence[Grant],
        *,
        check: Check,
        access: Access,
        idle: float | None,
        statement_timeout: float | None,
    ) -> None:
        self._store = store
        self._grants = sorted(grants, key=attrgetter("resource"))  # one order, so no deadlock
        self._resources = frozenset([grant.resource for grant in grants])
        self._compare = store.begin if access == "write" else store.read
        self._late = check == "late"
        self._reads = access == "read"
        self.watches_end = self._late or self._reads
        self._info: tuple[dict[Any, Any], object] | None = None
        self._idle = idle
        self._statement_timeout = statement_timeout

    def open(self, connection: Connection) -> None:
        """See `Condition.open`."""
        dialect = connection.dialect.name
        if dialect not in self._store.dialects:
            raise NotFenceable(f"the fence is one of {self._store.adapter}, and this is {dialect}")
        remaining = self._remaining()
        if remaining <= 0:
            self._refuse_ended(connection)
        if self._late:
            self._store.bound(connection, self._bounds(remaining))
        else:
            self._hold(connection, remaining)
        if self._reads:
            self._store.forbid_writes(connection)
        else:
            tokens = {grant.resource: grant.fence.token for grant in self._grants}
            connection.info[TOKENS] = (connection.get_transaction(), tokens)

    def close(self, connection: Connection) -> None:
        """See `Condition.close`."""
        if self._late:
            self._hold(connection, self._remaining())

    def ended(self, connection: Connection) -> None:
        """See `Condition.ended`."""
        if self._reads:
            self._store.allow_writes(connection)

    def left(self) -> None:
        """See `Condition.left`. The connection may be in other hands by now: only our own word goes."""
        if self._info is not None and self._info[0].get(FENCED) is self._info[1]:
            del self._info[0][FENCED]

    def explain(self, error: DBAPIError, engine: Engine) -> LockdError | None:
        """See `Condition.explain`. What it finds is counted and logged."""
        reason = self._reason(error, engine)
        if reason is not None:
            tell(reason, adapter=self._store.adapter, resource=self._grants[0].resource)
        return reason

    def _reason(self, error: DBAPIError, engine: Engine) -> LockdError | None:
        refusal = outside_fence(error.orig)
        if refusal is not None:
            return refusal
        symptom = self._store.symptom(error)
        if symptom is Symptom.READ_ONLY and self._reads:
            return WrongMode(
                f'this block was opened with access="read", and something in it writes: {error.orig}',
                resource=self._grants[0].resource,
            )
        stood_still = symptom is Symptom.STOOD_STILL
        if error.connection_invalidated and error.statement is None and not stood_still:
            return OutcomeUnknown("the reply to COMMIT was lost: the transaction may have been applied")
        if error.connection_invalidated or stood_still:
            newer = self._newer_holder(engine)
            if newer is not None:
                return newer
        cut_off = symptom is Symptom.TOO_SLOW or error.connection_invalidated
        for grant in self._grants:
            if stood_still or (cut_off and grant.lease.remaining() <= 0):
                return LeaseLost(
                    f"the database ended a transaction under lock {grant.lease.lock!r}, token"
                    f" {grant.fence.token}, that stood still for too long: {error.orig}",
                    lock=grant.lease.lock,
                    token=grant.fence.token,
                )
        return None

    def _newer_holder(self, engine: Engine) -> LockdError | None:
        try:
            with engine.connect() as connection:
                for grant in self._grants:
                    mark = read_mark(connection, grant.resource)
                    judge_write(mark, resource=grant.resource, fence=grant.fence)
        except (StaleToken, NotInstalled, WrongCluster) as refusal:
            return refusal
        except SQLAlchemyError:
            pass  # the database is still out of reach: its first error is all that is known
        return None

    def _remaining(self) -> float:
        return min([grant.lease.remaining() for grant in self._grants])

    def _bounds(self, remaining: float) -> Bounds:
        idle = max(remaining, LATE_IDLE_SECONDS) if self._late else remaining
        return Bounds(
            idle_ms=milliseconds(idle if self._idle is None else self._idle),
            statement_ms=milliseconds(
                remaining if self._statement_timeout is None else self._statement_timeout
            ),
        )

    def _hold(self, connection: Connection, remaining: float) -> None:
        bounds = self._bounds(remaining)
        for grant in self._grants:
            try:
                self._compare(connection, grant, bounds)
            except LockdError as refusal:
                tell(refusal, adapter=self._store.adapter, resource=grant.resource)
                raise
        if not self._reads:
            info, fenced = connection.info, (connection.get_transaction(), self._resources)
            info[FENCED], self._info = fenced, (info, fenced)

    def _refuse_ended(self, connection: Connection) -> None:
        # Nothing begins after the deadline (SAFETY S3). If someone newer is there, say who: read
        # without a lock, so that ended leases can't keep the new holder waiting.
        for grant in self._grants:
            if grant.lease.remaining() <= 0:
                with told(self._store.adapter, grant.resource):
                    mark = read_mark(connection, grant.resource)
                    judge_write(mark, resource=grant.resource, fence=grant.fence)
                    check_deadline(grant.lease)
