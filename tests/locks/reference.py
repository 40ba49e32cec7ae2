"""The lock service in the plainest form: lists, searched from the front, and nothing indexed.

It says the same as lockd.locks, without floors, limits and texts. Slow, and easy to read against
SAFETY G1 to G7.
"""

from dataclasses import dataclass

from lockd.locks.commands import (
    Acquire,
    Cancel,
    CloseSession,
    Command,
    Completion,
    ExpireSessions,
    Granted,
    OpenSession,
    Origin,
    OriginGone,
    Queued,
    Refused,
    Release,
    RequestOrphaned,
    SessionOpened,
)
from lockd.locks.limits import Limits

Said = tuple[Origin, tuple[object, ...]]
"""Whom, and what: the kind of outcome and the fields that are compared."""
Due = tuple[int, int]
"""A deadline, and which timer it was: those set earlier fire first."""


@dataclass
class Session:
    user: str
    ttl_ms: int
    private: bool


@dataclass
class Request:
    lock: str
    session: str
    user: str
    owner: str
    id: int | str
    origin: Origin
    private: bool
    token: int = 0
    """0 while it waits."""
    wait: Due | None = None
    orphan: Due | None = None

    @property
    def key(self) -> tuple[str, int | str]:
        return (f"user {self.user}" if self.private else f"session {self.session}", self.id)


def said(completion: Completion) -> Said:
    """What the reference says of an outcome of the real machine."""
    match completion.outcome:
        case Granted(lock, session, token, _, ttl_ms, repeat):
            return completion.origin, ("granted", lock, session, token, ttl_ms, repeat)
        case Queued(lock, session):
            return completion.origin, ("queued", lock, session)
        case Refused(code):
            return completion.origin, ("refused", code)
        case SessionOpened(session, ttl_ms):
            return completion.origin, ("opened", session, ttl_ms)
        case changed:
            return completion.origin, ("changed", changed.count)


class Reference:
    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.clock_ms = 0
        self.token = 0
        self.timers = 0
        self.sessions: dict[str, Session] = {}
        self.live: list[Request] = []
        """In the order of arrival, which is the order of every queue."""
        self.answers: dict[tuple[str, int | str], str] = {}
        self.over: list[tuple[int, tuple[str, int | str]]] = []
        """The TTL requests among them, oldest first: the clock when each ended, and its key."""
        self.out: list[Said] = []

    def apply(self, stamp_ms: int, *commands: Command) -> list[Said]:
        self.out = []
        self.clock_ms = max(self.clock_ms, stamp_ms)
        for _ in range(self.limits.private_answers_forgotten_per_entry):
            if self.over and self.over[0][0] + self.limits.ttl_ms_max <= self.clock_ms:
                self._forget_oldest()
        while self._fire_first():
            pass
        for command in commands:
            self.out.append((command.origin, self._decide(command)))
        return self.out

    def holder(self, lock: str) -> Request | None:
        return next((r for r in self.live if r.lock == lock and r.token), None)

    def queue(self, lock: str) -> list[Request]:
        return [r for r in self.live if r.lock == lock and not r.token]

    def _fire_first(self) -> bool:
        timers = [(due, request) for request in self.live for due in (request.wait, request.orphan) if due]
        due, first = min(timers, key=lambda timer: timer[0], default=((0, 0), None))
        if first is None or due[0] > self.clock_ms:
            return False
        self._end(first, "TIMEOUT")
        return True

    def _decide(self, command: Command) -> tuple[object, ...]:
        match command.operation:
            case OpenSession(ttl_ms):
                return self._open(command, ttl_ms)
            case CloseSession():
                return self._close(command)
            case ExpireSessions(sessions):
                known = [session for session in sorted(set(sessions)) if session in self.sessions]
                for session in known:
                    self._end_session(session)
                return ("changed", len(known))
            case Acquire() as acquire:
                return self._acquire(command, acquire)
            case Cancel(lock):
                return self._cancel(command, lock)
            case Release(lock, token):
                return self._release(command, lock, token)
            case OriginGone() as gone:
                return self._origin_gone(gone)
            case RequestOrphaned(lock, connection):
                return self._request_orphaned(command, lock, connection)
            case other:
                raise AssertionError(other)

    def _open(self, command: Command, ttl_ms: int) -> tuple[object, ...]:
        known = self.sessions.get(command.session)
        if known is None:
            ttl_ms = self.limits.clamp_ttl(ttl_ms)
            self.sessions[command.session] = Session(command.user, ttl_ms, private=False)
            return ("opened", command.session, ttl_ms)
        if known.private or known.user != command.user:
            return ("refused", "ERR")
        return ("opened", command.session, known.ttl_ms)

    def _close(self, command: Command) -> tuple[object, ...]:
        session = self.sessions.get(command.session)
        if session is None:
            return ("changed", 0)
        if session.user != command.user:
            return ("refused", "NOSESSION")
        self._end_session(command.session)
        return ("changed", 1)

    def _acquire(self, command: Command, acquire: Acquire) -> tuple[object, ...]:
        private = acquire.ttl_ms > 0
        session = self.sessions.get(command.session)
        if not private and (session is None or session.user != command.user):
            return ("refused", "NOSESSION")
        if not private and session is not None and session.private:
            return ("refused", "ERR")
        request = Request(
            acquire.lock,
            command.session,
            command.user,
            command.owner,
            command.request,
            command.origin,
            private,
        )
        if request.id:
            known = next((r for r in self.live if r.key == request.key), None)
            if known is not None:
                return self._ask_again(known, request)
            if request.key in self.answers:
                return ("refused", self.answers[request.key])
        if private and session is not None:
            return ("refused", "ERR")
        refused = self._supersede(request)
        if not refused and acquire.wait_ms == 0 and self.holder(acquire.lock):
            refused = "BUSY"
        if refused:
            self._remember(request, refused)
            return ("refused", refused)
        if private:
            ttl_ms = self.limits.clamp_ttl(acquire.ttl_ms)
            self.sessions[command.session] = Session(command.user, ttl_ms, private=True)
        self.live.append(request)
        if not self.holder(acquire.lock):
            return self._grant(request, repeat=False)
        if acquire.wait_ms > 0:
            request.wait = self._timer(acquire.wait_ms)
        return ("queued", acquire.lock, command.session)

    def _ask_again(self, known: Request, again: Request) -> tuple[object, ...]:
        if known.lock != again.lock:
            return ("refused", "ERR")
        if not known.token and not known.orphan and known.origin != again.origin:
            self.out.append((known.origin, ("refused", "UNKNOWN")))
        known.orphan = None
        known.origin = again.origin
        if known.token:
            return self._answer(known, repeat=True)
        return ("queued", known.lock, known.session)

    def _supersede(self, request: Request) -> str:
        mine = [
            r
            for r in self.live
            if (r.lock, r.session, r.owner) == (request.lock, request.session, request.owner)
        ]
        waiting = [r for r in mine if not r.token]
        newest = (waiting or mine or [request])[0]
        if isinstance(newest.id, int) and isinstance(request.id, int) and newest.id > request.id > 0:
            return "ERR"
        for old in waiting:
            self._end(old, "ERR")
        return ""

    def _cancel(self, command: Command, lock: str) -> tuple[object, ...]:
        if not command.request:
            return ("refused", "ERR")
        private = isinstance(command.request, str)
        session = self.sessions.get(command.session)
        if not private and session is None:
            return ("changed", 0)
        if not private and session is not None and session.user != command.user:
            return ("refused", "NOSESSION")
        wanted = Request(lock, command.session, command.user, "", command.request, command.origin, private)
        for request in self.live:
            if request.key == wanted.key:
                if request.lock != lock:
                    return ("refused", "ERR")
                self._end(request, "ERR")
                return ("changed", 1)
        if wanted.key not in self.answers:
            self._remember(wanted, "ERR")
        return ("changed", 0)

    def _release(self, command: Command, lock: str, token: int) -> tuple[object, ...]:
        session = self.sessions.get(command.session)
        if session is not None and session.user != command.user:
            return ("refused", "NOSESSION")
        holder = self.holder(lock)
        if holder is None or (holder.session, holder.token) != (command.session, token):
            return ("changed", 0)
        self._end(holder, "NOTHELD")
        return ("changed", 1)

    def _origin_gone(self, told: OriginGone) -> tuple[object, ...]:
        def is_gone(request: Request) -> bool:
            origin = request.origin
            if request.token or request.orphan or origin.node != told.node:
                return False
            if told.connection:
                one = told.operation in (0, origin.operation)
                return one and (origin.boot, origin.connection) == (told.boot, told.connection)
            return (origin.boot != told.boot) if told.boot_is_alive else (origin.boot == told.boot)

        gone = [request for request in self.live if is_gone(request)]
        for request in gone:
            self._orphan(request)
        return ("changed", len(gone))

    def _request_orphaned(self, command: Command, lock: str, connection: int) -> tuple[object, ...]:
        gone = (command.origin.node, command.origin.boot, connection)
        for request in self.live:
            origin = request.origin
            if request.lock != lock or (origin.node, origin.boot, origin.connection) != gone:
                continue
            if request.user != command.user or (request.id or "") != (command.request or ""):
                continue
            by_uuid = isinstance(request.id, str) and request.id
            unnamed = request.token and request.owner == command.owner
            if by_uuid or (request.session == command.session and (request.id or unnamed)):
                self._orphan(request)
                return ("changed", 1)
        return ("changed", 0)

    def _orphan(self, request: Request) -> None:
        if request.orphan:
            return
        if not request.id:
            self._end(request, "TIMEOUT")
            return
        if not request.token:
            self.out.append((request.origin, ("refused", "UNKNOWN")))
        request.orphan = self._timer(self.sessions[request.session].ttl_ms)

    def _end(self, request: Request, answer: str) -> None:
        self._remove(request, answer)
        if request.private:
            del self.sessions[request.session]
        self._wake(request.lock)

    def _end_session(self, session: str) -> None:
        mine = sorted((r for r in self.live if r.session == session), key=lambda r: r.lock)
        for request in mine:
            self._remove(request, "NOTHELD" if request.token else "NOSESSION")
        del self.sessions[session]
        self.answers = {key: answer for key, answer in self.answers.items() if key[0] != f"session {session}"}
        for lock in sorted({request.lock for request in mine}):
            self._wake(lock)

    def _remove(self, request: Request, answer: str) -> None:
        if not request.token and not request.orphan:
            self.out.append((request.origin, ("refused", answer)))
        self.live.remove(request)
        self._remember(request, answer)

    def _remember(self, request: Request, answer: str) -> None:
        if not request.id:
            return
        self.answers[request.key] = answer
        if request.private:
            self.over.append((self.clock_ms, request.key))
            if len(self.over) > self.limits.private_answers_kept_max:
                self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, key = self.over.pop(0)
        del self.answers[key]

    def _wake(self, lock: str) -> None:
        waiting = self.queue(lock)
        if waiting and not self.holder(lock):
            head = waiting[0]
            orphan, head.wait = head.orphan, None
            answer = self._grant(head, repeat=True)
            if not orphan:
                self.out.append((head.origin, answer))

    def _grant(self, request: Request, *, repeat: bool) -> tuple[object, ...]:
        self.token += 1
        request.token = self.token
        return self._answer(request, repeat=repeat)

    def _answer(self, request: Request, *, repeat: bool) -> tuple[object, ...]:
        ttl_ms = self.sessions[request.session].ttl_ms
        return ("granted", request.lock, request.session, request.token, ttl_ms, repeat)

    def _timer(self, duration_ms: int) -> Due:
        self.timers += 1
        return (self.clock_ms + duration_ms, self.timers)
