"""The search for an order: Wing and Gong's, with Lowe's memory, one part of the history at a time.

The search takes, one after another, an operation that no unplaced one had ended before, asks the
model whether its answer fits, and goes back when none does. What was tried is remembered as
(operations placed, state), since two orders of the same operations that lead to the same state
have the same future (Lowe, "Testing for linearizability", 2016). A history whose operations
concern independent things is linearizable when each part is (Herlihy and Wing's locality).
"""

import enum
import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

Call = TypeVar("Call", bound=Hashable)
Answer = TypeVar("Answer")
State = TypeVar("State", bound=Hashable)
Call_contra = TypeVar("Call_contra", bound=Hashable, contravariant=True)
Answer_contra = TypeVar("Answer_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class Operation(Generic[Call, Answer]):
    """What one client asked and was told. Times are of one clock, in any unit.

    `answered` None: no answer came, so it may have taken effect at any time after `called`, or
    not at all; `answer` says nothing then.
    """

    call: Call
    answer: Answer | None
    called: float
    answered: float | None


class Model(Protocol[Call_contra, Answer_contra, State]):
    """A thing that does one operation at a time."""

    def part(self, call: Call_contra) -> Hashable:
        """Name what the call is about; calls of different names do not touch each other."""

    def initial(self, part: Hashable) -> State:
        """The state before any operation."""

    def step(self, state: State, call: Call_contra, answer: Answer_contra | None) -> Iterable[State]:
        """Every state that may follow when the call is answered so; none if it can't be.

        With answer None every answer is possible.
        """


class Verdict(enum.Enum):
    LINEARIZABLE = enum.auto()
    NOT_LINEARIZABLE = enum.auto()
    UNDECIDED = enum.auto()
    """Time ran out."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict, and the part that decided it (None when all are linearizable)."""

    verdict: Verdict
    part: Hashable | None = None


def check(
    model: Model[Call, Answer, State],
    history: Iterable[Operation[Call, Answer]],
    *,
    seconds_max: float = 60.0,
) -> Finding:
    """Decide whether the history is linearizable; UNDECIDED after about `seconds_max` seconds.

    One part that is not linearizable decides for the whole, also if another ran out of time.
    """
    parts: dict[Hashable, list[Operation[Call, Answer]]] = {}
    for operation in history:
        parts.setdefault(model.part(operation.call), []).append(operation)
    deadline = time.monotonic() + seconds_max
    undecided: Finding | None = None
    for part, operations in parts.items():
        verdict = _Search(model, model.initial(part), operations).run(deadline)
        if verdict is Verdict.NOT_LINEARIZABLE:
            return Finding(verdict, part)
        if verdict is Verdict.UNDECIDED:
            undecided = undecided or Finding(verdict, part)
    return undecided or Finding(Verdict.LINEARIZABLE)


class _Search(Generic[Call, Answer, State]):
    """One part's search.

    Calls and answers of the answered operations form a chain in the order of time; placing an operation
    takes both out, going back puts both in again. The unanswered stand beside it, and are tried
    last: most of them had no effect, or need none. Having placed fewer of them is never worse, so what
    was tried is remembered by the answered ones and the state, with the smallest sets of unanswered
    ones that led there. Of several with equal calls only the earliest unplaced is tried: it may
    stand wherever a later one may.
    """

    def __init__(
        self,
        model: Model[Call, Answer, State],
        initial: State,
        operations: Sequence[Operation[Call, Answer]],
    ) -> None:
        self._model = model
        self._initial = initial
        self._operations = sorted(operations, key=lambda operation: operation.called)
        self._unanswered = [i for i, operation in enumerate(self._operations) if operation.answered is None]
        self._unplaced_answers = len(self._operations) - len(self._unanswered)
        self._equal_before = self._find_equals()
        self._tried: dict[tuple[int, State], list[int]] = {}
        self._build_chain()

    def run(self, deadline: float) -> Verdict:
        state, placed, extra = self._initial, 0, 0
        # What was placed, and the state and both sets of placed operations before it.
        trail: list[tuple[int, State, int, int]] = []
        # For each step and for the next: what may be placed there and was not tried yet.
        moves = [self._moves(state, extra)]
        steps = 0
        while self._unplaced_answers:
            steps += 1
            if steps % 1024 == 0 and time.monotonic() > deadline:
                return Verdict.UNDECIDED
            move = next(moves[-1], None)
            if move is None:
                moves.pop()
                if not trail:
                    return Verdict.NOT_LINEARIZABLE
                index, state, placed, extra = trail.pop()
                self._put_back(index)
                continue
            index, after = move
            bit, answered = 1 << index, self._operations[index].answered is not None
            placed_after, extra_after = (placed | bit, extra) if answered else (placed, extra | bit)
            if self._is_new(placed_after, extra_after, after):
                trail.append((index, state, placed, extra))
                self._take_out(index)
                state, placed, extra = after, placed_after, extra_after
                moves.append(self._moves(state, extra))
        return Verdict.LINEARIZABLE

    def _moves(self, state: State, extra: int) -> Iterator[tuple[int, State]]:
        """Each operation that may come next with each state it may lead to."""
        candidates = []
        event = self._next[0]
        while (index := self._call_at.get(event)) is not None:
            candidates.append(index)
            event = self._next[event]
        until = self._operations[self._answer_at[event]].answered if event else None
        for index in candidates:
            operation = self._operations[index]
            for after in self._model.step(state, operation.call, operation.answer):
                yield index, after
        for index in self._unanswered:
            operation = self._operations[index]
            if until is None or operation.called > until:
                return
            if not extra >> index & 1 and self._is_first_of_equals(index, extra):
                for after in self._model.step(state, operation.call, None):
                    if after != state:  # Never to have happened comes to the same.
                        yield index, after

    def _is_new(self, placed: int, extra: int, state: State) -> bool:
        """Note what is about to be tried; False if it was, with no more of the unanswered."""
        smallest = self._tried.setdefault((placed, state), [])
        if any(known & extra == known for known in smallest):
            return False
        smallest[:] = [known for known in smallest if known & extra != extra]
        smallest.append(extra)
        return True

    def _is_first_of_equals(self, index: int, extra: int) -> bool:
        earlier = self._equal_before[index]
        return earlier is None or bool(extra >> earlier & 1)

    def _find_equals(self) -> dict[int, int | None]:
        latest: dict[Call, int] = {}
        before: dict[int, int | None] = {}
        for index in self._unanswered:
            call = self._operations[index].call
            before[index] = latest.get(call)
            latest[call] = index
        return before

    def _build_chain(self) -> None:
        # At the same moment calls come before answers: what touches may overlap.
        answered = [
            (i, op.called, op.answered) for i, op in enumerate(self._operations) if op.answered is not None
        ]
        moments = [(called, 0, i) for i, called, _ in answered] + [(end, 1, i) for i, _, end in answered]
        moments.sort()
        # Event 0 is the chain's head, and the end too.
        count = len(moments) + 1
        self._next = [*range(1, count), 0]
        self._previous = [count - 1, *range(count - 1)]
        self._call_at = {event: i for event, (_, is_end, i) in enumerate(moments, start=1) if not is_end}
        self._answer_at = {event: i for event, (_, is_end, i) in enumerate(moments, start=1) if is_end}
        self._events = {i: (call, 0) for call, i in self._call_at.items()}
        self._events.update({i: (self._events[i][0], answer) for answer, i in self._answer_at.items()})

    def _take_out(self, index: int) -> None:
        for event in self._events.get(index, ()):
            self._next[self._previous[event]] = self._next[event]
            self._previous[self._next[event]] = self._previous[event]
        self._unplaced_answers -= index in self._events

    def _put_back(self, index: int) -> None:
        for event in reversed(self._events.get(index, ())):
            self._next[self._previous[event]] = event
            self._previous[self._next[event]] = event
        self._unplaced_answers += index in self._events
