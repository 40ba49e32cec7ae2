"""The client for asyncio: a thin face of the engine, which runs on the caller's own loop.

AsyncLease and AsyncBlock also serve `async def` functions that a sync Client has decorated: what
differs is `Caller`, the way from the task to the engine.
"""

import asyncio
import contextlib
import ssl
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar, overload

from lockd.client import clock, cluster, fork, inspection
from lockd.client.blocks import Exit, OnLostName, check_request
from lockd.client.decorator import (
    AsyncLocked,
    AsyncLockedOrSkipped,
    Function,
    InstallsLease,
    OnBusy,
    lock_calls,
)
from lockd.client.engine import Engine
from lockd.client.inspection import LockInfo, QueueInfo, SessionInfo
from lockd.client.lease import Grant, LeaseView, OnLost
from lockd.client.options import ClientOptions
from lockd.client.owners import Owners
from lockd.client.portal import GiveBack
from lockd.client.queries import GrantReply, Query
from lockd.errors import LockdError, LockTimeout

T = TypeVar("T")


class Caller(Protocol):
    """The way from a task to an engine."""

    @property
    def engine(self) -> Engine: ...

    def run(self, coroutine: Coroutine[Any, Any, T], give_back: GiveBack[T] | None = None) -> Awaitable[T]:
        """Run a coroutine of the engine. Who is cancelled while waiting gets nothing, and holds nothing."""
        ...


class AsyncLease(LeaseView):
    """A held lock, for asyncio. Its `release`, `check` and `wait_lost` are awaited."""

    def __init__(self, grant: Grant, caller: Caller) -> None:
        super().__init__(grant, clock.now)
        self._caller = caller

    def check(self, need: float = 0.0) -> Awaitable[None]:
        """Raise LeaseLost, or renew now if less than `need` seconds are left, and await that.

        The lease is checked by the call itself, before anything is awaited. Raises ValueError when
        no renewal could give so much.
        """
        if self.assured(need):
            return _Done()
        return asyncio.ensure_future(self._caller.run(self._caller.engine.assure(self, need)))

    async def release(self) -> bool:
        """Give the lock back. True: it was held until now; False: it was lost or released before.

        Cancelling it does not stop it. Raises OutcomeUnknown when no node answered while the session
        lived; the lock has ended with the session then.
        """
        if self._caller.engine.is_closed:
            self.leave()
            return False
        return await self._caller.run(self._caller.engine.release(self))

    async def wait_lost(self) -> bool:
        """Wait until the lease is over: True when it was lost, False when it was released."""
        loop = asyncio.get_running_loop()
        over = asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the waiter's loop is closed: nobody waits
                loop.call_soon_threadsafe(over.set)

        self.grant.on_over(tell)
        try:
            await over.wait()
        finally:
            self.grant.forget(tell)
        return self.lost


class _Done:
    """Awaitable at once, and no coroutine that would complain when it is not awaited."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


class AsyncBlock:
    """`async with client.lock(...) as lease`. Holds the lock inside; see `AsyncClient.lock`."""

    def __init__(self, acquire: Callable[[], Awaitable[AsyncLease]], on_lost: OnLost) -> None:
        self._acquire = acquire
        self._on_lost = on_lost
        self._lease: AsyncLease | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._did_cancel = False

    async def __aenter__(self) -> AsyncLease:
        if self._lease is not None:
            raise RuntimeError("this block is entered already; make another with client.lock(...)")
        lease = self._lease = await self._acquire()
        if self._on_lost is OnLost.CANCEL:
            self._task = asyncio.current_task()
            assert self._task is not None, "a block outside of a task"
            self._cancelling = self._task.cancelling()
            loop = asyncio.get_running_loop()

            def cancel_soon() -> None:
                with contextlib.suppress(RuntimeError):  # the body's loop is closed
                    loop.call_soon_threadsafe(self._cancel_body)

            lease.on_lost(cancel_soon)
        return lease

    def _cancel_body(self) -> None:
        if self._task is not None and not self._did_cancel:
            self._did_cancel = True
            self._task.cancel("the lease was lost")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        lease, self._lease = self._lease, None
        assert lease is not None, "left before it was entered"
        task, self._task = self._task, None
        if task is not None and self._did_cancel:
            # As asyncio.timeout does: our own cancellation ends here, anybody else's goes on.
            self._did_cancel = False
            if task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
                error = None
        end = Exit(lease, self._on_lost)
        try:
            end.released(await lease.release())
        except LockdError as unreleased:
            end.released(unreleased)
        if error is None and (lost := end.error()) is not None:
            raise lost


def async_block(
    caller: Callable[[], Caller], owners: Owners, name: str, *, wait: float | None, meta: str, on_lost: OnLost
) -> AsyncBlock:
    """A block of the task that enters it, over whatever way there is to the engine."""
    return AsyncBlock(lambda: acquire_for_task(caller(), owners, name, wait=wait, meta=meta), on_lost)


async def acquire_for_task(
    caller: Caller, owners: Owners, name: str, *, wait: float | None, meta: str
) -> AsyncLease:
    """Acquire as the running task."""
    acquisition = caller.engine.acquire(name, owner=owners.of_task(), wait=wait, meta=meta)
    return AsyncLease(await caller.run(acquisition, caller.engine.give_back), caller)


class _Direct:
    """The engine runs on the task's own loop."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def run(self, coroutine: Coroutine[Any, Any, T], give_back: GiveBack[T] | None = None) -> T:
        del give_back  # cancelling the task cancels the coroutine: there is no other side
        return await coroutine


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
        self._loop: asyncio.AbstractEventLoop | None = None
        fork.watch(self)

    def lock(
        self,
        name: str,
        *,
        wait: float | None = None,
        meta: Mapping[str, Any] | None = None,
        on_lost: OnLostName = "raise",
    ) -> AsyncBlock:
        """Hold the lock `name` inside `async with`; waits for ever unless `wait` (seconds) is given.

        `meta` is JSON that others see in `inspect`. When the lease is lost inside, leaving the
        block raises LeaseLost unless the body raised something; `on_lost="cancel"` cancels the body
        too, at once; "flag" does neither.

        Entering raises LockTimeout, Unavailable, OutcomeUnknown, SessionExpired, LeaseLost (this
        task has lost this very lock in an outer block) or Rejected; nothing is held then.
        """
        text = check_request(name, wait, meta)
        return async_block(self._caller, self._owners, name, wait=wait, meta=text, on_lost=OnLost(on_lost))

    async def acquire(
        self, name: str, *, wait: float | None = None, meta: Mapping[str, Any] | None = None
    ) -> AsyncLease:
        """Hold the lock until `await lease.release()`. Raises as entering `lock` does."""
        text = check_request(name, wait, meta)
        return await acquire_for_task(self._caller(), self._owners, name, wait=wait, meta=text)

    async def try_lock(self, name: str, *, meta: Mapping[str, Any] | None = None) -> AsyncLease | None:
        """The lease if the lock is free now, else None. Raises as `lock`, but for LockTimeout."""
        try:
            return await self.acquire(name, wait=0, meta=meta)
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
        on_busy: OnBusy = "raise",
        fence: InstallsLease | None = None,
    ) -> AsyncLocked | AsyncLockedOrSkipped:
        """Decorate an `async def`: each call holds the lock. See `lockd.Client.locked`."""
        text = check_request(name, wait, meta)
        loses = OnLost(on_lost)

        def wrap(function: Function) -> Function:
            return lock_calls(
                function,
                name,
                open_block=None,
                open_async_block=lambda lock: async_block(
                    self._caller, self._owners, lock, wait=wait, meta=text, on_lost=loses
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
        request: str | None = None,
    ) -> GrantReply:
        """See `lockd.Client.acquire_ttl`."""
        text = check_request(name, wait, meta)
        request = request or str(uuid.uuid4())
        engine = self._caller().engine
        return await engine.acquire_private(name, ttl=ttl, wait=wait, request=request, meta=text)

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
        inherited, self._direct = (self._direct, self._loop), None
        self._owners.after_fork()
        return inherited

    def _caller(self) -> _Direct:
        loop = asyncio.get_running_loop()
        if self._direct is None or (
            self._loop is not loop and self._loop is not None and self._loop.is_closed()
        ):
            # A loop that is closed keeps nothing alive: its leases end by the clock.
            self._direct = _Direct(Engine(self._options, clock.now))
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError("this AsyncClient is used on another event loop; make one for each loop")
        return self._direct
