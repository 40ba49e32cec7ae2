"""T1: time is a number in the log; timers fire by it, in one order."""

import random

from lockd.ids import LogIndex
from lockd.locks.commands import Acquire, Batch, Command, Granted, Origin, Refused, Release
from lockd.locks.limits import CLOCK_MS_MAX
from lockd.locks.machine import LockMachine
from lockd.locks.timers import NO_TIMER, Timers
from tests.locks.cluster_state import ClusterState


def test_t1_the_clock_never_goes_back() -> None:
    machine = LockMachine()
    for index, stamp in enumerate((5, 3, 9, 9, 0, -4), start=1):
        machine.apply(LogIndex(index), Batch(Batch.VERSION, stamp, ()))
    assert machine.clock_ms == 9
    machine.apply(LogIndex(9), Batch(Batch.VERSION, 2**63, ()))
    assert machine.clock_ms == CLOCK_MS_MAX


def test_t1_a_wait_ends_when_the_states_clock_says_so() -> None:
    state = ClusterState()
    state.open("s1")
    state.open("s2")
    state.acquire("a", "s1")
    waiter = state.acquire("a", "s2", wait_ms=500)
    assert state.machine.next_timer_ms() == 500
    state.pass_ms(499)
    assert waiter.waits
    (completion,) = state.pass_ms(1)
    assert isinstance(completion.outcome, Refused)
    assert waiter.refused.code == "TIMEOUT"
    assert waiter.refused.text == '"a" has been held by session 1 for 500 ms (waited 500 ms, 0 more waiting)'
    assert state.machine.next_timer_ms() is None


def test_t1_timers_fire_before_the_commands_of_their_batch() -> None:
    """The wait ran out at 500, and the release came at 500 or later: too late for it."""
    state = ClusterState()
    state.open("s1")
    state.open("s2")
    state.acquire("a", "s1")
    waiter = state.acquire("a", "s2", wait_ms=500)
    state.stamp_ms = 800
    state.release("a", 1, "s1")
    assert waiter.refused.code == "TIMEOUT"


def test_a_granted_or_cancelled_wait_leaves_no_timer() -> None:
    state = ClusterState()
    state.open("s1")
    state.open("s2")
    state.acquire("a", "s1")
    granted = state.acquire("a", "s2", owner="x", wait_ms=500, request=1)
    state.acquire("a", "s2", owner="y", wait_ms=500, request=2)
    state.release("a", 1, "s1")
    state.cancel("a", "s2", 2)
    assert state.machine.stats.timers == 0
    state.pass_ms(1_000)
    assert isinstance(granted.last, Granted)


def test_waits_that_end_together_end_by_deadline_then_by_age() -> None:
    state = ClusterState()
    state.open("s1")
    state.acquire("a", "s1")
    waits = [state.acquire("a", "s1", owner=f"t{n}", wait_ms=ms) for n, ms in enumerate((300, 100, 300, 200))]
    completions = state.pass_ms(1_000)
    order = [completion.origin for completion in completions]
    assert order == [waits[n].origin for n in (1, 3, 0, 2)]


def test_entries_are_applied_once_and_in_order() -> None:
    machine = LockMachine()
    origin = Origin(1, 1, 1, 1)
    batch = Batch(
        Batch.VERSION,
        7,
        (
            Command("ann", "p1", "", "", origin, Acquire("a", 5_000, 0, "")),
            Command("ann", "p1", "", "", Origin(1, 1, 1, 2), Release("a", 1)),
            Command("ann", "p2", "", "", Origin(1, 1, 1, 3), Acquire("a", 5_000, 0, "")),
        ),
    )
    completions = machine.apply(LogIndex(4), batch)
    assert [completion.origin.operation for completion in completions] == [1, 2, 3]
    assert machine.token == 2


def test_timers_agree_with_a_sorted_list() -> None:
    """Whatever is set and cancelled, and however often the heap is rebuilt."""
    draw = random.Random(7)
    timers: Timers[int] = Timers()
    model: list[tuple[int, int]] = []
    clock = 0
    for step in range(5_000):
        match draw.randrange(4):
            case 0 | 1:
                due = clock + draw.randrange(1, 500)
                model.append((due, timers.set(due, step)))
            case 2 if model:
                timers.cancel(model.pop(draw.randrange(len(model)))[1])
            case _:
                clock += draw.randrange(60)
                due_now = sorted(entry for entry in model if entry[0] <= clock)
                model = [entry for entry in model if entry[0] > clock]
                fired = 0
                while timers.take_due(clock) is not None:
                    fired += 1
                assert fired == len(due_now)
        assert [(due, number) for due, number, _ in timers.in_order()] == sorted(model)
        assert timers.next_ms() == min((due for due, _ in model), default=None)
        timers.check_invariants()
    timers.cancel(NO_TIMER)


def test_cancelled_timers_do_not_pile_up() -> None:
    timers: Timers[None] = Timers()
    timers.set(10**9, None)
    for n in range(10_000):
        timers.cancel(timers.set(10**6 + n, None))
    assert len(timers._heap) < 200
