"""A map of texts with get, put and append; every key is "" at first. Each key is a part of its own."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Get:
    key: str


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    text: str


@dataclass(frozen=True, slots=True)
class Append:
    key: str
    text: str


Call = Get | Put | Append


class KeyValue:
    """A get is answered with the text; the answer to the others is of no account."""

    def part(self, call: Call) -> str:
        return call.key

    def initial(self, _part: object) -> str:
        return ""

    def step(self, state: str, call: Call, answer: str | None) -> Iterable[str]:
        match call:
            case Get():
                return [state] if answer is None or answer == state else []
            case Put(text=text):
                return [text]
            case Append(text=text):
                return [state + text]
