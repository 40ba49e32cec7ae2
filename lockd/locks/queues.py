"""A lock: those who hold it and the requests that wait for it, first come first served (SAFETY G5)."""

import enum
from collections import OrderedDict

from lockd.locks.commands import SHARED, Origin
from lockd.locks.timers import NO_TIMER


class Phase(enum.Enum):
    """A request goes through these in order; it may skip some, never go back."""

    WAITING = 1
    HELD = 2
    REVOKED = 3
    """Broken, or held too long: it still keeps others out, since its holder may trust it (P1)."""
    ENDED = 4


class Request:
    """One request for a lock, or for several at once, from its arrival until it is over."""

    __slots__ = (
        "asked_ms",
        "delay_ms",
        "granted_ms",
        "hold_timer",
        "id",
        "locks",
        "max_hold_ms",
        "meta",
        "mode",
        "notice",
        "origin",
        "orphan_timer",
        "owner",
        "phase",
        "places",
        "revision",
        "revoked",
        "session",
        "ticket",
        "token",
        "wait_ms",
        "wait_timer",
        "weight",
    )

    def __init__(
        self,
        *,
        locks: tuple["Lock", ...],
        session: str,
        owner: str,
        request_id: int | str,
        origin: Origin,
        mode: str,
        weight: int,
        meta: str,
        asked_ms: int,
        max_hold_ms: int,
        delay_ms: int,
    ) -> None:
        self.locks = locks
        """Sorted by name. A grant of several loses those that are given back one by one."""
        self.session = session
        self.owner = owner
        self.id = request_id
        """0 or "" when the client gave none: it can't be asked for again."""
        self.origin = origin
        """Who is told: of the request, or of its last retry."""
        self.mode = mode
        self.weight = weight
        self.meta = meta
        self.asked_ms = asked_ms
        self.max_hold_ms = max_hold_ms
        self.delay_ms = delay_ms
        self.phase = Phase.WAITING
        self.ticket = 0
        """Its place in every order among requests; drawn when it is taken in."""
        self.places: tuple[int, ...] = ()
        """While it waits: its number among those that ever queued for each of its locks."""
        self.wait_ms = 0
        self.wait_timer = NO_TIMER
        self.orphan_timer = NO_TIMER
        """Set while nobody is known to listen: when it fires, the request ends (G4)."""
        self.hold_timer = NO_TIMER
        """When it fires, the grant is as old as its MAXHOLD."""
        self.token = 0
        self.revision = 0
        self.granted_ms = 0
        self.revoked = ""
        """Why; only of a revoked grant."""
        self.notice = 0
        """The number under which its session is told that it was revoked."""

    @property
    def lock(self) -> "Lock":
        """The first of its locks, which stands for all of them where one name is shown."""
        return self.locks[0]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple([lock.name for lock in self.locks])

    @property
    def is_granted(self) -> bool:
        """It keeps others out: held, or revoked and not passed on yet."""
        return self.phase in (Phase.HELD, Phase.REVOKED)

    def hold(self, *, token: int, revision: int, clock_ms: int) -> None:
        """From waiting to held, with the token drawn for this grant (G1)."""
        assert self.phase is Phase.WAITING, self.phase
        self.phase = Phase.HELD
        self.places = ()
        self.token = token
        self.revision = revision
        self.granted_ms = clock_ms

    def part_with(self, lock: "Lock") -> None:
        """Of several locks that are held, this one is given back."""
        assert len(self.locks) > 1, "the last lock ends the request"
        self.locks = tuple(other for other in self.locks if other is not lock)

    def place_at(self, lock: "Lock") -> int:
        """Its number among those that ever queued for `lock`, which is one of its locks."""
        for own, place in zip(self.locks, self.places, strict=True):
            if own is lock:
                return place
        raise AssertionError(f"request {self.ticket} does not queue for {lock.name}")


class Lock:
    """One lock that is held, waited for or in its delay. A free lock does not exist: it costs nothing."""

    __slots__ = (
        "delay_timer",
        "delayed_until_ms",
        "granted_last",
        "holders",
        "limit",
        "mode",
        "name",
        "queued",
        "used",
        "waiters",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.limit = 0
        """Units of a semaphore, fixed by who came first until nobody holds or wants any; else 0."""
        self.holders: dict[int, Request] = {}
        """By token, which is also the order of their grants."""
        self.mode = ""
        """How they hold it, while there are any."""
        self.used = 0
        """The weights of all holders."""
        self.granted_last = 0
        """The token of its last grant, as long as the lock is known."""
        self.delay_timer = NO_TIMER
        self.delayed_until_ms = 0
        """Until then nobody is granted it: a lease on it ended without its holder's doing."""
        self.queued = 0
        """How many requests have ever queued since it was last free."""
        # An OrderedDict is a linked list inside: the head and any removal from the middle cost
        # the same with 10 waiters and with 100,000. A plain dict scans past its removed entries.
        self.waiters: OrderedDict[int, Request] = OrderedDict()

    @property
    def is_wanted(self) -> bool:
        """Somebody holds it or waits for it."""
        return bool(self.holders or self.waiters)

    @property
    def is_free(self) -> bool:
        """There is nothing to remember of it."""
        return not (self.holders or self.waiters or self.delay_timer)

    def admits(self, request: Request) -> bool:
        """Whether its holders leave room for this request, were there no queue."""
        return self.admits_as(request.mode, request.weight)

    def admits_as(self, mode: str, weight: int) -> bool:
        """Whether its holders leave room for a request of that mode and weight."""
        if self.delay_timer != NO_TIMER:
            return False
        if not self.holders:
            return True
        if self.limit:
            return self.used + weight <= self.limit
        return mode == SHARED and self.mode == SHARED

    @property
    def head(self) -> Request | None:
        """The waiter that comes next."""
        return next(iter(self.waiters.values()), None)

    def enqueue(self, request: Request) -> int:
        """Put a request at the end of the queue; returns its place."""
        self.queued += 1
        self.waiters[request.ticket] = request
        return self.queued

    def position(self, request: Request) -> int:
        """At most so many waiters stand before this one; exact while none of them has withdrawn.

        O(1): after a failover every waiter of a long queue may ask at once.
        """
        head = self.head
        assert head is not None, f"nobody waits for {self.name}"
        return min(request.place_at(self) - head.place_at(self), len(self.waiters) - 1)

    def add_holder(self, request: Request) -> None:
        self.holders[request.token] = request
        self.mode = request.mode
        self.used += request.weight
        self.granted_last = request.token

    def remove_holder(self, request: Request) -> None:
        del self.holders[request.token]
        self.used -= request.weight
        if not self.holders:
            self.mode = ""
