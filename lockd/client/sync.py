"""The client for threads: a thin face of the engine, which runs on a private daemon thread.

One thread and one connection serve all threads of the program. It starts with the first use.
"""

import os
import ssl
import threading
import uuid
from collections.abc import Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

from lockd.client import clock, cluster, fork, inspection
from lockd.client.aio import async_block
from lockd.client.blocks import Exit, OnLostName, check_request
from lockd.client.decorator import Function, InstallsLease, Locked, LockedOrSkipped, OnBusy, lock_calls
from lockd.client.engine import Engine
from lockd.client.inspection import LockInfo, QueueInfo, SessionInfo
from lockd.client.lease import Grant, LeaseView, OnLost, inherited_grant
from lockd.client.options import ClientOptions
from lockd.client.owners import Owners
from lockd.client.portal import GiveBack, Portal
from lockd.client.queries import GrantReply, Query
from lockd.errors import LockdError, LockTimeout, NotHeld

T = TypeVar("T")


class _Runtime:
    """The private thread and the engine on it."""

    def __init__(self, options: ClientOptions) -> None:
        self.portal = Portal()
        self.engine = self.portal.run(_make_engine(options))

    def run(self, coroutine: Coroutine[Any, Any, T], give_back: GiveBack[T] | None = None) -> T:
        return self.portal.run(coroutine, give_back)

    def close(self) -> None:
        self.portal.run(self.engine.close())
        self.portal.stop()


async def _make_engine(options: ClientOptions) -> Engine:
    return Engine(options, clock.now)


class _FromTask:
    """The way from a task of some loop to the engine on the private thread."""

    def __init__(self, runtime: _Runtime) -> None:
        self.engine = runtime.engine
        self._portal = runtime.portal

    async def run(self, coroutine: Coroutine[Any, Any, T], give_back: GiveBack[T] | None = None) -> T:
        return await self._portal.run_from_task(coroutine, give_back)


class Lease(LeaseView):
    """A held lock. Safe to use from any thread."""

    def __init__(self, grant: Grant, runtime: _Runtime | None) -> None:
        super().__init__(grant, clock.now)
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

    def release(self) -> bool:
        """Give the lock back. True: it was held until now; False: it was lost or released before.

        Raises OutcomeUnknown when no node answered while the session lived; the lock has ended with
        the session then. An interrupt stops the waiting, not the release.
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

    def __init__(
        self, client: "Client", name: str, *, wait: float | None, meta: str, on_lost: OnLost
    ) -> None:
        self._client = client
        self._name = name
        self._wait = wait
        self._meta = meta
        self._on_lost = on_lost
        self._lease: Lease | None = None

    def __enter__(self) -> Lease:
        if self._lease is not None:
            raise RuntimeError("this block is entered already; make another with client.lock(...)")
        self._lease = self._client.acquire_as_thread(self._name, wait=self._wait, meta=self._meta)
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


class Client:
    """A client of a lockd cluster, for threads.

    `endpoints`: "host:port,host:port" or a list; default LOCKD_ENDPOINTS, else 127.0.0.1:7420. More
    nodes are learnt from the cluster. `ttl`: seconds after which the cluster passes our locks on
    when it hears nothing of us. `name`: what others see where we hold a lock. `tls`: True, or an
    SSLContext. `auth`: (user, password).

    Making it does no IO: the first use connects, opens the session and starts one daemon thread.
    `close()`, or `with`, ends the session and frees its locks at once; without that they end a TTL
    after the process. A forked child starts anew: what the parent holds is lost in the child (SAFETY K5).
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
        self._lock = threading.Lock()
        self._runtime: _Runtime | None = None
        self._is_closed = False
        fork.watch(self)

    def lock(
        self,
        name: str,
        *,
        wait: float | None = None,
        meta: Mapping[str, Any] | None = None,
        on_lost: Literal["raise", "flag"] = "raise",
    ) -> LockBlock:
        """Hold the lock `name` inside `with`; waits for ever unless `wait` (seconds) is given.

        `meta` is JSON that others see in `inspect`. The calling thread is the owner: entering
        again is counted, with the same token. When the lease is lost inside, leaving the block
        raises LeaseLost unless the body raised something; `on_lost="flag"` does not. A thread
        can't be interrupted, so there is no "cancel" here: look at `lease.lost`, or `lease.check()`.

        Entering raises LockTimeout, Unavailable (no node answered for a TTL), OutcomeUnknown,
        SessionExpired (the session ended while this waited), LeaseLost (this thread has lost this
        very lock in an outer block) or Rejected; nothing is held then.
        """
        return LockBlock(
            self, name, wait=wait, meta=check_request(name, wait, meta), on_lost=_not_cancel(OnLost(on_lost))
        )

    def acquire(
        self, name: str, *, wait: float | None = None, meta: Mapping[str, Any] | None = None
    ) -> Lease:
        """Hold the lock until `lease.release()`. Raises as entering `lock` does."""
        return self.acquire_as_thread(name, wait=wait, meta=check_request(name, wait, meta))

    def try_lock(self, name: str, *, meta: Mapping[str, Any] | None = None) -> Lease | None:
        """The lease if the lock is free now, else None. Raises as `lock`, but for LockTimeout."""
        try:
            return self.acquire(name, wait=0, meta=meta)
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
    ) -> Locked: ...
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
    ) -> LockedOrSkipped: ...
    def locked(
        self,
        name: str,
        *,
        wait: float | None = None,
        meta: Mapping[str, Any] | None = None,
        on_lost: OnLostName = "raise",
        on_busy: OnBusy = "raise",
        fence: InstallsLease | None = None,
    ) -> Locked | LockedOrSkipped:
        """Decorate a `def` or `async def`: each call holds the lock.

        `name` may use the arguments: "report:{user_id}". A call that does not get the lock within
        `wait` raises LockTimeout, or returns `lockd.SKIPPED` with `on_busy="skip"`. A parameter
        `*, lease: Lease = lockd.HELD` is given the lease (AsyncLease in an `async def`) and is
        hidden from callers. `fence` is installed right after the lock is held, before the body.

        An `async def` does not block its loop, and may use `on_lost="cancel"`; a `def` may not.
        Raises TypeError for generators, ValueError for a name that uses no argument of the function.
        """
        text = check_request(name, wait, meta)
        loses = OnLost(on_lost)

        def open_block(lock: str) -> LockBlock:
            return LockBlock(self, lock, wait=wait, meta=text, on_lost=_not_cancel(loses))

        def wrap(function: Function) -> Function:
            return lock_calls(
                function,
                name,
                open_block=open_block,
                open_async_block=lambda lock: async_block(
                    lambda: _FromTask(self._started()),
                    self._owners,
                    lock,
                    wait=wait,
                    meta=text,
                    on_lost=loses,
                ),
                on_busy=on_busy,
                fence=fence,
            )

        return LockedOrSkipped(wrap) if on_busy == "skip" else Locked(wrap)

    def inspect(self, name: str) -> LockInfo:
        """Who holds the lock, and how many wait: linearizable, but past by the time it is read."""
        return self.ask(inspection.inspect(name))

    def locks(self, prefix: str = "") -> list[LockInfo]:
        """The locks that are held or waited for, by name."""
        runtime = self._started()
        return runtime.run(runtime.engine.locks(prefix))

    def queue(self, name: str) -> QueueInfo:
        """Who waits for the lock, the next one first; of more than 1,000 waiters the first."""
        return self.ask(inspection.list_queue(name))

    def sessions(self) -> list[SessionInfo]:
        """The sessions that live, by number, and how much each holds and waits for."""
        runtime = self._started()
        return runtime.run(runtime.engine.sessions())

    def validate(self, name: str, token: int) -> str:
        """What has become of a grant: "current", "superseded" by a later one, or "free".

        Linearizable, but past by the time it is read: for a look, or to give up in time. It can't
        stand in for a fence, which compares and writes in one.
        """
        return self.ask(inspection.validate(name, token))

    def break_lock(self, name: str, token: int, *, reason: str, now: bool = False) -> bool:
        """Take that grant of the lock from whoever holds it. False: it was not held.

        The holder is told the reason; the lock is passed on when it has acknowledged that, when its
        session has ended, or a TTL later. `now` passes it on at once, though its holder may still
        trust its lease: two may work under the lock then, and only fences keep them apart (SAFETY
        P1). Needs the role `break` where there are users; raises AccessDenied without it.
        """
        return self.ask(inspection.break_grant(name, token, reason=reason, now=now)) == 1

    def status(self) -> dict[str, Any]:
        """Nodes, roles and log positions, as the node that answers knows them."""
        return self.ask(cluster.status())

    def ask(self, query: Query[T]) -> T:
        """Carry out a query of `lockd.client.queries`: keepalive or release of a private session, ..."""
        runtime = self._started()
        return runtime.run(runtime.engine.ask(query))

    def acquire_ttl(
        self,
        name: str,
        *,
        ttl: float,
        wait: float | None = 0,
        meta: Mapping[str, Any] | None = None,
        request: str | None = None,
    ) -> GrantReply:
        """Hold a lock in a session of its own, which nobody renews but `queries.keepalive(session)`.

        For scripts, whose processes end before the lease does. `request` is a UUID: the same one
        again finds the same grant. Raises as entering `lock` does.
        """
        text = check_request(name, wait, meta)
        runtime = self._started()
        request = request or str(uuid.uuid4())
        engine = runtime.engine
        return runtime.run(engine.acquire_private(name, ttl=ttl, wait=wait, request=request, meta=text))

    def close(self) -> None:
        """End the session: its locks are free at once, its leases lost, its waits over. Idempotent.

        Raises RuntimeError in a callback of `on_lost`, which can't wait for its client.
        """
        with self._lock:
            if self._runtime is not None:
                self._runtime.portal.check_may_wait()
            self._is_closed = True
            runtime, self._runtime = self._runtime, None
        if runtime is not None:
            runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def acquire_as_thread(self, name: str, *, wait: float | None, meta: str) -> Lease:
        """Acquire as the calling thread; `meta` is JSON text."""
        runtime = self._started()
        acquisition = runtime.engine.acquire(name, owner=self._owners.of_thread(), wait=wait, meta=meta)
        return Lease(runtime.run(acquisition, runtime.engine.give_back), runtime)

    def after_fork(self) -> object:
        """In a forked child: hold nothing, and leave the parent's thread and connection alone."""
        inherited, self._runtime = self._runtime, None
        self._lock = threading.Lock()
        self._owners.after_fork()
        return inherited

    def _started(self) -> _Runtime:
        if self._runtime is None or self._is_closed:
            with self._lock:
                if self._is_closed:
                    raise RuntimeError("the client was closed")
                if self._runtime is None:
                    self._runtime = _Runtime(self._options)
        return self._runtime


def _not_cancel(on_lost: OnLost) -> OnLost:
    if on_lost is OnLost.CANCEL:
        raise ValueError('a thread can\'t be cancelled: on_lost="cancel" is for async code')
    return on_lost
