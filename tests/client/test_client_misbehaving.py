"""Both clients against a cluster that keeps its word, behind a node that does not (K1 to K4, K7, P1).

Whatever the node loses, delays, repeats, swaps, garbles or makes up: what a lease calls held is held, by
that session and under that token, on the cluster's own clock; every call ends; and when all was given
up, nothing is held or waited for.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

import lockd
from lockd import AsyncLease, Lease
from lockd.client import clock
from lockd.client.engine import Engine
from tests.client.wild import STRANGE, STRANGE_PUSHES, TTL_MS, Mischief, WildPeer

T = TypeVar("T")

PATIENCE_S = 0.5
"""The TTL that the clients ask for, and how long they wait for an answer; the node grants more."""
CALL_S_MAX = 10.0
"""Within this every call has ended, by far."""
TURN_S = 0.005
"""The loop turns for so long; nothing depends on how far that gets."""
VERBS = ["", "SESSION.OPEN", "SESSION.KEEPALIVE", "LOCK.ACQUIRE", "LOCK.CANCEL", "LOCK.RELEASE"]

waits = st.sampled_from([0.0, 0.05])
locks = st.sampled_from(["a", "b"])


class Clients(RuleBasedStateMachine):
    """Two clients, of tasks and of threads, and one loop that turns while a rule runs."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.peer = WildPeer()
        self.stack = contextlib.ExitStack()
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(clock, "now", lambda: self.peer.now)
        self.do(self.peer.listen(0))
        self.tasks = lockd.AsyncClient(self.peer.endpoint, ttl=PATIENCE_S)
        self.threads = lockd.Client(self.peer.endpoint, ttl=PATIENCE_S)
        self.leases: list[AsyncLease | Lease] = []
        self.waiting: list[asyncio.Task[AsyncLease]] = []

    def do(self, action: Coroutine[Any, Any, T]) -> T:
        """Run it to its end, which must come."""
        return self.loop.run_until_complete(asyncio.wait_for(action, CALL_S_MAX))

    async def attempt(self, call: Awaitable[AsyncLease | Lease]) -> None:
        with contextlib.suppress(lockd.LockdError):
            self.leases.append(await call)

    def engines(self) -> list[Engine]:
        """Those of both clients, as far as they have begun."""
        direct, runtime = self.tasks._direct, self.threads._runtime
        return [each.engine for each in (direct, runtime) if each is not None]

    async def on_loop_of(self, engine: Engine, action: Callable[[], T]) -> T:
        if engine._loop is self.loop:
            return action()
        done: asyncio.Future[T] = self.loop.create_future()

        def act() -> None:
            result = action()
            self.loop.call_soon_threadsafe(done.set_result, result)

        engine._loop.call_soon_threadsafe(act)
        return await done

    # What the clients are asked for.

    @rule(lock=locks, shared=st.booleans(), wait=waits, kind=st.none() | st.sampled_from(Mischief))
    def acquire_in_a_task(self, lock: str, shared: bool, wait: float, kind: Mischief | None) -> None:
        if kind is not None:
            self.peer.make_mischief("LOCK.ACQUIRE", kind, STRANGE[len(self.leases) % len(STRANGE)])
        task = self.loop.create_task(self.tasks.acquire(lock, wait=wait, shared=shared))
        self.do(self.attempt(task))

    @rule(kind=st.sampled_from([Mischief.DISORDER, Mischief.TWICE]), wait=waits)
    def acquire_both_at_once(self, kind: Mischief, wait: float) -> None:
        self.peer.make_mischief("LOCK.ACQUIRE", kind)
        calls = [self.loop.create_task(self.tasks.acquire(lock, wait=wait)) for lock in ("a", "b")]
        self.do(asyncio.wait(calls, timeout=CALL_S_MAX))
        for call in calls:
            self.do(self.attempt(call))

    @rule(wait=waits)
    def acquire_all_in_a_task(self, wait: float) -> None:
        block = self.tasks.lock_all(["b", "a"], wait=wait)
        self.do(self.attempt(self.loop.create_task(block.__aenter__())))

    @rule(lock=locks, shared=st.booleans(), wait=waits)
    def acquire_in_a_thread(self, lock: str, shared: bool, wait: float) -> None:
        self.do(self.attempt(asyncio.to_thread(self.threads.acquire, lock, wait=wait, shared=shared)))

    @rule(lock=locks)
    def begin_to_wait(self, lock: str) -> None:
        self.waiting.append(self.loop.create_task(self.tasks.acquire(lock)))
        self.do(asyncio.sleep(TURN_S))

    @rule(number=st.integers(0, 10), is_cancelled=st.booleans())
    def end_a_wait(self, number: int, is_cancelled: bool) -> None:
        if not self.waiting:  # no precondition: what there is depends on how fast this machine is
            return
        waiting = self.waiting[number % len(self.waiting)]
        if is_cancelled:
            waiting.cancel()
        elif not waiting.done():
            return
        self.waiting.remove(waiting)
        with contextlib.suppress(asyncio.CancelledError):
            self.do(self.attempt(waiting))

    @rule(number=st.integers(0, 10))
    def release(self, number: int) -> None:
        if self.leases:
            self.do(self.given_back(self.leases.pop(number % len(self.leases))))

    async def given_back(self, lease: AsyncLease | Lease) -> None:
        with contextlib.suppress(lockd.OutcomeUnknown, TimeoutError):
            # Its session lives for ever on the clock that stands still: nobody waits for the answer.
            async with asyncio.timeout(0.2):
                await (lease.release() if isinstance(lease, AsyncLease) else asyncio.to_thread(lease.release))

    @rule()
    def renew(self) -> None:
        for engine in self.engines():
            self.do(self.on_loop_of(engine, engine._keeper.renew_now))
        self.do(asyncio.sleep(TURN_S))

    @rule(seconds=st.sampled_from([0.5, 4.0, 9.85]))
    def renew_slowly(self, seconds: float) -> None:
        self.peer.make_mischief("SESSION.KEEPALIVE", Mischief.LATE)
        self.renew()
        self.peer.advance(seconds)
        self.late_answers_come()

    # What happens to them.

    @rule(verb=st.sampled_from(VERBS), kind=st.sampled_from(Mischief), strange=st.sampled_from(STRANGE))
    def make_mischief(self, verb: str, kind: Mischief, strange: Any) -> None:
        self.peer.make_mischief(verb, kind, strange)

    @rule(
        kind=st.sampled_from(["lock.granted", "lock.timeout", "lock.event"]),
        message=st.sampled_from(STRANGE_PUSHES),
    )
    def push(self, kind: str, message: Any) -> None:
        self.peer.push(kind, message)
        self.do(asyncio.sleep(TURN_S))

    @rule(lock=locks, goes_on=st.booleans())
    def revoke(self, lock: str, goes_on: bool) -> None:
        """And, if the clients go on renewing, until the lock is passed on without them."""
        self.peer.revoke(lock)
        for _ in range(2 if goes_on else 0):
            self.renew()
            self.peer.advance(6.0)

    @rule(seconds=st.sampled_from([0.5, 4.0, 9.85, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.peer.advance(seconds)

    @rule()
    def connections_end(self) -> None:
        self.peer.hang_up()

    @rule()
    def late_answers_come(self) -> None:
        self.peer.say_late()
        self.do(asyncio.sleep(TURN_S))

    # What must hold.

    @invariant()
    def p1_what_is_called_held_is_held(self) -> None:
        done = [
            task for task in self.waiting if task.done() and not task.cancelled() and not task.exception()
        ]
        for lease in [*self.leases, *[task.result() for task in done]]:
            remaining = lease.remaining()
            if remaining > 0:
                session = lease.grant.session
                assert self.peer.is_held(session, lease.locks, lease.token), f"{lease} is not held"
                assert self.peer.now + remaining < self.peer.lives_until(session), (
                    f"{lease} outlives its session"
                )

    @invariant()
    def sessions_are_in_order(self) -> None:
        for engine in self.engines():
            self.do(self.on_loop_of(engine, lambda engine=engine: check(engine)))  # type: ignore[misc]

    def teardown(self) -> None:
        try:
            self.peer.behave()
            for task in self.waiting:
                task.cancel()
            self.do(self.all_given_up())
            self.do(asyncio.to_thread(self.threads.close))
            self.do(self.tasks.close())
            self.peer.advance(TTL_MS / 1000)
            assert self.peer.is_idle(), "held or waited for when every session is over"
        finally:
            self.do(self.peer.stop())
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            self.stack.close()

    async def all_given_up(self) -> None:
        """K4: in the sessions that live, nothing is held or waited for, without anybody closing them."""
        for task in self.waiting:
            with contextlib.suppress(lockd.LockdError, asyncio.CancelledError):
                self.leases.append(await task)
        for lease in self.leases:
            await self.given_back(lease)
        while any(  # noqa: ASYNC110 - the clients have no event for that
            self.peer.is_busy(session.id) for engine in self.engines() if (session := engine._keeper.session)
        ):
            await asyncio.sleep(0.01)  # until what was withdrawn has arrived


def check(engine: Engine) -> None:
    if engine._keeper.session is not None:
        engine._keeper.session.check_invariants()


def test_whatever_a_node_says_what_is_called_held_is_held_and_every_call_ends() -> None:
    # Sockets and threads take their own time: a shorter example would be another run, not the same one.
    phases = (Phase.generate,)
    run_state_machine_as_test(
        Clients, settings=settings(max_examples=20, stateful_step_count=20, deadline=None, phases=phases)
    )
