"""What holders did and what was seen, and whether that breaks the rule. Values only: no store, no clock.

The rule (SAFETY S1, P4), for each resource: once install(n) has returned, nothing with a token below n
becomes visible. Beside it, what a holder may conclude from the answers that it got:

    acknowledged    every later look finds the write, or one under the same or a newer token in its place
    unknown         all of the unit's writes are there, or none (SAFETY S9)
    refused         none of them is ever there
    not installed   nothing is ever written under a token for which install was not called (SAFETY S2)

Moments are numbers from one counter: a look is held against what had ended when it began.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import count

LINES = "lines"


@dataclass(frozen=True, slots=True)
class Write:
    """One write as it stands in the store.

    `place` is `resource/lines`, which keeps every write, or `resource/name`, which keeps the last one.
    `unit` numbers the holder's transactions, or what else is applied whole; `ordinal` the writes in it.
    """

    place: str
    token: int
    holder: int
    unit: int
    ordinal: int

    @property
    def resource(self) -> str:
        return self.place.partition("/")[0]

    @property
    def is_line(self) -> bool:
        return self.place.endswith(f"/{LINES}")

    def encode(self) -> str:
        """As one word, for stores of texts."""
        return f"{self.place.replace('/', '+')}+{self.token}+{self.holder}+{self.unit}+{self.ordinal}"

    @classmethod
    def decode(cls, word: str) -> "Write":
        resource, name, *numbers = word.split("+")
        token, holder, unit, ordinal = map(int, numbers)
        return cls(f"{resource}/{name}", token, holder, unit, ordinal)

    @property
    def rank(self) -> tuple[int, int, int]:
        """A later write to the same place ranks higher: by token, and under one token by order."""
        return self.token, self.unit, self.ordinal


View = frozenset[Write]
"""All that is visible at one moment."""


class Outcome(Enum):
    UNDER_WAY = auto()
    ACKNOWLEDGED = auto()
    REFUSED = auto()
    UNKNOWN = auto()


@dataclass(slots=True)
class Unit:
    """Writes that are applied together, and what their holder was told of them."""

    holder: int
    number: int
    writes: list[Write] = field(default_factory=list)
    outcome: Outcome = Outcome.UNDER_WAY
    ended_at: int = 0


@dataclass(frozen=True, slots=True)
class Installed:
    """An install that returned, and what was visible then."""

    resource: str
    token: int
    at: int
    view: View


@dataclass(frozen=True, slots=True)
class Look:
    """A view, by whom, and when it began. What its own unit under way has written is left out of it."""

    by: str
    began: int
    view: View
    hidden: frozenset[str] = frozenset()  # places that its own unit has written over


class History:
    """All of one seed. Several threads add to it; it is judged when they have ended."""

    def __init__(self) -> None:
        self._moments = count(1)
        self.units: list[Unit] = []
        self.installs: list[Installed] = []
        self.looks: list[Look] = []
        self.called: set[tuple[str, int]] = set()

    def now(self) -> int:
        """A moment later than all before."""
        return next(self._moments)

    def violations(self) -> list[str]:
        """Each way in which the rule is broken, in words. Empty if it holds."""
        found: dict[str, None] = {}
        known = {(unit.holder, unit.number): unit for unit in self.units}
        for look in sorted(self.looks, key=lambda look: look.began):
            for words in (
                *self._older_after_an_install(look),
                *_not_as_told(look, known),
                *_overwritten(look, self.units),
            ):
                found.setdefault(words)
        for unit in self.units:
            for words in self._without_install(unit):
                found.setdefault(words)
        return list(found)

    def _older_after_an_install(self, look: Look) -> list[str]:
        found = []
        for install in self.installs:
            if install.at < look.began:
                then = _older(install.view, install)
                now = _older(look.view, install)
                appeared = now - then
                vanished = {write for write in then - now if write.is_line}
                if appeared or vanished:
                    found.append(
                        f"after install({install.resource}, {install.token}) had returned,"
                        f" {look.by} saw {_words(appeared) or 'nothing new'},"
                        f" and missed {_words(vanished) or 'nothing'}"
                    )
        return found

    def _without_install(self, unit: Unit) -> list[str]:
        if unit.outcome is not Outcome.ACKNOWLEDGED:
            return []
        tokens = {(write.resource, write.token) for write in unit.writes}
        return [
            f"{resource}: token {token} wrote without an install" for resource, token in tokens - self.called
        ]


def _older(view: View, install: Installed) -> set[Write]:
    return {write for write in view if write.resource == install.resource and write.token < install.token}


def _not_as_told(look: Look, known: dict[tuple[int, int], Unit]) -> list[str]:
    found = []
    lines: defaultdict[tuple[int, int], set[Write]] = defaultdict(set)
    for write in look.view:
        unit = known.get((write.holder, write.unit))
        if unit is None or write not in unit.writes:
            found.append(f"{look.by} saw {_words({write})}, which was rolled back or never written")
        elif unit.outcome is Outcome.REFUSED:
            found.append(f"{look.by} saw {_words({write})}, which had been refused")
        if write.is_line:
            lines[write.holder, write.unit].add(write)
    for key, unit in known.items():
        expected = {write for write in unit.writes if write.is_line}
        seen = lines[key]
        missing = expected - seen
        if not missing:
            continue
        if seen:
            found.append(f"{look.by} saw {_words(seen)} without {_words(missing)} of the same unit")
        elif unit.outcome is Outcome.ACKNOWLEDGED and unit.ended_at < look.began:
            found.append(f"{look.by} missed {_words(missing)}, which had been acknowledged")
    return found


def _overwritten(look: Look, units: list[Unit]) -> list[str]:
    """Places whose write ranks below one that must have been there before."""
    standing = {write.place: write for write in look.view if not write.is_line}
    found = []
    for unit in units:
        acknowledged = unit.outcome is Outcome.ACKNOWLEDGED and unit.ended_at < look.began
        if not acknowledged and look.view.isdisjoint(write for write in unit.writes if write.is_line):
            continue
        for write in unit.writes:
            if write.is_line or write.place in look.hidden:
                continue
            now = standing.get(write.place)
            if now is None or now.rank < write.rank:
                found.append(
                    f"{look.by} saw {now and _words({now})} instead of {_words({write})} or a later one"
                )
    return found


def _words(writes: set[Write]) -> str:
    return ", ".join(
        f"{write.place} {write.token}.{write.unit}.{write.ordinal}"
        for write in sorted(writes, key=lambda write: (write.place, write.rank))
    )
