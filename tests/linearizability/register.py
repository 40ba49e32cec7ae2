"""One register with read, write and compare-and-set, as Jepsen's etcd test has it; initially nil."""

from collections.abc import Iterable
from dataclasses import dataclass

Value = int | None
"""None is nil."""


@dataclass(frozen=True, slots=True)
class Read:
    pass


@dataclass(frozen=True, slots=True)
class Write:
    value: Value


@dataclass(frozen=True, slots=True)
class CompareAndSet:
    expected: Value
    value: Value


@dataclass(frozen=True, slots=True)
class Found:
    """What a read returned."""

    value: Value


@dataclass(frozen=True, slots=True)
class Done:
    """Whether a write or compare-and-set took effect."""

    took_effect: bool


Call = Read | Write | CompareAndSet
Answer = Found | Done


class Register:
    """All calls are about the one register."""

    def part(self, _call: Call) -> str:
        return "register"

    def initial(self, _part: object) -> Value:
        return None

    def step(self, state: Value, call: Call, answer: Answer | None) -> Iterable[Value]:
        match call, answer:
            case Read(), Found(value):
                return [state] if value == state else []
            case Read(), _:
                return [state]
            case Write(value), Done(took_effect=True) | None:
                return [value]
            case Write(), _:
                return [state]
            case CompareAndSet(expected, value), None:
                return [value] if expected == state else [state]
            case CompareAndSet(expected, value), Done(took_effect):
                if took_effect != (expected == state):
                    return []
                return [value] if took_effect else [state]
        raise AssertionError(f"{call} can't be answered {answer}")
