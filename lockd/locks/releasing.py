"""How a request ends by its own session: cancel, release, and what its grant shows (SAFETY G3, G7, K4)."""

from lockd.locks.acquiring import check_request_id
from lockd.locks.answers import CANCELLED
from lockd.locks.commands import Cancel, Changed, ChangeMeta, Command, Outcome, Refused, Release, ReleaseAll
from lockd.locks.events import EventKind
from lockd.locks.limits import check_text
from lockd.locks.queues import Phase, Request
from lockd.locks.refusals import NO_SESSION
from lockd.locks.sessions import Session
from lockd.locks.state import LockState


def cancel(state: LockState, command: Command, operation: Cancel) -> Outcome:
    """Withdraw a wait, release its grant, or see to it that an id that comes later never holds (K4)."""
    if not command.request:
        return Refused("ERR", "CANCEL needs the id of the request")
    refusal = check_request_id(state.limits, command.request)
    if refusal is not None:
        return refusal
    session = state.sessions.get(command.session)
    if isinstance(command.request, str):
        known = state.private_answers.recall(command.user, command.request)
    elif session is None:
        return Changed(0)  # its session is gone: nothing waits, and the id can't come back
    elif session.user != command.user:
        return NO_SESSION
    else:
        known = session.answers.recall(command.request)
    if isinstance(known, Request):
        if operation.lock not in known.names:
            return Refused("ERR", "this request id was used for another lock")
        state.acknowledge_end(known)
        state.end_request(known, CANCELLED)
        return Changed(1)
    return Changed(0) if known is not None else _forbid(state, session, command)


def _forbid(state: LockState, session: Session | None, command: Command) -> Outcome:
    """Remember an id that hasn't been seen as cancelled: its Acquire may still be on its way."""
    if isinstance(command.request, str):
        state.private_answers.ended(command.user, command.request, CANCELLED, state.clock_ms)
    elif session is not None:
        session.answers.ended(command.request, CANCELLED)
    return Changed(0)


def release(state: LockState, command: Command, operation: Release) -> Outcome:
    """End that grant of that session, and no other: a second release changes nothing (G7).

    Of a grant of several locks this one is given back. A revoked grant is released like any: its
    holder has stopped.
    """
    session = state.sessions.get(command.session)
    if session is None:
        return Changed(0)
    if session.user != command.user:
        return NO_SESSION
    lock = state.locks.get(operation.lock)
    grant = None if lock is None else lock.holders.get(operation.token)
    if lock is None or grant is None or grant.session != session.id:
        return Changed(0)
    state.give_back(grant, lock)
    return Changed(1)


def release_all(state: LockState, command: Command, operation: ReleaseAll) -> Outcome:
    """End that grant of that session, with all that it holds. Changed: how many locks that were."""
    session = state.sessions.get(command.session)
    if session is None:
        return Changed(0)
    if session.user != command.user:
        return NO_SESSION
    grant = state.grants.get(operation.token)
    if grant is None or grant.session != session.id:
        return Changed(0)
    count = len(grant.locks)
    state.release(grant)
    return Changed(count)


def change_meta(state: LockState, command: Command, operation: ChangeMeta) -> Outcome:
    """The grant shows other metadata from now on. 0: it isn't held, or is revoked."""
    refusal = check_text("metadata", operation.meta, state.limits.meta_bytes_max)
    if refusal is not None:
        return refusal
    session = state.sessions.get(command.session)
    if session is None or session.user != command.user:
        return NO_SESSION
    lock = state.locks.get(operation.lock)
    grant = None if lock is None else lock.holders.get(operation.token)
    if lock is None or grant is None or grant.session != session.id or grant.phase is not Phase.HELD:
        return Changed(0)
    grant.meta = operation.meta
    for held in grant.locks:
        state.note_event(EventKind.META, held, grant)
    return Changed(1)
