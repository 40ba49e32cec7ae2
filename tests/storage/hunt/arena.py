"""What an adapter brings to the hunt: a store for many games, and a holder's hands in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from lockd_storage import HeldLease
from tests.storage.hunt.history import History, Look, Outcome, Unit, View, Write
from tests.storage.hunt.players import Act, Player
from tests.storage.leases import GivenLease


class Book:
    """Where a holder's work is written down, before it is sent and when its end is known."""

    def __init__(self, history: History, holder: int, draw: Random) -> None:
        self.leases: Sequence[GivenLease] = ()
        self.draw = draw
        self._history = history
        self._holder = holder
        self._unit = Unit(holder, 0)
        self._began = history.now()
        history.units.append(self._unit)

    def some_place(self, *names: str) -> str:
        """A place that the leases at hand guard: one of `names` under one of their resources."""
        return f"{self.draw.choice(self.leases).lock}/{self.draw.choice(names)}"

    def write(self, place: str) -> Write:
        """The next write of the unit under way. Call it before sending."""
        token = next(lease.token for lease in self.leases if lease.lock == place.partition("/")[0])
        write = Write(place, token, self._holder, self._unit.number, len(self._unit.writes))
        self._unit.writes.append(write)
        return write

    def taken_back(self, since: Write) -> None:
        """A savepoint was rolled back: `since` and what followed must never be seen."""
        for write in self._unit.writes[self._unit.writes.index(since) :]:
            # Its number stays taken, so that what was rolled back can be told from what follows.
            self._unit.writes[write.ordinal] = Write("", 0, self._holder, write.unit, write.ordinal)

    def saw(self, view: View) -> None:
        """The holder has read everything inside its unit."""
        own = (self._holder, self._unit.number)
        others = frozenset(write for write in view if (write.holder, write.unit) != own)
        hidden = frozenset(write.place for write in self._unit.writes)
        self._history.looks.append(Look(f"holder {self._holder}", self._began, others, hidden))

    def end(self, outcome: Outcome) -> None:
        """The unit's end is known. The next one begins."""
        self._unit.writes = [write for write in self._unit.writes if write.place]
        self._unit.ended_at = self._history.now()
        self._unit.outcome = outcome
        self._unit = Unit(self._holder, self._unit.number + 1)
        self._history.units.append(self._unit)
        self._began = self._history.now()


class Hands(Protocol):
    """What one holder can do with the store. Used from its player's thread alone."""

    broken: tuple[type[Exception], ...]
    """Errors of the library that say that nothing was applied, beside those of lockd."""

    def install(self, lease: HeldLease) -> None:
        """Install for the resource named as the lock."""
        ...

    def work(self, book: Book) -> None:
        """One fenced block under all leases of the book, as drawn from it.

        `book.end(ACKNOWLEDGED)` at each commit inside; the last unit is ended by the caller.
        """
        ...

    def look(self) -> View:
        """What is visible from outside any fence."""
        ...

    def close(self) -> None:
        """The holder has ended."""
        ...


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that may happen to a player before a step: from outside, or as an act of its own thread."""

    name: str
    act: Act
    in_its_thread: bool = False


class Arena(Protocol):
    """One store, in which game after game is played. Each has places and resources of its own."""

    name: str
    resources: Sequence[str]
    """Of the game under way."""

    def begin(self, game: int) -> None:
        """Make room for a game: new resources, empty places."""
        ...

    def hands(self, player: Player, draw: Random) -> Hands:
        """A holder's hands for this game. Called in the conductor's thread."""
        ...

    def look(self) -> View | None:
        """What is visible now; None when that can't be seen without waiting."""
        ...

    def waiting(self, players: Sequence[Player]) -> set[Player] | None:
        """Those whose step waits for another holder. None: this arena can't know."""
        ...

    def faults(self, player: Player) -> Sequence[Fault]:
        """What may happen to a player here."""
        ...

    def close(self) -> None: ...
