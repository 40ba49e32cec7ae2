"""Exclusive locks as a client sees them (SAFETY P1, P2, G3, G7). Each lock is a part of its own.

A grant is known by its request, which its client made up: so an acquire whose answer was lost
can be spoken of. Expiry is an operation too, one that nobody called: whoever records a history
adds an `Expire` for each grant whose session may have ended, called when that was first
allowed and never answered. A grant without one can end by its release only.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Acquire:
    """Without waiting. Asked again with the same request while that holds, it gives the same token."""

    lock: str
    request: str


@dataclass(frozen=True, slots=True)
class Release:
    lock: str
    request: str


@dataclass(frozen=True, slots=True)
class Inspect:
    lock: str


@dataclass(frozen=True, slots=True)
class Expire:
    """The grant of that request ends by itself, if it is still held."""

    lock: str
    request: str


@dataclass(frozen=True, slots=True)
class Granted:
    token: int


@dataclass(frozen=True, slots=True)
class Busy:
    """Another holds it."""


@dataclass(frozen=True, slots=True)
class Released:
    """Whether the grant was still held."""

    was_held: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """What an inspection found: the holder's token, None when free."""

    token: int | None


Call = Acquire | Release | Inspect | Expire
Answer = Granted | Busy | Released | Seen


@dataclass(frozen=True, slots=True)
class Held:
    """One lock. `request` None: free. `token` None: granted, and nobody was told the token yet."""

    request: str | None = None
    token: int | None = None
    highest: int = 0
    """The highest token that is known to have been issued for this lock."""


class Locks:
    """At most one holder at a time, and every grant's token above all earlier ones."""

    def part(self, call: Call) -> str:
        return call.lock

    def initial(self, _part: object) -> Held:
        return Held()

    def step(self, state: Held, call: Call, answer: Answer | None) -> Iterable[Held]:
        match call:
            case Acquire(request=request):
                return self._acquire(state, request, answer)
            case Release(request=request):
                if isinstance(answer, Released) and answer.was_held != (state.request == request):
                    return []
                return [self._end(state, request)]
            case Expire(request=request):
                return [self._end(state, request)]
            case Inspect():
                return self._inspect(state, answer)

    def _acquire(self, state: Held, request: str, answer: Answer | None) -> Iterable[Held]:
        is_free = state.request is None
        match answer:
            case Granted(token) if is_free:
                return [Held(request, token, token)] if token > state.highest else []
            case Granted(token) if state.request == request:
                return self._learn(state, token)
            case Busy() if not is_free and state.request != request:
                return [state]
            case None:
                return [replace(state, request=request, token=None)] if is_free else [state]
            case _:
                return []

    def _inspect(self, state: Held, answer: Answer | None) -> Iterable[Held]:
        match answer:
            case Seen(token) if token is not None and state.request is not None:
                return self._learn(state, token)
            case Seen(token):
                return [state] if token is None and state.request is None else []
            case _:
                return [state]

    def _learn(self, state: Held, token: int) -> Iterable[Held]:
        if state.token is not None:
            return [state] if token == state.token else []
        return [replace(state, token=token, highest=token)] if token > state.highest else []

    def _end(self, state: Held, request: str) -> Held:
        return Held(highest=state.highest) if state.request == request else state
