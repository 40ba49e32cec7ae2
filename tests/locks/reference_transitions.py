"""What a request and a session of the reference go through, and what those who watch are told of it."""

from collections.abc import Callable, Iterable
from functools import partial

from lockd.locks.commands import MAX_HOLD, Granted, Notice
from lockd.locks.events import EventKind, LeaseEvent, LockEvent
from lockd.locks.limits import Limits
from tests.locks.deadlock_search import fits
from tests.locks.reference_records import Answer, Between, Due, Request, Said, Session

WITHDRAWN: Answer = ("refused", "TIMEOUT", "", "", "", "", 0, 0)


class Transitions:
    def __init__(self, limits: Limits, *, token: int = 0, quiet_ms: int = 0) -> None:
        self.limits = limits
        self.clock_ms = 0
        self.token = token
        self.revision = 0
        self.timers = 0
        self.next_ticket = 1
        self.sessions_opened = 0
        self.sessions: dict[str, Session] = {}
        self.live: list[Request] = []
        """In the order of arrival, which is the order of every queue."""
        self.over: list[tuple[int, str, str, Answer]] = []
        """Answers to TTL requests, oldest first: the clock when each was over, its user and UUID."""
        self.delays: dict[str, Due] = {}
        self.last_tokens: dict[str, int] = {}
        """Of the locks that are held, waited for or in a DELAY."""
        self.removed: list[int] = []
        self.instances: dict[int, str] = {}
        """Of the nodes that registered."""
        self.quiet: Due | None = self.timer(quiet_ms) if quiet_ms else None
        self.out: list[Said] = []
        self.events: list[LockEvent] = []
        self.leases: list[tuple[LeaseEvent, str, int, int]] = []

    # Looking around

    def holders(self, lock: str) -> list[Request]:
        """In the order of their grants."""
        held = [request for request in self.live if request.token and lock in request.locks]
        return sorted(held, key=lambda request: request.token)

    def queue(self, lock: str) -> list[Request]:
        return [request for request in self.live if not request.token and lock in request.locks]

    def is_known(self, lock: str) -> bool:
        """Whether anyone holds or wants it, or a DELAY runs: of other locks nothing is known."""
        return lock in self.delays or any(lock in request.locks for request in self.live)

    def requests_of(self, session: str) -> list[Request]:
        return [request for request in self.live if request.session == session]

    def is_grantable(self, request: Request) -> bool:
        """Whether it stands, or would stand, first in each of its locks and goes with their holders."""
        return self.quiet is None and self._obstacle(request) is None

    def _obstacle(self, request: Request) -> str | None:
        for lock in request.locks:
            ahead = [wait for wait in self.queue(lock) if wait.ticket < request.ticket]
            holders = [holder.claim for holder in self.holders(lock)]
            if ahead or lock in self.delays or not fits(request.claim, holders):
                return lock
        return None

    def in_the_way(self, code: str, request: Request) -> Answer:
        """BUSY or TIMEOUT, with whoever has held it longest."""
        lock = self._obstacle(request) or request.locks[0]
        waiting = sum(wait is not request for wait in self.queue(lock))
        held = self.holders(lock)
        if not held:
            return ("refused", code, lock, "", "", "", 0, waiting)
        first = held[0]
        meta = first.meta if len(first.meta.encode()) <= self.limits.refusal_meta_bytes_max else ""
        held_ms = self.clock_ms - first.granted_ms
        label = self.sessions[first.session].label
        return ("refused", code, lock, label, first.owner, meta, held_ms, waiting)

    # The clock

    def timer(self, duration_ms: int) -> Due:
        self.timers += 1
        return (self.clock_ms + duration_ms, self.timers)

    def advance(self, stamp_ms: int) -> None:
        self.clock_ms = max(self.clock_ms, stamp_ms)
        for _ in range(self.limits.private_answers_forgotten_per_entry):
            if self.over and self.over[0][0] + self.limits.ttl_ms_max <= self.clock_ms:
                del self.over[0]
        while (first := min(self._all_timers(), key=lambda each: each[0], default=None)) is not None:
            due, fire = first
            if due[0] > self.clock_ms:
                break
            fire()

    @property
    def next_timer_ms(self) -> int | None:
        return min((due[0] for due, _ in self._all_timers()), default=None)

    def _all_timers(self) -> list[tuple[Due, Callable[[], None]]]:
        timers: list[tuple[Due, Callable[[], None]]] = []
        for request in self.live:
            if request.wait:
                timers.append((request.wait, partial(self._time_out, request)))
            if request.orphan:
                timers.append((request.orphan, partial(self.end, request, WITHDRAWN)))
            if request.hold:
                timers.append((request.hold, partial(self.revoke, request, request.locks[0], MAX_HOLD)))
        timers += [(due, partial(self._end_delay, name)) for name, due in self.delays.items()]
        if self.quiet is not None:
            timers.append((self.quiet, self._end_quiet))
        return timers

    def _time_out(self, request: Request) -> None:
        self.end(request, self.in_the_way("TIMEOUT", request))

    def _end_delay(self, name: str) -> None:
        del self.delays[name]
        self.look([name])

    def _end_quiet(self) -> None:
        self.quiet = None
        self.look(name for request in self.live for name in request.locks)

    # Requests

    def grant(self, request: Request, *, repeat: bool) -> Answer:
        self.token += 1
        request.token = self.token
        request.granted_ms = self.clock_ms
        request.wait = None
        if request.max_hold_ms:
            request.hold = self.timer(request.max_hold_ms)
        self.tell_event(EventKind.ACQUIRED, request, request.locks)
        request.revision = self.revision
        for name in request.locks:
            self.last_tokens[name] = request.token
        session = self.sessions[request.session]
        if not session.runs:
            session.runs = True
            self.note_lease(LeaseEvent.BEGAN, session)
        return self.granted(request, repeat=repeat)

    def granted(self, request: Request, *, repeat: bool) -> Answer:
        answer = Granted(
            lock=request.locks[0],
            session=request.session,
            token=request.token,
            revision=request.revision,
            ttl_ms=self.sessions[request.session].ttl_ms,
            repeat=repeat,
            locks=tuple(request.locks),
            mode=request.mode,
            limit=request.limit,
            weight=request.weight,
        )
        return ("granted", answer)

    def queued(self, request: Request) -> Answer:
        queues = [self.queue(name) for name in request.locks]
        exact = max(queue.index(request) for queue in queues)
        most = max(len(queue) - 1 for queue in queues)
        return ("queued", request.locks[0], request.session, Between(exact, most))

    def look(self, names: Iterable[str]) -> None:
        """Let in whoever stands first in these locks, until somebody has to wait on."""
        for name in sorted(set(names)):
            while (waiting := self.queue(name)) and self.is_grantable(waiting[0]):
                answer = self.grant(waiting[0], repeat=True)
                if not waiting[0].orphan:
                    self.out.append((waiting[0].origin, answer))
        self.last_tokens = {name: token for name, token in self.last_tokens.items() if self.is_known(name)}

    def end(self, request: Request, answer: Answer) -> None:
        """Withdraw a wait, or give back all of a grant; a private session ends with its request."""
        self.give_back(request, list(request.locks), answer)

    def give_back(self, request: Request, names: list[str], answer: Answer) -> None:
        self._take_out(request, names, answer, EventKind.RELEASED)
        if request.private:
            self._forget_session(self.sessions[request.session])
        self.look(names)

    def drop_notice(self, grant: Request) -> None:
        """Its holder ends it by itself, so it need not be told."""
        session = self.sessions[grant.session]
        session.notices = [notice for notice in session.notices if notice.token != grant.token]

    def _take_out(self, request: Request, names: list[str], answer: Answer, kind: EventKind) -> None:
        if request.token:
            kind = EventKind.BROKEN if request.ending else kind
            self.tell_event(kind, request, names)
            if request.delay_ms and kind is not EventKind.RELEASED:
                for name in names:
                    self.delays[name] = max(self.timer(request.delay_ms), self.delays.get(name, (0, 0)))
        elif not request.orphan:
            self.out.append((request.origin, answer))
        request.locks = [name for name in request.locks if name not in names]
        if not request.locks:
            self.live.remove(request)
            self.remember(request, answer)
            if request.ending:
                self._forget_notices(self.sessions[request.session])
                self.note_lease(LeaseEvent.PASSED_ON, self.sessions[request.session], request.token)

    def revoke(self, grant: Request, lock: str, reason: str, *, now: bool = False) -> None:
        """The holder is told; with `now` the grant is about to end."""
        session = self.sessions[grant.session]
        session.noticed += 1
        session.notices.append(Notice(session.noticed, lock, grant.token, reason))
        grant.ending, grant.hold = reason, None
        self._forget_notices(session)
        self.note_lease(LeaseEvent.REVOKED, session, grant.token)
        if not now:
            self.tell_event(EventKind.BREAKING, grant, grant.locks)

    def _forget_notices(self, session: Session) -> None:
        """Of more than are kept, the oldest of a grant that has ended."""
        revoked = [request.token for request in self.live if request.ending]
        past = [notice for notice in session.notices if notice.token not in revoked]
        if past and len(session.notices) > self.limits.notices_per_session_max:
            session.notices.remove(past[0])

    def orphan_waits(self, is_gone: Callable[[Request], bool]) -> int:
        gone = [
            request for request in self.live if not (request.token or request.orphan) and is_gone(request)
        ]
        for request in gone:
            self.orphan(request)
        return len(gone)

    def orphan(self, request: Request) -> None:
        if request.orphan:
            return
        if not request.id:
            self.end(request, WITHDRAWN)
            return
        if not request.token:
            self.out.append((request.origin, ("refused", "UNKNOWN")))
        request.orphan = self.timer(self.sessions[request.session].ttl_ms)

    # Answers

    def recall(self, asked: Request) -> Request | Answer | None:
        """The live request under that id, or the answer when it is over."""
        if not asked.id:
            return None
        for request in self.live:
            same_scope = request.user == asked.user if asked.private else request.session == asked.session
            if request.id == asked.id and request.private == asked.private and same_scope:
                return request
        if isinstance(asked.id, int):
            session = self.sessions[asked.session]
            return ("refused", "ERR") if asked.id <= session.floor else session.over.get(asked.id)
        kept = [answer for _, user, uuid, answer in self.over if (user, uuid) == (asked.user, asked.id)]
        return kept[0] if kept else None

    def remember(self, request: Request, answer: Answer) -> None:
        if isinstance(request.id, str):
            if request.id:
                self.over.append((self.clock_ms, request.user, request.id, answer))
                del self.over[: -self.limits.private_answers_kept_max]
        elif request.id > (session := self.sessions[request.session]).floor:
            session.over.setdefault(request.id, answer)
            if len(session.over) > self.limits.answers_per_session_kept:
                session.floor = min(session.over)
                del session.over[session.floor]

    # Sessions, and those who are told

    def open_session(self, name: str, user: str, ttl_ms: int) -> Session:
        self.sessions_opened += 1
        session = Session(name, self.sessions_opened, user, self.limits.clamp_ttl(ttl_ms))
        self.sessions[name] = session
        return session

    def end_session(self, session: Session, kind: EventKind) -> None:
        """All that it holds and waits for is out before anyone is let in."""
        mine = sorted(self.requests_of(session.id), key=lambda each: (each.locks[0], each.ticket))
        names = [name for request in mine for name in request.locks]
        for request in mine:
            answer: Answer = ("refused", "NOTHELD" if request.token else "NOSESSION")
            self._take_out(request, list(request.locks), answer, kind)
        self._forget_session(session)
        self.look(names)

    def _forget_session(self, session: Session) -> None:
        del self.sessions[session.id]
        self.note_lease(LeaseEvent.ENDED, session)

    def note_lease(self, event: LeaseEvent, session: Session, token: int = 0) -> None:
        self.leases.append((event, session.id, session.ttl_ms, token))

    def tell_event(self, kind: EventKind, grant: Request, names: Iterable[str]) -> None:
        session = self.sessions[grant.session]
        for name in sorted(names):
            self.revision += 1
            who = (session.number, session.name, grant.owner, grant.meta, grant.ending)
            self.events.append(LockEvent(self.revision, kind, name, grant.token, grant.mode, *who))
