"""The client for asyncio: a thin face of the engine, which runs on the caller's own loop."""

import asyncio
import contextlib
import os
import ssl
import uuid
import weakref
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, Literal, Self, TypeVar, overload

from lockd.client import cluster, fork, inspection
from lockd.client.blocks import OnLostName
from lockd.client.decorator import (
    AsyncLocked,
    AsyncLockedOrSkipped,
    Function,
    InstallsLease,
    OnBusy,
    lock_calls,
)
from lockd.client.demand import Demand
from lockd.client.election import AsyncElection
from lockd.client.engine import Engine
from lockd.client.feeds import AsyncFeed
from lockd.client.inspection import LockEvent, LockInfo, QueueInfo, SessionInfo
from lockd.client.lease import OnLost
from lockd.client.options import ClientOptions
from lockd.client.owners import Owners
from lockd.client.portal import GiveBack
from lockd.client.queries import GrantReply, Query
from lockd.client.tasks import AsyncBlock, AsyncLease, acquire_for_task, async_block
from lockd.errors import LockTimeout

T = TypeVar("T")


class _Direct:
    """The engine runs on the task's own loop.

    Client and leases have it in hand. When the last of them is dropped without `close`, the
    session is closed: nobody could use it any more, and it would renew itself for ever.
    """

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self.engine = engine
        self.loop = loop
        weakref.finalize(self, _abandon, engine, loop, os.getpid()).atexit = False

    async def run(self, coroutine: Coroutine[Any, Any, T], give_back: GiveBack[T] | None = None) -> T:
        del give_back  # cancelling the task cancels the coroutine: there is no other side
        return await coroutine


def _abandon(engine: Engine, loop: asyncio.AbstractEventLoop, pid: int) -> None:
    if os.getpid() == pid:  # in a fork all is the parent's (SAFETY K5)
        with contextlib.suppress(RuntimeError):  # a loop that is closed keeps nothing alive
            loop.call_soon_threadsafe(engine.abandon)


class AsyncClient:
    """A client of a lockd cluster for asyncio. See `lockd.Client` for the arguments.

    Making it does no IO; the first use connects and opens the session. It belongs to the event
    loop of that first use. `await client.close()`, or `async with`, ends the session and frees its
    locks at once; without that they end with the TTL.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str] | None = None,
        *,
        ttl: float = 10.0,
        name: str = "",
        tls: bool | ssl.SSLContext = False,
        auth: tuple[str, str] | None = None,
    ) -> None:
        self._options = ClientOptions.build(endpoints, ttl=ttl, name=name, tls=tls, auth=auth)
        self._owners = Owners()
        self._direct: _Direct | None = None
        fork.watch(self)

    def lock(
        self,
        name: str,
        *,
        wait: float | None = None,
        meta: Mapping[str, Any] | None = None,
        on_lost: OnLostName = "raise",
        shared: bool = False,
        max_hold: float | None = None,
        delay: float | None = None,
    ) -> AsyncBlock:
        """Hold the lock `name` inside `async with`; waits for ever unless `wait` (seconds) is given.

        As `lockd.Client.lock`; the running task is the owner. When the lease is lost inside,
        `on_lost="cancel"` cancels the body too, at once, and nothing else of its task.
        """
        demand = Demand.of_lock(name, wait=wait, meta=meta, shared=shared, max_hold=max_hold, delay=delay)
        return async_block(self._caller, self._owners, demand, OnLost(on_lost))

    def lock_all(
        self,
        names: Iterable[str],
        *,
        wait: float | None = None,
        meta: Mapping[str, Any] | None = None,
        on_lost: OnLostName = "raise",
    ) -> AsyncBlock:
        """Hold several locks inside `async with`: all at once, or none. See `lockd.Client.lock_all`."""
        demand = Demand.of_all(names, wait=wait, meta=meta)
        return async_block(self._caller, self._owners, demand, OnLost(on_lost))

    def semaphore(
        self,
        name: str,
        *,
        limit: int,
        weight: int = 1,
        wait: float | None = None,
        meta: Mapping[str, Any] | None = None,
        on_lost: OnLostName = "raise",
        max_hold: float | None = None,
    ) -> AsyncBlock:
        """Hold `weight` of the `limit` units of a semaphore inside `async with`. See `lockd.Client`."""
        demand = Demand.of_semaphore(
            name, limit=limit, weight=weight, wait=wait, meta=meta, max_hold=max_hold
        )
        return async_block(self._caller, self._owners, demand, OnLost(on_lost))

    async def acquire(
        self,
        name: str,
        *,
        wait: float | None = None,
        meta: Mapping[str, Any] | None = None,
        shared: bool = False,
        max_hold: float | None = None,
        delay: float | None = None,
    ) -> AsyncLease:
        """Hold the lock until `await lease.release()`, by whichever task. See `lockd.Client.acquire`."""
        demand = Demand.of_lock(name, wait=wait, meta=meta, shared=shared, max_hold=max_hold, delay=delay)
        return await acquire_for_task(self._caller(), self._owners, demand.to_hand_on())

    async def try_lock(
        self,
        name: str,
        *,
        meta: Mapping[str, Any] | None = None,
        shared: bool = False,
        max_hold: float | None = None,
        delay: float | None = None,
    ) -> AsyncLease | None:
        """The lease if the lock is free now, else None. Raises as `lock`, but for LockTimeout."""
        try:
            return await self.acquire(name, wait=0, meta=meta, shared=shared, max_hold=max_hold, delay=delay)
        except LockTimeout:
            return None

    @overload
    def locked(
        self,
        name: str,
        *,
        wait: float | None = None,
        meta: Mapping[str, Any] | None = None,
        on_lost: OnLostName = "raise",
        shared: bool = False,
        max_hold: float | None = None,
        delay: float | None = None,
        on_busy: Literal["raise"] = "raise",
        fence: InstallsLease | None = None,
    ) -> AsyncLocked: ...
    @overload
    def locked(
        self,
        name: str,
        *,
        wait: float | None = None,
        meta: Mapping[str, Any] | None = None,
        on_lost: OnLostName = "raise",
        shared: bool = False,
        max_hold: float | None = None,
        delay: float | None = None,
        on_busy: Literal["skip"],
        fence: InstallsLease | None = None,
    ) -> AsyncLockedOrSkipped: ...
    def locked(
        self,
        name: str,
        *,
        wait: float | None = None,
        meta: Mapping[str, Any] | None = None,
        on_lost: OnLostName = "raise",
        shared: bool = False,
        max_hold: float | None = None,
        delay: float | None = None,
        on_busy: OnBusy = "raise",
        fence: InstallsLease | None = None,
    ) -> AsyncLocked | AsyncLockedOrSkipped:
        """Decorate an `async def`: each call holds the lock. See `lockd.Client.locked`.

        Raises TypeError for a plain `def`, which would block the loop.
        """
        demand = Demand.of_lock(name, wait=wait, meta=meta, shared=shared, max_hold=max_hold, delay=delay)
        loses = OnLost(on_lost)

        def wrap(function: Function) -> Function:
            return lock_calls(
                function,
                name,
                open_block=None,
                open_async_block=lambda lock: async_block(
                    self._caller, self._owners, demand.named(lock), loses
                ),
                on_busy=on_busy,
                fence=fence,
            )

        return AsyncLockedOrSkipped(wrap) if on_busy == "skip" else AsyncLocked(wrap)

    async def inspect(self, name: str) -> LockInfo:
        """Who holds the lock, and how many wait: linearizable, but past by the time it is read."""
        return await self.ask(inspection.inspect(name))

    async def locks(self, prefix: str = "") -> list[LockInfo]:
        """The locks that are held or waited for, by name."""
        return await self._caller().engine.locks(prefix)

    async def queue(self, name: str) -> QueueInfo:
        """Who waits for the lock, the next one first; of more than 1,000 waiters the first."""
        return await self.ask(inspection.list_queue(name))

    async def sessions(self) -> list[SessionInfo]:
        """The sessions that live, by number, and how much each holds and waits for."""
        return await self._caller().engine.sessions()

    async def validate(self, name: str, token: int) -> str:
        """What has become of a grant: "current", "superseded" by a later one, or "free".

        Linearizable, but past by the time it is read: for a look, or to give up in time. It can't
        stand in for a fence, which compares and writes in one.
        """
        return await self.ask(inspection.validate(name, token))

    async def break_lock(self, name: str, token: int, *, reason: str, now: bool = False) -> bool:
        """Take that grant of the lock from whoever holds it. False: it was not held.

        The holder is told the reason; the lock is passed on when it has acknowledged that, when its
        session has ended, or a TTL later. `now` passes it on at once, though its holder may still
        trust its lease: two may work under the lock then, and only fences keep them apart (SAFETY
        P1). Needs the role `break` where there are users; raises AccessDenied without it.
        """
        return await self.ask(inspection.break_grant(name, token, reason=reason, now=now)) == 1

    def watch(self, prefix: str = "", *, revision: int | None = None) -> AsyncFeed[LockEvent]:
        """What happens to locks whose names begin with `prefix`. See `lockd.Client.watch`."""
        return AsyncFeed(self._caller, lambda engine: engine.watch(prefix, revision), revision=revision)

    def election(self, name: str, *, value: Any = None) -> AsyncElection:
        """A candidate in the election `name`. See `lockd.Client.election`."""
        return AsyncElection(self._caller, self._owners.of_task, name, value)

    async def status(self) -> dict[str, Any]:
        """Nodes, roles and log positions, as the node that answers knows them."""
        return await self.ask(cluster.status())

    async def ask(self, query: Query[T]) -> T:
        """Carry out a query of `lockd.client.queries`."""
        return await self._caller().engine.ask(query)

    async def acquire_ttl(
        self,
        name: str,
        *,
        ttl: float,
        wait: float | None = 0,
        meta: Mapping[str, Any] | None = None,
        shared: bool = False,
        max_hold: float | None = None,
        delay: float | None = None,
        limit: int | None = None,
        weight: int = 1,
        request: str | None = None,
    ) -> GrantReply:
        """See `lockd.Client.acquire_ttl`."""
        demand = Demand.of_either(
            name,
            wait=wait,
            meta=meta,
            shared=shared,
            max_hold=max_hold,
            delay=delay,
            limit=limit,
            weight=weight,
        )
        engine = self._caller().engine
        return await engine.acquire_private(demand, ttl=ttl, request=request or str(uuid.uuid4()))

    async def close(self) -> None:
        """End the session: its locks are free at once, its leases lost, its waits over. Idempotent."""
        if self._direct is not None:
            await self._direct.engine.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def after_fork(self) -> object:
        """In a forked child: hold nothing, and leave the parent's connection alone (SAFETY K5)."""
        inherited, self._direct = self._direct, None
        self._owners.after_fork()
        return inherited

    def _caller(self) -> _Direct:
        loop = asyncio.get_running_loop()
        if self._direct is None or (self._direct.loop is not loop and self._direct.loop.is_closed()):
            # A loop that is closed keeps nothing alive: its leases end by the clock.
            self._direct = _Direct(Engine(self._options, self._options.clock), loop)
        elif self._direct.loop is not loop:
            raise RuntimeError("this AsyncClient is used on another event loop; make one for each loop")
        return self._direct
