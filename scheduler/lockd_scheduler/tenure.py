"""Whether this process may claim: standing by, taking office, active, or out.

    STANDBY --seated--> TAKING --fence moved--> ACTIVE
       ^                   |                       |
       +---- seat lost, fenced, ledger silent -----+         stop: any -> OUT

A seat (the lock, the file, ...) says that we were elected. It does not say that we still are:
only the fence row does, and every transaction of the office reads it (SAFETY R1). So being wrong
about a phase here costs time, never safety, and nothing here reads a clock (R2).
"""

from dataclasses import dataclass
from enum import Enum, auto


class Phase(Enum):
    """How far this process is with the office."""

    STANDBY = auto()
    TAKING = auto()
    ACTIVE = auto()
    OUT = auto()


class Event(Enum):
    """What can happen to a tenure."""

    SEATED = auto()
    """Elected: the seat carries the token of this tenure."""
    FENCE_MOVED = auto()
    """The fence row holds our token, and this is committed."""
    FENCED = auto()
    """A guarded statement found another token in the fence row."""
    SEAT_LOST = auto()
    """The lock that stands behind the seat is lost."""
    LEDGER_SILENT = auto()
    """The database has not answered for so long that another should try."""
    STOP = auto()
    """This process is to stop."""


_MOVES: dict[tuple[Phase, Event], Phase] = {
    (Phase.STANDBY, Event.SEATED): Phase.TAKING,
    (Phase.TAKING, Event.FENCE_MOVED): Phase.ACTIVE,
    **{
        (phase, event): Phase.STANDBY
        for phase in (Phase.TAKING, Phase.ACTIVE)
        for event in (Event.FENCED, Event.SEAT_LOST, Event.LEDGER_SILENT)
    },
    **{(phase, Event.STOP): Phase.OUT for phase in Phase},
}


@dataclass(frozen=True, slots=True)
class Tenure:
    """A phase, and the token while there is a seat."""

    phase: Phase = Phase.STANDBY
    token: int | None = None

    def __post_init__(self) -> None:
        assert (self.token is not None) == (self.phase in (Phase.TAKING, Phase.ACTIVE))

    def after(self, event: Event, *, token: int | None = None) -> "Tenure":
        """The tenure once `event` has happened; `token` comes with SEATED.

        An event that the phase does not know changes nothing: a seat may be lost twice.
        """
        phase = _MOVES.get((self.phase, event), self.phase)
        if phase in (Phase.STANDBY, Phase.OUT):
            return Tenure(phase)
        return Tenure(phase, token if event is Event.SEATED else self.token)
