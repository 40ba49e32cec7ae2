"""A lock: its holder and the requests that wait for it, first come first served (SAFETY G5)."""

import enum
from collections import OrderedDict

from lockd.locks.commands import Origin
from lockd.locks.timers import NO_TIMER


class Phase(enum.Enum):
    """A request waits, holds and ends, in that order; it may skip the middle, never go back."""

    WAITING = 1
    HELD = 2
    ENDED = 3


class Request:
    """One request for a lock, from its arrival until its wait or its grant is over."""

    __slots__ = (
        "granted_ms",
        "id",
        "lock",
        "meta",
        "origin",
        "orphan_timer",
        "owner",
        "phase",
        "place",
        "revision",
        "session",
        "ticket",
        "token",
        "wait_ms",
        "wait_timer",
    )

    def __init__(
        self, *, lock: "Lock", session: str, owner: str, request_id: int | str, meta: str, origin: Origin
    ) -> None:
        self.lock = lock
        self.session = session
        self.owner = owner
        self.id = request_id
        """0 or "" when the client gave none: it can't be asked for again."""
        self.meta = meta
        self.origin = origin
        """Who is told: of the Acquire, or of its last retry."""
        self.phase = Phase.WAITING
        self.ticket = 0
        """Its place in every order among requests; drawn when it is taken in."""
        self.place = 0
        """Its number among those that ever queued for this lock."""
        self.wait_ms = 0
        self.wait_timer = NO_TIMER
        self.orphan_timer = NO_TIMER
        """Set while nobody is known to listen: when it fires, the request ends (G4)."""
        self.token = 0
        self.revision = 0
        self.granted_ms = 0

    def hold(self, *, token: int, revision: int, clock_ms: int) -> None:
        """From waiting to held, with the token drawn for this grant (G1)."""
        assert self.phase is Phase.WAITING, self.phase
        self.phase = Phase.HELD
        self.token = token
        self.revision = revision
        self.granted_ms = clock_ms


class Lock:
    """One lock that is held or waited for. A free lock does not exist: it costs nothing."""

    __slots__ = ("holder", "name", "queued", "waiters")

    def __init__(self, name: str) -> None:
        self.name = name
        self.holder: Request | None = None
        self.queued = 0
        """How many requests have ever queued since it was last free."""
        # An OrderedDict is a linked list inside: the head and any removal from the middle cost
        # the same with 10 waiters and with 100,000. A plain dict scans past its removed entries.
        self.waiters: OrderedDict[int, Request] = OrderedDict()

    @property
    def is_free(self) -> bool:
        return self.holder is None and not self.waiters

    def next_to_grant(self) -> Request | None:
        """The waiter that holds the lock next, when it can be granted now."""
        if self.holder is not None or not self.waiters:
            return None
        return next(iter(self.waiters.values()))

    def enqueue(self, request: Request) -> None:
        """Put a request at the end of the queue."""
        self.queued += 1
        request.place = self.queued
        self.waiters[request.ticket] = request

    def position(self, request: Request) -> int:
        """At most so many waiters stand before this one; exact while none of them has withdrawn.

        O(1): after a failover every waiter of a long queue may ask at once.
        """
        head = next(iter(self.waiters.values()))
        return min(request.place - head.place, len(self.waiters) - 1)
