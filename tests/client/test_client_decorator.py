"""The `locked` decorator: names, injection, signatures, types, and what it refuses."""

import asyncio
import contextvars
import functools
import inspect
import threading
import typing
from collections.abc import Iterator
from typing import assert_type

import pytest

import lockd
from lockd import HELD, SKIPPED, AsyncLease, Lease, Skipped
from tests.client.threaded import ThreadedListener, threaded_listener

client = lockd.Client("127.0.0.1:1")
"""Never used for IO: decorating does none."""


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadedListener]:
    with threaded_listener() as found:
        yield found


class Recorder:
    """Takes leases as a fence does."""

    def __init__(self) -> None:
        self.installed: list[int] = []

    def install(self, lease: lockd.Lease, /) -> None:
        assert lease.remaining() > 0
        self.installed.append(lease.token)


class AsyncRecorder(Recorder):
    async def install(self, lease: lockd.Lease, /) -> None:  # type: ignore[override] # awaited instead
        await asyncio.sleep(0)
        super().install(lease)


async def queue_length(observer: lockd.Client, lock: str, expected: int) -> None:
    """Let the loop turn until so many wait for the lock."""
    async with asyncio.timeout(10):
        while observer.inspect(lock).queue_length != expected:  # noqa: ASYNC110 - the node has no event
            await asyncio.sleep(0)


def test_a_call_holds_the_lock_that_its_arguments_name(server: ThreadedListener) -> None:
    with lockd.Client(server.endpoint) as locks:

        @locks.locked("report:{user_id}:{kind}", wait=1)
        def report(user_id: int, kind: str = "day", *, lease: Lease = HELD) -> str:
            """Its own text."""
            assert lease.lock == f"report:{user_id}:{kind}"
            return locks.inspect(lease.lock).status

        assert report(7) == "held"
        assert report(kind="week", user_id=8) == "held"
        assert locks.inspect("report:7:day").status == "free"
        assert (report.__name__, report.__doc__) == ("report", "Its own text.")
        with pytest.raises(TypeError):
            report()  # type: ignore[call-arg] # that is what is tested
        with pytest.raises(TypeError, match="filled in"):
            report(7, lease=HELD)


def test_callers_and_frameworks_do_not_see_the_lease() -> None:
    @client.locked("k:{user_id}")
    def report(user_id: "int", *, full: bool = False, lease: Lease = HELD) -> "str":
        return f"{user_id} {full} {lease}"

    signature = inspect.signature(report)
    assert list(signature.parameters) == ["user_id", "full"]
    assert signature.parameters["user_id"].annotation is int
    assert signature.return_annotation is str
    assert "lease" not in typing.get_type_hints(report)


def test_busy_is_skipped_only_when_asked_for(server: ThreadedListener) -> None:
    with lockd.Client(server.endpoint) as locks, lockd.Client(server.endpoint) as other:

        @locks.locked("busy", wait=0, on_busy="skip")
        def skipping() -> int:
            return 1

        @locks.locked("busy", wait=0)
        def raising() -> int:
            return 1

        @locks.locked("free", on_busy="skip")
        def failing() -> int:
            raise lockd.LockTimeout("the body's own")

        assert skipping() == 1
        with other.lock("busy"):
            assert skipping() is SKIPPED
            with pytest.raises(lockd.LockTimeout):
                raising()
        with pytest.raises(lockd.LockTimeout, match="own"):
            failing()


def test_the_fence_is_installed_before_the_body_under_the_same_lease(server: ThreadedListener) -> None:
    fence = Recorder()
    with lockd.Client(server.endpoint) as locks:

        @locks.locked("fenced", fence=fence)
        def work(*, lease: Lease = HELD) -> int:
            assert fence.installed[-1] == lease.token
            return lease.token

        assert [work(), work()] == fence.installed


def test_an_async_def_under_a_sync_client_does_not_block_its_loop(server: ThreadedListener) -> None:
    fence = AsyncRecorder()
    with lockd.Client(server.endpoint) as locks, lockd.Client(server.endpoint) as other:

        @locks.locked("shared:{key}", fence=fence)
        async def work(key: int, *, lease: AsyncLease = HELD) -> int:
            assert isinstance(lease, AsyncLease)
            await lease.check(1.0)
            assert lease.lock == f"shared:{key}"
            return lease.token

        async def main() -> None:
            held = other.acquire("shared:1")
            waiting = asyncio.create_task(work(1))
            await queue_length(other, "shared:1", 1)  # the loop turns while the task waits
            held.release()
            assert await waiting > held.token
            assert inspect.iscoroutinefunction(work)

        asyncio.run(main())


def test_k5_a_fence_that_blocks_does_not_block_the_loop(server: ThreadedListener) -> None:
    """A storage adapter of the sync kind, installed for an `async def`: renewals must go on meanwhile."""

    class Slow:
        def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
            self._loop = loop

        def install(self, lease: AsyncLease, /) -> None:
            turned = threading.Event()
            self._loop.call_soon_threadsafe(turned.set)
            assert turned.wait(5), "the loop stood still while the fence was installed"
            assert lease.remaining() > 0

    async def main() -> str:
        async with lockd.AsyncClient(server.endpoint) as locks:

            @locks.locked("slow", fence=Slow(asyncio.get_running_loop()))
            async def work() -> str:
                return "done"

            return await work()

    assert asyncio.run(main()) == "done"


def test_the_first_call_of_an_async_def_does_not_wait_for_a_thread_to_start(server: ThreadedListener) -> None:
    with lockd.Client(server.endpoint) as locks:

        @locks.locked("first")
        async def work() -> str:
            return "done"

        async def main() -> None:
            with locks._lock:  # another thread is about to start it
                calling = asyncio.create_task(work())
                for _ in range(10):
                    await asyncio.sleep(0)
                assert locks._runtime is None
                assert not calling.done()
            assert await calling == "done"

        asyncio.run(main())


def test_k4_cancelling_an_async_def_under_a_sync_client_withdraws_its_wait(server: ThreadedListener) -> None:
    with lockd.Client(server.endpoint) as locks, lockd.Client(server.endpoint) as other:

        @locks.locked("cancelled")
        async def work() -> None: ...

        async def main() -> None:
            held = other.acquire("cancelled")
            waiting = asyncio.create_task(work())
            await queue_length(other, "cancelled", 1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await queue_length(other, "cancelled", 0)
            held.release()

        asyncio.run(main())


def test_an_async_client_decorates_async_functions_alone(server: ThreadedListener) -> None:
    async def main() -> None:
        async with lockd.AsyncClient(server.endpoint) as locks:
            with pytest.raises(TypeError, match="no `async def`"):
                locks.locked("k")(lambda: None)  # type: ignore[arg-type,return-value] # refused

            @locks.locked("a:{n}", on_busy="skip")
            async def work(n: int, *, lease: AsyncLease = HELD) -> str:
                return f"{n} {lease.lock}"

            assert await work(3) == "3 a:3"

    asyncio.run(main())


def test_what_cannot_be_decorated_is_refused_at_once() -> None:
    def stream() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match="generator"):
        client.locked("k")(stream)
    with pytest.raises(ValueError, match="no parameter who"):
        client.locked("k:{who}")(test_what_cannot_be_decorated_is_refused_at_once)
    with pytest.raises(ValueError, match="named"):
        client.locked("k:{}")(test_what_cannot_be_decorated_is_refused_at_once)
    with pytest.raises(ValueError, match="on_busy"):
        client.locked("k", on_busy="wait")(stream)  # type: ignore[call-overload] # refused
    with pytest.raises(ValueError, match="wait is in seconds"):
        client.locked("k", wait=-1)

    def sync() -> None: ...

    with pytest.raises(ValueError, match="can't be cancelled"):
        client.locked("k", on_lost="cancel")(sync)()


class Sender:
    """An object that is called, and whose call is awaited."""

    async def __call__(self, number: int, *, lease: AsyncLease = HELD) -> str:
        await lease.check(1.0)
        return f"{number} {lease.lock}"


def test_an_object_with_an_async_call_is_awaited_under_the_lock(server: ThreadedListener) -> None:
    async def main() -> None:
        with lockd.Client(server.endpoint) as locks:
            assert await locks.locked("sent:{number}")(Sender())(3) == "3 sent:3"
            partial = functools.partial(Sender(), 4)
            assert await locks.locked("partial")(partial)() == "4 partial"
        async with lockd.AsyncClient(server.endpoint) as tasks:
            assert await tasks.locked("sent:{number}")(Sender())(5) == "5 sent:5"

    asyncio.run(main())


def test_a_plain_function_whose_body_would_run_without_the_lock_is_refused(server: ThreadedListener) -> None:
    async def body() -> None: ...

    with lockd.Client(server.endpoint) as locks:

        @locks.locked("k")
        def starts_it() -> typing.Any:
            return body()

        with pytest.raises(TypeError, match="would run without the lock"):
            starts_it()
        assert locks.inspect("k").status == "free"


def test_a_lease_that_callers_could_fill_in_by_accident_is_refused() -> None:
    def before_another(lease: Lease = HELD, user: int = 0) -> None: ...
    def before_many(lease: Lease = HELD, *users: int) -> None: ...
    def positional_alone(lease: Lease = HELD, /) -> None: ...
    def two(*, lease: Lease = HELD, other: Lease = HELD) -> None: ...
    def last(user: int = 0, lease: Lease = HELD, **more: int) -> None: ...

    with pytest.raises(TypeError, match="'user' would be taken for the lease"):
        client.locked("k")(before_another)
    with pytest.raises(TypeError, match="'users' would be taken for the lease"):
        client.locked("k")(before_many)
    with pytest.raises(TypeError, match="by keyword"):
        client.locked("k")(positional_alone)
    with pytest.raises(TypeError, match="only one parameter"):
        client.locked("k")(two)
    assert list(inspect.signature(client.locked("k")(last)).parameters) == ["user", "more"]


def test_what_is_no_function_is_refused_by_its_name() -> None:
    with pytest.raises(TypeError, match="goes above the lock's decorator"):
        client.locked("k")(classmethod(lambda _: None))  # type: ignore[type-var] # refused


def test_the_body_runs_in_its_callers_context_and_thread(server: ThreadedListener) -> None:
    tenant = contextvars.ContextVar[str]("tenant")
    with lockd.Client(server.endpoint) as locks:

        @locks.locked("context")
        def plain() -> tuple[str, int]:
            found = tenant.get()
            tenant.set(f"{found}, seen by plain")
            return found, threading.get_ident()

        @locks.locked("context")
        async def awaited() -> tuple[str, asyncio.Task[typing.Any] | None]:
            found = tenant.get()
            tenant.set(f"{found}, seen by awaited")
            return found, asyncio.current_task()

        async def main() -> None:
            tenant.set("acme")
            assert plain() == ("acme", threading.get_ident())
            assert await awaited() == ("acme, seen by plain", asyncio.current_task())
            assert tenant.get() == "acme, seen by plain, seen by awaited"

        asyncio.run(main())


def test_names_may_look_into_arguments_and_keyword_arguments(server: ThreadedListener) -> None:
    with lockd.Client(server.endpoint) as locks:

        class Account:
            def __init__(self, number: int) -> None:
                self.number = number

            @locks.locked("account:{self.number}:{note}")
            def close(self, lease: Lease = HELD, **notes: str) -> str:
                assert notes
                return lease.lock

        assert Account(5).close(note="x") == "account:5:x"


def test_types_are_kept() -> None:
    """Checked by mypy; run, they say what the decorators are."""

    @client.locked("k")
    def plain(user: int, *, full: bool = False, lease: Lease = HELD) -> str:
        return f"{user} {full} {lease}"

    @client.locked("k", on_busy="skip")
    def skipping(user: int) -> str:
        return str(user)

    @client.locked("k", on_busy="skip")
    async def skipping_async(user: int) -> str:
        return str(user)

    @lockd.AsyncClient("127.0.0.1:1").locked("k")
    async def plain_async(user: int) -> str:
        return str(user)

    if typing.TYPE_CHECKING:
        assert_type(plain(1, full=True), str)
        assert_type(skipping(1), str | Skipped)

        async def check() -> None:
            assert_type(await skipping_async(1), str | Skipped)
            assert_type(await plain_async(1), str)

        plain("one")  # type: ignore[arg-type]
    assert all(callable(function) for function in (plain, skipping, skipping_async, plain_async))
