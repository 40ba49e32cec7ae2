"""Refusals that tell who is in the way.

The texts are part of the state, as answers: no repr(), whose output depends on the Unicode tables of
the Python that runs (SAFETY G6).
"""

from lockd.locks.commands import Refused
from lockd.locks.queues import Lock, Request
from lockd.locks.state import LockState

NO_SESSION = Refused("NOSESSION", "no such session: it has expired, was closed, or never was")


def timed_out(state: LockState, request: Request) -> Refused:
    """TIMEOUT of a wait that has run out."""
    lock = next((lock for lock in request.locks if not _leaves_room(lock, request)), request.lock)
    waiting = len(lock.waiters) - 1
    rest = f" (waited {request.wait_ms} ms, {waiting} more waiting)"
    return _in_the_way(state, "TIMEOUT", lock, rest, waiting)


def _leaves_room(lock: Lock, request: Request) -> bool:
    return lock.head is request and lock.admits(request)


def busy(state: LockState, lock: Lock) -> Refused:
    """BUSY of a request that does not wait."""
    waiting = len(lock.waiters)
    return _in_the_way(state, "BUSY", lock, f" ({waiting} waiting)", waiting)


def quiet(state: LockState, lock_name: str) -> Refused:
    """UNAVAILABLE of a request that does not wait, in the quiet period. Nothing has changed."""
    return Refused("UNAVAILABLE", _why_quiet(state), lock=lock_name)


def _why_quiet(state: LockState) -> str:
    left_ms = max(state.grants_from_ms - state.clock_ms, 0)
    return (
        f"the cluster was restored: nothing is granted for another {left_ms} ms, "
        "so that every lease of before has run out"
    )


def mismatch(lock: Lock, limit: int) -> Refused:
    """MISMATCH: the lock is in use with another limit, or as what the request does not take it for."""
    is_now = f"a semaphore of {lock.limit}" if lock.limit else "a lock without LIMIT"
    asked = f"LIMIT {limit}" if limit else "no LIMIT"
    return Refused("MISMATCH", f'"{lock.name}" is in use as {is_now}, and was asked for with {asked}')


def _in_the_way(state: LockState, code: str, lock: Lock, rest: str, waiting: int) -> Refused:
    holder = next(iter(lock.holders.values()), None)
    if holder is None:
        why = _why_not(state, lock)
        text = f'"{lock.name}" can\'t be granted{why}{rest}'
        return Refused(code, text, lock=lock.name, queue_length=waiting)
    session = state.sessions[holder.session]
    who = f"session {session.number}" + (f' "{session.name}"' if session.name else "")
    owner = f' owner "{holder.owner}"' if holder.owner else ""
    others = f" and {len(lock.holders) - 1} more" if len(lock.holders) > 1 else ""
    units = f", {lock.used} of {lock.limit} units are taken" if lock.limit else ""
    held_ms = state.clock_ms - holder.granted_ms
    text = f'"{lock.name}" has been held by {who}{owner}{others} for {held_ms} ms{units}{rest}'
    shows_meta = len(holder.meta.encode()) <= state.limits.refusal_meta_bytes_max
    return Refused(
        code,
        text,
        lock=lock.name,
        holder=session.label,
        owner=holder.owner,
        meta=holder.meta if shows_meta else "",
        held_ms=held_ms,
        queue_length=waiting,
    )


def _why_not(state: LockState, lock: Lock) -> str:
    if state.is_quiet:
        return f": {_why_quiet(state)}"
    if lock.delayed_until_ms:
        left_ms = lock.delayed_until_ms - state.clock_ms
        return f" for another {left_ms} ms: a lease on it ended abnormally, and its DELAY runs"
    return ": others stand before"
