"""How a request for a lock, or for several, is decided (SAFETY G1, G3, G5, G8)."""

import dataclasses
from collections.abc import Iterator

from lockd.ids import TOKEN_MAX
from lockd.locks.commands import (
    EXCLUSIVE,
    SEMAPHORE,
    SHARED,
    WAIT_FOREVER,
    Acquire,
    AcquireAll,
    Command,
    Outcome,
    Queued,
    Refused,
)
from lockd.locks.deadlock import deadlock_of
from lockd.locks.limits import Limits, check_name, check_text, over_limit
from lockd.locks.queues import Lock, Phase, Request
from lockd.locks.refusals import NO_SESSION, busy, mismatch, quiet
from lockd.locks.sessions import Session
from lockd.locks.state import LockState


@dataclasses.dataclass(frozen=True, slots=True)
class _Wish:
    """What is asked for, by Acquire or AcquireAll."""

    names: tuple[str, ...]
    """Sorted."""
    wait_ms: int
    meta: str
    mode: str = EXCLUSIVE
    """SEMAPHORE with a limit."""
    limit: int = 0
    weight: int = 1
    max_hold_ms: int = 0
    delay_ms: int = 0


def acquire(state: LockState, command: Command, operation: Acquire) -> Outcome:
    """Grant, let wait, refuse, or answer again. Queued: a completion follows when the wait is over."""
    refusal = _malformed(state.limits, command, operation) or _wrong_way_to_hold(state.limits, operation)
    if refusal is not None:
        return refusal
    wish = _Wish(
        names=(operation.lock,),
        wait_ms=operation.wait_ms,
        meta=operation.meta,
        mode=SEMAPHORE if operation.limit else operation.mode,
        limit=operation.limit,
        weight=operation.weight,
        max_hold_ms=operation.max_hold_ms,
        delay_ms=operation.delay_ms,
    )
    if operation.ttl_ms:
        return _acquire_private(state, command, wish, operation.ttl_ms)
    return _acquire_in_session(state, command, wish)


def acquire_all(state: LockState, command: Command, operation: AcquireAll) -> Outcome:
    """As `acquire`, for several locks under one ticket and one token (G5)."""
    refusal = _malformed(state.limits, command, operation) or _wrong_names(state.limits, operation.locks)
    if refusal is not None:
        return refusal
    wish = _Wish(names=tuple(sorted(operation.locks)), wait_ms=operation.wait_ms, meta=operation.meta)
    return _acquire_in_session(state, command, wish)


def _acquire_in_session(state: LockState, command: Command, wish: _Wish) -> Outcome:
    session = state.sessions.get(command.session)
    if session is None or session.user != command.user:
        return NO_SESSION
    if session.is_private:
        return Refused("ERR", "a private session holds the one lock it was made for")
    request_id = command.request or 0
    if isinstance(request_id, str):
        return Refused("ERR", "the request id of a session is a number")
    if request_id:
        known = session.answers.recall(request_id)
        if known is not None:
            return _answer_again(state, known, command, wish)
    if state.is_quiet and wish.wait_ms == 0:
        return quiet(state, wish.names[0])  # changes nothing: the same request may be granted later
    outcome = (
        _supersede(state, session, command.owner, request_id, wish)
        or _in_the_way(state, wish)
        or _too_many_requests(state.limits, session, wish)
        or _begin(state, session, command, wish)
    )
    if request_id and isinstance(outcome, Refused):
        session.answers.ended(request_id, outcome)
    return outcome


def _acquire_private(state: LockState, command: Command, wish: _Wish, ttl_ms: int) -> Outcome:
    user, uuid = command.user, command.request or ""
    if isinstance(uuid, int):
        return Refused("ERR", "the request id of a TTL request is a UUID")
    if uuid:
        known = state.private_answers.recall(user, uuid)
        if known is not None:
            return _answer_again(state, known, command, wish)
    if not command.session or command.session in state.sessions:
        return Refused("ERR", "the private session needs an id that is not in use")
    if state.is_quiet and wish.wait_ms == 0:
        return quiet(state, wish.names[0])
    refusal = _in_the_way(state, wish) or too_many_sessions(state)
    if refusal is not None:
        if uuid:
            state.private_answers.ended(user, uuid, refusal, state.clock_ms)
        return refusal
    session = state.open_private_session(command.session, user=user, ttl_ms=ttl_ms)
    # Its owner has nothing else, so it is in nobody's way: no deadlock can come of it.
    return _begin(state, session, command, wish)


def _begin(state: LockState, session: Session, command: Command, wish: _Wish) -> Outcome:
    """Take the request in: it holds free locks at once, and queues for others unless that is for ever."""
    can_hold = _can_be_held_at_once(state, wish)
    if not can_hold:
        deadlock = deadlock_of(
            state, session, command.owner, wish.names, mode=wish.mode, limit=wish.limit, weight=wish.weight
        )
        if deadlock is not None:
            return deadlock
    request = Request(
        locks=tuple(state.lock_named(name, wish.limit) for name in wish.names),
        session=session.id,
        owner=command.owner,
        request_id=command.request,
        origin=command.origin,
        mode=wish.mode,
        weight=wish.weight,
        meta=wish.meta,
        asked_ms=state.clock_ms,
        max_hold_ms=wish.max_hold_ms,
        delay_ms=wish.delay_ms,
    )
    state.take_in(request, session)
    if can_hold:
        state.grant(request)
        return state.granted(request, repeat=False)
    state.enqueue(request, wish.wait_ms)
    return _queued(request)


def _can_be_held_at_once(state: LockState, wish: _Wish) -> bool:
    return not state.is_quiet and next(_refusing(state, wish), None) is None


def _refusing(state: LockState, wish: _Wish) -> Iterator[Lock]:
    """The locks that this can't be granted now: someone waits there, or its holders leave no room."""
    for name in wish.names:
        lock = state.locks.get(name)
        if lock is not None and (lock.waiters or not lock.admits_as(wish.mode, wish.weight)):
            yield lock


def _answer_again(state: LockState, known: Request | Refused, command: Command, wish: _Wish) -> Outcome:
    """The same request again: the same answer, to whoever asks now (G3)."""
    if isinstance(known, Refused):
        return known
    if not set(known.names) <= set(wish.names):
        return _other_lock()
    if known.phase is Phase.REVOKED:
        return Refused("NOTHELD", f"the grant of this request has ended: {known.revoked}")
    state.attach(known, command.origin)
    if known.phase is Phase.HELD:
        return state.granted(known, repeat=True)
    return _queued(known)


def _supersede(
    state: LockState, session: Session, owner: str, request_id: int, wish: _Wish
) -> Refused | None:
    """A new id ends the owner's old waits for these locks; a late copy of an older id is refused (G3).

    The owner has given up on the older one: two of its requests in one queue would let it wait
    behind itself.
    """
    if request_id:
        newest = max(session.newest_id(owner, name) for name in wish.names)
        if newest > request_id:
            return Refused("ERR", f"request {request_id} was superseded by request {newest}")
    for name in wish.names:
        old = session.wait_of(owner, name)
        if old is not None:
            by = f"request {request_id}" if request_id else "a later request"
            state.end_request(old, Refused("ERR", f"superseded by {by} of the same owner"))
    return None


def _in_the_way(state: LockState, wish: _Wish) -> Refused | None:
    """Why a new request can neither be granted nor wait."""
    if state.token >= TOKEN_MAX:
        return Refused("LIMIT", "fencing tokens: all are used up")
    known = [lock for lock in map(state.locks.get, wish.names) if lock is not None]
    for lock in known:
        if lock.is_wanted and lock.limit != wish.limit:
            return mismatch(lock, wish.limit)
    if wish.wait_ms == 0:
        refusing = next(_refusing(state, wish), None)
        return None if refusing is None else busy(state, refusing)
    waiters_max = state.limits.waiters_per_lock_max
    for lock in known:
        if len(lock.waiters) >= waiters_max:
            return over_limit("waiters of a lock", len(lock.waiters) + 1, waiters_max)
    return None


def _too_many_requests(limits: Limits, session: Session, wish: _Wish) -> Refused | None:
    count = session.locks + len(wish.names)
    if count > limits.requests_per_session_max:
        return over_limit("locks held and waited for in a session", count, limits.requests_per_session_max)
    if wish.max_hold_ms and session.with_max_hold >= limits.revoked_per_session_max:
        what = "locks held and waited for with MAXHOLD in a session"
        return over_limit(what, session.with_max_hold + 1, limits.revoked_per_session_max)
    return None


def too_many_sessions(state: LockState) -> Refused | None:
    """LIMIT when no more sessions may be opened."""
    if len(state.sessions) < state.limits.sessions_max:
        return None
    return over_limit("sessions", len(state.sessions) + 1, state.limits.sessions_max)


def _other_lock() -> Refused:
    return Refused("ERR", "this request id was used for another lock")


def _queued(request: Request) -> Queued:
    position = max(lock.position(request) for lock in request.locks)
    return Queued(request.lock.name, request.session, position)


# What is wrong with a command by itself, whatever the state.


def _malformed(limits: Limits, command: Command, operation: Acquire | AcquireAll) -> Refused | None:
    if operation.wait_ms < 0 and operation.wait_ms != WAIT_FOREVER:
        return Refused("ERR", "WAIT is negative")
    if operation.wait_ms > limits.wait_ms_max:
        return over_limit("WAIT", operation.wait_ms, limits.wait_ms_max, " ms")
    return (
        check_name("owner", command.owner, limits.owner_bytes_max)
        or check_text("metadata", operation.meta, limits.meta_bytes_max)
        or check_name("session id", command.session, limits.session_id_bytes_max)
        or check_request_id(limits, command.request)
    )


def _wrong_way_to_hold(limits: Limits, operation: Acquire) -> Refused | None:
    """What is wrong with the ways of holding one lock: name, TTL, mode, units, durations."""
    if operation.ttl_ms < 0:
        return Refused("ERR", "the TTL is negative")
    if not operation.lock:
        return Refused("ERR", "the lock name is empty")
    if operation.mode not in (EXCLUSIVE, SHARED):
        return Refused("ERR", "the mode is neither exclusive nor shared")
    if operation.limit < 0 or operation.weight < 1 or operation.max_hold_ms < 0 or operation.delay_ms < 0:
        return Refused("ERR", "LIMIT, WEIGHT, MAXHOLD and DELAY can't be negative, nor WEIGHT 0")
    if operation.limit and operation.mode != EXCLUSIVE:
        return Refused("ERR", "a semaphore (LIMIT) has no mode")
    if operation.weight > max(operation.limit, 1):
        return Refused("ERR", "WEIGHT is more than LIMIT")
    if operation.delay_ms and (operation.limit or operation.mode != EXCLUSIVE):
        return Refused("ERR", "DELAY is for exclusive locks")
    if operation.limit > limits.semaphore_limit_max:
        return over_limit("LIMIT", operation.limit, limits.semaphore_limit_max)
    if operation.max_hold_ms > limits.max_hold_ms_max:
        return over_limit("MAXHOLD", operation.max_hold_ms, limits.max_hold_ms_max, " ms")
    if operation.delay_ms > limits.delay_ms_max:
        return over_limit("DELAY", operation.delay_ms, limits.delay_ms_max, " ms")
    return check_name("lock name", operation.lock, limits.lock_name_bytes_max)


def _wrong_names(limits: Limits, names: tuple[str, ...]) -> Refused | None:
    if not names or "" in names:
        return Refused("ERR", "the lock name is empty" if names else "no lock is named")
    if len(names) > limits.locks_per_request_max:
        return over_limit("locks of a request", len(names), limits.locks_per_request_max)
    if len(dict.fromkeys(names)) < len(names):
        return Refused("ERR", "a lock is named twice")
    for name in names:
        refusal = check_name("lock name", name, limits.lock_name_bytes_max)
        if refusal is not None:
            return refusal
    return None


def check_request_id(limits: Limits, request_id: int | str) -> Refused | None:
    """Refuse what can't be a request id: a negative number, a text that is too long."""
    if isinstance(request_id, str):
        return check_name("request id", request_id, limits.request_id_bytes_max)
    return Refused("ERR", "the request id is negative") if request_id < 0 else None
