"""What must hold of the state between any two entries; the simulator checks it after each step."""

from lockd.ids import NODE_ID_MAX, TOKEN_MAX
from lockd.locks.commands import SHARED
from lockd.locks.deadlines import DelayOver, HoldOver, OrphanOver, QuietOver, WaitOver
from lockd.locks.queues import Lock, Phase, Request
from lockd.locks.sessions import Session
from lockd.locks.state import LockState
from lockd.locks.timers import NO_TIMER


def check(state: LockState) -> None:
    """Raise AssertionError that names the first thing out of place."""
    assert 0 <= state.token <= TOKEN_MAX, "P2: the token left its range"
    _check_nodes(state)
    live: dict[int, Request] = {}
    stands: dict[int, list[str]] = {}
    for name, lock in state.locks.items():
        assert name == lock.name, f"{lock.name} stands under {name}"
        _check_lock(state, lock)
        for request in [*lock.holders.values(), *lock.waiters.values()]:
            assert live.setdefault(request.ticket, request) is request, f"two requests {request.ticket}"
            stands.setdefault(request.ticket, []).append(name)
    for ticket, request in live.items():
        assert sorted(stands[ticket]) == list(request.names), f"request {ticket} lacks in one of its locks"
        _check_request(state, request)
    grants = {request.token: request for request in live.values() if request.is_granted}
    assert grants == state.grants, "P2: two grants have one token, or the index of grants differs"
    assert all(0 < token <= state.token for token in grants), "P2: a grant has a token not drawn"
    revoked = {token: request for token, request in grants.items() if request.phase is Phase.REVOKED}
    assert revoked == state.revoked, "the index of revoked grants differs"
    _check_sessions(state, live)
    _check_private_answers(state, live)
    _check_waits(state, live)
    _check_timers(state, live)


def _check_nodes(state: LockState) -> None:
    for node, registered in state.nodes.items():
        assert node == registered.node, f"node {registered.node} stands under {node}"
        assert node not in state.removed, f"C8: node {node} was removed and is registered"
    for node in state.members:
        assert node not in state.removed, f"C8: node {node} was removed and is a member"
    for node in (*state.members, *state.removed):
        assert 0 < node <= NODE_ID_MAX, f"{node} is no id of a node"


def _check_lock(state: LockState, lock: Lock) -> None:
    assert not lock.is_free, f"the free lock {lock.name} takes memory"
    # G5: whoever can be granted has been.
    can_grant = state.token < TOKEN_MAX and not state.is_quiet
    head = lock.head
    assert not (can_grant and head is not None and state.can_grant(head)), f"{lock.name} could be granted"
    _check_holders(state, lock)
    tickets = list(lock.waiters)
    assert tickets == sorted(tickets), f"the queue of {lock.name} is out of order"
    for ticket, waiter in lock.waiters.items():
        assert waiter.ticket == ticket, f"waiter {waiter.ticket} of {lock.name} stands as {ticket}"
        assert waiter.phase is Phase.WAITING, f"a waiter of {lock.name} is {waiter.phase}"
        assert 0 < waiter.place_at(lock) <= lock.queued, f"a place of {lock.name} that was never given"


def _check_holders(state: LockState, lock: Lock) -> None:
    holders = list(lock.holders.values())
    assert not (holders and state.is_quiet), f"G2: {lock.name} is held in the quiet period"
    assert list(lock.holders) == sorted(lock.holders), f"holders of {lock.name} out of order"
    assert lock.used == sum(holder.weight for holder in holders), f"units of {lock.name} miscounted"
    for token, holder in lock.holders.items():
        assert holder.token == token, f"holder {holder.token} of {lock.name} stands as {token}"
        assert holder.is_granted, f"a holder of {lock.name} is {holder.phase}"
        assert holder.mode == lock.mode, f"{lock.name} is held as {lock.mode} and as {holder.mode}"
        assert token <= lock.granted_last, f"{lock.name} has a younger grant than its last"
    # P1: one exclusive grant, or shared ones, or no more units than there are.
    assert lock.is_wanted or not lock.limit, f"{lock.name} keeps a limit of nobody's"
    if lock.limit:
        assert lock.used <= lock.limit, f"P1: more units of {lock.name} than there are"
    else:
        assert len(holders) <= 1 or lock.mode == SHARED, f"P1: {lock.name} has two exclusive holders"


def _check_request(state: LockState, request: Request) -> None:
    session = state.sessions.get(request.session)
    assert session is not None, f"request {request.ticket} outlived its session"
    assert session.requests.get(request.ticket) is request, f"request {request.ticket} lacks in its session"
    assert 0 < request.ticket <= state.tickets, "a ticket that was never drawn"
    if request.phase is Phase.WAITING:
        for name in request.names:
            assert session.wait_of(request.owner, name) is request, "G3: an owner waits twice"
    else:
        assert session.lease_running, f"{request.lock.name} is held without a lease"
    if request.phase is Phase.REVOKED:
        notice = session.notices.get(request.notice)
        assert notice is not None, "K7: a revoked grant that its holder isn't told of"
        assert notice.token == request.token, "K7: a notice of another grant"
    if not request.id:
        assert request.orphan_timer == NO_TIMER, "an orphan that can't be asked for again"
    elif isinstance(request.id, int):
        assert session.answers.live.get(request.id) is request, f"request id {request.id} is not known"
    else:
        known = state.private_answers.recall(session.user, request.id)
        assert known is request, f"request id {request.id} is not known"


def _check_sessions(state: LockState, live: dict[int, Request]) -> None:
    numbers = {session.number for session in state.sessions.values()}
    assert len(numbers) == len(state.sessions), "two sessions have one public number"
    assert all(0 < number <= state.sessions_opened for number in numbers), "a number never drawn"
    for session_id, session in state.sessions.items():
        assert session.id == session_id, f"session {session.number} stands under another id"
        assert state.limits.clamp_ttl(session.ttl_ms) == session.ttl_ms, "a TTL out of its range"
        assert 0 <= session.silent_ms <= session.ttl_ms, "a silence out of its range"
        for ticket, request in session.requests.items():
            assert live.get(ticket) is request, f"session {session.number} keeps a request that is over"
        named = [
            request for request in session.requests.values() if isinstance(request.id, int) and request.id
        ]
        assert len(session.answers.live) == len(named), f"session {session.number} keeps an id that is over"
        session.answers.check_invariants()
        _check_indexes(session)
        assert all(0 < number <= session.noticed for number in session.notices), "a notice never given"
        past = [number for number, notice in session.notices.items() if notice.token not in state.revoked]
        assert sorted(session.past_notices) == past, f"session {session.number} miscounts its notices"
        assert len(session.notices) <= state.limits.notices_per_session_max or not past, (
            "C10: notices without bound"
        )
        if session.is_private:
            assert len(session.requests) == 1, "a private session has one request"
            assert session.lease_running != bool(session.waiting), "a private lease runs from the grant"


def _check_indexes(session: Session) -> None:
    stands: dict[tuple[str, str], dict[int, Request]] = {}
    owners: dict[str, dict[int, Request]] = {}
    for ticket, request in session.requests.items():
        for name in request.names:
            stands.setdefault((request.owner, name), {})[ticket] = request
        if request.owner:
            owners.setdefault(request.owner, {})[ticket] = request
    assert stands == session.stands, f"session {session.number}: who stands where differs"
    assert owners == session.owners, f"session {session.number}: its owners differ"
    waiting = [request for request in session.requests.values() if request.phase is Phase.WAITING]
    assert session.waiting == len(waiting), f"session {session.number}: waits are miscounted"


def _check_private_answers(state: LockState, live: dict[int, Request]) -> None:
    named = [request for request in live.values() if isinstance(request.id, str) and request.id]
    assert len(state.private_answers.live) == len(named), "a UUID is kept as live and is over"
    state.private_answers.check_invariants()


def _check_waits(state: LockState, live: dict[int, Request]) -> None:
    waiting = [request for request in live.values() if request.phase is Phase.WAITING]
    assert state.waiters == len(waiting), "waiters are miscounted"
    heard = [request.ticket for request in state.waits.all()]
    assert heard == sorted(r.ticket for r in waiting if r.orphan_timer == NO_TIMER), "waits by origin differ"


def _check_timers(state: LockState, live: dict[int, Request]) -> None:
    state.timers.check_invariants()
    requests = list(live.values())
    expected = sum(request.orphan_timer != NO_TIMER for request in requests)
    expected += sum(request.wait_timer != NO_TIMER for request in requests)
    expected += sum(request.hold_timer != NO_TIMER for request in requests)
    expected += sum(lock.delay_timer != NO_TIMER for lock in state.locks.values())
    expected += state.is_quiet
    assert state.is_quiet == (state.quiet_timer != NO_TIMER), "G2: a quiet period without its timer"
    assert len(state.timers) == expected, "a timer without its subject, or the reverse"
    for due_ms, number, action in state.timers.in_order():
        assert due_ms > state.clock_ms, f"timer {number} was due at {due_ms}"
        subject: Request | None = None
        match action:
            case WaitOver(subject):
                assert (subject.wait_timer, subject.phase) == (number, Phase.WAITING), "a wait's timer"
            case OrphanOver(subject):
                assert subject.orphan_timer == number, f"timer {number} is not its request's"
            case HoldOver(subject):
                assert (subject.hold_timer, subject.phase) == (number, Phase.HELD), "a MAXHOLD's timer"
            case DelayOver(lock):
                assert (lock.delay_timer, lock.delayed_until_ms) == (number, due_ms), "a DELAY's timer"
                assert not lock.holders, "a lock that is held in its delay"
                assert state.locks.get(lock.name) is lock, f"timer {number} is of a lock that is gone"
            case QuietOver():
                assert (number, due_ms) == (state.quiet_timer, state.grants_from_ms), "G2: a wrong timer"
        if subject is not None:
            assert live.get(subject.ticket) is subject, f"timer {number} is of a request that is over"
