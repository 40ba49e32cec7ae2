"""The lock state machine: log entries in, outcomes out (SAFETY G6).

`LockMachine.apply` is total: whatever a decoded batch holds, it raises nothing and answers every
command. It reads no clock but its own, draws nothing at random, and knows nothing of the node that
runs it, so all nodes that apply the same entries hold the same state.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lockd.ids import ClusterId, FencingToken, Incarnation, LogIndex, SessionId
from lockd.locks.acquiring import acquire, acquire_all, too_many_sessions
from lockd.locks.commands import (
    AcknowledgeNotices,
    Acquire,
    AcquireAll,
    AddMember,
    Batch,
    Break,
    Cancel,
    Changed,
    ChangeMeta,
    ClearSilent,
    CloseSession,
    Command,
    Completion,
    CreateCluster,
    ExpireSessions,
    FreeRevoked,
    MarkSilent,
    Notice,
    OpenSession,
    Origin,
    OriginGone,
    Outcome,
    PromoteMember,
    Refused,
    RegisterNode,
    Release,
    ReleaseAll,
    RemoveMember,
    RequestOrphaned,
    SessionOpened,
)
from lockd.locks.due import advance_clock
from lockd.locks.events import EventKind, LeaseChange, LeaseEvent, LockEvent
from lockd.locks.invariants import check
from lockd.locks.limits import CLOCK_MS_MAX, Limits, check_name, check_text
from lockd.locks.listening import origin_gone, request_orphaned
from lockd.locks.members import (
    add_member,
    objection_to,
    promote_member,
    register_node,
    remove_member,
)
from lockd.locks.refusals import NO_SESSION
from lockd.locks.releasing import cancel, change_meta, release, release_all
from lockd.locks.revoking import acknowledge_notices, break_grant, free_revoked
from lockd.locks.sessions import Session
from lockd.locks.snapshot import decode_state, encode_state
from lockd.locks.state import LockState, Member
from lockd.locks.views import (
    LockView,
    QueueView,
    SessionView,
    Stats,
    list_locks,
    list_locks_of,
    list_sessions,
    validate,
    view_lock,
    view_queue,
    view_session,
    view_stats,
)


class LockMachine:
    """All sessions, locks and queues, as the applied entries made them.

    One task owns it. Reads show the state after the last `apply`; that they are linearizable is
    the caller's doing (C6).
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.state = LockState(limits)

    def apply(self, index: LogIndex, batch: Batch) -> list[Completion]:
        """Apply one COMMANDS entry.

        Advances the clock to the batch's stamp, or leaves it when the stamp is lower (T1); fires
        the timers that are due, by deadline, then by the order in which they were set; then applies
        the commands in order.

        Returns every outcome that this caused, in the order in which it came about: one for each
        command, and those of waits that ended, be it granted, timed out, withdrawn or because their
        session ended. So an operation gets one completion, or two when it has to wait: Queued, which
        is for the caller's eyes only with NOTIFY, and what the wait came to.
        """
        state = self.state
        assert index > state.applied, f"entry {index} after {state.applied}"
        state.applied = index
        state.completions = []
        state.lease_changes = []
        state.events = []
        advance_clock(state, min(batch.stamp_ms, CLOCK_MS_MAX))
        for command in batch.commands:
            refusal = _of_removed_node(state, command)
            outcome = refusal or _APPLY[type(command.operation)](state, command, command.operation)
            state.tell(command.origin, outcome)
        return state.completions

    def snapshot(self) -> Iterator[bytes]:
        """The whole state as bytes, piece by piece; nothing may be applied meanwhile (C9, C11)."""
        return encode_state(self.state)

    @classmethod
    def from_snapshot(cls, data: bytes) -> "LockMachine":
        """The machine that `snapshot` was taken of, in all that decides outcomes. Raises CorruptData."""
        machine = cls()
        machine.state = decode_state(data)
        return machine

    def next_timer_ms(self) -> int | None:
        """The clock at which a timer is due next: the leader then proposes a batch, empty or not."""
        return self.state.timers.next_ms()

    # What was applied

    @property
    def lease_changes(self) -> list[LeaseChange]:
        """What the last `apply` did to leases, in order: the leader's lease book learns it."""
        return self.state.lease_changes

    @property
    def events(self) -> list[LockEvent]:
        """What the last `apply` did to locks, in order, for those who watch."""
        return self.state.events

    @property
    def clock_ms(self) -> int:
        """The state's clock: ms since the cluster began, as far as leaders counted them (T1)."""
        return self.state.clock_ms

    @property
    def cluster(self) -> ClusterId:
        """ "" until the first entry is applied."""
        return ClusterId(self.state.cluster)

    @property
    def incarnation(self) -> Incarnation:
        return Incarnation(self.state.incarnation)

    @property
    def revision(self) -> int:
        """How many events locks have had."""
        return self.state.revision

    @property
    def token(self) -> FencingToken:
        """The token drawn last, of whatever lock. For metrics: never hand it to a holder (G9)."""
        return self.state.token

    @property
    def feature_level(self) -> int:
        return self.state.feature_level

    @property
    def nodes(self) -> Mapping[int, RegisterNode]:
        """What each node registered last, by id."""
        return self.state.nodes

    @property
    def members(self) -> Mapping[int, Member]:
        """The nodes that joined after the founding and have not left, by id."""
        return self.state.members

    @property
    def removed(self) -> Mapping[int, str]:
        """The tombstones: ids that are never used again, with the instance each had, or "" (C8)."""
        return self.state.removed

    @property
    def applied(self) -> LogIndex:
        """Index of the last entry applied."""
        return LogIndex(self.state.applied)

    @property
    def grants_from_ms(self) -> int:
        """The clock at which the quiet period after a restore ends; 0 when there is none (G2)."""
        return self.state.grants_from_ms

    def objection_to(self, operation: AddMember | PromoteMember | RemoveMember) -> Refused | None:
        """Why this change of members is refused when it is applied to the state as it is now."""
        return objection_to(self.state, operation)

    @property
    def stats(self) -> Stats:
        return view_stats(self.state)

    # Sessions and locks

    def session(self, session_id: SessionId) -> SessionView | None:
        """The session, if it lives. Whether the asker is its user is the caller's to check."""
        session = self.state.sessions.get(session_id)
        return None if session is None else view_session(session)

    def waits_of(self, node: int, boot: int) -> list[Origin]:
        """Where the waits came in that somebody at this boot of the node listens for (G4)."""
        return [request.origin for request in self.state.waits.of_boot(node, boot)]

    def lease_sessions(self) -> Iterator[SessionView]:
        """Every session, sorted by id: what a new leader's lease book starts from (T2)."""
        for session_id in sorted(self.state.sessions):
            yield view_session(self.state.sessions[session_id])

    def sessions(self, after: int = 0, count: int = 100) -> list[SessionView]:
        """At most `count` sessions by public number, after number `after`."""
        return list_sessions(self.state, after, count)

    def notices(self, session_id: SessionId) -> tuple[Notice, ...]:
        """What the session has to be told and has not acknowledged, oldest first (K7)."""
        session = self.state.sessions.get(session_id)
        return () if session is None else tuple(session.notices.values())

    def revoked(self) -> list[LeaseChange]:
        """The revoked grants that are not passed on yet, for a new leader's lease book (P1)."""
        return [
            LeaseChange(
                LeaseEvent.REVOKED,
                SessionId(grant.session),
                self.state.sessions[grant.session].ttl_ms,
                token,
            )
            for token, grant in sorted(self.state.revoked.items())
        ]

    def validate(self, name: str, token: int) -> str:
        """What has become of a grant: "current", "superseded" or "free"; see `views.validate`."""
        return validate(self.state, name, token)

    def queue(self, name: str, count: int = 100) -> QueueView:
        """The first `count` waiters of a lock."""
        return view_queue(self.state, name, count)

    def inspect(self, name: str) -> LockView:
        """The lock of that name, free or held."""
        return view_lock(self.state, name)

    def locks(self, prefix: str = "", after: str = "", count: int = 100) -> list[LockView]:
        """At most `count` locks that aren't free, with that prefix, by name, after `after`."""
        return list_locks(self.state, prefix, after, count)

    def locks_of(self, session_id: SessionId, prefix: str, after: str, count: int) -> list[LockView]:
        """As `locks`, of those alone which a session holds or waits for; none when it does not live."""
        session = self.state.sessions.get(session_id)
        return [] if session is None else list_locks_of(self.state, session, prefix, after, count)

    def check_invariants(self) -> None:
        """P1, P2, and that all indexes agree. Costs O(size of the state)."""
        check(self.state)


def _create_cluster(state: LockState, command: Command, operation: CreateCluster) -> Outcome:
    """The first identity stays: a leader that wasn't the first may have asked too (C8)."""
    del command
    if state.cluster:
        return Changed(0)
    state.cluster = operation.cluster
    state.incarnation = operation.incarnation
    return Changed(1)


def _open_session(state: LockState, command: Command, operation: OpenSession) -> Outcome:
    limits = state.limits
    known = state.sessions.get(command.session)
    if known is not None:
        if known.user == command.user and not known.is_private:
            return _opened(known)
        return Refused("ERR", "the session needs an id that is not in use")
    if not command.session:
        return Refused("ERR", "the session id is empty")
    refusal = (
        check_name("session id", command.session, limits.session_id_bytes_max)
        or check_name("session name", operation.name, limits.session_name_bytes_max)
        or check_text("metadata", operation.meta, limits.meta_bytes_max)
        or too_many_sessions(state)
    )
    if refusal is not None:
        return refusal
    session = state.open_session(
        command.session,
        user=command.user,
        ttl_ms=operation.ttl_ms,
        name=operation.name,
        meta=operation.meta,
    )
    return _opened(session)


def _opened(session: Session) -> SessionOpened:
    return SessionOpened(session.id, session.ttl_ms, tuple(session.notices.values()))


def _close_session(state: LockState, command: Command, operation: CloseSession) -> Outcome:
    del operation
    session = state.sessions.get(command.session)
    if session is None:
        return Changed(0)
    if session.user != command.user:
        return NO_SESSION
    state.end_session(session, EventKind.RELEASED)
    return Changed(1)


def _expire_sessions(state: LockState, command: Command, operation: ExpireSessions) -> Outcome:
    """Those that are left of the leader's choice end, sorted by id (T1, G6)."""
    del command
    ended = 0
    for session_id in sorted(operation.sessions):
        session = state.sessions.get(session_id)
        if session is not None:
            state.end_session(session, EventKind.EXPIRED)
            ended += 1
    return Changed(ended)


def _mark_silent(state: LockState, command: Command, operation: MarkSilent) -> Outcome:
    del command
    marked = 0
    for session_id, silent_ms in operation.silences:
        session = state.sessions.get(session_id)
        if session is not None:
            session.silent_ms = min(max(silent_ms, 0), session.ttl_ms)
            marked += 1
    return Changed(marked)


def _clear_silent(state: LockState, command: Command, operation: ClearSilent) -> Outcome:
    """The outcome is the answer to the renewal that had to wait for this entry (T2)."""
    del operation
    session = state.sessions.get(command.session)
    if session is None or command.user not in {session.user, ""}:
        return NO_SESSION
    session.silent_ms = 0
    state.note_lease(LeaseEvent.CLEARED, session)
    return _opened(session)


def _of_removed_node(state: LockState, command: Command) -> Refused | None:
    """What a removed node still passed on may not begin to wait: nobody would withdraw it (G4)."""
    if isinstance(command.operation, Acquire | AcquireAll) and command.origin.node in state.removed:
        return Refused("UNAVAILABLE", f"node {command.origin.node} was removed from the cluster")
    return None


_APPLY: dict[type[Any], Callable[[LockState, Command, Any], Outcome]] = {
    CreateCluster: _create_cluster,
    RegisterNode: register_node,
    OpenSession: _open_session,
    CloseSession: _close_session,
    ExpireSessions: _expire_sessions,
    MarkSilent: _mark_silent,
    ClearSilent: _clear_silent,
    Acquire: acquire,
    Cancel: cancel,
    Release: release,
    OriginGone: origin_gone,
    RequestOrphaned: request_orphaned,
    AddMember: add_member,
    PromoteMember: promote_member,
    RemoveMember: remove_member,
    AcquireAll: acquire_all,
    ReleaseAll: release_all,
    ChangeMeta: change_meta,
    Break: break_grant,
    AcknowledgeNotices: acknowledge_notices,
    FreeRevoked: free_revoked,
}
