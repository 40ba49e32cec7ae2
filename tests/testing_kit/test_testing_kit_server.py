"""The server of lockd.testing: what its faults do to leases, and that nothing is left of it."""

import asyncio
import contextlib
import subprocess
import threading
from collections.abc import Iterator

import pytest

import lockd
from lockd.client import clock, cluster
from lockd.client.options import ClientOptions
from lockd.testing import Server, running_server
from tests.processes import clean_environment, lockd_command

PATIENCE_S = 20.0


@contextlib.contextmanager
def waiting_for(server: Server, name: str, got: list[lockd.Lease]) -> Iterator[threading.Thread]:
    """A thread that waits for the lock with a client of its own, and ends when it has had it."""
    client = server.client()

    def wait() -> None:
        with client.lock(name, on_lost="flag") as lease:
            got.append(lease)

    before = server.waiters(name)
    thread = threading.Thread(target=wait)
    thread.start()
    server.wait_for(lambda: server.waiters(name) == before + 1)
    try:
        yield thread
    finally:
        thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_k3_an_expired_lease_is_lost_on_return_and_the_lock_is_passed_on(
    lockd_server: Server, lockd_client: lockd.Client
) -> None:
    told = threading.Event()
    got: list[lockd.Lease] = []
    lease = lockd_client.acquire("k")
    lease.on_lost(told.set)
    with waiting_for(lockd_server, "k", got):
        lockd_server.expire(lease)
        assert lease.lost
        assert told.is_set()
        assert lease.remaining() == 0.0
    assert got[0].token > lease.token
    lease.release()
    with lockd_client.lock("k") as again:
        assert not again.lost


def test_expiring_by_name_ends_every_holder_and_no_other_session(
    lockd_server: Server, lockd_client: lockd.Client
) -> None:
    other = lockd_server.client()
    readers = [lockd_client.acquire("k", shared=True), other.acquire("k", shared=True)]
    bystander = lockd_server.client().acquire("b")
    lockd_server.expire("k")
    assert [lease.lost for lease in readers] == [True, True]
    assert not lockd_server.is_held("k")
    bystander.check()


def test_p1_a_broken_lease_is_told_why_and_its_lock_passed_on_when_it_is_left(
    lockd_server: Server, lockd_client: lockd.Client
) -> None:
    got: list[lockd.Lease] = []
    lease = lockd_client.acquire("k")
    with waiting_for(lockd_server, "k", got):
        lockd_server.break_lease("k", reason="it hangs")
        with pytest.raises(lockd.LeaseLost, match="it hangs"):
            lease.check()
        assert lockd_server.waiters("k") == 1
        lease.release()
    assert got[0].token > lease.token


def test_a_fault_needs_somebody_whom_it_befalls(lockd_server: Server, lockd_client: lockd.Client) -> None:
    lease = lockd_client.acquire("k")
    lockd_server.expire(lease)
    with pytest.raises(LookupError, match="nobody holds 'k'"):
        lockd_server.expire("k")
    with pytest.raises(LookupError, match="no session"):
        lockd_server.expire(lease)
    with pytest.raises(LookupError):
        lockd_server.break_lease(lease, reason="too late")


def test_k1_a_lease_ends_by_the_clock_and_the_server_frees_it_later(
    lockd_server: Server, lockd_client: lockd.Client
) -> None:
    lease = lockd_client.acquire("k")
    with lockd_server.paused():
        lockd_server.clock.advance(9.7)
        assert lease.remaining() == pytest.approx(0.1)
        lockd_server.clock.advance(0.2)
        assert lease.lost
    # A process that was paused has not counted the time (T1), and never ends a lease early (T2).
    assert lockd_server.is_held("k")
    lockd_server.clock.advance(9)
    assert lockd_server.is_held("k")
    lockd_server.clock.advance(1)
    assert not lockd_server.is_held("k")


def test_k2_a_loss_is_told_at_once_though_the_server_is_silent(lockd_server: Server) -> None:
    told = threading.Event()
    lease = lockd_server.client(ttl=600).acquire("k")
    lease.on_lost(told.set)
    with lockd_server.paused():
        lockd_server.clock.advance(600)
        assert told.wait(PATIENCE_S)


def test_time_that_stands_still_and_time_that_passes(
    lockd_server: Server, lockd_client: lockd.Client
) -> None:
    lease = lockd_client.acquire("k")
    assert lease.remaining() == lease.remaining() == pytest.approx(9.8)
    lockd_server.clock.advance(3)
    assert lease.remaining() == pytest.approx(6.8)
    lockd_server.clock.advance(3)  # a third of the TTL is over, so it is renewed
    assert lease.remaining() == pytest.approx(9.8)
    lockd_server.clock.advance_renewing(3600)
    lease.check(need=6)
    lockd_server.clock.advance(10)
    assert lease.lost
    assert not lockd_server.is_held("k")
    assert lockd_server.clock.now() == 3616.0
    with pytest.raises(ValueError, match="not back"):
        lockd_server.clock.advance(-1)


def test_a_wait_ends_by_the_clock(lockd_server: Server, lockd_client: lockd.Client) -> None:
    refused: list[lockd.LockTimeout] = []
    other = lockd_server.client()

    def wait() -> None:
        with pytest.raises(lockd.LockTimeout) as caught:
            other.acquire("k", wait=60)
        refused.append(caught.value)

    with lockd_client.lock("k", meta={"job": "close"}):
        thread = threading.Thread(target=wait)
        thread.start()
        lockd_server.wait_for(lambda: lockd_server.waiters("k") == 1)
        lockd_server.clock.advance_renewing(60)
        thread.join(PATIENCE_S)
    assert refused[0].meta == {"job": "close"}


def test_k2_dropped_connections_cost_no_lease_and_no_place_in_a_queue(
    lockd_server: Server, lockd_client: lockd.Client
) -> None:
    got: list[lockd.Lease] = []
    with lockd_client.lock("k") as lease:
        token = lease.token
        with waiting_for(lockd_server, "k", got):
            lockd_server.disconnect()
            lease.check(need=9.5)
            assert lockd_server.waiters("k") == 1
            lease.release()
    assert got[0].token == token + 1


def test_who_is_of_another_process_learns_of_it_too(lockd_server: Server) -> None:
    # Without a word from the server it would renew its session after 200 seconds.
    options = (f"--endpoints={lockd_server.endpoint}", "--lock=k", "--ttl=600s")
    command = lockd_command("run", *options, "--", "sleep", "1000")
    with subprocess.Popen(command, env=clean_environment(), stderr=subprocess.PIPE) as process:
        lockd_server.wait_for(lambda: lockd_server.is_held("k"), timeout=PATIENCE_S)
        lockd_server.expire("k")
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 123, said


def test_waiting_is_bounded_and_tells_what_goes_wrong(lockd_server: Server) -> None:
    with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
        lockd_server.wait_for(lambda: lockd_server.is_held("k"), timeout=0.01)
    with pytest.raises(ZeroDivisionError):
        lockd_server.wait_for(lambda: 1 / 0)
    with lockd_server.paused(), pytest.raises(RuntimeError, match="paused"):
        lockd_server.is_held("k")
    assert not lockd_server.is_held("k")


def test_a_condition_that_raises_later_is_raised_where_it_is_waited_for(
    lockd_server: Server, lockd_client: lockd.Client
) -> None:
    def condition() -> bool:
        assert not lockd_server.is_held("k"), "held"
        return False

    threading.Timer(0.0, lambda: lockd_client.try_lock("k")).start()
    with pytest.raises(AssertionError, match="held"):
        lockd_server.wait_for(condition)


def test_a_clients_own_loop_does_what_is_due_when_it_goes_on(lockd_server: Server) -> None:
    async def main() -> None:
        async with lockd_server.async_client() as client:
            lease = await client.acquire("k")
            lockd_server.clock.advance(4)
            assert lease.remaining() == pytest.approx(5.8)
            await lease.check(need=9)
            assert lease.remaining() == pytest.approx(9.8)
            lockd_server.expire(lease)
            assert await lease.wait_lost()
            await lease.release()
            lease = await client.acquire("k")
            await asyncio.to_thread(lockd_server.clock.advance, 5)
            assert lease.remaining() == pytest.approx(9.8)
            async with client.lock("j", on_lost="flag"):
                lockd_server.clock.advance(11)
                assert lease.lost

    asyncio.run(main())


def test_nothing_is_left_when_it_is_over() -> None:
    threads = set(threading.enumerate())
    with running_server() as server:
        endpoint = server.endpoint
        server.client().acquire("k")
        stranger = lockd.Client(endpoint)  # nobody closes it
        lease = stranger.acquire("j")
        server.pause()
    assert lease.wait_lost(PATIENCE_S)
    assert {thread.name for thread in set(threading.enumerate()) - threads} == {"lockd-client"}
    stranger.close()
    assert set(threading.enumerate()) == threads
    options = ClientOptions.build(endpoint, ttl=10, name="", tls=False, auth=None)
    assert options.clock is clock.now


def test_any_client_of_its_endpoint_goes_by_its_clock_and_no_other(
    lockd_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = lockd_server.endpoint.rpartition(":")[2]
    with lockd.Client() as named_by_environment, lockd.Client(f"localhost:{port}") as by_name:
        leases = [named_by_environment.acquire("a"), by_name.acquire("b")]
        lockd_server.clock.advance(10)
        assert [lease.lost for lease in leases] == [True, True]
    monkeypatch.delenv("LOCKD_ENDPOINTS")
    elsewhere = ClientOptions.build(None, ttl=10, name="", tls=False, auth=None)
    assert elsewhere.clock is clock.now


def test_two_servers_are_two_clusters_with_clocks_of_their_own(lockd_server: Server) -> None:
    with running_server() as other:
        here, there = lockd_server.client().acquire("k"), other.client().acquire("k")
        assert here.cluster != there.cluster
        other.clock.advance(10)
        assert (here.lost, there.lost) == (False, True)


def test_a_lock_of_a_server_can_be_watched(lockd_server: Server, lockd_client: lockd.Client) -> None:
    with lockd_client.watch("k") as events:
        lockd_server.expire(lockd_server.client().acquire("k"))
        assert [next(events).event for _ in range(2)] == ["acquired", "expired"]


def test_a_backup_of_a_server_in_memory_is_refused(lockd_server: Server) -> None:
    with pytest.raises(lockd.Unavailable, match="snapshot could not be written"):
        lockd_server.client(ttl=0.5).ask(cluster.make_backup())
