"""Leases and blocks of threads, and the private thread on which their engine runs."""

import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, TypeVar

from lockd.client import clock
from lockd.client.blocks import Exit
from lockd.client.engine import Engine
from lockd.client.lease import Grant, LeaseView, OnLost, inherited_grant
from lockd.client.options import ClientOptions
from lockd.client.portal import GiveBack, Portal
from lockd.client.queries import meta_text
from lockd.errors import LockdError, NotHeld

T = TypeVar("T")


class Runtime:
    """The private thread and the engine on it.

    Client and leases have it in hand. When the last of them is dropped without `close`, the
    session is closed: nobody could use it any more, and it would renew itself for ever.
    """

    def __init__(self, options: ClientOptions) -> None:
        self.portal = Portal()
        self.engine = self.portal.run(_make_engine(options))
        self._dropped = weakref.finalize(self, _abandon, self.portal, self.engine, os.getpid())
        self._dropped.atexit = False

    def run(self, coroutine: Coroutine[Any, Any, T], give_back: GiveBack[T] | None = None) -> T:
        return self.portal.run(coroutine, give_back)

    def close(self) -> None:
        self._dropped.detach()
        try:
            self.portal.run(self.engine.close())
        finally:
            self.portal.stop()


async def _make_engine(options: ClientOptions) -> Engine:
    return Engine(options, options.clock)


def _abandon(portal: Portal, engine: Engine, pid: int) -> None:
    if os.getpid() == pid:  # in a fork all is the parent's (SAFETY K5)
        portal.stop_after(engine.abandon)


class FromTask:
    """The way from a task of some loop to the engine on the private thread."""

    def __init__(self, runtime: Runtime) -> None:
        self.engine = runtime.engine
        self._runtime = runtime

    async def run(self, coroutine: Coroutine[Any, Any, T], give_back: GiveBack[T] | None = None) -> T:
        return await self._runtime.portal.run_from_task(coroutine, give_back)


class Lease(LeaseView):
    """A held lock. Safe to use from any thread."""

    def __init__(self, grant: Grant, runtime: Runtime | None) -> None:
        super().__init__(grant, clock.now if runtime is None else runtime.engine.clock)
        self._runtime = runtime

    @classmethod
    def from_env(cls) -> "Lease":
        """The lease of a child of `lockd run`, from LOCKD_LOCK, LOCKD_FENCE and LOCKD_TTL_MS.

        The parent renews it, and ends the child's process group when it is lost; the child can
        only present it. `remaining()` is what a healthy parent leaves at any time, two thirds of
        the TTL less the margin: a parent that is paused or killed can't be seen from here, so
        install the fence, which is what protects. `release` raises NotHeld. Raises ValueError when
        the variables are missing or wrong.
        """
        return cls(inherited_grant(os.environ), None)

    def check(self, need: float = 0.0) -> None:
        """Raise LeaseLost, or renew now if less than `need` seconds are left.

        Costs no IO while enough is left. Raises ValueError when no renewal could give so much.
        """
        if self.assured(need):
            return
        if self._runtime is None:
            raise ValueError(f"only the parent can renew this lease, and leaves {self.remaining():.3f} s")
        self._runtime.run(self._runtime.engine.assure(self, need))

    def update_meta(self, meta: Mapping[str, Any]) -> None:
        """Have others see this metadata, JSON, from now on.

        Raises LeaseLost when the lease is over; OutcomeUnknown when no node answered for a TTL:
        others may see the old or the new.
        """
        if self._runtime is None:
            raise NotHeld("this lease belongs to `lockd run`, which alone can change it")
        self._runtime.run(self._runtime.engine.update_meta(self, meta_text(meta)))

    def release(self) -> bool:
        """Give the lock back. True: it was held until now; False: it was lost or released before.

        Of a lease that was broken or has run into its max_hold this says that the work has stopped:
        the next holder need not wait for a TTL then. Raises OutcomeUnknown when no node answered
        while the session lived; the lock has ended with the session then. An interrupt stops the
        waiting, not the release.
        """
        if self._runtime is None:
            raise NotHeld("this lease belongs to `lockd run`, which releases it when this process ends")
        if self._runtime.engine.is_closed:
            self.leave()
            return False
        return self._runtime.run(self._runtime.engine.release(self))

    def wait_lost(self, timeout: float | None = None) -> bool:
        """Wait until the lease is over. True when it was lost; False when it was released, or when
        `timeout` seconds have passed."""
        over = threading.Event()
        self.grant.on_over(over.set)
        try:
            over.wait(timeout)
        finally:
            self.grant.forget(over.set)
        return self.lost


class LockBlock:
    """`with client.lock(...) as lease`. Holds the lock inside; see `Client.lock`."""

    def __init__(self, acquire: Callable[[], Lease], on_lost: OnLost) -> None:
        self._acquire = acquire
        self._on_lost = on_lost
        self._lease: Lease | None = None

    def __enter__(self) -> Lease:
        if self._lease is not None:
            raise RuntimeError("this block is entered already; make another with client.lock(...)")
        self._lease = self._acquire()
        return self._lease

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lease, self._lease = self._lease, None
        assert lease is not None, "left before it was entered"
        end = Exit(lease, self._on_lost)
        try:
            end.released(lease.release())
        except LockdError as unreleased:
            end.released(unreleased)
        if error is None and (lost := end.error()) is not None:
            raise lost
