"""A lease as its holder may trust it: the deadline rule, and the states of one grant. Pure.

    HELD        the clock is before the deadline, and the cluster can be reached
    SUSPENDED   still held, but the connection is gone: nothing renews it just now (SAFETY K2)
    LOST        the deadline passed, or the cluster said that the session is gone, or that this grant
                was revoked: broken by somebody, or held for its max_hold (K7). For good (K3)
    RELEASED    its holder gave it back

Every question is answered with the time of asking: a flag that a timer should have set may be
late, a clock is not. Times are seconds of one clock that counts suspend; the caller hands it in.
"""

import contextlib
import enum
import math
from collections.abc import Callable, Mapping
from typing import Final

from lockd.client.demand import Demand, LockMode
from lockd.errors import LeaseLost
from lockd.ids import Fence, SessionId, ascii_int

Clock = Callable[[], float]
"""Seconds that never go back and count suspend; its zero means nothing."""

MARGIN_SECONDS: Final = 0.1
MARGIN_SHARE: Final = 0.02
RENEWALS_PER_TTL: Final = 3
RELEASED: Final = "it was released"


class LeaseState(enum.Enum):
    """See the module's text."""

    HELD = "held"
    SUSPENDED = "suspended"
    LOST = "lost"
    RELEASED = "released"


class OnLost(enum.Enum):
    """What leaving a block does when its lease was lost inside."""

    RAISE = "raise"
    """LeaseLost is raised at the end of the block, unless the body raised something itself."""
    CANCEL = "cancel"
    """As RAISE, and the body's task is cancelled at the moment of the loss (async only)."""
    FLAG = "flag"
    """Nothing is raised: the body looks at `lease.lost` or has a callback."""


def margin(ttl: float) -> float:
    """What is taken off a TTL for clocks that run at different rates (K1). Seconds."""
    return max(MARGIN_SECONDS, MARGIN_SHARE * ttl)


def trusted_until(*, sent_at: float, ttl: float) -> float:
    """The deadline that an answer gives: from before its request was sent (K1)."""
    return sent_at + ttl - margin(ttl)


class Trust:
    """Until when everything that is held in one session may be relied on."""

    __slots__ = ("deadline", "ended_because", "is_suspended", "ttl")

    def __init__(self, *, sent_at: float, ttl: float) -> None:
        self.ttl = ttl
        self.deadline = trusted_until(sent_at=sent_at, ttl=ttl)
        self.is_suspended = False
        self.ended_because = ""
        """Why it ended, once it has been told to; "" before."""

    def remaining(self, now: float) -> float:
        """Seconds left; 0.0 once it has ended."""
        return 0.0 if self.ended_because else max(0.0, self.deadline - now)

    def renewed(self, *, sent_at: float, ttl: float, now: float) -> bool:
        """Take an answered renewal that was sent at `sent_at`. Returns whether it still counts.

        It does not once the deadline has passed, however early it was sent: somebody may have seen
        the lease lost already, and a lost lease never comes back (K3, S28).
        """
        if self.remaining(now) <= 0.0:
            return False
        self.ttl = ttl
        self.deadline = max(self.deadline, trusted_until(sent_at=sent_at, ttl=ttl))
        self.is_suspended = False
        return True

    def end(self, because: str) -> None:
        """Rely on it no more. The first reason stays."""
        self.ended_because = self.ended_because or because


class InheritedTrust(Trust):
    """A lease that another process renews: see `inherited_grant`."""

    __slots__ = ()

    def remaining(self, now: float) -> float:  # noqa: ARG002 - it has no deadline of its own
        """What a healthy parent leaves at any time: it renews every third of the TTL."""
        return max(0.0, self.ttl * (1 - 1 / RENEWALS_PER_TTL) - margin(self.ttl))


class Grant:
    """One grant, of one lock or of several at once, shared by all who entered it as the same owner.

    Re-entry is counted here, never by the server (SAFETY G1): the grant is released when the last
    of its entries has left.
    """

    def __init__(self, demand: Demand, *, owner: str, fence: Fence, session: SessionId, trust: Trust) -> None:
        self.demand = demand
        self.owner = owner
        self.fence = fence
        self.session = session
        self.trust = trust
        self._entries = 1
        self._over: LeaseState | None = None
        self._because = ""
        self._on_over: list[Callable[[], None]] = []

    @property
    def lock(self) -> str:
        """The lock's name; of several the first."""
        return self.demand.lock

    @property
    def locks(self) -> tuple[str, ...]:
        return self.demand.locks

    @property
    def token(self) -> int:
        return self.fence.token

    @property
    def is_lost(self) -> bool:
        """Whether it has been told to be lost; by the clock it may be so before: see `state`."""
        return self._over is LeaseState.LOST

    @property
    def is_left(self) -> bool:
        """Whether all who entered it have left: no work goes on under it (K6)."""
        return self._entries == 0

    def state(self, now: float) -> LeaseState:
        """The state at `now`, by the clock."""
        if self._over is not None:
            return self._over
        if self.trust.remaining(now) <= 0.0:
            return LeaseState.LOST
        return LeaseState.SUSPENDED if self.trust.is_suspended else LeaseState.HELD

    def remaining(self, now: float) -> float:
        """Seconds for which it may be relied on; 0.0 once it is lost or released."""
        return 0.0 if self._over is not None else self.trust.remaining(now)

    def check(self, now: float) -> None:
        """Raise LeaseLost unless it may be relied on at `now`."""
        state = self.state(now)
        if state is LeaseState.RELEASED:
            raise self.lost_error(RELEASED)
        if state is LeaseState.LOST:
            raise self.lost_error()

    def lost_error(self, because: str = "") -> LeaseLost:
        """The error that says how it ended."""
        because = (
            because or self._because or self.trust.ended_because or "its deadline passed without a renewal"
        )
        text = (
            f"lock {', '.join(map(repr, self.locks))}: the lease with token {self.token} is over: {because}"
        )
        return LeaseLost(text, lock=self.lock, token=self.token)

    def enter(self, now: float) -> None:
        """Count one more entry of its owner. Raises LeaseLost: a lost lease is not replaced (K3)."""
        self.check(now)
        self._entries += 1

    def leave(self) -> bool:
        """Count one entry less. Returns whether that was the last."""
        self._entries -= 1
        assert self._entries >= 0, "more left than entered"
        return self._entries == 0

    def release(self, now: float) -> bool:
        """Give it up, unless it is lost already. Returns whether it was held until now.

        From here on nobody relies on it, whenever the cluster may hear of that (S30).
        """
        if self.state(now) in (LeaseState.LOST, LeaseState.RELEASED):
            return False
        for tell in self._end(LeaseState.RELEASED):
            tell()
        return True

    def lose(self, because: str = "") -> list[Callable[[], None]]:
        """It is lost, for a reason of its own or its session's (""). Returns whom to tell: the caller
        calls each, whatever the others do."""
        self._because = self._because or because
        return self._end(LeaseState.LOST)

    def on_over(self, tell: Callable[[], None]) -> None:
        """Have `tell` called once when it is lost or released; at once if it is over. Any thread."""
        self._on_over.append(tell)
        if self._over is not None:
            for late in self._take_over():
                late()

    def forget(self, tell: Callable[[], None]) -> None:
        """Whoever gave `tell` to `on_over` waits no more. Any thread."""
        with contextlib.suppress(ValueError):  # it has been told
            self._on_over.remove(tell)

    def _end(self, state: LeaseState) -> list[Callable[[], None]]:
        if self._over is not None:
            return []
        self._over = state
        return self._take_over()

    def _take_over(self) -> list[Callable[[], None]]:
        # list.pop is atomic: one that is added from another thread meanwhile is told exactly
        # once, by whoever took it.
        taken: list[Callable[[], None]] = []
        while self._on_over:
            try:
                taken.append(self._on_over.pop())
            except IndexError:
                break
        return taken


class _Leaving:
    """How a lease was when its holder left it, once it has; other entries of the same grant may go on."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: LeaseState | None = None


class LeaseView:
    """What every lease tells, to sync and async holders alike. Safe from any thread."""

    def __init__(self, grant: Grant, clock: Clock) -> None:
        self.grant = grant
        self._clock = clock
        self._leaving = _Leaving()

    @property
    def lock(self) -> str:
        """The lock's name; of several locks the first by name."""
        return self.grant.lock

    @property
    def locks(self) -> tuple[str, ...]:
        """The names of all locks that it holds, in their order."""
        return self.grant.locks

    @property
    def mode(self) -> LockMode:
        """Exclusive, shared or semaphore."""
        return self.grant.demand.mode

    @property
    def token(self) -> int:
        """The token of this grant, below 2**53. The same for every re-entry, and for all its locks.

        It fences what an exclusive lease protects; what a shared one does, only in part (see
        `fence`); a semaphore's tells grants apart and no more.
        """
        return self.grant.token

    @property
    def fence(self) -> str:
        """`cluster/incarnation/token`, for headers, environments and storage.

        A shared lease may install it, which shuts out an earlier writer, but may not write (SAFETY
        G10). Raises TypeError for a semaphore: its holders have no order, so nothing can tell a
        stale one from its successor.
        """
        if self.mode is LockMode.SEMAPHORE:
            raise TypeError(
                f"semaphore {self.lock!r}: fencing is not for semaphores, whose holders have no order"
            )
        return str(self.grant.fence)

    @property
    def cluster(self) -> str:
        """The cluster's id."""
        return self.grant.fence.cluster

    @property
    def incarnation(self) -> str:
        """Drawn anew whenever the cluster is restored."""
        return self.grant.fence.incarnation

    @property
    def state(self) -> LeaseState:
        """Held, suspended, lost or released, by the clock (SAFETY K1)."""
        return self._leaving.state or self.grant.state(self._clock())

    @property
    def lost(self) -> bool:
        """Whether the lease ended before it was released. Once True it stays so."""
        return self.state is LeaseState.LOST

    def remaining(self) -> float:
        """Seconds for which the lease may be relied on without a renewal; 0.0 when it is over."""
        return 0.0 if self._leaving.state else self.grant.remaining(self._clock())

    def on_lost(self, callback: Callable[[], object]) -> None:
        """Have `callback()` called once, as soon as the lease is lost; never if it is released.

        It runs on the thread that keeps the session alive (the event loop of an AsyncClient):
        it must be quick and must not block. If the lease is lost already it is called at once.
        """
        # The grant must not keep the lease in hand: who drops both lease and client lets the session end.
        grant, leaving = self.grant, self._leaving

        def over() -> None:
            if grant.is_lost if leaving.state is None else leaving.state is LeaseState.LOST:
                callback()

        grant.on_over(over)

    def leave(self) -> bool:
        """Its holder has done with it. Returns whether that is news; only then the entry counts out."""
        if self._leaving.state:
            return False
        self._leaving.state = self.state if self.lost else LeaseState.RELEASED
        return True

    def assured(self, need: float) -> bool:
        """Raise LeaseLost when it is over; tell whether at least `need` seconds are left."""
        if need > (most := self.grant.trust.ttl - margin(self.grant.trust.ttl)):
            raise ValueError(f"no renewal can give {need} s: the session's TTL allows {most:.3f} s")
        if self._leaving.state:
            raise self.grant.lost_error(RELEASED if self._leaving.state is LeaseState.RELEASED else "")
        self.grant.check(self._clock())
        return self.remaining() >= need

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.lock!r} token={self.token} "
            f"{self.state.value} remaining={self.remaining():.2f}>"
        )


def inherited_grant(environment: Mapping[str, str]) -> Grant:
    """The grant that `lockd run` passes to its child in LOCKD_LOCK, LOCKD_FENCE and LOCKD_TTL_MS.

    LOCKD_MODE may say `shared`. Raises ValueError that names the variable which is missing or wrong.
    """
    found = {name: environment.get(name, "") for name in ("LOCKD_LOCK", "LOCKD_FENCE", "LOCKD_TTL_MS")}
    missing = [name for name, value in found.items() if not value]
    if missing:
        raise ValueError(f"{', '.join(missing)} not set: this process was not started by `lockd run`")
    try:
        mode = LockMode(environment.get("LOCKD_MODE") or LockMode.EXCLUSIVE)
        fence = Fence.parse(found["LOCKD_FENCE"])
        ttl = ascii_int(found["LOCKD_TTL_MS"], low=1, high=2**53) / 1000
    except ValueError as error:
        raise ValueError(f"LOCKD_FENCE, LOCKD_TTL_MS, LOCKD_MODE: {error}") from None
    demand = Demand(locks=(found["LOCKD_LOCK"],), mode=mode)
    trust = InheritedTrust(sent_at=math.inf, ttl=ttl)
    return Grant(demand, owner="", fence=fence, session=SessionId(""), trust=trust)
