"""What a snapshot says of the lock state, record by record (SAFETY C11, G1).

Fields are only ever appended, each with a default, and a new kind of record takes the next tag; what
an older release must not pass over is a new version (lockd.locks.snapshot). The types hold the
ranges of the numbers, so that a record that decodes is one that could have been written.
"""

from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from lockd.ids import NODE_ID_MAX, TOKEN_MAX
from lockd.locks.commands import WAIT_FOREVER, Notice, Origin, Refused, RegisterNode
from lockd.locks.limits import CLOCK_MS_MAX, Limits
from lockd.locks.queues import Request
from lockd.locks.sessions import Session
from lockd.locks.state import LockState
from lockd.locks.timers import NO_TIMER

_Count = Annotated[int, Meta(ge=0, le=2**62)]
_Number = Annotated[int, Meta(ge=1, le=2**62)]
_Token = Annotated[int, Meta(ge=0, le=TOKEN_MAX)]
_Clock = Annotated[int, Meta(ge=0, le=CLOCK_MS_MAX)]
_Due = Annotated[int, Meta(ge=0, le=2 * CLOCK_MS_MAX)]
_Id = Annotated[int, Meta(ge=1, le=NODE_ID_MAX)]
_Natural = Annotated[int, Meta(ge=0)]


class Head(msgspec.Struct, array_like=True, frozen=True, tag=1):
    feature_level: Annotated[int, Meta(ge=1)]
    limits: Limits
    applied: _Count
    clock_ms: _Clock
    cluster: str
    incarnation: str
    token: _Token
    revision: _Count
    sessions_opened: _Count
    tickets: _Count
    timers: _Count
    grants_from_ms: _Due
    quiet_timer: _Count


class NodeRecord(msgspec.Struct, array_like=True, frozen=True, tag=2):
    registered: RegisterNode


class MemberRecord(msgspec.Struct, array_like=True, frozen=True, tag=3):
    node: _Id
    peer_address: str
    wants_vote: bool


class RemovedRecord(msgspec.Struct, array_like=True, frozen=True, tag=4):
    node: _Id
    instance: str


class SessionRecord(msgspec.Struct, array_like=True, frozen=True, tag=5):
    id: str
    number: _Number
    user: str
    ttl_ms: _Number
    name: str
    meta: str
    is_private: bool
    lease_running: bool
    silent_ms: _Count
    floor: _Natural
    noticed: _Count
    notices: tuple[Notice, ...]


class AnswerRecord(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """Of the session that stands before it."""

    request: _Natural
    answer: Refused


class PrivateAnswerRecord(msgspec.Struct, array_like=True, frozen=True, tag=7):
    user: str
    uuid: str
    ended_ms: _Clock
    answer: Refused


class LockRecord(msgspec.Struct, array_like=True, frozen=True, tag=8):
    name: str
    queued: _Count
    limit: _Count
    granted_last: _Token
    delay_timer: _Count
    delay_due_ms: _Due


class RequestRecord(msgspec.Struct, array_like=True, frozen=True, tag=9):
    """A holder, with a token, or a waiter, with 0."""

    ticket: _Number
    locks: Annotated[tuple[_Natural, ...], Meta(min_length=1)]
    """Numbers of their records, the first of which is 0; all stand before the requests."""
    session: _Number
    """Its public number."""
    owner: str
    id: _Natural | str
    origin: Origin
    mode: str
    weight: _Number
    meta: str
    asked_ms: _Clock
    max_hold_ms: _Clock
    delay_ms: _Clock
    places: tuple[_Number, ...]
    """Of a waiter, one for each lock."""
    wait_ms: Annotated[int, Meta(ge=WAIT_FOREVER, le=CLOCK_MS_MAX)]
    wait_timer: _Count
    wait_due_ms: _Due
    orphan_timer: _Count
    orphan_due_ms: _Due
    token: _Token
    revision: _Count
    granted_ms: _Clock
    hold_timer: _Count
    hold_due_ms: _Due
    revoked: str
    """Why; "" for a good grant."""
    notice: _Count


Record = (
    Head
    | NodeRecord
    | MemberRecord
    | RemovedRecord
    | SessionRecord
    | AnswerRecord
    | PrivateAnswerRecord
    | LockRecord
    | RequestRecord
)


def records_of(state: LockState) -> Iterator[Record]:
    """The state's records, in the one order that they have."""
    yield Head(
        feature_level=state.feature_level,
        limits=state.limits,
        applied=state.applied,
        clock_ms=state.clock_ms,
        cluster=state.cluster,
        incarnation=state.incarnation,
        token=state.token,
        revision=state.revision,
        sessions_opened=state.sessions_opened,
        tickets=state.tickets,
        timers=state.timers.sequence,
        grants_from_ms=state.grants_from_ms,
        quiet_timer=state.quiet_timer,
    )
    for node in sorted(state.nodes):
        yield NodeRecord(state.nodes[node])
    for node, member in sorted(state.members.items()):
        yield MemberRecord(node, member.peer_address, member.wants_vote)
    for node, instance in sorted(state.removed.items()):
        yield RemovedRecord(node, instance)
    for session_id in sorted(state.sessions):
        yield from _session_records(state.sessions[session_id])
    for (user, uuid), (ended_ms, answer) in state.private_answers.kept():
        yield PrivateAnswerRecord(user, uuid, ended_ms, answer)
    due_ms = {number: due for due, number, _ in state.timers.in_order()}
    due_ms[NO_TIMER] = 0
    numbers: dict[str, int] = {}
    for number, name in enumerate(sorted(state.locks)):
        lock = state.locks[name]
        numbers[name] = number
        yield LockRecord(
            name=name,
            queued=lock.queued,
            limit=lock.limit,
            granted_last=lock.granted_last,
            delay_timer=lock.delay_timer,
            delay_due_ms=lock.delayed_until_ms,
        )
    for request in _requests_by_ticket(state):
        yield _request_record(state, request, numbers, due_ms)


def _requests_by_ticket(state: LockState) -> list[Request]:
    found = {
        request.ticket: request
        for session in state.sessions.values()
        for request in session.requests.values()
    }
    return [found[ticket] for ticket in sorted(found)]


def _session_records(session: Session) -> Iterator[SessionRecord | AnswerRecord]:
    yield SessionRecord(
        id=session.id,
        number=session.number,
        user=session.user,
        ttl_ms=session.ttl_ms,
        name=session.name,
        meta=session.meta,
        is_private=session.is_private,
        lease_running=session.lease_running,
        silent_ms=session.silent_ms,
        floor=session.answers.floor,
        noticed=session.noticed,
        notices=tuple(session.notices.values()),
    )
    for request_id, answer in session.answers.kept():
        yield AnswerRecord(request_id, answer)


def _request_record(
    state: LockState, request: Request, numbers: dict[str, int], due_ms: dict[int, int]
) -> RequestRecord:
    return RequestRecord(
        ticket=request.ticket,
        locks=tuple(numbers[name] for name in request.names),
        session=state.sessions[request.session].number,
        owner=request.owner,
        id=request.id,
        origin=request.origin,
        mode=request.mode,
        weight=request.weight,
        meta=request.meta,
        asked_ms=request.asked_ms,
        max_hold_ms=request.max_hold_ms,
        delay_ms=request.delay_ms,
        places=request.places,
        wait_ms=request.wait_ms,
        wait_timer=request.wait_timer,
        wait_due_ms=due_ms[request.wait_timer],
        orphan_timer=request.orphan_timer,
        orphan_due_ms=due_ms[request.orphan_timer],
        token=request.token,
        revision=request.revision,
        granted_ms=request.granted_ms,
        hold_timer=request.hold_timer,
        hold_due_ms=due_ms[request.hold_timer],
        revoked=request.revoked,
        notice=request.notice,
    )
