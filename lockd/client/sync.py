"""The client for threads: a thin face of the engine, which runs on a private daemon thread.

One thread and one connection serve all threads of the program. It starts with the first use.
"""

import asyncio
import ssl
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self, TypeVar, overload

from lockd.client import cluster, fork, inspection
from lockd.client.blocks import OnLostName
from lockd.client.decorator import Function, InstallsLease, Locked, LockedOrSkipped, OnBusy, lock_calls
from lockd.client.demand import Demand
from lockd.client.election import Election
from lockd.client.feeds import Feed
from lockd.client.inspection import LockEvent, LockInfo, QueueInfo, SessionInfo
from lockd.client.lease import OnLost
from lockd.client.options import ClientOptions
from lockd.client.owners import Owners
from lockd.client.queries import GrantReply, Query
from lockd.client.tasks import AsyncBlock, AsyncLease, acquire_for_task
from lockd.client.threads import FromTask, Lease, LockBlock, Runtime
from lockd.errors import LockTimeout

T = TypeVar("T")
SyncOnLostName = Literal["raise", "flag"]


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
        self._runtime: Runtime | None = None
        self._is_closed = False
        fork.watch(self)

    def lock(
        self,
        name: str,
        *,
        wait: float | None = None,
        meta: Mapping[str, Any] | None = None,
        on_lost: SyncOnLostName = "raise",
        shared: bool = False,
        max_hold: float | None = None,
        delay: float | None = None,
    ) -> LockBlock:
        """Hold the lock `name` inside `with`; waits for ever unless `wait` (seconds) is given.

        `meta` is JSON that others see. The calling thread is the owner: entering again, in the same
        mode, is counted, with the same token. `shared`: others that share may hold it too. `max_hold`:
        the cluster ends the lease after so many seconds, however long its process lives. `delay`: if
        the session ends, or the lease is broken, nobody gets the lock for so many seconds after.

        The lease is lost when it can't be renewed in time, when the session is gone, or when it was
        broken or has run into `max_hold`. Then leaving the block raises LeaseLost unless the body
        raised something; `on_lost="flag"` does not. A thread can't be interrupted, so there is no
        "cancel" here: look at `lease.lost`, or `lease.check()`. A lock that was broken or held for
        too long is passed on when its block has been left, or else a TTL later.

        Entering raises LockTimeout, Deadlock, LimitMismatch (it is a semaphore), Unavailable (no
        node answered for a TTL), OutcomeUnknown, SessionExpired (the session ended while this
        waited), LeaseLost (this thread has lost this very lock in an outer block) or Rejected;
        nothing is held then.
        """
        demand = Demand.of_lock(name, wait=wait, meta=meta, shared=shared, max_hold=max_hold, delay=delay)
        return self._block(demand, on_lost)

    def lock_all(
        self,
        names: Iterable[str],
        *,
        wait: float | None = None,
        meta: Mapping[str, Any] | None = None,
        on_lost: SyncOnLostName = "raise",
    ) -> LockBlock:
        """Hold several locks inside `with`: all at once or none, in whichever order they are named.

        One lease: one token for all, and `lease.locks`. Entering again is counted for the same set
        of names alone. Raises as `lock`.
        """
        return self._block(Demand.of_all(names, wait=wait, meta=meta), on_lost)

    def semaphore(
        self,
        name: str,
        *,
        limit: int,
        weight: int = 1,
        wait: float | None = None,
        meta: Mapping[str, Any] | None = None,
        on_lost: SyncOnLostName = "raise",
        max_hold: float | None = None,
    ) -> LockBlock:
        """Hold `weight` of the `limit` units of a semaphore inside `with`.

        All who use it at a time must name the same limit; LimitMismatch else. It is never entered
        again: each block takes units of its own. Its lease has no fence. Raises as `lock`.
        """
        demand = Demand.of_semaphore(
            name, limit=limit, weight=weight, wait=wait, meta=meta, max_hold=max_hold
        )
        return self._block(demand, on_lost)

    def acquire(
        self,
        name: str,
        *,
        wait: float | None = None,
        meta: Mapping[str, Any] | None = None,
        shared: bool = False,
        max_hold: float | None = None,
        delay: float | None = None,
    ) -> Lease:
        """Hold the lock until `lease.release()`. Raises as entering `lock` does.

        Any thread may release it. So the cluster can't know who waits for whom, and does not look
        for deadlocks with what is held or waited for in this way: prefer blocks, or give `wait`.
        """
        demand = Demand.of_lock(name, wait=wait, meta=meta, shared=shared, max_hold=max_hold, delay=delay)
        return self._acquire(demand.to_hand_on())

    def try_lock(
        self,
        name: str,
        *,
        meta: Mapping[str, Any] | None = None,
        shared: bool = False,
        max_hold: float | None = None,
        delay: float | None = None,
    ) -> Lease | None:
        """The lease if the lock is free now, else None. Raises as `lock`, but for LockTimeout."""
        try:
            return self.acquire(name, wait=0, meta=meta, shared=shared, max_hold=max_hold, delay=delay)
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
    ) -> Locked: ...
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
    ) -> LockedOrSkipped: ...
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
    ) -> Locked | LockedOrSkipped:
        """Decorate a `def` or `async def`: each call holds the lock.

        `name` may use the arguments: "report:{user_id}". A call that does not get the lock within
        `wait` raises LockTimeout, or returns `lockd.SKIPPED` with `on_busy="skip"`. A parameter
        `*, lease: Lease = lockd.HELD` is given the lease (AsyncLease in an `async def`) and is
        hidden from callers. `fence` is installed right after the lock is held, before the body.
        The rest is as in `lock`. The body runs in the caller's own thread or task, and context.

        An `async def` does not block its loop, and may use `on_lost="cancel"`; a `def` may not.
        Raises TypeError for generators and for a lease parameter with positional ones behind it,
        ValueError for a name that uses no argument of the function.
        """
        demand = Demand.of_lock(name, wait=wait, meta=meta, shared=shared, max_hold=max_hold, delay=delay)
        loses = OnLost(on_lost)

        def wrap(function: Function) -> Function:
            return lock_calls(
                function,
                name,
                open_block=lambda lock: self._block(demand.named(lock), on_lost),
                open_async_block=lambda lock: AsyncBlock(
                    lambda: self._acquire_for_task(demand.named(lock)), loses
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

    def watch(self, prefix: str = "", *, revision: int | None = None) -> Feed[LockEvent]:
        """What happens to locks whose names begin with `prefix`, as it happens: `for event in ...`.

        From when the block is entered (`with client.watch(...) as events`) or the first event asked
        for; or all after `revision`, which `inspect`, `queue` and earlier events have. Events come
        in order, none is lost and none comes twice, whichever nodes die meanwhile; while none
        answers, it waits. The watch's own connection serves it, and a client that is slow to take
        its events costs nobody else anything.

        Beginning raises Unavailable when no node answers for a TTL. Iterating raises WatchGone when
        the cluster has forgotten events that were not taken yet: look at the locks, and watch again
        from there. `close()`, from any thread, ends the iteration, and so does the client's.
        """
        return Feed(self._started, lambda engine: engine.watch(prefix, revision), revision=revision)

    def election(self, name: str, *, value: Any = None) -> Election:
        """A candidate in the election `name`, a lock: `client.election("cron", value="host-a").run(lead)`.

        `value`, JSON, is what observers see while it leads. `lockd.client.election` says which
        guarantees hold.
        """
        return Election(self._started, self._owners.of_thread, name, value)

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
        shared: bool = False,
        max_hold: float | None = None,
        delay: float | None = None,
        limit: int | None = None,
        weight: int = 1,
        request: str | None = None,
    ) -> GrantReply:
        """Hold a lock in a session of its own, which nobody renews but `queries.keepalive(session)`.

        For scripts, whose processes end before the lease does. With `limit` it is `weight` units of
        a semaphore. `request` is a UUID: the same one
        again finds the same grant. Raises as entering `lock` does.
        """
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
        runtime = self._started()
        request = request or str(uuid.uuid4())
        return runtime.run(runtime.engine.acquire_private(demand, ttl=ttl, request=request))

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

    def after_fork(self) -> object:
        """In a forked child: hold nothing, and leave the parent's thread and connection alone."""
        inherited, self._runtime = self._runtime, None
        self._lock = threading.Lock()
        self._owners.after_fork()
        return inherited

    def _block(self, demand: Demand, on_lost: OnLostName) -> LockBlock:
        if (loses := OnLost(on_lost)) is OnLost.CANCEL:
            raise ValueError('a thread can\'t be cancelled: on_lost="cancel" is for async code')
        return LockBlock(lambda: self._acquire(demand), loses)

    def _acquire(self, demand: Demand) -> Lease:
        runtime = self._started()
        acquisition = runtime.engine.acquire(demand, owner=self._owners.of_thread())
        return Lease(runtime.run(acquisition, runtime.engine.give_back), runtime)

    async def _acquire_for_task(self, demand: Demand) -> AsyncLease:
        # Starting the thread is not for the task's loop to wait for.
        runtime = self._runtime
        if runtime is None:
            runtime = await asyncio.to_thread(self._started)
        return await acquire_for_task(FromTask(runtime), self._owners, demand)

    def _started(self) -> Runtime:
        if self._runtime is None or self._is_closed:
            with self._lock:
                if self._is_closed:
                    raise RuntimeError("the client was closed")
                if self._runtime is None:
                    self._runtime = Runtime(self._options)
        return self._runtime
