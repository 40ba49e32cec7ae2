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
    """One part's search. Its calls and answers form a chain in the order of time; placing an
    operation takes both out, going back puts both in again.

    Of several unanswered operations with equal calls only the earliest unplaced one is tried:
    it may stand wherever a later one may.
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
        self._unplaced_answers = sum(operation.answered is not None for operation in self._operations)
        self._equals_before = self._find_equals()
        self._build_chain()

    def run(self, deadline: float) -> Verdict:
        placed, state = 0, self._initial
        seen: set[tuple[int, State]] = {(placed, state)}
        # What was placed, the state before it, and the states still to try after it.
        trail: list[tuple[int, State, Iterator[State]]] = []
        event = self._next[0]
        steps = 0
        while self._unplaced_answers:
            steps += 1
            if steps % 4096 == 0 and time.monotonic() > deadline:
                return Verdict.UNDECIDED
            index = self._call_at.get(event)
            if index is not None:
                if not self._is_worth_trying(index, placed):
                    event = self._next[event]
                    continue
                operation = self._operations[index]
                choices = iter(self._model.step(state, operation.call, operation.answer))
                before = state
                self._take_out(index)
                placed |= 1 << index
            elif trail:
                # An answer is reached whose call found no place: the last choice was wrong.
                index, before, choices = trail.pop()
            else:
                return Verdict.NOT_LINEARIZABLE
            found = self._choose(index, before, choices, placed, seen)
            if found is None:
                self._put_back(index)
                placed &= ~(1 << index)
                state = before
                event = self._next[self._call_event[index]]
            else:
                (state,) = found
                trail.append((index, before, choices))
                event = self._next[0]
        return Verdict.LINEARIZABLE

    def _choose(
        self, index: int, before: State, choices: Iterator[State], placed: int, seen: set[tuple[int, State]]
    ) -> tuple[State] | None:
        """Return the next state not yet tried after placing the operation; None when all were."""
        unanswered = self._operations[index].answered is None
        for state in choices:
            if unanswered and state == before:
                continue  # Never to have happened comes to the same.
            if (placed, state) not in seen:
                seen.add((placed, state))
                return (state,)
        return None

    def _is_worth_trying(self, index: int, placed: int) -> bool:
        earlier = self._equals_before[index]
        return earlier is None or bool(placed >> earlier & 1)

    def _find_equals(self) -> list[int | None]:
        latest: dict[Call, int] = {}
        before: list[int | None] = []
        for index, operation in enumerate(self._operations):
            if operation.answered is None:
                before.append(latest.get(operation.call))
                latest[operation.call] = index
            else:
                before.append(None)
        return before

    def _build_chain(self) -> None:
        # At the same moment calls come before answers: what touches may overlap.
        moments = [(operation.called, 0, i) for i, operation in enumerate(self._operations)]
        moments += [
            (operation.answered, 1, i)
            for i, operation in enumerate(self._operations)
            if operation.answered is not None
        ]
        moments.sort()
        # Event 0 is the chain's head, and the end too: it is no call.
        count = len(moments) + 1
        self._next = [*range(1, count), 0]
        self._previous = [count - 1, *range(count - 1)]
        self._call_event = [0] * len(self._operations)
        self._answer_event = [0] * len(self._operations)
        for event, (_, is_answer, index) in enumerate(moments, start=1):
            (self._answer_event if is_answer else self._call_event)[index] = event
        self._call_at = {event: index for index, event in enumerate(self._call_event)}

    def _take_out(self, index: int) -> None:
        for event in (self._call_event[index], self._answer_event[index]):
            if event:
                self._next[self._previous[event]] = self._next[event]
                self._previous[self._next[event]] = self._previous[event]
        self._unplaced_answers -= self._operations[index].answered is not None

    def _put_back(self, index: int) -> None:
        for event in (self._answer_event[index], self._call_event[index]):
            if event:
                self._next[self._previous[event]] = event
                self._previous[self._next[event]] = event
        self._unplaced_answers += self._operations[index].answered is not None
