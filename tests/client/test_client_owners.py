"""Threads and tasks are owners: a crowd on one client and one name, re-entry, loss, interrupts, forks."""

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

import lockd
from lockd.client import queries
from lockd.client.queries import close_session
from tests.client.threaded import ThreadedListener, threaded_listener

CROWD = 100


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadedListener]:
    with threaded_listener() as found:
        yield found


class Room:
    """Notes who is inside, and every token."""

    def __init__(self) -> None:
        self.inside = 0
        self.most = 0
        self.tokens: list[int] = []

    def enter(self, token: int) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.tokens.append(token)

    def leave(self) -> None:
        self.inside -= 1


def test_a_hundred_threads_on_one_client_and_one_name_never_meet(server: ThreadedListener) -> None:
    room = Room()
    with lockd.Client(server.endpoint) as client:

        def work() -> None:
            with client.lock("crowd") as lease:
                room.enter(lease.token)
                threading.Event().wait(0.001)
                room.leave()

        threads = [threading.Thread(target=work) for _ in range(CROWD)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert room.most == 1
    assert len(room.tokens) == CROWD
    assert room.tokens == sorted(set(room.tokens))


def test_a_hundred_tasks_on_one_client_and_one_name_never_meet(server: ThreadedListener) -> None:
    room = Room()

    async def main() -> None:
        async with lockd.AsyncClient(server.endpoint) as client:

            async def work() -> None:
                async with client.lock("crowd") as lease:
                    room.enter(lease.token)
                    await asyncio.sleep(0.001)
                    room.leave()

            await asyncio.gather(*[work() for _ in range(CROWD)])

    asyncio.run(main())
    assert room.most == 1
    assert len(room.tokens) == CROWD
    assert room.tokens == sorted(set(room.tokens))


def test_g3_a_name_that_cannot_be_sent_shifts_nobody_elses_answer(server: ThreadedListener) -> None:
    """Its place among the expected replies once gave the lock after it to whoever was refused before."""

    async def main() -> None:
        async with lockd.AsyncClient(server.endpoint) as other, lockd.AsyncClient(server.endpoint) as client:
            await other.acquire("taken")
            await client.acquire("warm")
            unsendable, taken, free = await asyncio.gather(
                client.try_lock("file-\udcff"),  # as os.listdir() names a file whose name is no UTF-8
                client.try_lock("taken"),
                client.try_lock("free"),
                return_exceptions=True,
            )
            assert isinstance(unsendable, ValueError)
            assert taken is None
            assert isinstance(free, lockd.AsyncLease)
            assert free.token == (await client.inspect("free")).holders[0].token

    asyncio.run(main())


def test_a_name_that_cannot_be_sent_is_refused_before_a_node_is_reached() -> None:
    with lockd.Client("127.0.0.1:1", ttl=0.5) as client, pytest.raises(ValueError, match="surrogates"):
        client.acquire_ttl("file-\udcff", ttl=1)


def test_tasks_and_threads_of_one_client_exclude_each_other(server: ThreadedListener) -> None:
    room = Room()
    with lockd.Client(server.endpoint) as client:

        @client.locked("mixed")
        async def as_task(*, lease: lockd.AsyncLease = lockd.HELD) -> None:
            room.enter(lease.token)
            await asyncio.sleep(0.001)
            room.leave()

        @client.locked("mixed")
        def as_thread(*, lease: lockd.Lease = lockd.HELD) -> None:
            room.enter(lease.token)
            room.leave()

        async def main() -> None:
            threads = [asyncio.to_thread(as_thread) for _ in range(20)]
            await asyncio.gather(*[as_task() for _ in range(20)], *threads)

        asyncio.run(main())
    assert (room.most, len(room.tokens)) == (1, 40)


def test_reentry_is_the_owners_alone_and_keeps_the_token(server: ThreadedListener) -> None:
    with lockd.Client(server.endpoint) as client:
        with client.lock("twice") as outer:
            with client.lock("twice", wait=0) as inner:
                assert inner.token == outer.token
                found: list[lockd.Lease | None] = []
                other = threading.Thread(target=lambda: found.append(client.try_lock("twice")))
                other.start()
                other.join()
                assert found == [None]
            assert client.inspect("twice").status == "held"
            assert not outer.lost
        assert client.inspect("twice").status == "free"


def test_an_owner_is_never_used_again() -> None:
    client = lockd.Client("127.0.0.1:1")
    owners: list[str] = []
    for _ in range(50):  # the system reuses idents of threads that are over
        thread = threading.Thread(target=lambda: owners.append(client._owners.of_thread()))
        thread.start()
        thread.join()
    assert len(set(owners)) == 50

    async def main() -> None:
        async def note() -> None:
            owners.append(client._owners.of_task())
            assert client._owners.of_task() == owners[-1]

        for _ in range(50):
            await asyncio.create_task(note())

    asyncio.run(main())
    assert len(set(owners)) == 100


def test_a_lease_may_be_released_by_another_thread(server: ThreadedListener) -> None:
    with lockd.Client(server.endpoint) as client:
        lease = client.acquire("handed")
        released: list[bool] = []
        thread = threading.Thread(target=lambda: released.append(lease.release()))
        thread.start()
        thread.join()
        assert released == [True]
        assert not lease.release()
        with pytest.raises(lockd.LeaseLost, match="it was released"):
            lease.check()


def end_sessions(server: ThreadedListener, client: lockd.Client) -> None:
    """As the cluster does when the TTL has passed; the client's next keepalive, sent now, finds out."""
    runtime = client._runtime
    assert runtime is not None
    keeper = runtime.engine._keeper
    assert keeper.session is not None
    with lockd.Client(server.endpoint) as other:
        other.ask(close_session(keeper.session.id))

    async def renew() -> None:
        keeper.renew_now()

    runtime.run(renew())


def test_a_thread_is_told_of_a_loss_at_once_and_at_the_end_of_its_block(server: ThreadedListener) -> None:
    with lockd.Client(server.endpoint) as client:
        told, late = threading.Event(), threading.Event()

        def work() -> None:
            with client.lock("lost") as lease:
                lease.on_lost(told.set)
                assert not lease.wait_lost(timeout=0)
                end_sessions(server, client)
                assert lease.wait_lost(timeout=10)
                assert told.wait(10)
                with pytest.raises(lockd.LeaseLost, match="no such session"):
                    lease.check()
                lease.on_lost(late.set)
                assert late.is_set()

        with pytest.raises(lockd.LeaseLost, match="no such session"):
            work()
        with client.lock("lost") as again:
            assert not again.lost


def test_a_callback_that_fails_or_waits_for_the_client_harms_nobody(
    server: ThreadedListener, caplog: pytest.LogCaptureFixture
) -> None:
    with lockd.Client(server.endpoint) as client:
        first, second = client.acquire("one"), client.acquire("two")
        first.on_lost(lambda: client.inspect("one"))
        told = threading.Event()
        second.on_lost(told.set)
        end_sessions(server, client)
        assert told.wait(10)
        assert first.wait_lost(10)
        client.inspect("one")  # its thread has done with the callbacks
        assert "a callback can't wait for its client" in caplog.text


def test_wait_lost_ends_with_the_release_too(server: ThreadedListener) -> None:
    with lockd.Client(server.endpoint) as client:
        lease = client.acquire("waited")
        found: list[bool] = []
        thread = threading.Thread(target=lambda: found.append(lease.wait_lost()))
        thread.start()
        lease.release()
        thread.join(10)
        assert found == [False]


def test_who_stops_waiting_for_a_loss_leaves_nothing_behind(server: ThreadedListener) -> None:
    """A worker that waits a second at a time, for days, must not fill the memory."""
    with lockd.Client(server.endpoint) as client, client.lock("polled") as lease:
        before = list(lease.grant._on_over)
        assert not lease.wait_lost(0.001)
        assert lease.grant._on_over == before


def test_a_callback_that_may_not_close_its_client_leaves_it_open(server: ThreadedListener) -> None:
    refused: Future[None] = Future()
    client = lockd.Client(server.endpoint, ttl=3)
    lease = client.acquire("closed by a callback")

    def close() -> None:
        try:
            client.close()
            refused.set_result(None)
        except RuntimeError as error:
            refused.set_exception(error)

    lease.on_lost(close)
    client.ask(close_session(lease.grant.session))
    with pytest.raises(RuntimeError, match="can't wait for its client"):
        refused.result(10)
    assert client.acquire("after it").release()
    client.close()
    with pytest.raises(RuntimeError, match="the client was closed"):
        client.acquire("after it")


def test_closing_frees_everything_at_once_and_ends_the_waits(server: ThreadedListener) -> None:
    client = lockd.Client(server.endpoint)
    held = client.acquire("closing")
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            client.acquire("closing")
        except lockd.LockdError as error:
            failures.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while not client.inspect("closing").queue_length:
        pass
    client.close()
    client.close()
    thread.join(10)
    assert held.lost
    assert not held.release()
    assert [type(failure) for failure in failures] == [lockd.SessionExpired]
    with pytest.raises(RuntimeError, match="closed"):
        client.acquire("closing")
    with lockd.Client(server.endpoint) as other:
        assert other.inspect("closing").status == "free"


def test_k4_an_interrupt_while_waiting_withdraws_the_wait(server: ThreadedListener) -> None:
    with lockd.Client(server.endpoint) as client, lockd.Client(server.endpoint) as other:
        held = other.acquire("interrupted")

        def interrupt() -> None:
            while not other.inspect("interrupted").queue_length:
                pass
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            client.acquire("interrupted")
        thread.join()
        while other.inspect("interrupted").queue_length:
            pass
        held.release()
        assert client.inspect("interrupted").status == "free"


def test_a_thread_cannot_be_cancelled_and_is_told_so() -> None:
    client = lockd.Client("127.0.0.1:1")
    with pytest.raises(ValueError, match="can't be cancelled"):
        client.lock("k", on_lost="cancel")  # type: ignore[arg-type] # refused
    with pytest.raises(ValueError, match="not empty"):
        client.lock("")
    with pytest.raises(ValueError, match="wait is in seconds"):
        client.acquire("k", wait=float("nan"))


def test_a_private_session_lives_by_its_own_ttl(server: ThreadedListener) -> None:
    request = "8c3f1f3e-8e0f-4a53-9f06-0d2f3f1b6a11"
    with lockd.Client(server.endpoint) as client:
        grant = client.acquire_ttl("script", ttl=5, request=request)
        again = client.acquire_ttl("script", ttl=5, request=request)
        assert (again.token, again.session) == (grant.token, grant.session)
        assert client.ask(queries.keepalive(grant.session)).ttl_ms == 5000
        with pytest.raises(lockd.LockTimeout):
            client.acquire_ttl("script", ttl=5, wait=0)
        assert client.ask(queries.release("script", token=grant.token, session=grant.session)) == 1
        assert client.ask(queries.release("script", token=grant.token, session=grant.session)) == 0


def test_a_private_session_may_wait(server: ThreadedListener) -> None:
    with lockd.Client(server.endpoint) as client, lockd.Client(server.endpoint) as other:
        held = other.acquire("queue")
        granted: list[int] = []
        thread = threading.Thread(
            target=lambda: granted.append(client.acquire_ttl("queue", ttl=5, wait=None).token)
        )
        thread.start()
        while not other.inspect("queue").queue_length:
            pass
        held.release()
        thread.join(10)
        assert granted == [held.token + 1]


def test_locks_are_listed_by_prefix(server: ThreadedListener) -> None:
    with lockd.Client(server.endpoint, name="lister") as client:
        leases = [client.acquire(f"list/{number:04}") for number in range(5)]
        assert [info.lock for info in client.locks("list/")] == [lease.lock for lease in leases]
        (info,) = client.locks("list/0003")
        (holder,) = info.holders
        assert (holder.name, holder.token) == ("lister", leases[3].token)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_k5_a_forked_child_holds_nothing_and_has_a_session_of_its_own(server: ThreadedListener) -> None:
    with lockd.Client(server.endpoint) as client:
        lease = client.acquire("forked")
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:  # whatever happens, the child ends here
            try:
                with pytest.raises(lockd.LeaseLost, match="a fork of"):
                    lease.check()
                assert not lease.release()
                assert client.try_lock("forked") is None
                with client.lock("of the child") as own:
                    assert own.token > lease.token
                    session = client.inspect("of the child").holders[0].session
                client.close()
                os.write(writing, b"session %d" % session)
            except BaseException as error:  # noqa: BLE001 - it is written to the parent
                os.write(writing, repr(error).encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            told = pipe.read()
        os.waitpid(pid, 0)
        mine = client.inspect("forked").holders[0].session
        assert told.startswith("session "), told
        assert told != f"session {mine}"
        assert not lease.lost
        lease.check(9.0)
        assert lease.release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_k5_a_forked_child_holds_nothing_of_a_client_that_is_out_of_hand(server: ThreadedListener) -> None:
    lease = lockd.Client(server.endpoint).acquire("outlives its client")
    gc.collect()
    pid = os.fork()
    if pid == 0:  # whatever happens, the child ends here
        signal.alarm(10)  # a release that waits for the parent's thread waits for ever
        os._exit(0 if lease.lost and lease.remaining() == 0.0 and not lease.release() else 1)
    assert os.waitpid(pid, 0)[1] == 0
    lease.check()
    assert lease.release()
