"""The lock state made anew from its records: indexes, queues and timers (SAFETY C9).

Nothing is believed: a record out of its order, a number that was never drawn, a session or timer
that is missing is CorruptData, never another exception and never a state that only looks whole.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from lockd.errors import CorruptData
from lockd.ids import FencingToken
from lockd.locks.commands import EXCLUSIVE, SEMAPHORE, SHARED, Refused
from lockd.locks.deadlines import DelayOver, Due, HoldOver, OrphanOver, QuietOver, WaitOver
from lockd.locks.limits import CLOCK_MS_MAX
from lockd.locks.queues import Lock, Phase, Request
from lockd.locks.records import (
    AnswerRecord,
    Head,
    LockRecord,
    MemberRecord,
    NodeRecord,
    PrivateAnswerRecord,
    Record,
    RemovedRecord,
    RequestRecord,
    SessionRecord,
)
from lockd.locks.sessions import Session
from lockd.locks.state import FEATURE_LEVEL, LockState, Member
from lockd.locks.timers import NO_TIMER


def state_of(records: Iterator[Record]) -> LockState:
    """The state with these records. Raises CorruptData when no state has them."""
    head = next(records, None)
    _require(isinstance(head, Head), "it does not begin with its head")
    assert isinstance(head, Head)
    building = _Rebuilding(head)
    for record in records:
        building.take(record)
    building.end()
    return building.state


def _require(holds: bool, what: str, *numbers: object) -> None:  # noqa: FBT001 - reads as an assertion
    """The text is put together only when it is needed: there are a dozen of these for each request."""
    if not holds:
        raise CorruptData("a lock state is damaged: " + what.format(*numbers))


class _Rebuilding:
    def __init__(self, head: Head) -> None:
        self.state = _with_head(head)
        self._last: tuple[Any, ...] = ()
        """Where the record before stood in the order of all."""
        self._by_number: dict[int, Session] = {}
        self._session: Session | None = None
        self._locks: list[Lock] = []
        """By the number of their records."""
        self._answers: dict[Refused, Refused] = {}
        """Each text once: there may be as many answers as there were requests in an hour."""
        self._take: dict[type, Callable[[Any], tuple[Any, ...]]] = {
            NodeRecord: self._node,
            MemberRecord: self._member,
            RemovedRecord: self._removed,
            SessionRecord: self._session_begins,
            AnswerRecord: self._answer,
            PrivateAnswerRecord: self._private_answer,
            LockRecord: self._lock_of,
            RequestRecord: self._request,
        }

    def take(self, record: Record) -> None:
        taker = self._take.get(type(record))
        if taker is None:
            raise CorruptData("a lock state is damaged: it has two heads")
        place = taker(record)
        _require(self._last < place, "a {} out of order", type(record).__name__)
        self._last = place

    def end(self) -> None:
        """Look at what only the last record can complete."""
        for lock in self._locks:
            _require(not lock.is_free, "a lock that nobody holds or wants")
            _require(not (lock.limit and not lock.is_wanted), "a limit of nobody's")
        kept, revoked = self.state.limits.notices_per_session_max, self.state.revoked
        for session in self._by_number.values():
            session.past_notices = [
                number for number, notice in session.notices.items() if notice.token not in revoked
            ]
            is_bounded = len(session.notices) <= kept or not session.past_notices
            _require(is_bounded, "more notices than session {} keeps", session.number)

    # Each takes one record and returns its place: the section, then the keys within it.

    def _node(self, record: NodeRecord) -> tuple[Any, ...]:
        node = record.registered.node
        self.state.nodes[node] = record.registered
        return (1, node)

    def _member(self, record: MemberRecord) -> tuple[Any, ...]:
        self.state.members[record.node] = Member(record.peer_address, record.wants_vote)
        return (2, record.node)

    def _removed(self, record: RemovedRecord) -> tuple[Any, ...]:
        _require(record.node not in self.state.nodes, "node {} is registered and removed", record.node)
        _require(record.node not in self.state.members, "node {} is a member and removed", record.node)
        self.state.removed[record.node] = record.instance
        return (3, record.node)

    def _session_begins(self, record: SessionRecord) -> tuple[Any, ...]:
        state = self.state
        _require(record.number <= state.sessions_opened, "session {} was never opened", record.number)
        _require(record.number not in self._by_number, "session {} stands twice", record.number)
        _require(state.limits.clamp_ttl(record.ttl_ms) == record.ttl_ms, "a TTL out of its range")
        _require(record.silent_ms <= record.ttl_ms, "a silence out of its range")
        session = Session(
            session_id=record.id,
            number=record.number,
            user=record.user,
            ttl_ms=record.ttl_ms,
            name=record.name,
            meta=record.meta,
            answers_kept=state.limits.answers_per_session_kept,
        )
        session.is_private = record.is_private
        session.lease_running = record.lease_running
        session.silent_ms = record.silent_ms
        session.answers.floor = record.floor
        session.noticed = record.noticed
        session.notices = {notice.number: notice for notice in record.notices}
        numbers = [notice.number for notice in record.notices]
        _require(numbers == sorted(session.notices), "notices of session {} out of order", record.number)
        _require(all(0 < number <= record.noticed for number in numbers), "a notice that was never given")
        state.sessions[record.id] = self._by_number[record.number] = self._session = session
        return (4, record.id)

    def _answer(self, record: AnswerRecord) -> tuple[Any, ...]:
        session = self._session
        if session is None:
            raise CorruptData("a lock state is damaged: an answer without its session")
        answers, floor = session.answers, session.answers.floor
        _require(record.request > floor, "an answer at or under the floor {}", floor)
        answers.ended(record.request, self._once(record.answer))
        _require(answers.floor == floor, "more answers than session {} keeps", session.number)
        return (4, session.id, record.request)

    def _private_answer(self, record: PrivateAnswerRecord) -> tuple[Any, ...]:
        answers, count = self.state.private_answers, len(self.state.private_answers)
        _require(record.ended_ms <= self.state.clock_ms, "an answer of the future")
        answers.ended(record.user, record.uuid, self._once(record.answer), record.ended_ms)
        _require(len(answers) == count + 1, "a UUID that stands twice, or more than are kept")
        return (5, record.ended_ms, count)

    def _lock_of(self, record: LockRecord) -> tuple[Any, ...]:
        state = self.state
        _require(record.granted_last <= state.token, "token {} was never drawn", record.granted_last)
        lock = state.locks[record.name] = Lock(record.name)
        lock.queued = record.queued
        lock.limit = record.limit
        lock.granted_last = record.granted_last
        lock.delay_timer = record.delay_timer
        lock.delayed_until_ms = record.delay_due_ms
        _put_timer(state, record.delay_timer, record.delay_due_ms, DelayOver(lock))
        self._locks.append(lock)
        return (6, record.name)

    def _request(self, record: RequestRecord) -> tuple[Any, ...]:
        state = self.state
        session = self._by_number.get(record.session)
        if session is None or record.locks[-1] >= len(self._locks):
            raise CorruptData(f"a lock state is damaged: request {record.ticket} lacks lock or session")
        _require(list(record.locks) == sorted(dict.fromkeys(record.locks)), "locks of a request out of order")
        _require(record.ticket <= state.tickets, "ticket {} was never drawn", record.ticket)
        _require(record.token <= state.token, "token {} was never drawn", record.token)
        _require(record.asked_ms <= state.clock_ms, "a request of the future")
        request = self._request_of(record, session)
        self._register(request, session)
        if record.token:
            self._hold(record, request, session)
        else:
            self._wait(request, session)
        _put_timer(state, record.wait_timer, record.wait_due_ms, WaitOver(request))
        _put_timer(state, record.orphan_timer, record.orphan_due_ms, OrphanOver(request))
        _put_timer(state, record.hold_timer, record.hold_due_ms, HoldOver(request))
        return (7, record.ticket)

    def _request_of(self, record: RequestRecord, session: Session) -> Request:
        locks = tuple(self._locks[number] for number in record.locks)
        modes = (SEMAPHORE,) if locks[0].limit else (EXCLUSIVE, SHARED)
        _require(record.mode in modes, "request {} has a mode of another kind of lock", record.ticket)
        _require(record.weight <= max(locks[0].limit, 1), "request {} is too heavy", record.ticket)
        request = Request(
            locks=locks,
            session=session.id,
            owner=record.owner,
            request_id=record.id,
            origin=record.origin,
            mode=record.mode,
            weight=record.weight,
            meta=record.meta,
            asked_ms=record.asked_ms,
            max_hold_ms=record.max_hold_ms,
            delay_ms=record.delay_ms,
        )
        request.ticket = record.ticket
        request.places = record.places
        request.wait_ms = record.wait_ms
        request.wait_timer = record.wait_timer
        request.orphan_timer = record.orphan_timer
        request.hold_timer = record.hold_timer
        return request

    def _register(self, request: Request, session: Session) -> None:
        """Enter it under its session and its id."""
        session.add(request)
        if isinstance(request.id, int):
            if request.id:
                _require(request.id not in session.answers.live, "request id {} stands twice", request.id)
                session.answers.began(request.id, request)
        elif request.id:
            live = self.state.private_answers.live
            _require((session.user, request.id) not in live, "a UUID stands twice")
            self.state.private_answers.began(session.user, request.id, request)

    def _hold(self, record: RequestRecord, request: Request, session: Session) -> None:
        state = self.state
        _require(record.revision <= state.revision, "a revision that never was")
        _require(record.granted_ms <= state.clock_ms, "a grant of the future")
        _require(record.wait_timer == NO_TIMER and not record.places, "a holder that waits")
        _require(record.token not in state.grants, "token {} stands twice", record.token)
        request.hold(token=record.token, revision=record.revision, clock_ms=record.granted_ms)
        state.grants[request.token] = request
        for lock in request.locks:
            _require(lock.admits(request), "a lock with more holders than it has room for")
            _require(lock.granted_last >= request.token, "a grant that is younger than its lock's last")
            granted_last = lock.granted_last
            lock.add_holder(request)
            lock.granted_last = granted_last
        if record.revoked:
            notice = session.notices.get(record.notice)
            told = notice is not None and notice.token == request.token
            _require(told and record.hold_timer == NO_TIMER, "a revoked grant that nobody is told of")
            request.revoked, request.notice, request.phase = record.revoked, record.notice, Phase.REVOKED
            state.revoked[request.token] = request

    def _wait(self, request: Request, session: Session) -> None:
        _require(request.hold_timer == NO_TIMER, "a waiter that is held too long")
        _require(len(request.places) == len(request.locks), "a waiter without its places")
        for lock, place in zip(request.locks, request.places, strict=True):
            _require(place <= lock.queued, "place {} of {}", place, lock.queued)
            standing = session.stands[request.owner, lock.name]
            others = (other for other in standing.values() if other is not request)
            _require(all(other.is_granted for other in others), "an owner that waits twice")
            lock.waiters[request.ticket] = request
        session.waiting += 1
        self.state.waiters += 1
        if request.orphan_timer == NO_TIMER:
            self.state.waits.add(request)

    def _once(self, answer: Refused) -> Refused:
        return self._answers.setdefault(answer, answer)


def _with_head(head: Head) -> LockState:
    if head.feature_level > FEATURE_LEVEL:
        raise CorruptData(
            f"a lock state has feature level {head.feature_level}, and this node knows {FEATURE_LEVEL}: "
            "run the release that wrote this snapshot, or a later one"
        )
    for name, value in dataclasses.asdict(head.limits).items():
        _require(0 < value <= CLOCK_MS_MAX, "the limit {} is {}", name, value)
    _require(head.limits.ttl_ms_min <= head.limits.ttl_ms_max, "the shortest TTL is over the longest")
    state = LockState(head.limits)
    state.feature_level = head.feature_level
    state.applied = head.applied
    state.clock_ms = head.clock_ms
    state.cluster = head.cluster
    state.incarnation = head.incarnation
    state.token = FencingToken(head.token)
    state.revision = head.revision
    state.sessions_opened = head.sessions_opened
    state.tickets = head.tickets
    state.timers.sequence = head.timers
    state.grants_from_ms = head.grants_from_ms
    state.quiet_timer = head.quiet_timer
    _put_timer(state, head.quiet_timer, head.grants_from_ms, QuietOver())
    return state


def _put_timer(state: LockState, number: int, due_ms: int, action: Due) -> None:
    """Set a timer as it was saved; without a number there is none, and no deadline."""
    if number == NO_TIMER:
        _require(due_ms == 0, "a deadline without its timer")
        return
    timers = state.timers
    _require(due_ms > state.clock_ms, "timer {} should have fired", number)
    _require(number <= timers.sequence and number not in timers, "timer {} stands twice or never did", number)
    timers.put_back(number, due_ms, action)
