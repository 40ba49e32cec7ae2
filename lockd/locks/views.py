"""What may be read of the state. Views are values: they don't change when the state does.

Nobody but a session's own user may be shown its id; `number` is for everyone.
"""

import heapq
import itertools
from dataclasses import dataclass

from lockd.ids import SessionId
from lockd.locks.queues import Phase, Request
from lockd.locks.sessions import Session
from lockd.locks.state import LockState

HOLDERS_SHOWN_MAX = 1_000
"""In one view or one page of views, but for the first of each lock: a lock may be shared by any number,
each with 4 KiB of metadata (C10)."""


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session as its user and the lease book see it."""

    id: SessionId
    number: int
    user: str
    name: str
    meta: str
    ttl_ms: int
    lease_running: bool
    """False: a private session whose request still waits, so its TTL hasn't started."""
    silent_ms: int
    """How long a leader had not heard of it when it logged so; 0 when heard of since (T2)."""
    is_private: bool
    requests: int
    """How many requests of it hold or wait."""
    waiting: int
    """How many of those wait."""


@dataclass(frozen=True, slots=True)
class HolderView:
    """Who holds a lock. `token` tells grants apart; it is nobody's leave to write (G9)."""

    session: str
    """The session's name, "" when it has none."""
    session_number: int
    owner: str
    token: int
    revision: int
    meta: str
    held_ms: int
    """By the state's clock, which moves when entries are applied."""
    mode: str
    weight: int
    ending: str
    """Why the grant was revoked, while its holder may still trust it (P1); "" for a good grant."""


@dataclass(frozen=True, slots=True)
class LockView:
    """A lock as LOCK.INSPECT shows it. A free lock is not stored: nothing is known of its past."""

    name: str
    status: str
    """"free" or "held"."""
    mode: str
    """EXCLUSIVE, SHARED or SEMAPHORE; "" when free."""
    holders: tuple[HolderView, ...]
    """By token, the oldest grant first; not all of them when there are very many."""
    queue_length: int
    granted_last: int
    """Token of the last grant, as long as the lock is held or wanted; 0 when its past is forgotten."""
    revision: int
    """The state's revision: a watch from here on misses nothing that this view lacks."""
    limit: int
    """Units of a semaphore, while anyone holds or wants some; else 0."""
    used: int
    """How many of them are taken."""
    delay_ms: int
    """For how long nobody is granted it yet, after an abnormal end; 0 for no delay."""

    @property
    def held_ms(self) -> int:
        """How long it has been held by the one who has it longest; 0 when free."""
        return max((holder.held_ms for holder in self.holders), default=0)


@dataclass(frozen=True, slots=True)
class WaiterView:
    """One request in a queue."""

    position: int
    """0 is next."""
    session: str
    session_number: int
    owner: str
    mode: str
    weight: int
    meta: str
    waiting_ms: int
    locks: tuple[str, ...]
    """All that it asks for, sorted."""


@dataclass(frozen=True, slots=True)
class QueueView:
    """The head of a queue."""

    name: str
    length: int
    waiters: tuple[WaiterView, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Stats:
    """Sizes, for metrics."""

    sessions: int
    locks: int
    waiters: int
    timers: int
    private_requests: int
    nodes: int


def view_session(session: Session) -> SessionView:
    return SessionView(
        id=SessionId(session.id),
        number=session.number,
        user=session.user,
        name=session.name,
        meta=session.meta,
        ttl_ms=session.ttl_ms,
        lease_running=session.lease_running,
        silent_ms=session.silent_ms,
        is_private=session.is_private,
        requests=len(session.requests),
        waiting=session.waiting,
    )


def list_sessions(state: LockState, after: int, count: int) -> list[SessionView]:
    """At most `count` sessions by public number, after number `after`. Costs O(n) of all sessions."""
    younger = (session for session in state.sessions.values() if session.number > after)
    return [view_session(session) for session in heapq.nsmallest(count, younger, key=_number)]


def _number(session: Session) -> int:
    return session.number


def view_lock(state: LockState, name: str, holders_max: int = HOLDERS_SHOWN_MAX) -> LockView:
    """The lock of that name, free or held, with its oldest holders."""
    lock = state.locks.get(name)
    if lock is None:
        return LockView(name, "free", "", (), 0, 0, state.revision, 0, 0, 0)
    return LockView(
        name=name,
        status="held" if lock.holders else "free",
        mode=lock.mode,
        holders=tuple(
            _view_holder(state, grant) for grant in itertools.islice(lock.holders.values(), holders_max)
        ),
        queue_length=len(lock.waiters),
        granted_last=lock.granted_last,
        revision=state.revision,
        limit=lock.limit,
        used=lock.used if lock.limit else 0,
        delay_ms=max(lock.delayed_until_ms - state.clock_ms, 0),
    )


def _view_holder(state: LockState, grant: Request) -> HolderView:
    session = state.sessions[grant.session]
    return HolderView(
        session=session.name,
        session_number=session.number,
        owner=grant.owner,
        token=grant.token,
        revision=grant.revision,
        meta=grant.meta,
        held_ms=state.clock_ms - grant.granted_ms,
        mode=grant.mode,
        weight=grant.weight,
        ending=grant.revoked,
    )


def view_queue(state: LockState, name: str, count: int) -> QueueView:
    """The first `count` waiters of a lock."""
    lock = state.locks.get(name)
    waiters = [] if lock is None else list(itertools.islice(lock.waiters.values(), count))
    return QueueView(
        name=name,
        length=0 if lock is None else len(lock.waiters),
        waiters=tuple(_view_waiter(state, waiter, at) for at, waiter in enumerate(waiters)),
        revision=state.revision,
    )


def _view_waiter(state: LockState, waiter: Request, position: int) -> WaiterView:
    session = state.sessions[waiter.session]
    return WaiterView(
        position=position,
        session=session.name,
        session_number=session.number,
        owner=waiter.owner,
        mode=waiter.mode,
        weight=waiter.weight,
        meta=waiter.meta,
        waiting_ms=state.clock_ms - waiter.asked_ms,
        locks=waiter.names,
    )


def validate(state: LockState, name: str, token: int) -> str:
    """What has become of a grant, for a third party that was shown its token.

    "current": it holds the lock. "superseded": it does not, and somebody does or has been granted
    the lock since; so also when it was revoked and is not passed on yet. "free": nobody holds the
    lock, and nothing is known of a later grant.
    """
    lock = state.locks.get(name)
    if lock is None:
        return "free"
    grant = lock.holders.get(token)
    if grant is not None and grant.phase is Phase.HELD:
        return "current"
    return "superseded" if lock.holders or lock.granted_last > token else "free"


def list_locks(state: LockState, prefix: str, after: str, count: int) -> list[LockView]:
    """At most `count` locks that aren't free, with that prefix, by name, after `after` ("" for the first).

    Costs O(n) of all such locks: names are kept in no order, so that a grant costs O(1).
    """
    names = (name for name in state.locks if name > after and name.startswith(prefix))
    return _view_page(state, heapq.nsmallest(count, names))


def list_locks_of(state: LockState, session: Session, prefix: str, after: str, count: int) -> list[LockView]:
    """As `list_locks`, of what the session holds or waits for alone. Costs O(n) of that."""
    names = {name for request in session.requests.values() for name in request.names}
    wanted = [name for name in names if name > after and name.startswith(prefix)]
    return _view_page(state, heapq.nsmallest(count, wanted))


def _view_page(state: LockState, names: list[str]) -> list[LockView]:
    views: list[LockView] = []
    left = HOLDERS_SHOWN_MAX
    for name in names:
        views.append(view_lock(state, name, max(left, 1)))
        left -= len(views[-1].holders)
    return views


def view_stats(state: LockState) -> Stats:
    return Stats(
        sessions=len(state.sessions),
        locks=len(state.locks),
        waiters=state.waiters,
        timers=len(state.timers),
        private_requests=len(state.private_answers),
        nodes=len(state.nodes),
    )
