"""What the reference knows of a session and of a request, and what it says of an outcome."""

from dataclasses import dataclass, field

from lockd.locks.commands import (
    EXCLUSIVE,
    SEMAPHORE,
    Acquire,
    AcquireAll,
    Completion,
    Granted,
    Notice,
    Origin,
    Queued,
    Refused,
    SessionOpened,
)
from tests.locks.deadlock_search import NOBODY, Claim

Answer = tuple[object, ...]
"""The kind of an outcome and the fields that are compared."""
Said = tuple[Origin, Answer]
Due = tuple[int, int]
"""A deadline, and which timer it was: those set earlier fire first."""

_WITH_HOLDER = ("BUSY", "TIMEOUT")


@dataclass(frozen=True)
class Between:
    """Equal to every number from `least` to `most`: a position in a queue is an upper bound."""

    least: int
    most: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int) and self.least <= other <= self.most

    __hash__ = None  # type: ignore[assignment]  # what equals several numbers has no hash


@dataclass(eq=False)
class Session:
    id: str
    number: int
    user: str
    ttl_ms: int
    name: str = ""
    meta: str = ""
    private: bool = False
    runs: bool = True
    """Whether its lease does."""
    silent_ms: int = 0
    notices: list[Notice] = field(default_factory=list)
    noticed: int = 0
    """Number of the notice given last."""
    over: dict[int, Answer] = field(default_factory=dict)
    """The answers to requests that are over."""
    floor: int = 0

    @property
    def label(self) -> str:
        return self.name or f"session {self.number}"


@dataclass(eq=False)
class Request:
    ticket: int
    names: tuple[str, ...]
    """As asked for, sorted."""
    session: str
    user: str
    owner: str
    id: int | str
    origin: Origin
    meta: str
    asked_ms: int
    mode: str = EXCLUSIVE
    limit: int = 0
    weight: int = 1
    max_hold_ms: int = 0
    delay_ms: int = 0
    wait_ms: int = 0
    private: bool = False
    several: bool = False
    locks: list[str] = field(default_factory=list)
    """Those that it waits for or holds still."""
    token: int = 0
    """0 while it waits."""
    revision: int = 0
    granted_ms: int = 0
    ending: str = ""
    """Why it was revoked."""
    wait: Due | None = None
    orphan: Due | None = None
    hold: Due | None = None

    @property
    def is_good(self) -> bool:
        return self.token > 0 and not self.ending

    @property
    def claim(self) -> Claim:
        """For the search of deadlocks, where a revoked grant ends by itself."""
        owner = NOBODY if self.ending else (self.session, self.owner)
        locks = tuple(self.locks)
        return Claim(self.ticket, owner, locks, self.mode, self.limit, self.weight, self.token > 0)


def wanted(operation: Acquire | AcquireAll) -> tuple[tuple[str, ...], str]:
    """The names asked for, sorted, and how they are to be held."""
    match operation:
        case AcquireAll(locks):
            return tuple(sorted(locks)), EXCLUSIVE
        case Acquire(lock):
            return (lock,), SEMAPHORE if operation.limit else operation.mode


def said(completion: Completion) -> Said:
    """What the reference says of an outcome of the real machine."""
    match completion.outcome:
        case Granted() as granted:
            answer: Answer = ("granted", granted)
        case Queued(lock, session, position):
            answer = ("queued", lock, session, position)
        case Refused() as refused if refused.code in _WITH_HOLDER:
            whose = (refused.lock, refused.holder, refused.owner, refused.meta)
            answer = ("refused", refused.code, *whose, refused.held_ms, refused.queue_length)
        case Refused(code):
            answer = ("refused", code)
        case SessionOpened(session, ttl_ms, ended):
            answer = ("opened", session, ttl_ms, ended)
        case changed:
            answer = ("changed", changed.count)
    return completion.origin, answer
