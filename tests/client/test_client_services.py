"""Shared locks, semaphores, several at once, breaking and deadlocks on real nodes, by both clients."""

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

import lockd
from tests.processes import ClusterProcesses, eventually, running_cluster

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcesses]:
    with running_cluster(tmp_path_factory.mktemp("services")) as found:
        yield found


@pytest.fixture(autouse=True)
def all_nodes(cluster: ClusterProcesses) -> None:
    """Whatever the test before did, three nodes are up."""
    cluster.thaw()
    cluster.start().await_ready()


class Room:
    """Counts who is inside, by how they hold the lock."""

    def __init__(self) -> None:
        self.readers = 0
        self.writers = 0
        self.most_readers = 0
        self.tokens: list[int] = []

    def read(self) -> None:
        self.readers += 1
        assert self.writers == 0
        self.most_readers = max(self.most_readers, self.readers)
        time.sleep(0.005)
        self.readers -= 1

    def write(self, token: int) -> None:
        self.writers += 1
        assert (self.writers, self.readers) == (1, 0)
        self.tokens.append(token)
        time.sleep(0.001)
        self.writers -= 1


def in_threads(*works: list[threading.Thread]) -> None:
    threads = [thread for work in works for thread in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_p1_readers_meet_each_other_and_no_writer(cluster: ClusterProcesses) -> None:
    room, failures = Room(), list[BaseException]()
    with lockd.Client(cluster.endpoints) as one, lockd.Client(cluster.endpoints) as two:

        def work(client: lockd.Client, *, shared: bool) -> None:
            try:
                for _ in range(5):
                    with client.lock("rw", shared=shared) as lease:
                        room.read() if shared else room.write(lease.token)
            except BaseException as error:  # noqa: BLE001 - it is looked at below
                failures.append(error)

        in_threads(
            [threading.Thread(target=work, args=(one,), kwargs={"shared": True}) for _ in range(8)],
            [threading.Thread(target=work, args=(two,), kwargs={"shared": True}) for _ in range(8)],
            [threading.Thread(target=work, args=(two,), kwargs={"shared": False}) for _ in range(4)],
        )
    assert failures == []
    assert room.most_readers > 1
    assert len(room.tokens) == 20
    assert room.tokens == sorted(set(room.tokens))


def test_a_semaphore_never_has_more_units_out_than_its_limit(cluster: ClusterProcesses) -> None:
    units, most = 0, 0

    async def main() -> None:
        async with lockd.AsyncClient(cluster.endpoints) as client:

            async def work(weight: int) -> None:
                nonlocal units, most
                async with client.semaphore("pool", limit=4, weight=weight):
                    units += weight
                    most = max(most, units)
                    await asyncio.sleep(0.002)
                    units -= weight

            await asyncio.gather(*[work(1 + number % 3) for number in range(40)])
            with pytest.raises(lockd.LimitMismatch):
                async with client.semaphore("pool", limit=4), client.semaphore("pool", limit=5):
                    pass

    asyncio.run(main())
    assert 2 <= most <= 4


def test_several_locks_in_any_order_never_deadlock_and_survive_a_leader(cluster: ClusterProcesses) -> None:
    accounts = dict.fromkeys(("a", "b", "c", "d"), 100)
    with lockd.Client(cluster.endpoints) as client:

        def transfer(source: str, target: str) -> None:
            for _ in range(4):
                with client.lock_all([source, target]) as lease:
                    assert set(lease.locks) == {source, target}
                    balance = accounts[source], accounts[target]
                    time.sleep(0.001)
                    accounts[source], accounts[target] = balance[0] - 1, balance[1] + 1

        pairs = ["ab", "ba", "bc", "cb", "cd", "dc", "ad", "da"]
        threads = [threading.Thread(target=transfer, args=tuple(pair)) for pair in pairs]
        for thread in threads:
            thread.start()
        cluster.leader().kill()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not client.locks()
    assert sum(accounts.values()) == 400
    assert set(accounts.values()) == {100}


def test_g8_a_deadlock_between_two_threads_is_refused_to_one_of_them(cluster: ClusterProcesses) -> None:
    outcomes: list[str] = []
    both = threading.Barrier(2)
    with lockd.Client(cluster.endpoints) as one, lockd.Client(cluster.endpoints) as two:

        def work(client: lockd.Client, first: str, second: str) -> None:
            with client.lock(first):
                both.wait(30)
                try:
                    with client.lock(second):
                        outcomes.append("held both")
                except lockd.Deadlock as error:
                    outcomes.append(f"deadlock: {error}")

        in_threads(
            [threading.Thread(target=work, args=(one, "left", "right"))],
            [threading.Thread(target=work, args=(two, "right", "left"))],
        )
    refused, held = sorted(outcomes)
    assert held == "held both"
    assert "left" in refused
    assert "right" in refused


def test_k6_a_broken_lock_is_passed_on_when_its_holder_has_stopped(cluster: ClusterProcesses) -> None:
    stopped_at: list[float] = []
    with lockd.Client(cluster.endpoints, ttl=6) as client, lockd.Client(cluster.endpoints) as operator:

        def work() -> None:
            with client.lock("broken") as lease:
                assert operator.break_lock("broken", lease.token, reason="by the test")
                assert lease.wait_lost(30)
                for _ in range(50):  # while the work stops, the lock is not passed on
                    assert operator.inspect("broken").holders[0].token == lease.token
                stopped_at.append(time.monotonic())

        with pytest.raises(lockd.LeaseLost, match="broken: by the test"):
            work()
        with operator.lock("broken", wait=5) as successor:
            assert time.monotonic() >= stopped_at[0]
            assert time.monotonic() < stopped_at[0] + 5
            assert not successor.lost


def test_k7_max_hold_ends_what_a_healthy_process_renews_for_ever(cluster: ClusterProcesses) -> None:
    with lockd.Client(cluster.endpoints, ttl=5) as client, lockd.Client(cluster.endpoints) as other:
        stuck = client.acquire("stuck", max_hold=0.5)
        healthy = client.acquire("healthy", max_hold=600)
        assert stuck.wait_lost(30)
        with pytest.raises(lockd.LeaseLost, match="max_hold"):
            stuck.check()
        assert not stuck.release()
        with other.lock("stuck", wait=20) as successor:
            assert successor.token > stuck.token
        healthy.check(1.0)
        assert client.validate("stuck", stuck.token) in ("superseded", "free")


def test_a_delay_keeps_a_lock_back_after_a_holder_that_vanished(cluster: ClusterProcesses) -> None:
    with lockd.Client(cluster.endpoints) as other:
        client = lockd.Client(cluster.endpoints)
        lease = client.acquire("delayed", delay=600)
        assert client.break_lock("delayed", lease.token, reason="gone", now=True)
        eventually(lambda: not other.inspect("delayed").holders, "it is nobody's")
        assert other.try_lock("delayed") is None
        client.close()


def test_metadata_and_a_shared_lease_survive_the_leader(cluster: ClusterProcesses) -> None:
    with lockd.Client(cluster.endpoints, name="reader") as client:
        with client.lock("cfg", shared=True, meta={"step": 1}) as lease:
            cluster.leader().kill()
            lease.update_meta({"step": 2})
            holder = client.inspect("cfg").holders[0]
            assert (holder.mode, holder.meta, holder.token) == ("shared", '{"step":2}', lease.token)
        assert not client.inspect("cfg").holders
