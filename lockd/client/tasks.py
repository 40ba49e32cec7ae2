"""Leases and blocks of tasks: of an AsyncClient, and of `async def` functions that a Client has decorated.

What differs between the two is `Caller`, the way from the task to the engine.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Generator, Mapping
from types import TracebackType
from typing import Any

from lockd.client.blocks import Exit
from lockd.client.callers import Caller
from lockd.client.demand import Demand
from lockd.client.lease import Grant, LeaseView, OnLost
from lockd.client.owners import Owners
from lockd.client.queries import meta_text
from lockd.errors import LockdError


class AsyncLease(LeaseView):
    """A held lock, for asyncio. Its `release`, `check`, `update_meta` and `wait_lost` are awaited."""

    def __init__(self, grant: Grant, caller: Caller) -> None:
        super().__init__(grant, caller.engine.clock)
        self._caller = caller

    def check(self, need: float = 0.0) -> Awaitable[None]:
        """Raise LeaseLost, or renew now if less than `need` seconds are left, and await that.

        The lease is checked by the call itself, before anything is awaited. Raises ValueError when
        no renewal could give so much.
        """
        if self.assured(need):
            return _Done()
        return asyncio.ensure_future(self._caller.run(self._caller.engine.assure(self, need)))

    async def update_meta(self, meta: Mapping[str, Any]) -> None:
        """Have others see this metadata from now on. See `lockd.Lease.update_meta`."""
        await self._caller.run(self._caller.engine.update_meta(self, meta_text(meta)))

    async def release(self) -> bool:
        """Give the lock back. True: it was held until now; False: it was lost or released before.

        Of a lease that was broken or has run into its max_hold this says that the work has stopped:
        the next holder need not wait for a TTL then. Cancelling it does not stop it. Raises
        OutcomeUnknown when no node answered while the session lived; the lock has ended with the
        session then.
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


def async_block(caller: Callable[[], Caller], owners: Owners, demand: Demand, on_lost: OnLost) -> AsyncBlock:
    """A block of the task that enters it, over whatever way there is to the engine."""
    return AsyncBlock(lambda: acquire_for_task(caller(), owners, demand), on_lost)


async def acquire_for_task(caller: Caller, owners: Owners, demand: Demand) -> AsyncLease:
    """Acquire as the running task."""
    acquisition = caller.engine.acquire(demand, owner=owners.of_task())
    return AsyncLease(await caller.run(acquisition, caller.engine.give_back), caller)
