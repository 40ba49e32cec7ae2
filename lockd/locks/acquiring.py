"""The commands about one lock: acquire, cancel, release, and the end of who listens (SAFETY G1 to G7)."""

from lockd.ids import TOKEN_MAX
from lockd.locks.answers import CANCELLED, GRANT_ENDED
from lockd.locks.commands import (
    WAIT_FOREVER,
    Acquire,
    Cancel,
    Changed,
    Command,
    OriginGone,
    Outcome,
    Queued,
    Refused,
    Release,
    RequestOrphaned,
)
from lockd.locks.limits import Limits, check_name, check_text, over_limit
from lockd.locks.queues import Phase, Request
from lockd.locks.sessions import Session
from lockd.locks.state import LockState

NO_SESSION = Refused("NOSESSION", "no such session: it has expired, was closed, or never was")


def acquire(state: LockState, command: Command, operation: Acquire) -> Outcome:
    """Grant, let wait, refuse, or answer again. Queued: a completion follows when the wait is over."""
    refusal = _malformed(state.limits, command, operation)
    if refusal is not None:
        return refusal
    if operation.ttl_ms:
        return _acquire_private(state, command, operation)
    return _acquire_in_session(state, command, operation)


def _acquire_in_session(state: LockState, command: Command, operation: Acquire) -> Outcome:
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
            return _answer_again(state, known, command, operation)
    if state.is_quiet and operation.wait_ms == 0:
        return state.quiet(operation.lock)  # changes nothing: the same request may be granted later
    refusal = (
        _supersede(state, session, command.owner, request_id, operation.lock)
        or _in_the_way(state, operation)
        or _too_many_requests(state.limits, session)
    )
    if refusal is not None:
        if request_id:
            session.answers.ended(request_id, refusal)
        return refusal
    return _begin(state, session, command, operation)


def _acquire_private(state: LockState, command: Command, operation: Acquire) -> Outcome:
    user, uuid = command.user, command.request or ""
    if isinstance(uuid, int):
        return Refused("ERR", "the request id of a TTL request is a UUID")
    if uuid:
        known = state.private_answers.recall(user, uuid)
        if known is not None:
            return _answer_again(state, known, command, operation)
    if not command.session or command.session in state.sessions:
        return Refused("ERR", "the private session needs an id that is not in use")
    if state.is_quiet and operation.wait_ms == 0:
        return state.quiet(operation.lock)
    refusal = _in_the_way(state, operation) or too_many_sessions(state)
    if refusal is not None:
        if uuid:
            state.private_answers.ended(user, uuid, refusal, state.clock_ms)
        return refusal
    session = state.open_private_session(command.session, user=user, ttl_ms=operation.ttl_ms)
    return _begin(state, session, command, operation)


def _begin(state: LockState, session: Session, command: Command, operation: Acquire) -> Outcome:
    """Take the request in: it holds a free lock at once and queues for another."""
    lock = state.lock_named(operation.lock)
    request = Request(
        lock=lock,
        session=session.id,
        owner=command.owner,
        request_id=command.request,
        meta=operation.meta,
        origin=command.origin,
    )
    state.take_in(request, session)
    if lock.is_free and not state.is_quiet:
        state.grant(request)
        return state.granted(request, repeat=False)
    state.enqueue(request, operation.wait_ms)
    return _queued(request)


def _answer_again(
    state: LockState, known: Request | Refused, command: Command, operation: Acquire
) -> Outcome:
    """The same request again: the same answer, to whoever asks now (G3)."""
    if isinstance(known, Refused):
        return known
    if known.lock.name != operation.lock:
        return _other_lock()
    state.attach(known, command.origin)
    if known.phase is Phase.HELD:
        return state.granted(known, repeat=True)
    return _queued(known)


def _supersede(
    state: LockState, session: Session, owner: str, request_id: int, lock_name: str
) -> Refused | None:
    """A new id ends the owner's old wait for the lock; a late copy of an older id is refused (G3).

    The owner has given up on the older one: two of its requests in one queue would let it wait
    behind itself.
    """
    old = session.waits.get((owner, lock_name))
    if old is None:
        lock = state.locks.get(lock_name)
        holder = None if lock is None else lock.holder
        if holder is None or holder.session != session.id or holder.owner != owner:
            return None
        newest = holder.id
    else:
        newest = old.id
    if isinstance(newest, int) and newest > request_id > 0:
        return Refused("ERR", f"request {request_id} was superseded by request {newest}")
    if old is not None:
        by = f"request {request_id}" if request_id else "a later request"
        state.end_request(old, Refused("ERR", f"superseded by {by} of the same owner"))
    return None


def _in_the_way(state: LockState, operation: Acquire) -> Refused | None:
    """Why a new request can neither be granted nor wait."""
    if state.token >= TOKEN_MAX:
        return Refused("LIMIT", "fencing tokens: all are used up")
    lock = state.locks.get(operation.lock)
    if lock is None:
        return None
    if operation.wait_ms == 0:
        return state.busy(lock)
    if len(lock.waiters) >= state.limits.waiters_per_lock_max:
        return over_limit("waiters of a lock", len(lock.waiters) + 1, state.limits.waiters_per_lock_max)
    return None


def _too_many_requests(limits: Limits, session: Session) -> Refused | None:
    if len(session.requests) < limits.requests_per_session_max:
        return None
    what = "locks held and waited for in a session"
    return over_limit(what, len(session.requests) + 1, limits.requests_per_session_max)


def too_many_sessions(state: LockState) -> Refused | None:
    """LIMIT when no more sessions may be opened."""
    if len(state.sessions) < state.limits.sessions_max:
        return None
    return over_limit("sessions", len(state.sessions) + 1, state.limits.sessions_max)


def _other_lock() -> Refused:
    return Refused("ERR", "this request id was used for another lock")


def _queued(request: Request) -> Queued:
    return Queued(request.lock.name, request.session, request.lock.position(request))


def _malformed(limits: Limits, command: Command, operation: Acquire) -> Refused | None:
    """What is wrong with the command by itself, whatever the state."""
    if operation.ttl_ms < 0:
        return Refused("ERR", "the TTL is negative")
    if operation.wait_ms < 0 and operation.wait_ms != WAIT_FOREVER:
        return Refused("ERR", "WAIT is negative")
    if operation.wait_ms > limits.wait_ms_max:
        return over_limit("WAIT", operation.wait_ms, limits.wait_ms_max, " ms")
    if not operation.lock:
        return Refused("ERR", "the lock name is empty")
    return (
        check_name("lock name", operation.lock, limits.lock_name_bytes_max)
        or check_name("owner", command.owner, limits.owner_bytes_max)
        or check_text("metadata", operation.meta, limits.meta_bytes_max)
        or check_name("session id", command.session, limits.session_id_bytes_max)
        or check_request_id(limits, command.request)
    )


def check_request_id(limits: Limits, request_id: int | str) -> Refused | None:
    """Refuse what can't be a request id: a negative number, a text that is too long."""
    if isinstance(request_id, str):
        return check_name("request id", request_id, limits.request_id_bytes_max)
    return Refused("ERR", "the request id is negative") if request_id < 0 else None


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
        if known.lock.name != operation.lock:
            return _other_lock()
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
    """End that grant of that session, and no other: a second release changes nothing (G7)."""
    session = state.sessions.get(command.session)
    if session is None:
        return Changed(0)
    if session.user != command.user:
        return NO_SESSION
    lock = state.locks.get(operation.lock)
    holder = None if lock is None else lock.holder
    if holder is None or holder.session != session.id or holder.token != operation.token:
        return Changed(0)
    state.end_request(holder, GRANT_ENDED)
    return Changed(1)


def origin_gone(state: LockState, command: Command, operation: OriginGone) -> Outcome:
    """Orphan the waits of a connection or a node (G4). `command` itself says nothing more.

    Waits only: what was granted before is not touched, for its holder most likely knows of it and
    keeps its session alive through another node. A grant whose answer was lost with the node is
    the client's to ask for again, or to cancel (K4).
    """
    del command
    node, boot = operation.node, operation.boot
    if operation.connection:
        gone = [
            request
            for request in state.waits.of_connection(node, boot, operation.connection)
            if operation.operation in (0, request.origin.operation)
        ]
    elif operation.boot_is_alive:
        gone = state.waits.of_other_boots(node, boot)
    else:
        gone = state.waits.of_boot(node, boot)
    orphan_all(state, gone)
    return Changed(len(gone))


def orphan_all(state: LockState, requests: list[Request]) -> None:
    """Orphan waits. One may end another's wait, or let it in: those are orphans all the same."""
    for request in requests:
        if request.phase is not Phase.ENDED:
            state.orphan(request)


def request_orphaned(state: LockState, command: Command, operation: RequestOrphaned) -> Outcome:
    """The answer to a request could not be written to the connection that the operation names.

    Nothing happens when the request has meanwhile come back over another connection: that one has
    the answer, and its client may rely on the grant (P1).
    """
    request = _find(state, command, operation)
    if request is None:
        return Changed(0)
    gone = (command.origin.node, command.origin.boot, operation.connection)
    if (request.origin.node, request.origin.boot, request.origin.connection) != gone:
        return Changed(0)
    state.orphan(request)
    return Changed(1)


def _find(state: LockState, command: Command, operation: RequestOrphaned) -> Request | None:
    """The live request that is meant, of that user: by its id, or the unnamed one that holds."""
    session = state.sessions.get(command.session)
    known: Request | Refused | None = None
    if isinstance(command.request, str) and command.request:
        known = state.private_answers.recall(command.user, command.request)
    elif session is not None and session.user == command.user:
        if isinstance(command.request, int) and command.request:
            known = session.answers.live.get(command.request)
        else:
            lock = state.locks.get(operation.lock)
            holder = None if lock is None else lock.holder
            known = holder if holder and holder.session == session.id and not holder.id else None
    if not isinstance(known, Request) or known.lock.name != operation.lock:
        return None
    return known
