"""A digest of the whole state: equal on nodes that applied the same entries (SAFETY G6, C11)."""

import hashlib
from collections.abc import Iterator
from typing import Any

import msgspec

from lockd.locks.deadlines import DelayOver, HoldOver, OrphanOver, QuietOver, WaitOver
from lockd.locks.queues import Lock, Request
from lockd.locks.sessions import Session
from lockd.locks.state import LockState


def fingerprint(state: LockState) -> bytes:
    """16 bytes over everything that decides a later outcome. Costs O(size of the state).

    The state is walked in sorted orders, so how a dict or a heap came to its layout doesn't show.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in _parts(state):
        digest.update(msgspec.msgpack.encode(part))
    return digest.digest()


def _parts(state: LockState) -> Iterator[tuple[Any, ...]]:
    yield ("machine", state.feature_level, state.limits, state.applied, state.clock_ms)
    yield ("cluster", state.cluster, state.incarnation)
    yield ("quiet", state.grants_from_ms, state.quiet_timer)
    yield ("counters", state.token, state.revision, state.sessions_opened, state.tickets)
    for node in sorted(state.nodes):
        yield ("node", state.nodes[node])
    yield ("members", sorted(state.members.items()))
    yield ("removed", sorted(state.removed.items()))
    for session_id in sorted(state.sessions):
        yield from _session_parts(state.sessions[session_id])
    for name in sorted(state.locks):
        yield from _lock_parts(state.locks[name])
    yield ("private answers", state.private_answers.kept())
    yield ("timers", state.timers.sequence)
    for due_ms, number, action in state.timers.in_order():
        match action:
            case WaitOver(request):
                yield ("wait over", due_ms, number, request.ticket)
            case OrphanOver(request):
                yield ("orphan over", due_ms, number, request.ticket)
            case HoldOver(request):
                yield ("hold over", due_ms, number, request.ticket)
            case DelayOver(lock):
                yield ("delay over", due_ms, number, lock.name)
            case QuietOver():
                yield ("quiet over", due_ms, number)


def _session_parts(session: Session) -> Iterator[tuple[Any, ...]]:
    yield ("session", session.id, session.number, session.user, session.ttl_ms, session.name, session.meta)
    yield ("lease", session.is_private, session.lease_running, session.silent_ms)
    yield ("answers", session.answers.floor, session.answers.kept())
    yield ("notices", session.noticed, list(session.notices.values()))


def _lock_parts(lock: Lock) -> Iterator[tuple[Any, ...]]:
    yield ("lock", lock.name, lock.queued, lock.limit, lock.granted_last)
    yield ("delay", lock.delay_timer, lock.delayed_until_ms)
    for holder in lock.holders.values():
        yield ("holder", *_request_part(holder))
    for waiter in lock.waiters.values():
        yield ("waiter", *_request_part(waiter))


def _request_part(request: Request) -> tuple[Any, ...]:
    identity = (request.ticket, request.session, request.owner, request.id, request.origin)
    wish = (request.names, request.mode, request.weight, request.meta, request.max_hold_ms, request.delay_ms)
    wait = (request.places, request.asked_ms, request.wait_ms, request.wait_timer, request.orphan_timer)
    grant = (request.token, request.revision, request.granted_ms, request.hold_timer)
    return (*identity, *wish, *wait, *grant, request.revoked, request.notice)
