"""What clients did and were told, with the times around each call, and how long each trusted its leases.

Times are seconds of the client's clock (`lockd.client.clock.now`), one for all threads of this machine.
"""

import enum
import math
import threading
from collections import Counter
from dataclasses import dataclass, field


class Kind(enum.Enum):
    ACQUIRE = "acquire"
    RELEASE = "release"
    INSPECT = "inspect"
    END = "end"
    """Nobody asked: the session ends, and what was held in it, at some time after `invoked_s`."""


class Outcome(enum.Enum):
    GRANTED = "granted"
    BUSY = "busy"
    """The cluster said that another holds it, or waits for it."""
    RELEASED = "released"
    """That grant is over from here on."""
    SEEN = "seen"
    """INSPECT: `token` holds it, 0 for nobody."""
    UNKNOWN = "unknown"
    """It may have taken effect at any time since, also only later."""
    REFUSED = "refused"
    """It did not take effect, and never will."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One call, on one lock. An outcome that is not known has no return: math.inf."""

    client: str
    kind: Kind
    outcome: Outcome
    lock: str
    request: str
    """Names the acquisition, and whatever ends its grant; "" for INSPECT."""
    token: int
    """Of the grant; 0 where there is none, or none is known."""
    invoked_s: float
    returned_s: float
    told: str = ""
    """What the client was told, in words: for whoever has to find out what went wrong."""

    def __post_init__(self) -> None:
        assert self.invoked_s <= self.returned_s
        assert (self.outcome is Outcome.UNKNOWN) == (self.returned_s == math.inf)


@dataclass(frozen=True, slots=True)
class Tenure:
    """A client trusted its lease of the lock from `from_s` to `until_s` (SAFETY K1)."""

    client: str
    lock: str
    token: int
    from_s: float
    until_s: float


@dataclass
class History:
    """Filled by many threads; read when they are done."""

    operations: list[Operation] = field(default_factory=list)
    tenures: list[Tenure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._grants = 0

    def add(self, operation: Operation) -> None:
        with self._changed:
            self.operations.append(operation)
            self._grants += operation.outcome is Outcome.GRANTED
            self._changed.notify_all()

    def trusted(self, tenure: Tenure) -> None:
        with self._changed:
            self.tenures.append(tenure)

    @property
    def grants(self) -> int:
        return self._grants

    def await_grants(self, count: int, *, at_most_s: float) -> bool:
        """Wait for so many further grants. Returns whether they came in time."""
        wanted = self._grants + count
        with self._changed:
            return self._changed.wait_for(lambda: self._grants >= wanted, at_most_s)

    def outcomes(self) -> Counter[str]:
        """How often each outcome of each kind was met."""
        return Counter(f"{each.kind.value} {each.outcome.value}" for each in self.operations)
