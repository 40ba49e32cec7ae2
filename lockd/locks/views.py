"""What may be read of the state. Views are values: they don't change when the state does.

Nobody but a session's own user may be shown its id; `number` is for everyone.
"""

import heapq
from dataclasses import dataclass

from lockd.ids import SessionId
from lockd.locks.sessions import Session
from lockd.locks.state import LockState


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
    """How many locks it holds or waits for."""


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


@dataclass(frozen=True, slots=True)
class LockView:
    """A lock as LOCK.INSPECT shows it. A free lock is not stored: nothing is known of its past."""

    name: str
    status: str
    """"free" or "held"."""
    mode: str
    """"exclusive"; "" when free."""
    holders: tuple[HolderView, ...]
    queue_length: int
    granted_last: int
    """Token of the last grant while the lock is held; 0 when it is free and its past forgotten."""
    revision: int
    """The state's revision: a watch from here on misses nothing that this view lacks."""

    @property
    def held_ms(self) -> int:
        """How long it has been held by the one who has it longest; 0 when free."""
        return max((holder.held_ms for holder in self.holders), default=0)


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
    )


def view_lock(state: LockState, name: str) -> LockView:
    """The lock of that name, free or held."""
    lock = state.locks.get(name)
    holder = None if lock is None else lock.holder
    if lock is None or holder is None:
        waiting = 0 if lock is None else len(lock.waiters)
        return LockView(name, "free", "", (), waiting, 0, state.revision)
    session = state.sessions[holder.session]
    view = HolderView(
        session=session.name,
        session_number=session.number,
        owner=holder.owner,
        token=holder.token,
        revision=holder.revision,
        meta=holder.meta,
        held_ms=state.clock_ms - holder.granted_ms,
    )
    return LockView(name, "held", "exclusive", (view,), len(lock.waiters), holder.token, state.revision)


def list_locks(state: LockState, prefix: str, after: str, count: int) -> list[LockView]:
    """At most `count` held locks with that prefix, by name, after `after` ("" for the first).

    Costs O(n) of all held locks: names are kept in no order, so that a grant costs O(1).
    """
    names = (name for name in state.locks if name > after and name.startswith(prefix))
    return [view_lock(state, name) for name in heapq.nsmallest(count, names)]


def view_stats(state: LockState) -> Stats:
    return Stats(
        sessions=len(state.sessions),
        locks=len(state.locks),
        waiters=state.waiters,
        timers=len(state.timers),
        private_requests=len(state.private_answers),
        nodes=len(state.nodes),
    )
