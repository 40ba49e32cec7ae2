"""What must hold of the state between any two entries; the simulator checks it after each step."""

from lockd.ids import NODE_ID_MAX, TOKEN_MAX
from lockd.locks.queues import Lock, Phase, Request
from lockd.locks.state import LockState, OrphanOver, QuietOver, WaitOver
from lockd.locks.timers import NO_TIMER


def check(state: LockState) -> None:
    """Raise AssertionError that names the first thing out of place."""
    assert 0 <= state.token <= TOKEN_MAX, "P2: the token left its range"
    _check_nodes(state)
    live: dict[int, Request] = {}
    for name, lock in state.locks.items():
        assert name == lock.name, f"{lock.name} stands under {name}"
        _check_lock(state, lock)
        for request in ([lock.holder] if lock.holder else []) + list(lock.waiters.values()):
            assert request.ticket not in live, f"request {request.ticket} stands twice"
            live[request.ticket] = request
            _check_request(state, request)
    tokens = [request.token for request in live.values() if request.phase is Phase.HELD]
    assert len(set(tokens)) == len(tokens), "P2: two grants have one token"
    assert all(0 < token <= state.token for token in tokens), "P2: a grant has a token not drawn"
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
    assert not can_grant or lock.next_to_grant() is None, f"{lock.name} could be granted"
    if lock.holder is not None:  # P1: one exclusive grant, and its session lives
        assert not state.is_quiet, f"G2: {lock.name} is held in the quiet period"
        assert lock.holder.phase is Phase.HELD, f"the holder of {lock.name} is {lock.holder.phase}"
    tickets = list(lock.waiters)
    assert tickets == sorted(tickets), f"the queue of {lock.name} is out of order"
    for ticket, waiter in lock.waiters.items():
        assert waiter.ticket == ticket, f"waiter {waiter.ticket} of {lock.name} stands as {ticket}"
        assert waiter.phase is Phase.WAITING, f"a waiter of {lock.name} is {waiter.phase}"


def _check_request(state: LockState, request: Request) -> None:
    assert state.locks[request.lock.name] is request.lock, "a request stands in a lock that is gone"
    session = state.sessions.get(request.session)
    assert session is not None, f"request {request.ticket} outlived its session"
    assert session.requests.get(request.ticket) is request, f"request {request.ticket} lacks in its session"
    assert 0 < request.ticket <= state.tickets, "a ticket that was never drawn"
    if request.phase is Phase.WAITING:
        assert session.waits.get((request.owner, request.lock.name)) is request, "G3: an owner waits twice"
    else:
        assert session.lease_running, f"{request.lock.name} is held without a lease"
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
        waiting = [request for request in session.requests.values() if request.phase is Phase.WAITING]
        assert len(session.waits) == len(waiting), f"session {session.number} keeps a wait that is over"
        named = [
            request for request in session.requests.values() if isinstance(request.id, int) and request.id
        ]
        assert len(session.answers.live) == len(named), f"session {session.number} keeps an id that is over"
        session.answers.check_invariants()
        if session.is_private:
            assert len(session.requests) == 1, "a private session has one request"
            assert session.lease_running != bool(waiting), "a private lease runs from the grant"


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
    expected = sum(request.orphan_timer != NO_TIMER for request in live.values())
    expected += sum(request.wait_timer != NO_TIMER for request in live.values())
    expected += state.is_quiet
    assert state.is_quiet == (state.quiet_timer != NO_TIMER), "G2: a quiet period without its timer"
    assert len(state.timers) == expected, "a timer without its subject, or the reverse"
    for due_ms, number, action in state.timers.in_order():
        assert due_ms > state.clock_ms, f"timer {number} was due at {due_ms}"
        match action:
            case WaitOver(request):
                assert request.wait_timer == number, f"timer {number} is not its request's"
                assert live.get(request.ticket) is request, f"timer {number} is of a request that is over"
            case OrphanOver(request):
                assert request.orphan_timer == number, f"timer {number} is not its request's"
                assert live.get(request.ticket) is request, f"timer {number} is of a request that is over"
            case QuietOver():
                assert (number, due_ms) == (state.quiet_timer, state.grants_from_ms), (
                    "G2: a wrong quiet timer"
                )
