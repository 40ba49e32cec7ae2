"""What the reference shows of its state: the same views as lockd.locks.views, read off the lists."""

from lockd.ids import SessionId
from lockd.locks.events import LeaseChange, LeaseEvent
from lockd.locks.views import HolderView, LockView, QueueView, SessionView, WaiterView
from tests.locks.reference_records import Request, Session
from tests.locks.reference_transitions import Transitions


def view_lock(state: Transitions, name: str) -> LockView:
    held, waiting = state.holders(name), state.queue(name)
    crowd = held + waiting
    delay_ms = state.delays[name][0] - state.clock_ms if name in state.delays else 0
    return LockView(
        name=name,
        status="held" if held else "free",
        mode=held[0].mode if held else "",
        holders=tuple(_view_holder(state, holder) for holder in held),
        queue_length=len(waiting),
        granted_last=state.last_tokens.get(name, 0),
        revision=state.revision,
        limit=crowd[0].limit if crowd else 0,
        used=sum(holder.weight for holder in held if holder.limit),
        delay_ms=delay_ms,
    )


def _view_holder(state: Transitions, holder: Request) -> HolderView:
    session = state.sessions[holder.session]
    return HolderView(
        session=session.name,
        session_number=session.number,
        owner=holder.owner,
        token=holder.token,
        revision=holder.revision,
        meta=holder.meta,
        held_ms=state.clock_ms - holder.granted_ms,
        mode=holder.mode,
        weight=holder.weight,
        ending=holder.ending,
    )


def view_queue(state: Transitions, name: str, count: int) -> QueueView:
    waiting = state.queue(name)
    waiters = tuple(_view_waiter(state, place, wait) for place, wait in enumerate(waiting[:count]))
    return QueueView(name=name, length=len(waiting), waiters=waiters, revision=state.revision)


def _view_waiter(state: Transitions, place: int, wait: Request) -> WaiterView:
    session = state.sessions[wait.session]
    return WaiterView(
        position=place,
        session=session.name,
        session_number=session.number,
        owner=wait.owner,
        mode=wait.mode,
        weight=wait.weight,
        meta=wait.meta,
        waiting_ms=state.clock_ms - wait.asked_ms,
        locks=wait.names,
    )


def view_session(state: Transitions, session: Session) -> SessionView:
    requests = state.requests_of(session.id)
    return SessionView(
        id=SessionId(session.id),
        number=session.number,
        user=session.user,
        name=session.name,
        meta=session.meta,
        ttl_ms=session.ttl_ms,
        lease_running=session.runs,
        silent_ms=session.silent_ms,
        is_private=session.private,
        requests=len(requests),
        waiting=sum(not request.token for request in requests),
    )


def revoked(state: Transitions) -> list[LeaseChange]:
    return [
        LeaseChange(
            LeaseEvent.REVOKED, SessionId(grant.session), state.sessions[grant.session].ttl_ms, grant.token
        )
        for grant in sorted(state.live, key=lambda each: each.token)
        if grant.ending
    ]


def validate(state: Transitions, name: str, token: int) -> str:
    held = state.holders(name)
    if any(holder.token == token and holder.is_good for holder in held):
        return "current"
    return "superseded" if held or state.last_tokens.get(name, 0) > token else "free"
