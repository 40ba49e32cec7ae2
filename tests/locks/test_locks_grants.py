"""P1, P2, G1, G5, G7, G9: who holds, with which token, and who comes next."""

import sys
from types import FrameType
from typing import Any

import pytest

from lockd.ids import TOKEN_MAX, FencingToken, LogIndex
from lockd.locks.commands import (
    WAIT_FOREVER,
    Acquire,
    Batch,
    Cancel,
    Command,
    Granted,
    OpenSession,
    Operation,
    Origin,
    Queued,
    Release,
)
from lockd.locks.machine import LockMachine
from tests.locks.cluster_state import ClusterState


@pytest.fixture
def state() -> ClusterState:
    cluster = ClusterState()
    cluster.open("s1", name="billing")
    cluster.open("s2")
    cluster.open("s3")
    return cluster


def test_p1_a_held_lock_is_refused_to_others(state: ClusterState) -> None:
    state.acquire("a", "s1", wait_ms=0)
    assert state.acquire("a", "s2", wait_ms=0).refused.code == "BUSY"
    assert state.acquire("b", "s2", wait_ms=0).granted.token == 2


def test_g1_the_server_never_reenters(state: ClusterState) -> None:
    state.acquire("a", "s1", owner="t1", wait_ms=0)
    assert state.acquire("a", "s1", owner="t1", wait_ms=0).refused.code == "BUSY"
    assert state.acquire("a", "s1", owner="t2", wait_ms=0).refused.code == "BUSY"


def test_g1_the_token_is_drawn_at_the_grant_not_when_the_waiter_queues(state: ClusterState) -> None:
    state.acquire("a", "s1", wait_ms=0)
    waiter = state.acquire("a", "s2")
    elsewhere = state.acquire("b", "s3").granted
    state.release("a", 1, "s1")
    assert waiter.granted.token > elsewhere.token, "P2: a later grant has a higher token"


def test_p2_tokens_grow_over_all_locks_and_outlive_them(state: ClusterState) -> None:
    tokens = []
    for lock in ("a", "b", "a", "c", "a"):
        granted = state.acquire(lock, "s1").granted
        tokens.append(granted.token)
        state.release(lock, granted.token, "s1")
    assert tokens == [1, 2, 3, 4, 5]


def test_p2_no_token_is_drawn_at_two_to_the_53rd(state: ClusterState) -> None:
    state.machine.state.token = FencingToken(TOKEN_MAX - 1)
    last = state.acquire("a", "s1").granted
    assert last.token == 2**53 - 1
    refused = state.acquire("b", "s2").refused
    assert refused.code == "LIMIT"
    assert "token" in refused.text


def test_p2_a_waiter_is_not_granted_when_no_token_is_left(state: ClusterState) -> None:
    state.acquire("a", "s1")
    waiter = state.acquire("a", "s2", wait_ms=500)
    state.machine.state.token = TOKEN_MAX
    assert state.release("a", 1, "s1") == 1
    assert waiter.waits
    assert state.machine.inspect("a").status == "free"
    state.pass_ms(500)
    assert waiter.refused.code == "TIMEOUT"


def test_k1_only_an_answer_at_once_starts_a_deadline(state: ClusterState) -> None:
    first = state.acquire("a", "s1", request=1)
    assert not first.granted.repeat
    waiter = state.acquire("a", "s2")
    assert state.acquire("a", "s1", request=1).granted.repeat
    state.release("a", 1, "s1")
    assert waiter.granted.repeat


def test_g5_waiters_are_served_first_come_first_served(state: ClusterState) -> None:
    state.acquire("a", "s1", owner="t0")
    waiters = [state.acquire("a", "s2", owner=f"t{n}") for n in range(5)]
    assert [w.last for w in waiters] == [Queued("a", "s2", n) for n in range(5)]
    session, order = "s1", []
    for _ in waiters:
        state.release("a", state.holder_token("a"), session)
        order.append([w.origin.operation for w in waiters if isinstance(w.last, Granted)])
        session = "s2"
    mine = [w.origin.operation for w in waiters]
    assert order == [mine[: n + 1] for n in range(5)], "one release wakes exactly one: no herd"


def test_g5_a_removal_from_the_middle_keeps_the_order(state: ClusterState) -> None:
    state.acquire("a", "s1")
    first = state.acquire("a", "s2", owner="x", request=1)
    state.acquire("a", "s2", owner="y", request=2)
    third = state.acquire("a", "s2", owner="z", request=3)
    state.cancel("a", "s2", 2)
    state.release("a", 1, "s1")
    assert first.granted.token == 2
    state.release("a", 2, "s2")
    assert third.granted.token == 3


def test_g5_the_next_is_let_in_when_the_holder_is_cancelled_closed_or_released(state: ClusterState) -> None:
    state.acquire("a", "s1", request=1)
    second = state.acquire("a", "s2", request=1)
    third = state.acquire("a", "s3", request=1)
    state.cancel("a", "s1", 1)
    assert second.granted.token == 2
    state.close("s2")
    assert third.granted.token == 3


def test_g7_a_release_names_its_session_and_grant(state: ClusterState) -> None:
    state.acquire("a", "s1")
    assert state.release("a", 2, "s1") == 0, "another token"
    assert state.release("b", 1, "s1") == 0, "another lock"
    assert state.release("a", 1, "s2") == 0, "another session: a stranger who knows the token"
    assert state.holder_token("a") == 1
    assert state.release("a", 1, "s1") == 1


def test_g7_a_second_release_does_nothing_and_says_so(state: ClusterState) -> None:
    state.acquire("a", "s1", owner="t1")
    waiter = state.acquire("a", "s1", owner="t2")
    assert state.release("a", 1, "s1") == 1
    assert state.release("a", 1, "s1") == 0
    assert state.holder_token("a") == waiter.granted.token == 2


def test_a_refusal_tells_who_has_it_and_shows_no_session_id(state: ClusterState) -> None:
    state.acquire("a", "s1", owner="task-9")
    state.acquire("a", "s3")
    state.stamp_ms += 1234
    busy = state.acquire("a", "s2", wait_ms=0).refused
    assert (busy.lock, busy.holder) == ("a", "billing")
    assert busy.text == '"a" has been held by session 1 "billing" owner "task-9" for 1234 ms (1 waiting)'
    state.release("a", 1, "s1")
    assert state.acquire("a", "s2", wait_ms=0).refused.holder == "session 3"
    assert "s3" not in state.acquire("a", "s2", wait_ms=0).refused.text


def test_a_lock_is_shown_as_it_is(state: ClusterState) -> None:
    state.acquire("a", "s1", owner="t1", meta='{"job": 1}')
    state.acquire("a", "s2")
    state.pass_ms(500)
    view = state.machine.inspect("a")
    assert (view.name, view.status, view.mode, view.queue_length) == ("a", "held", "exclusive", 1)
    (holder,) = view.holders
    assert (holder.session, holder.session_number, holder.owner) == ("billing", 1, "t1")
    assert (holder.token, holder.meta, holder.held_ms, view.held_ms) == (1, '{"job": 1}', 500, 500)
    assert (view.granted_last, view.revision) == (1, 1)


def test_g9_a_free_lock_costs_nothing_and_tells_no_token(state: ClusterState) -> None:
    for n in range(100):
        token = state.acquire(f"k{n}", "s1").granted.token
        state.release(f"k{n}", token, "s1")
    assert state.machine.stats.locks == 0
    view = state.machine.inspect("k7")
    assert (view.status, view.holders, view.granted_last, view.revision) == ("free", (), 0, 200)


def test_revision_counts_the_events_of_locks(state: ClusterState) -> None:
    assert state.acquire("a", "s1").granted.revision == 1
    assert state.acquire("b", "s1").granted.revision == 2
    waiter = state.acquire("a", "s2")
    state.release("a", 1, "s1")
    assert waiter.granted.revision == 4
    state.close("s2")
    assert state.machine.revision == 5


def test_locks_are_listed_by_name_in_pages(state: ClusterState) -> None:
    for name in ("b/2", "a/1", "b/1", "c", "b/3"):
        state.acquire(name, "s1")
    names = [view.name for view in state.machine.locks(prefix="b/")]
    assert names == ["b/1", "b/2", "b/3"]
    assert [view.name for view in state.machine.locks(prefix="b/", after="b/1", count=1)] == ["b/2"]
    assert [view.name for view in state.machine.locks(count=2)] == ["a/1", "b/1"]
    assert state.machine.locks(count=0) == []


@pytest.mark.parametrize(
    ("operation", "request_id"),
    [(Release("a", 1), 0), (Cancel("a"), 6), (Acquire("a", 0, WAIT_FOREVER, ""), 6)],
    ids=["a release", "a cancelled wait", "a retry"],
)
def test_g5_what_one_command_costs_does_not_grow_with_the_queue(
    operation: Operation, request_id: int
) -> None:
    """Counted, not timed. What C code does inside of one step doesn't show (see queues.Lock)."""
    short = _steps_of_python(waiters=10, operation=operation, request_id=request_id)
    assert 100 < short < 2_000
    assert _steps_of_python(waiters=30_000, operation=operation, request_id=request_id) == short


def _steps_of_python(*, waiters: int, operation: Operation, request_id: int) -> int:
    """How many instructions Python runs to apply an operation to a lock with so many waiters."""
    machine = LockMachine()
    entries = 0

    def send(request: int, asked: Operation) -> None:
        nonlocal entries
        entries += 1
        command = Command("ann", "s1", f"t{request}", request, Origin(1, 1, 1, entries), asked)
        machine.apply(LogIndex(entries), Batch(Batch.VERSION, 0, (command,)))

    send(0, OpenSession(10_000, "", ""))
    for request in range(1, waiters + 2):
        send(request, Acquire("a", 0, WAIT_FOREVER, ""))
    steps = 0

    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal steps
        frame.f_trace_opcodes = True
        steps += event == "opcode"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        send(request_id, operation)
    finally:
        sys.settrace(before)
    return steps
