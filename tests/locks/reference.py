"""The lock service in the plainest form: lists, searched from the front, and nothing indexed.

It says the same as lockd.locks, without texts and without limits of size, and was written from SAFETY,
PRODUCT and the commands alone. Slow, and easy to read against SAFETY G1 to G8.

What comes in is here; what a request and a session go through is in `reference_transitions`.
"""

from collections.abc import Callable
from typing import Any

from lockd.locks.commands import (
    EXCLUSIVE,
    AcknowledgeNotices,
    Acquire,
    AcquireAll,
    Break,
    Cancel,
    ChangeMeta,
    ClearSilent,
    CloseSession,
    Command,
    ExpireSessions,
    FreeRevoked,
    MarkSilent,
    OpenSession,
    OriginGone,
    RegisterNode,
    Release,
    ReleaseAll,
    RemoveMember,
    RequestOrphaned,
)
from lockd.locks.events import EventKind, LeaseEvent
from tests.locks.deadlock_search import can_run_to_its_end
from tests.locks.reference_records import Answer, Request, Said, Session, wanted
from tests.locks.reference_transitions import Transitions

ERR: Answer = ("refused", "ERR")
LIMIT: Answer = ("refused", "LIMIT")
NO_SESSION: Answer = ("refused", "NOSESSION")
NOT_HELD: Answer = ("refused", "NOTHELD")


class Reference(Transitions):
    def apply(self, stamp_ms: int, *commands: Command) -> list[Said]:
        self.out, self.events, self.leases = [], [], []
        self.advance(stamp_ms)
        for command in commands:
            self.out.append((command.origin, self._decide(command)))
        return self.out

    def _decide(self, command: Command) -> Answer:
        decide: dict[type, Callable[[Command, Any], Answer]] = {
            OpenSession: self._open,
            CloseSession: self._close,
            ExpireSessions: self._expire,
            MarkSilent: self._mark_silent,
            ClearSilent: self._clear_silent,
            Acquire: self._acquire,
            AcquireAll: self._acquire,
            Cancel: self._cancel,
            Release: self._release,
            ReleaseAll: self._release,
            ChangeMeta: self._change_meta,
            Break: self._break,
            AcknowledgeNotices: self._acknowledge,
            FreeRevoked: self._free_revoked,
            OriginGone: self._origin_gone,
            RequestOrphaned: self._request_orphaned,
            RegisterNode: self._register_node,
            RemoveMember: self._remove_member,
        }
        return decide[type(command.operation)](command, command.operation)

    # Sessions

    def _open(self, command: Command, operation: OpenSession) -> Answer:
        known = self.sessions.get(command.session)
        if known is None:
            if len(self.sessions) >= self.limits.sessions_max:
                return LIMIT
            known = self.open_session(command.session, command.user, operation.ttl_ms)
            known.name, known.meta = operation.name, operation.meta
            self.note_lease(LeaseEvent.BEGAN, known)
        elif known.private or known.user != command.user:
            return ERR
        return self._opened(known)

    def _opened(self, session: Session) -> Answer:
        return ("opened", session.id, session.ttl_ms, tuple(session.notices))

    def _close(self, command: Command, operation: CloseSession) -> Answer:
        del operation
        session = self.sessions.get(command.session)
        if session is None:
            return ("changed", 0)
        if session.user != command.user:
            return NO_SESSION
        self.end_session(session, EventKind.RELEASED)
        return ("changed", 1)

    def _expire(self, command: Command, operation: ExpireSessions) -> Answer:
        del command
        known = [name for name in sorted(set(operation.sessions)) if name in self.sessions]
        for name in known:
            self.end_session(self.sessions[name], EventKind.EXPIRED)
        return ("changed", len(known))

    def _mark_silent(self, command: Command, operation: MarkSilent) -> Answer:
        del command
        known = [(name, silent) for name, silent in operation.silences if name in self.sessions]
        for name, silent_ms in known:
            session = self.sessions[name]
            session.silent_ms = min(max(silent_ms, 0), session.ttl_ms)
        return ("changed", len(known))

    def _clear_silent(self, command: Command, operation: ClearSilent) -> Answer:
        del operation
        session = self.sessions.get(command.session)
        if session is None or command.user not in (session.user, ""):
            return NO_SESSION
        session.silent_ms = 0
        self.note_lease(LeaseEvent.CLEARED, session)
        return self._opened(session)

    # To acquire

    def _acquire(self, command: Command, operation: Acquire | AcquireAll) -> Answer:
        if command.origin.node in self.removed:
            return ("refused", "UNAVAILABLE")
        if self._is_malformed(operation):
            return ERR
        request = self._request_of(command, operation)
        session = self.sessions.get(command.session)
        if not request.private and (session is None or session.user != command.user):
            return NO_SESSION
        if not request.private and session is not None and session.private:
            return ERR
        if request.id and isinstance(request.id, int) == request.private:
            return ERR
        known = self.recall(request)
        if isinstance(known, Request):
            return self._ask_again(known, request)
        if known is not None:
            return known
        if request.private and (session is not None or not command.session):
            return ERR
        if self.quiet is not None and request.wait_ms == 0:
            return ("refused", "UNAVAILABLE")
        refused = self._objection(request)
        if refused is not None:
            self.remember(request, refused)
            return refused
        return self._take_in(request, operation)

    def _is_malformed(self, operation: Acquire | AcquireAll) -> bool:
        if isinstance(operation, AcquireAll):
            return not operation.locks or len(set(operation.locks)) < len(operation.locks)
        if operation.delay_ms and wanted(operation)[1] != EXCLUSIVE:
            return True
        return not 1 <= operation.weight <= max(operation.limit, 1)

    def _request_of(self, command: Command, operation: Acquire | AcquireAll) -> Request:
        names, mode = wanted(operation)
        request = Request(
            ticket=self.next_ticket,
            names=names,
            session=command.session,
            user=command.user,
            owner=command.owner,
            id=command.request,
            origin=command.origin,
            meta=operation.meta,
            asked_ms=self.clock_ms,
            mode=mode,
            wait_ms=operation.wait_ms,
            locks=list(names),
            several=isinstance(operation, AcquireAll),
        )
        if isinstance(operation, Acquire):
            request.private = operation.ttl_ms > 0
            request.limit, request.weight = operation.limit, operation.weight
            request.max_hold_ms, request.delay_ms = operation.max_hold_ms, operation.delay_ms
        return request

    def _ask_again(self, known: Request, again: Request) -> Answer:
        if not set(known.locks) <= set(again.names):
            return ERR
        if known.ending:
            return NOT_HELD
        if not known.token and not known.orphan and known.origin != again.origin:
            self.out.append((known.origin, ("refused", "UNKNOWN")))
        known.orphan = None
        known.origin = again.origin
        return self.granted(known, repeat=True) if known.token else self.queued(known)

    def _objection(self, request: Request) -> Answer | None:
        """Why a new request is not taken in, after it has ended the waits that it supersedes."""
        if not request.private and (refused := self._supersede(request)):
            return refused
        names = request.names
        crowd = {name: self.holders(name) + self.queue(name) for name in names}
        if any(other.limit != request.limit for name in names for other in crowd[name]):
            return ("refused", "MISMATCH")
        fits = self.is_grantable(request)
        if request.wait_ms == 0 and not fits:
            return self.in_the_way("BUSY", request)
        if any(len(self.queue(name)) >= self.limits.waiters_per_lock_max for name in names):
            return LIMIT
        if request.private:
            return LIMIT if len(self.sessions) >= self.limits.sessions_max else None
        taken = sum(len(other.locks) for other in self.requests_of(request.session))
        if taken + len(names) > self.limits.requests_per_session_max:
            return LIMIT
        if not fits and request.owner:
            claims = tuple(other.claim for other in (*self.live, request))
            if not can_run_to_its_end(claims, (request.session, request.owner)):
                return ("refused", "DEADLOCK")
        return None

    def _supersede(self, request: Request) -> Answer | None:
        mine = [
            other
            for other in self.requests_of(request.session)
            if other.owner == request.owner and set(other.locks) & set(request.names)
        ]
        if any(int(other.id or 0) > int(request.id or 0) > 0 for other in mine):
            return ERR
        for name in request.names:
            for other in mine:
                if not other.token and name in other.locks:
                    self.end(other, ERR)
        return None

    def _take_in(self, request: Request, operation: Acquire | AcquireAll) -> Answer:
        if request.private and isinstance(operation, Acquire):
            session = self.open_session(request.session, request.user, operation.ttl_ms)
            session.private, session.runs = True, False
        fits = self.is_grantable(request)
        self.live.append(request)
        self.next_ticket += 1
        if fits:
            return self.grant(request, repeat=False)
        if request.wait_ms > 0:
            request.wait = self.timer(request.wait_ms)
        return self.queued(request)

    # To give back, and to be taken from

    def _cancel(self, command: Command, operation: Cancel) -> Answer:
        if not command.request:
            return ERR
        private = isinstance(command.request, str)
        session = self.sessions.get(command.session)
        if not private and session is None:
            return ("changed", 0)
        if not private and session is not None and session.user != command.user:
            return NO_SESSION
        asked = self._request_of(command, Acquire(operation.lock, int(private), 0, ""))
        known = self.recall(asked)
        if isinstance(known, Request):
            if operation.lock not in known.names:
                return ERR
            self.drop_notice(known)
            self.end(known, ERR)
            return ("changed", 1)
        if known is None:
            self.remember(asked, ERR)
        return ("changed", 0)

    def _mine(self, command: Command, token: int) -> Request | Answer:
        """The grant of that token in the command's session; else what to answer."""
        session = self.sessions.get(command.session)
        if session is not None and session.user != command.user:
            return NO_SESSION
        held = [other for other in self.requests_of(command.session) if other.token == token > 0]
        return held[0] if held else ("changed", 0)

    def _release(self, command: Command, operation: Release | ReleaseAll) -> Answer:
        grant = self._mine(command, operation.token)
        if not isinstance(grant, Request):
            return grant
        given_back = [operation.lock] if isinstance(operation, Release) else list(grant.locks)
        if not set(given_back) <= set(grant.locks):
            return ("changed", 0)
        if given_back == grant.locks:
            self.drop_notice(grant)
        self.give_back(grant, given_back, NOT_HELD)
        return ("changed", len(given_back))

    def _change_meta(self, command: Command, operation: ChangeMeta) -> Answer:
        if command.session not in self.sessions:
            return NO_SESSION
        grant = self._mine(command, operation.token)
        if not isinstance(grant, Request):
            return grant
        if grant.ending or operation.lock not in grant.locks:
            return ("changed", 0)
        grant.meta = operation.meta
        self.tell_event(EventKind.META, grant, grant.locks)
        return ("changed", 1)

    def _break(self, command: Command, operation: Break) -> Answer:
        del command
        held = [grant for grant in self.holders(operation.lock) if grant.token == operation.token]
        if not held or (held[0].ending and not operation.now):
            return ("changed", 0)
        if not held[0].ending:
            reason = f"broken: {operation.reason}"
            self.revoke(held[0], operation.lock, reason, now=operation.now)
        if operation.now:
            self.end(held[0], NOT_HELD)
        return ("changed", 1)

    def _acknowledge(self, command: Command, operation: AcknowledgeNotices) -> Answer:
        session = self.sessions.get(command.session)
        if session is None or session.user != command.user:
            return NO_SESSION
        dropped = [notice for notice in session.notices if notice.number <= operation.number]
        session.notices = [notice for notice in session.notices if notice.number > operation.number]
        for token in sorted(notice.token for notice in dropped):
            self._free(token)
        return ("changed", len(dropped))

    def _free_revoked(self, command: Command, operation: FreeRevoked) -> Answer:
        del command
        return ("changed", sum(self._free(token) for token in operation.tokens))

    def _free(self, token: int) -> int:
        revoked = [grant for grant in self.live if grant.ending and grant.token == token]
        for grant in revoked:
            self.end(grant, NOT_HELD)
        return len(revoked)

    # Who listens

    def _origin_gone(self, command: Command, told: OriginGone) -> Answer:
        del command

        def is_gone(request: Request) -> bool:
            origin = request.origin
            if origin.node != told.node:
                return False
            if told.connection:
                one = told.operation in (0, origin.operation)
                return one and (origin.boot, origin.connection) == (told.boot, told.connection)
            return (origin.boot != told.boot) if told.boot_is_alive else (origin.boot == told.boot)

        return ("changed", self.orphan_waits(is_gone))

    def _register_node(self, command: Command, operation: RegisterNode) -> Answer:
        instance = self.instances.get(operation.node, operation.instance)
        known = operation.node not in self.removed and instance == operation.instance
        if not known or command.origin.node != operation.node:
            return ERR
        self.instances[operation.node] = instance
        boot = command.origin.boot
        self.orphan_waits(lambda wait: wait.origin.node == operation.node and wait.origin.boot != boot)
        return ("changed", 1)

    def _remove_member(self, command: Command, operation: RemoveMember) -> Answer:
        del command
        if operation.node in self.removed:
            return ("changed", 0)
        self.removed.append(operation.node)
        self.orphan_waits(lambda wait: wait.origin.node == operation.node)
        return ("changed", 1)

    def _request_orphaned(self, command: Command, operation: RequestOrphaned) -> Answer:
        gone = (command.origin.node, command.origin.boot, operation.connection)
        for request in sorted(self.live, key=lambda each: -each.token):
            origin = request.origin
            if operation.lock not in request.locks:
                continue
            if (origin.node, origin.boot, origin.connection) != gone:
                continue
            if request.user != command.user or (request.id or "") != (command.request or ""):
                continue
            by_uuid = isinstance(request.id, str) and request.id
            unnamed = request.token and request.owner == command.owner
            if by_uuid or (request.session == command.session and (request.id or unnamed)):
                self.orphan(request)
                return ("changed", 1)
        return ("changed", 0)
