"""The replicated state of the lock service, and the few transitions that everything is made of.

A request is taken in, granted, revoked, orphaned, attached again, and ended; a session is opened and
ended. Commands (lockd.locks.machine) and timers are sequences of these. Each transition keeps every
index in step, tells who has to be told, and looks at the head of the queues again (SAFETY G5).
"""

from collections.abc import Iterable
from typing import NamedTuple

from lockd.ids import TOKEN_MAX, FencingToken, SessionId
from lockd.locks.answers import GRANT_ENDED, PrivateAnswers
from lockd.locks.commands import (
    WAIT_FOREVER,
    Completion,
    Granted,
    Notice,
    Origin,
    Outcome,
    Refused,
    RegisterNode,
)
from lockd.locks.deadlines import DelayOver, Due, HoldOver, OrphanOver, QuietOver, WaitOver
from lockd.locks.events import EventKind, LeaseChange, LeaseEvent, LockEvent
from lockd.locks.limits import Limits
from lockd.locks.origins import WaitsByOrigin
from lockd.locks.queues import Lock, Phase, Request
from lockd.locks.sessions import Session
from lockd.locks.timers import NO_TIMER, Timers

FEATURE_LEVEL = 1

_SESSION_ENDED = Refused("NOSESSION", "the session ended while this request waited")
_WITHDRAWN = Refused("TIMEOUT", "withdrawn: its connection was gone, and nobody asked for it again in time")
_ASK_AGAIN = Refused("UNKNOWN", "this connection counts as gone: ask again with the same request id")
_ASKED_ELSEWHERE = Refused("UNKNOWN", "the same request was made again elsewhere, where the answer goes")


class Member(NamedTuple):
    """A node that was added, as AddMember or PromoteMember said last."""

    peer_address: str
    """Where to reach it until it has registered; then `nodes` knows better."""
    wants_vote: bool
    """It is a voter, or becomes one by itself when it has caught up."""


class LockState:
    """Everything that a snapshot holds. Equal logs make equal states (G6)."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.feature_level = FEATURE_LEVEL
        self.applied = 0
        """Index of the last entry applied."""
        self.clock_ms = 0
        self.cluster = ""
        self.incarnation = ""
        self.token = FencingToken(0)
        """The one drawn last; the next grant has a higher one, of whatever lock (P2, G1)."""
        self.revision = 0
        """Counts the events of locks."""
        self.grants_from_ms = 0
        """The clock at which the quiet period after a restore ends; 0 when there is none (G2)."""
        self.nodes: dict[int, RegisterNode] = {}
        self.members: dict[int, Member] = {}
        """Those that joined later. The founders are known to the consensus alone."""
        self.removed: dict[int, str] = {}
        """Ids that are never used again, and the instance that each had, "" if it isn't known (C8)."""
        self.sessions: dict[str, Session] = {}
        self.sessions_opened = 0
        """The public number of the session opened last."""
        self.tickets = 0
        self.locks: dict[str, Lock] = {}
        """Those that are held, waited for or in their delay."""
        self.grants: dict[int, Request] = {}
        """Those that keep others out, by token."""
        self.revoked: dict[int, Request] = {}
        """Those of them that are revoked, by token."""
        self.waiters = 0
        """Requests that wait, over all locks."""
        self.private_answers = PrivateAnswers(self.limits)
        self.waits = WaitsByOrigin()
        self.timers: Timers[Due] = Timers()
        self.quiet_timer = NO_TIMER

        # What the last apply caused. Not part of the state.
        self.completions: list[Completion] = []
        self.lease_changes: list[LeaseChange] = []
        self.events: list[LockEvent] = []

    def tell(self, origin: Origin, outcome: Outcome) -> None:
        self.completions.append(Completion(origin, outcome))

    def note_lease(self, event: LeaseEvent, session: Session, token: int = 0) -> None:
        self.lease_changes.append(LeaseChange(event, SessionId(session.id), session.ttl_ms, token))

    def note_event(self, kind: EventKind, lock: Lock, request: Request, reason: str = "") -> None:
        """Count and tell one event of a grant."""
        self.revision += 1
        session = self.sessions[request.session]
        self.events.append(
            LockEvent(
                self.revision,
                kind,
                lock.name,
                request.token,
                request.mode,
                session.number,
                session.name,
                request.owner,
                request.meta,
                reason,
            )
        )

    @property
    def is_quiet(self) -> bool:
        """Nothing is granted: the cluster was restored, and leases of before may still be trusted (G2)."""
        return self.grants_from_ms != 0

    # Sessions.

    def open_session(
        self, session_id: str, *, user: str, ttl_ms: int, name: str = "", meta: str = ""
    ) -> Session:
        """Open a session whose lease runs from now."""
        session = self._add_session(session_id, user=user, ttl_ms=ttl_ms, name=name, meta=meta)
        self.note_lease(LeaseEvent.BEGAN, session)
        return session

    def open_private_session(self, session_id: str, *, user: str, ttl_ms: int) -> Session:
        """Open a session for one request with a TTL; its lease runs from the grant."""
        session = self._add_session(session_id, user=user, ttl_ms=ttl_ms, name="", meta="")
        session.is_private = True
        session.lease_running = False
        return session

    def _add_session(self, session_id: str, *, user: str, ttl_ms: int, name: str, meta: str) -> Session:
        self.sessions_opened += 1
        session = Session(
            session_id=session_id,
            number=self.sessions_opened,
            user=user,
            ttl_ms=self.limits.clamp_ttl(ttl_ms),
            name=name,
            meta=meta,
            answers_kept=self.limits.answers_per_session_kept,
        )
        self.sessions[session_id] = session
        return session

    def end_session(self, session: Session, kind: EventKind) -> None:
        """Free its locks and drop its waits, in sorted order, and let the next ones in (G6).

        All of its requests are out before anyone is granted: a lock it frees must not go to
        another request of the session that ends. Its waiters are told (etcd#11456).
        """
        requests = session.requests_by_lock()
        for request in requests:
            answer = _SESSION_ENDED if request.phase is Phase.WAITING else GRANT_ENDED
            self._take_out(request, answer, kind)
        self._remove_session(session)
        self.look_at_all(lock for request in requests for lock in request.locks)

    def _remove_session(self, session: Session) -> None:
        del self.sessions[session.id]
        self.note_lease(LeaseEvent.ENDED, session)

    # Requests.

    def lock_named(self, name: str, limit: int) -> Lock:
        """The lock, made when it was free; its first user fixes its limit (G5)."""
        lock = self.locks.get(name)
        if lock is None:
            lock = self.locks[name] = Lock(name)
        if not lock.is_wanted:
            lock.limit = limit
        return lock

    def take_in(self, request: Request, session: Session) -> None:
        """Give a new request its ticket and enter it under its session and its id."""
        self.tickets += 1
        request.ticket = self.tickets
        session.add(request)
        if isinstance(request.id, int):
            if request.id:
                session.answers.began(request.id, request)
        elif request.id:
            self.private_answers.began(session.user, request.id, request)

    def enqueue(self, request: Request, wait_ms: int) -> None:
        """Let a request that was taken in wait, for so long by the state's clock or for ever."""
        request.places = tuple(lock.enqueue(request) for lock in request.locks)
        self.sessions[request.session].waiting += 1
        self.waiters += 1
        request.wait_ms = wait_ms
        if wait_ms != WAIT_FOREVER:
            request.wait_timer = self.timers.set(self.clock_ms + wait_ms, WaitOver(request))
        self.waits.add(request)

    def grant(self, request: Request) -> None:
        """Make a request that was taken in the holder of its locks; draws the token (G1)."""
        assert self.token < TOKEN_MAX, "no token is left"
        assert not self.is_quiet, "G2: a grant in the quiet period"
        self.token = FencingToken(self.token + 1)
        request.hold(token=self.token, revision=self.revision + len(request.locks), clock_ms=self.clock_ms)
        self.grants[self.token] = request
        for lock in request.locks:
            assert lock.admits(request), f"{lock.name} is held"
            lock.add_holder(request)
            self.note_event(EventKind.ACQUIRED, lock, request)
        if request.max_hold_ms:
            request.hold_timer = self.timers.set(self.clock_ms + request.max_hold_ms, HoldOver(request))
        session = self.sessions[request.session]
        if not session.lease_running:
            session.lease_running = True
            self.note_lease(LeaseEvent.BEGAN, session)

    def granted(self, request: Request, *, repeat: bool) -> Granted:
        """The answer of a held request. `repeat`: given before, or given after a wait (K1)."""
        return Granted(
            lock=request.lock.name,
            session=request.session,
            token=request.token,
            revision=request.revision,
            ttl_ms=self.sessions[request.session].ttl_ms,
            repeat=repeat,
            locks=request.names,
            mode=request.mode,
            limit=request.lock.limit,
            weight=request.weight,
        )

    def revoke(self, request: Request, lock: Lock, *, reason: str) -> None:
        """Tell the holder that its grant has ended; until it can't be trusted it keeps others out (P1)."""
        assert request.phase is Phase.HELD, request.phase
        request.phase = Phase.REVOKED
        request.revoked = reason
        self.timers.cancel(request.hold_timer)
        request.hold_timer = NO_TIMER
        self.revoked[request.token] = request
        session = self.sessions[request.session]
        session.noticed += 1
        request.notice = session.noticed
        session.notices[session.noticed] = Notice(session.noticed, lock.name, request.token, reason)
        session.forget_notices(self.limits.notices_per_session_max)
        self.note_lease(LeaseEvent.REVOKED, session, request.token)

    def end_request(self, request: Request, answer: Refused, kind: EventKind = EventKind.RELEASED) -> None:
        """Withdraw a wait or release a grant; from now on its id is answered so (G3, G5).

        A private session ends with its request.
        """
        self._take_out(request, answer, kind)
        session = self.sessions[request.session]
        if session.is_private:
            self._remove_session(session)
        self.look_at(request.locks)

    def release(self, request: Request) -> None:
        """Its holder gives the grant back, with all of its locks."""
        self.acknowledge_end(request)
        self.end_request(request, GRANT_ENDED)

    def give_back(self, request: Request, lock: Lock) -> None:
        """As `release`, for this one of its locks."""
        if len(request.locks) == 1:
            self.release(request)
            return
        self._leave(request, lock, EventKind.RELEASED)
        self.sessions[request.session].leave(request, lock)
        request.part_with(lock)
        self.look_at((lock,))

    def acknowledge_end(self, request: Request) -> None:
        """Its holder knows that the grant has ended: there is nothing left to tell."""
        if request.notice:
            self.sessions[request.session].notices.pop(request.notice, None)

    def _take_out(self, request: Request, answer: Refused, kind: EventKind) -> None:
        """Remove a request from every index, without looking at what its locks do then."""
        session = self.sessions[request.session]
        if request.phase is Phase.WAITING:
            self._stop_waiting(request, answer)
        else:
            for lock in request.locks:
                self._leave(request, lock, kind)
            del self.grants[request.token]
            if request.phase is Phase.REVOKED:
                del self.revoked[request.token]
                session.notice_is_past(request.notice)
                session.forget_notices(self.limits.notices_per_session_max)
                self.note_lease(LeaseEvent.PASSED_ON, session, request.token)
        self.timers.cancel(request.hold_timer)
        self.timers.cancel(request.orphan_timer)
        request.phase = Phase.ENDED
        session.remove(request)
        if isinstance(request.id, int):
            if request.id:
                session.answers.ended(request.id, answer)
        elif request.id:
            self.private_answers.ended(session.user, request.id, answer, self.clock_ms)

    def _leave(self, request: Request, lock: Lock, kind: EventKind) -> None:
        """The grant no longer holds this lock. An end that its holder may not know of begins a DELAY."""
        lock.remove_holder(request)
        if request.phase is Phase.REVOKED:
            kind = EventKind.BROKEN
        self.note_event(kind, lock, request, request.revoked)
        if request.delay_ms and kind is not EventKind.RELEASED:
            # No other one runs: the grant was exclusive, and during a DELAY there are no grants.
            lock.delayed_until_ms = self.clock_ms + request.delay_ms
            lock.delay_timer = self.timers.set(lock.delayed_until_ms, DelayOver(lock))

    def _stop_waiting(self, request: Request, outcome: Outcome) -> None:
        """Take a waiter out of its queues, and tell its origin why unless it is an orphan."""
        for lock in request.locks:
            del lock.waiters[request.ticket]
        self.sessions[request.session].waiting -= 1
        self.waiters -= 1
        self.timers.cancel(request.wait_timer)
        request.wait_timer = NO_TIMER
        if request.orphan_timer == NO_TIMER:
            self.waits.remove(request)
            self.tell(request.origin, outcome)

    def can_grant(self, request: Request) -> bool:
        """Whether a request that waits for its locks stands first in each, and each has room (G5)."""
        return all(lock.head is request and lock.admits(request) for lock in request.locks)

    def look_at_all(self, locks: Iterable[Lock]) -> None:
        """Look at locks that came together from several requests, in sorted order of names (G6)."""
        self.look_at(sorted(dict.fromkeys(locks), key=lambda lock: lock.name))

    def look_at(self, locks: Iterable[Lock]) -> None:
        """Grant the heads of these locks until none can be granted; forget those nobody wants (G5).

        In the order given, which is that of their names. A grant of several locks opens none of them
        to another waiter, so it is enough to look at locks where something has changed.
        """
        for lock in locks:
            while not self.is_quiet and self.token < TOKEN_MAX:
                head = lock.head
                if head is None or not self.can_grant(head):
                    break
                self.grant(head)
                self._stop_waiting(head, self.granted(head, repeat=True))
            if not lock.is_wanted:
                lock.limit = 0  # a DELAY may keep the lock, and whoever comes next fixes it anew
            if lock.is_free and self.locks.get(lock.name) is lock:
                del self.locks[lock.name]

    # Who listens, by G4.

    def orphan(self, request: Request) -> None:
        """Nobody listens for this request: end it unless it is asked for again within a TTL.

        One without an id can't be asked for again and ends at once. A waiter is told to ask again,
        for its node may have been called dead while it lives; after that it is told nothing more,
        so a grant that comes meanwhile is known to nobody until the id comes back.
        """
        if request.orphan_timer != NO_TIMER:
            return
        if not request.id:
            self.end_request(request, _WITHDRAWN)
            return
        if request.phase is Phase.WAITING:
            self.waits.remove(request)
            self.tell(request.origin, _ASK_AGAIN)
        ttl_ms = self.sessions[request.session].ttl_ms
        request.orphan_timer = self.timers.set(self.clock_ms + ttl_ms, OrphanOver(request))

    def attach(self, request: Request, origin: Origin) -> None:
        """The same request was made again: from now on this origin is told, and it is no orphan."""
        waits = request.phase is Phase.WAITING
        if request.orphan_timer != NO_TIMER:
            self.timers.cancel(request.orphan_timer)
            request.orphan_timer = NO_TIMER
        elif waits:
            self.waits.remove(request)
            if request.origin != origin:
                self.tell(request.origin, _ASKED_ELSEWHERE)
        request.origin = origin
        if waits:
            self.waits.add(request)

    def end_orphan(self, request: Request) -> None:
        """Nobody asked for it in time."""
        self.end_request(request, _WITHDRAWN)

    # After a restore, by G2.

    def begin_quiet_period(self, duration_ms: int) -> None:
        """Grant nothing for so long; what is asked for meanwhile waits."""
        assert not self.locks, "G2: a restored state has no locks"
        self.grants_from_ms = self.clock_ms + duration_ms
        self.quiet_timer = self.timers.set(self.grants_from_ms, QuietOver())

    def end_quiet_period(self) -> None:
        self.grants_from_ms = 0
        self.quiet_timer = NO_TIMER
        self.look_at_all(self.locks.values())

    def end_delay(self, lock: Lock) -> None:
        """The DELAY of this lock is over: whoever waits comes in."""
        lock.delay_timer = NO_TIMER
        lock.delayed_until_ms = 0
        self.look_at((lock,))
