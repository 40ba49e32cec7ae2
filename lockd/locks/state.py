"""The replicated state of the lock service, and the few transitions that everything is made of.

A request is taken in, granted, orphaned, attached again, and ended; a session is opened and ended.
Commands (lockd.locks.machine) and timers are sequences of these. Each transition keeps every index
in step, tells who has to be told, and looks at the head of the queue again (SAFETY G5).
"""

import enum
from typing import NamedTuple

from lockd.ids import TOKEN_MAX, FencingToken, SessionId
from lockd.locks.answers import GRANT_ENDED, PrivateAnswers
from lockd.locks.commands import (
    WAIT_FOREVER,
    Completion,
    Granted,
    Origin,
    Outcome,
    Refused,
    RegisterNode,
)
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


class WaitOver(NamedTuple):
    """Timer: the WAIT of this request has passed."""

    request: Request


class OrphanOver(NamedTuple):
    """Timer: nobody asked for this request again within its session's TTL (G4)."""

    request: Request


class QuietOver(NamedTuple):
    """Timer: the quiet period after a restore has passed (G2)."""


class Member(NamedTuple):
    """A node that was added, as AddMember or PromoteMember said last."""

    peer_address: str
    """Where to reach it until it has registered; then `nodes` knows better."""
    wants_vote: bool
    """It is a voter, or becomes one by itself when it has caught up."""


class LeaseEvent(enum.Enum):
    """What the state tells the leader's lease book."""

    BEGAN = "began"
    """A session was opened, or a private one has its grant: its lease runs from now."""
    CLEARED = "cleared"
    """It is no longer marked silent (T2)."""
    ENDED = "ended"
    """The session is gone, whatever ended it."""


class LeaseChange(NamedTuple):
    """One event of one session's lease."""

    event: LeaseEvent
    session: SessionId
    ttl_ms: int


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
        """Counts the events of locks: grants and ends of grants."""
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
        """Those that are held or waited for."""
        self.waiters = 0
        """Requests that wait, over all locks."""
        self.private_answers = PrivateAnswers(self.limits)
        self.waits = WaitsByOrigin()
        self.timers: Timers[WaitOver | OrphanOver | QuietOver] = Timers()
        self.quiet_timer = NO_TIMER

        # What the last apply caused. Not part of the state.
        self.completions: list[Completion] = []
        self.lease_changes: list[LeaseChange] = []

    def tell(self, origin: Origin, outcome: Outcome) -> None:
        self.completions.append(Completion(origin, outcome))

    def note_lease(self, event: LeaseEvent, session: Session) -> None:
        self.lease_changes.append(LeaseChange(event, SessionId(session.id), session.ttl_ms))

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

    def end_session(self, session: Session) -> None:
        """Free its locks and drop its waits, in sorted order, and let the next ones in (G6).

        All of its requests are out before anyone is granted: a lock it frees must not go to
        another request of the session that ends. Its waiters are told (etcd#11456).
        """
        requests = session.requests_by_lock()
        for request in requests:
            self._take_out(request, _SESSION_ENDED if request.phase is Phase.WAITING else GRANT_ENDED)
        self._remove_session(session)
        for lock in dict.fromkeys(request.lock for request in requests):
            self._look_at_head(lock)

    def _remove_session(self, session: Session) -> None:
        del self.sessions[session.id]
        self.note_lease(LeaseEvent.ENDED, session)

    # Requests.

    def lock_named(self, name: str) -> Lock:
        """The lock, made when it was free."""
        lock = self.locks.get(name)
        if lock is None:
            lock = self.locks[name] = Lock(name)
        return lock

    def take_in(self, request: Request, session: Session) -> None:
        """Give a new request its ticket and enter it under its session and its id."""
        self.tickets += 1
        request.ticket = self.tickets
        session.requests[request.ticket] = request
        if isinstance(request.id, int):
            if request.id:
                session.answers.began(request.id, request)
        elif request.id:
            self.private_answers.began(session.user, request.id, request)

    def enqueue(self, request: Request, wait_ms: int) -> None:
        """Let a request that was taken in wait, for so long by the state's clock or for ever."""
        request.lock.enqueue(request)
        self.sessions[request.session].waits[request.owner, request.lock.name] = request
        self.waiters += 1
        request.wait_ms = wait_ms
        if wait_ms != WAIT_FOREVER:
            request.wait_timer = self.timers.set(self.clock_ms + wait_ms, WaitOver(request))
        self.waits.add(request)

    def grant(self, request: Request) -> None:
        """Make a request that was taken in the holder of its free lock; draws the token (G1)."""
        assert request.lock.holder is None, f"{request.lock.name} is held"
        assert self.token < TOKEN_MAX, "no token is left"
        assert not self.is_quiet, "G2: a grant in the quiet period"
        self.token = FencingToken(self.token + 1)
        self.revision += 1
        request.hold(token=self.token, revision=self.revision, clock_ms=self.clock_ms)
        request.lock.holder = request
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
        )

    def end_request(self, request: Request, answer: Refused) -> None:
        """Withdraw a wait or release a grant; from now on its id is answered so (G3, G5).

        A private session ends with its request.
        """
        self._take_out(request, answer)
        session = self.sessions[request.session]
        if session.is_private:
            self._remove_session(session)
        self._look_at_head(request.lock)

    def _take_out(self, request: Request, answer: Refused) -> None:
        """Remove a request from every index, without looking at what its lock does then."""
        session = self.sessions[request.session]
        if request.phase is Phase.WAITING:
            self._stop_waiting(request, answer)
        else:
            request.lock.holder = None
            self.revision += 1
        self.timers.cancel(request.orphan_timer)
        request.phase = Phase.ENDED
        del session.requests[request.ticket]
        if isinstance(request.id, int):
            if request.id:
                session.answers.ended(request.id, answer)
        elif request.id:
            self.private_answers.ended(session.user, request.id, answer, self.clock_ms)

    def _stop_waiting(self, request: Request, outcome: Outcome) -> None:
        """Take a waiter out of its queue, and tell its origin why unless it is an orphan."""
        del request.lock.waiters[request.ticket]
        del self.sessions[request.session].waits[request.owner, request.lock.name]
        self.waiters -= 1
        self.timers.cancel(request.wait_timer)
        request.wait_timer = NO_TIMER
        if request.orphan_timer == NO_TIMER:
            self.waits.remove(request)
            self.tell(request.origin, outcome)

    def _look_at_head(self, lock: Lock) -> None:
        """Grant until the head can't be granted; forget a lock that nobody wants (G5)."""
        while not self.is_quiet and self.token < TOKEN_MAX and (head := lock.next_to_grant()) is not None:
            self.grant(head)
            self._stop_waiting(head, self.granted(head, repeat=True))
        if lock.is_free:
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

    # The clock, by T1.

    def advance_clock(self, stamp_ms: int) -> None:
        """Move the clock to `stamp_ms`, never back; forget old answers; fire what is due, in order."""
        self.clock_ms = max(self.clock_ms, stamp_ms)
        self.private_answers.forget_old(self.clock_ms)
        while (due := self.timers.take_due(self.clock_ms)) is not None:
            match due:
                case WaitOver(request):
                    self.end_request(request, self.timed_out(request))
                case OrphanOver(request):
                    self.end_request(request, _WITHDRAWN)
                case QuietOver():
                    self._end_quiet_period()

    def begin_quiet_period(self, duration_ms: int) -> None:
        """Grant nothing for so long; what is asked for meanwhile waits (G2)."""
        assert not self.locks, "G2: a restored state has no locks"
        self.grants_from_ms = self.clock_ms + duration_ms
        self.quiet_timer = self.timers.set(self.grants_from_ms, QuietOver())

    def _end_quiet_period(self) -> None:
        self.grants_from_ms = 0
        self.quiet_timer = NO_TIMER
        for name in sorted(self.locks):
            self._look_at_head(self.locks[name])

    # Refusals that tell who is in the way.

    def timed_out(self, request: Request) -> Refused:
        """TIMEOUT of a wait that has run out."""
        return self._in_the_way(
            "TIMEOUT",
            request.lock,
            f" (waited {request.wait_ms} ms, {len(request.lock.waiters) - 1} more waiting)",
        )

    def busy(self, lock: Lock) -> Refused:
        """BUSY of a request that does not wait."""
        return self._in_the_way("BUSY", lock, f" ({len(lock.waiters)} waiting)")

    def quiet(self, lock_name: str) -> Refused:
        """UNAVAILABLE of a request that does not wait, in the quiet period. Nothing has changed."""
        return Refused("UNAVAILABLE", self._why_quiet(), lock=lock_name)

    def _why_quiet(self) -> str:
        left_ms = max(self.grants_from_ms - self.clock_ms, 0)
        return (
            f"the cluster was restored: nothing is granted for another {left_ms} ms, "
            "so that every lease of before has run out"
        )

    def _in_the_way(self, code: str, lock: Lock, rest: str) -> Refused:
        # The texts are part of the state, as answers: no repr(), whose output depends on the
        # Unicode tables of the Python that runs (G6).
        holder = lock.holder
        if holder is None:
            why = f": {self._why_quiet()}" if self.is_quiet else ""
            return Refused(code, f'"{lock.name}" can\'t be granted{why}{rest}', lock=lock.name)
        session = self.sessions[holder.session]
        who = f"session {session.number}" + (f' "{session.name}"' if session.name else "")
        owner = f' owner "{holder.owner}"' if holder.owner else ""
        held_ms = self.clock_ms - holder.granted_ms
        text = f'"{lock.name}" has been held by {who}{owner} for {held_ms} ms{rest}'
        return Refused(code, text, lock=lock.name, holder=session.label)
