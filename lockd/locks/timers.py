"""Deadlines by the state's clock, fired in one order on every node (SAFETY T1, G6)."""

import heapq
from collections.abc import Iterator
from typing import Generic, TypeVar

Action = TypeVar("Action")

NO_TIMER = 0


class Timers(Generic[Action]):
    """Timers ordered by (deadline, the order in which they were set).

    Setting and taking cost O(log n); cancelling is O(1) and leaves a dead heap entry behind, and
    the heap is rebuilt when more than half of it is dead. None of that shows: what fires, and when,
    depends on the calls alone.
    """

    def __init__(self) -> None:
        self.sequence = NO_TIMER
        """The number of the timer set last."""
        self._live: dict[int, tuple[int, Action]] = {}
        self._heap: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, number: int) -> bool:
        return number in self._live

    def set(self, due_ms: int, action: Action) -> int:
        """Start a timer; returns its number, never NO_TIMER."""
        self.sequence += 1
        self._live[self.sequence] = (due_ms, action)
        heapq.heappush(self._heap, (due_ms, self.sequence))
        return self.sequence

    def put_back(self, number: int, due_ms: int, action: Action) -> None:
        """Take up a timer as it was saved, under a number that was drawn and isn't in use."""
        assert NO_TIMER < number <= self.sequence, f"timer {number} was never set"
        assert number not in self, f"timer {number} is set"
        self._live[number] = (due_ms, action)
        heapq.heappush(self._heap, (due_ms, number))

    def cancel(self, number: int) -> None:
        """Stop a timer. One that has fired, was stopped, or NO_TIMER is left as it is."""
        if self._live.pop(number, None) is not None:
            self._drop_dead()

    def take_due(self, clock_ms: int) -> Action | None:
        """Remove the first timer whose deadline is `clock_ms` or before, and return its action."""
        if not self._heap or self._heap[0][0] > clock_ms:
            return None
        _, number = heapq.heappop(self._heap)
        _, action = self._live.pop(number)
        self._drop_dead()
        return action

    def next_ms(self) -> int | None:
        """The first deadline."""
        return self._heap[0][0] if self._heap else None

    def in_order(self) -> Iterator[tuple[int, int, Action]]:
        """Every timer as (deadline, number, action), in the order of firing."""
        for due_ms, number in sorted((due, number) for number, (due, _) in self._live.items()):
            yield due_ms, number, self._live[number][1]

    def _drop_dead(self) -> None:
        if len(self._heap) > 2 * len(self._live) + 64:
            self._heap = [(due, number) for number, (due, _) in self._live.items()]
            heapq.heapify(self._heap)
        while self._heap and self._heap[0][1] not in self._live:
            heapq.heappop(self._heap)

    def check_invariants(self) -> None:
        """Every live timer is in the heap once, and the heap's head is live."""
        heads = {number: due for due, number in self._heap}
        assert len(heads) == len(self._heap), "a timer stands twice in the heap"
        for number, (due_ms, _) in self._live.items():
            assert heads.get(number) == due_ms, f"timer {number} is lost"
            assert number <= self.sequence, f"timer {number} was never set"
        assert not self._heap or self._heap[0][1] in self._live, "a dead timer at the head"
