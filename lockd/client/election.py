"""Elections: one of many candidates leads, and everybody can see who.

An election is a lock. Who holds it leads, its metadata are the leader's value, and its queue are
the other candidates, in the order in which they came. So what holds of locks holds here:

- At most one candidate leads with a lease that it may rely on, as long as the rates of clocks
  differ by no more than the margin (SAFETY P1, K1). That is not "at most one acts": a leader that
  was paused may still act when it wakes up. Its token is what shuts it out: tokens grow from leader
  to leader, so install the lease as a fence, and let the storage refuse.
- A leader stays one over a lost connection, and over elections of the cluster's own leader, while
  its session is renewed in time (K2). It stops being one when its session ends, when it is broken,
  and when it returns; never for a candidate that is waiting.
- `lead` is called again only after the last call has ended: the work is stopped first, then the
  lock is released, then another one is elected.
- Observers see leaders in the order of their election, each with its value. They see the past:
  a leader that has ended may be seen for a while longer, and who was quick may not be seen at all
  by an observer that was cut off for long. The last one always is.
"""

import asyncio
import contextlib
import inspect as inspection_of_code
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from lockd.client import inspection
from lockd.client.callers import Caller
from lockd.client.demand import Demand
from lockd.client.engine import Engine
from lockd.client.feeds import AsyncFeed, Feed
from lockd.client.inspection import LockEvent, LockInfo
from lockd.client.lease import Grant, LeaseView, OnLost
from lockd.client.queries import meta_text
from lockd.client.tasks import AsyncBlock, AsyncLease
from lockd.client.threads import Lease, LockBlock, Runtime
from lockd.client.watch import Item, Watcher
from lockd.errors import LeaseLost, NotHeld, OutcomeUnknown, SessionExpired, Unavailable, WatchGone

log = logging.getLogger("lockd.client")
T = TypeVar("T")

PAUSE_SECONDS_MIN: Final = 0.05
PAUSE_SECONDS_MAX: Final = 1.0
"""Between attempts to stand for election, when the cluster is not to be reached."""

_VACATED: Final = frozenset({"released", "expired", "broken"})


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads an election, as the cluster tells everybody."""

    name: str
    """The name of its client, "" when it has none."""
    owner: str
    value: Any
    """What it proclaimed, as JSON has it; None for nothing."""
    token: int
    """Tells this leader from those before and after. It is nobody else's leave to write (SAFETY G9)."""
    session: int
    """The public number of its session."""


class Observer:
    """The leaders of one election from now on, first the one that leads already."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._name = name
        self._watcher: Watcher | None = None
        self._is_closed = False
        self._leader: Leader | None = None
        self._seen = 0
        """The revision up to which events have been taken."""
        self._changes: deque[Item[Leader | None]] = deque()

    async def begin(self) -> int:
        """See who leads, and watch from there."""
        info = await self._engine.ask(inspection.inspect(self._name))
        self._leader = leader_of(info)
        self._changes.append(Item(info.revision, self._leader))
        await self._watch_from(info.revision)
        return info.revision - 1

    async def take(self, after: int) -> list[Item[Leader | None]]:
        """The changes after that revision, at least one; none when it was closed."""
        while True:
            while self._changes and self._changes[0].revision <= after:
                self._changes.popleft()
            if self._changes:
                return list(self._changes)
            if self._is_closed or self._engine.is_closed or self._watcher is None:
                return []
            try:
                events = await self._watcher.take(self._seen)
            except WatchGone:
                await self._look_again()
                continue
            if not events:
                return []
            for _, event in events:
                self._on_event(event)

    async def close(self) -> None:
        self._is_closed = True
        if self._watcher is not None:
            await self._watcher.close()

    def close_soon(self) -> None:
        """As `close`, from any thread, without waiting for it."""
        self._is_closed = True
        if self._watcher is not None:
            self._watcher.close_soon()

    async def _watch_from(self, revision: int) -> None:
        self._seen = revision
        self._watcher = self._engine.watch(self._name, revision)
        await self._watcher.begin()

    async def _look_again(self) -> None:
        """Some changes are forgotten: what is so now is what counts."""
        with contextlib.suppress(Unavailable, OutcomeUnknown, WatchGone):
            info = await self._engine.ask(inspection.inspect(self._name))
            self._change(info.revision, leader_of(info))
            await self._watch_from(info.revision)

    def _on_event(self, event: LockEvent) -> None:
        self._seen = event.revision
        if event.lock != self._name:
            return  # its name begins with ours
        is_leaders = self._leader is not None and event.token == self._leader.token
        if event.event == "acquired":
            value = inspection.parsed(event.meta)
            self._change(event.revision, Leader(event.name, event.owner, value, event.token, event.session))
        elif event.event == "meta" and self._leader is not None and is_leaders:
            self._change(event.revision, replace(self._leader, value=inspection.parsed(event.meta)))
        elif event.event in _VACATED and is_leaders:
            self._change(event.revision, None)

    def _change(self, revision: int, leader: Leader | None) -> None:
        if leader != self._leader:
            self._leader = leader
            self._changes.append(Item(revision, leader))


def leader_of(info: LockInfo) -> Leader | None:
    """Who leads, when the election's lock looks like that."""
    if not info.holders:
        return None
    holder = info.holders[0]
    value = inspection.parsed(holder.meta)
    return Leader(holder.name, holder.owner, value, holder.token, holder.session)


class _StoppedError(RuntimeError):
    """The candidate stands no longer: `stop` was called."""


class _Candidate:
    """One candidate's way to office, and out of it; the same for threads and tasks."""

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self.is_stopped = False
        """Whether `stop` was called."""
        self._demand = Demand.of_lock(name, wait=None, meta=None, shared=False, max_hold=None, delay=None)
        self._meta = meta_text(value)
        self._lease: LeaseView | None = None
        self._is_running = False
        self._interrupt: Callable[[], None] = lambda: None

    def stop(self) -> None:
        """Stand no longer: `run` ends. Any thread may call it. Idempotent.

        A wait for the office is withdrawn. An `async` lead is cancelled; one in a thread goes on until
        it returns, and may look at `is_stopped`.
        """
        self.is_stopped = True
        self._interrupt()

    async def obtain(self, engine: Engine, owner: str) -> Grant:
        """Stand for election until elected, however long the cluster is not to be reached.

        Raises what trying again can't help: AccessDenied, LimitExceeded, Deadlock, Rejected.
        """
        pause = PAUSE_SECONDS_MIN
        while True:
            try:
                return await engine.acquire(replace(self._demand, meta=self._meta), owner=owner)
            except (Unavailable, OutcomeUnknown, SessionExpired, NotHeld) as error:
                if engine.is_closed:
                    raise
                log.info("candidate of %r tries again: %s", self.name, error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS_MAX)

    async def obtain_unless_stopped(self, engine: Engine, owner: str) -> Grant:
        """As `obtain`. Raises _StoppedError when it was stopped."""
        async with self._until_stopped():
            return await self.obtain(engine, owner)

    @contextlib.asynccontextmanager
    async def _until_stopped(self) -> AsyncIterator[None]:
        """Cancel the body when `stop` is called, and raise _StoppedError then."""
        loop = asyncio.get_running_loop()
        scope = asyncio.timeout(None)

        def end() -> None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                scope.reschedule(loop.time())

        def interrupt() -> None:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                loop.call_soon_threadsafe(end)

        self._interrupt = interrupt
        try:
            if self.is_stopped:
                raise _StoppedError
            async with scope:
                yield
        except TimeoutError as error:
            # Not one of the body's own. Before Python 3.11.5 the scope's names no cause.
            if scope.expired() and isinstance(error.__cause__ or error.__context__, asyncio.CancelledError):
                raise _StoppedError from None
            raise

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        if self._is_running:
            raise RuntimeError("this candidate runs already; make another with client.election(...)")
        self._is_running = True
        try:
            yield
        finally:
            self._is_running = False

    def _leads_no_more(self, error: LeaseLost) -> None:
        """Raise the error again, unless it tells of the loss of our own office."""
        lease, self._lease = self._lease, None
        if lease is None or (error.lock, error.token) != (lease.lock, lease.token):
            raise error
        log.warning("candidate of %r leads no more: %s", self.name, error)

    def _office(self) -> LeaseView:
        lease = self._lease
        if lease is None:
            raise NotHeld(f"this candidate of {self.name!r} does not lead")
        return lease


class Election(_Candidate):
    """A candidate in a thread, and a view of the election. See `Client.election`, and the module's text."""

    def __init__(self, start: Callable[[], Runtime], owner: Callable[[], str], name: str, value: Any) -> None:
        super().__init__(name, value)
        self._start = start
        self._owner = owner

    def run(self, lead: Callable[[Lease], T]) -> T | None:
        """Stand for election, call `lead(lease)` when elected, and again after each loss.

        Returns what `lead` returns, which is how it resigns, or None when `stop` was called. A lead
        that returns or raises LeaseLost after its lease was lost has not resigned: it is called again
        with another lease when this candidate is elected again. A thread can't be cancelled, so it
        must look: `lease.lost`, `lease.check()`, `lease.wait_lost(timeout)`.

        Waits for as long as it takes, also while no node answers. Raises what `lead` raises, after
        the lock was released; AccessDenied, LimitExceeded, Rejected.
        """
        if inspection_of_code.iscoroutinefunction(lead):
            raise TypeError("lead is an async def: use lockd.AsyncClient(...).election(...)")
        with self._running():
            while True:
                try:
                    with LockBlock(self.campaign, OnLost.RAISE) as lease:
                        return lead(lease)
                except _StoppedError:
                    return None
                except LeaseLost as error:
                    self._leads_no_more(error)
                finally:
                    self._lease = None

    def campaign(self) -> Lease:
        """Stand for election until elected, for one term: the lease is the caller's to release.

        For those to whom `run` does not fit. Raises RuntimeError when `stop` was called; else as `run`.
        """
        runtime = self._start()
        standing = self.obtain_unless_stopped(runtime.engine, self._owner())
        self._lease = lease = Lease(runtime.run(standing, runtime.engine.give_back), runtime)
        return lease

    def proclaim(self, value: Any) -> None:
        """Have observers see another value from now on, also when this candidate is elected again.

        Raises NotHeld when it does not lead, LeaseLost when it has just ceased to; OutcomeUnknown
        when no node answered for a TTL: observers may see the old or the new.
        """
        runtime, meta = self._start(), meta_text(value)
        runtime.run(runtime.engine.update_meta(self._office(), meta))
        self._meta = meta

    def observe(self) -> Feed[Leader | None]:
        """Who leads now, then each change: the Leader, None while the office is vacant. For ever.

        A change of the value is one too. Standing for election is not needed. Raises Unavailable
        when no node answers for a TTL at the beginning; later it waits.
        """
        return Feed(self._start, lambda engine: Observer(engine, self.name))


class AsyncElection(_Candidate):
    """A candidate in a task, and a view of the election. See `Client.election`, and the module's text."""

    def __init__(self, start: Callable[[], Caller], owner: Callable[[], str], name: str, value: Any) -> None:
        super().__init__(name, value)
        self._start = start
        self._owner = owner

    async def run(self, lead: Callable[[AsyncLease], Awaitable[T]]) -> T | None:
        """Stand for election, await `lead(lease)` when elected, and again after each loss.

        As `Election.run`, but a lead that loses its lease is cancelled at once. Cancelling the task
        of `run` cancels lead, releases the lock and goes on as a cancellation.
        """
        with self._running():
            try:
                async with self._until_stopped():
                    return await self._lead_in_turns(lead)
            except _StoppedError:
                return None

    async def _lead_in_turns(self, lead: Callable[[AsyncLease], Awaitable[T]]) -> T:
        while True:
            try:
                async with AsyncBlock(self._stand, OnLost.CANCEL) as lease:
                    leading = lead(lease)
                    if not inspection_of_code.isawaitable(leading):
                        raise TypeError("lead is no async def: use lockd.Client(...).election(...)")
                    return await leading
            except LeaseLost as error:
                self._leads_no_more(error)
            finally:
                self._lease = None

    async def campaign(self) -> AsyncLease:
        """Stand for election until elected, for one term. See `Election.campaign`."""
        async with self._until_stopped():
            return await self._stand()

    async def proclaim(self, value: Any) -> None:
        """Have observers see another value from now on. See `Election.proclaim`."""
        caller, meta = self._start(), meta_text(value)
        await caller.run(caller.engine.update_meta(self._office(), meta))
        self._meta = meta

    def observe(self) -> AsyncFeed[Leader | None]:
        """Who leads now, then each change. See `Election.observe`."""
        return AsyncFeed(self._start, lambda engine: Observer(engine, self.name))

    async def _stand(self) -> AsyncLease:
        caller = self._start()
        standing = self.obtain(caller.engine, self._owner())
        self._lease = lease = AsyncLease(await caller.run(standing, caller.engine.give_back), caller)
        return lease
