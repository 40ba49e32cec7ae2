"""What the search for deadlocks may cost: as much as the wait depends on, up to a bound (G8, P6)."""

import functools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from lockd.ids import LogIndex
from lockd.locks.commands import (
    SHARED,
    WAIT_FOREVER,
    Acquire,
    AcquireAll,
    Batch,
    Command,
    OpenSession,
    Operation,
    Origin,
    Outcome,
    Queued,
    Refused,
)
from lockd.locks.limits import Limits
from lockd.locks.machine import LockMachine


class _Locks:
    """A machine with one session, whose owners ask."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.machine = LockMachine(limits)
        self._applied = 0
        self._do(OpenSession(60_000, "", ""), "")

    def hold(self, owner: str, lock: str, mode: str = "exclusive", limit: int = 0) -> None:
        self._do(Acquire(lock, 0, 0, "", mode=mode, limit=limit), owner)

    def wait(self, owner: str, lock: str, mode: str = "exclusive", limit: int = 0) -> Outcome:
        return self._do(Acquire(lock, 0, WAIT_FOREVER, "", mode=mode, limit=limit), owner)

    def wait_for_all(self, owner: str, locks: tuple[str, ...]) -> None:
        self._do(AcquireAll(locks, WAIT_FOREVER, ""), owner)

    def _do(self, operation: Operation, owner: str) -> Outcome:
        self._applied += 1
        command = Command("user", "session", owner, 0, Origin(1, 1, 1, self._applied), operation)
        return self.machine.apply(LogIndex(self._applied), Batch(1, 0, (command,)))[-1].outcome


def _lines_run(action: Callable[[], object]) -> int:
    """How many lines of Python an action runs: a cost that no other load of the machine changes."""
    count = 0

    def trace(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


def _fan(locks: _Locks, size: int) -> None:
    """All who share the lock wait in one queue, each at another place."""
    for number in range(size):
        locks.hold(f"o{number}", "wanted", mode=SHARED)
    locks.hold("first", "queue")
    for number in range(size):
        locks.wait(f"o{number}", "queue")
    locks.hold("asker", "own")
    locks.wait("first", "own")


def _ladder(locks: _Locks, size: int) -> None:
    """Each wait leads to the next owner, who stands one place further on in the same queue."""
    locks.hold("first", "queue")
    locks.hold("o0", "wanted")
    for number in range(1, size):
        locks.hold(f"o{number}", f"step{number}")
    for number in range(size):
        locks.wait(f"o{number}", "queue")
    locks.hold("asker", "own")
    locks.wait("last", "own")
    for number in range(size - 1, 0, -1):
        locks.wait(f"o{number - 1}", f"step{number}")


def _units(locks: _Locks, size: int) -> None:
    """A semaphore with many holders and many who wait."""
    for number in range(size):
        locks.hold(f"h{number}", "wanted", limit=size)
    for number in range(size):
        locks.wait(f"w{number}", "wanted", limit=size)
    locks.hold("asker", "own")
    locks.wait("h0", "own")


def _readers(locks: _Locks, size: int) -> None:
    """Many who wait to share a lock."""
    locks.hold("writer", "wanted")
    for number in range(size):
        locks.wait(f"o{number}", "wanted", mode=SHARED)
    locks.hold("asker", "own")
    locks.wait("o0", "own")


def _whole(locks: _Locks, size: int) -> None:
    """Many share the last of the locks that another wants all of."""
    for number in range(size):
        locks.hold(f"h{number}", "wanted", mode=SHARED)
    locks.wait_for_all("all", (*(f"a{number}" for number in range(90)), "wanted"))
    locks.hold("asker", "own")
    locks.wait("all", "own")


@pytest.mark.parametrize("shape", [_fan, _ladder, _units, _readers, _whole])
def test_the_search_costs_as_much_as_the_wait_depends_on(shape: Callable[[_Locks, int], None]) -> None:
    """P6: twice the owners, twice the cost, and not four times."""
    costs = []
    for size in (70, 140):
        locks = _Locks()
        shape(locks, size)
        limit = size if shape is _units else 0
        costs.append(_lines_run(functools.partial(locks.wait, "asker", "wanted", limit=limit)))
    assert costs[1] < 2.5 * costs[0], costs


def _chain(locks: _Locks, size: int) -> None:
    """Each of them holds one lock and waits for the next one's."""
    for number in range(size):
        locks.hold(f"o{number}", f"x{number}")
    for number in range(size - 1):
        locks.wait(f"o{number}", f"x{number + 1}")


def test_a_deadlock_is_found_up_to_the_bound() -> None:
    """G8: exact as long as the graph is within the limit."""
    locks = _Locks(Limits(deadlock_search_max=39))
    _chain(locks, 20)
    refused = locks.wait("o19", "x0")
    assert isinstance(refused, Refused)
    assert refused.code == "DEADLOCK"
    assert "and 15 more" in refused.text


def test_a_wait_that_depends_on_too_much_is_refused_by_name() -> None:
    """P6, G8: it is neither searched for ever nor let through unsearched."""
    locks = _Locks(Limits(deadlock_search_max=38))
    _chain(locks, 20)
    refused = locks.wait("o19", "x0")
    assert isinstance(refused, Refused)
    assert refused.code == "LIMIT"
    assert "at most 38" in refused.text
    locks.machine.check_invariants()


def test_what_the_asker_does_not_depend_on_costs_nothing() -> None:
    """Whoever blocks nobody may wait in any queue."""
    locks = _Locks(Limits(deadlock_search_max=5))
    _chain(locks, 20)
    assert isinstance(locks.wait("asker", "x0"), Queued)
