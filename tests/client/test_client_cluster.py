"""The client against real nodes: crowds, kill -9, frozen leaders, and what it may believe meanwhile."""

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

import lockd
from tests.processes import ClusterProcesses, eventually, running_cluster

pytestmark = pytest.mark.process

CROWD = 100
KILLS = 2


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcesses]:
    with running_cluster(tmp_path_factory.mktemp("client")) as found:
        yield found


@pytest.fixture(autouse=True)
def all_nodes(cluster: ClusterProcesses) -> None:
    """Whatever the test before did, three nodes are up."""
    cluster.thaw()
    cluster.start().await_ready()


class Ledger:
    """What holders noted, each under its own lease."""

    def __init__(self) -> None:
        self.inside = 0
        self.most = 0
        self.tokens: list[int] = []

    def note(self, token: int) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.tokens.append(token)
        time.sleep(0.0005)
        self.inside -= 1

    def grows(self, what: str) -> None:
        """Wait until twenty more were inside."""
        seen = len(self.tokens)
        eventually(lambda: len(self.tokens) > seen + 20, what)

    def check(self, count: int) -> None:
        assert self.most == 1
        assert len(self.tokens) == count
        assert self.tokens == sorted(set(self.tokens)), "P2: tokens grow"


def test_p1_a_hundred_threads_on_one_client_and_one_name_never_meet(cluster: ClusterProcesses) -> None:
    ledger = Ledger()
    with lockd.Client(cluster.endpoints) as client:

        def work() -> None:
            with client.lock("crowd") as lease:
                ledger.note(lease.token)

        threads = [threading.Thread(target=work) for _ in range(CROWD)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    ledger.check(CROWD)


def test_p1_a_hundred_tasks_on_one_client_and_one_name_never_meet(cluster: ClusterProcesses) -> None:
    ledger = Ledger()

    async def main() -> None:
        async with lockd.AsyncClient(cluster.endpoints) as client:

            async def work() -> None:
                async with client.lock("crowd") as lease:
                    ledger.note(lease.token)

            await asyncio.gather(*[work() for _ in range(CROWD)])

    asyncio.run(main())
    ledger.check(CROWD)


def test_k2_a_lease_outlives_the_leader_and_every_acquire_in_flight_has_one_outcome(
    cluster: ClusterProcesses,
) -> None:
    """Workers go on through kill -9 of the leader; each acquire that returned was granted once."""
    ledger, failures, end = Ledger(), list[BaseException](), threading.Event()
    with lockd.Client(cluster.endpoints, ttl=10) as client:
        held = client.acquire("held throughout")

        def work() -> None:
            try:
                while not end.is_set():
                    with client.lock("busy") as lease:
                        ledger.note(lease.token)
            except BaseException as error:  # noqa: BLE001 - it is looked at below
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for _ in range(KILLS):
            ledger.grows("work goes on")
            leader = cluster.leader()
            leader.kill()
            ledger.grows("work goes on without that node")
            leader.start().await_ready()
        end.set()
        for thread in threads:
            thread.join(30)
        assert failures == []
        assert not held.lost
        held.check(5.0)
        assert client.inspect("held throughout").holders[0].token == held.token
        assert held.release()
    ledger.check(len(ledger.tokens))


def test_k2_the_node_that_a_client_uses_may_go_and_its_wait_keeps_its_place(
    cluster: ClusterProcesses,
) -> None:
    node = cluster.followers()[0]
    others = [other.endpoint for other in cluster if other is not node]
    with lockd.Client([node.endpoint, *others]) as client, lockd.Client(others) as other:
        held = other.acquire("queue")
        granted: list[lockd.Lease] = []
        thread = threading.Thread(target=lambda: granted.append(client.acquire("queue", wait=60)))
        thread.start()
        eventually(lambda: other.inspect("queue").queue_length == 1, "it waits")
        node.kill()
        late = threading.Thread(target=lambda: other.acquire("queue", wait=60).release())
        eventually(lambda: client.inspect("queue").queue_length == 1, "it waits at another node")
        late.start()
        eventually(lambda: other.inspect("queue").queue_length == 2, "another one waits behind it")
        held.release()
        thread.join(30)
        assert granted[0].token == held.token + 1
        granted[0].release()
        late.join(30)


def test_k2_a_frozen_leader_does_not_lose_the_lease(cluster: ClusterProcesses) -> None:
    leader = cluster.leader()
    others = [node.endpoint for node in cluster if node is not leader]
    with lockd.Client([leader.endpoint, *others], ttl=6) as client:
        lease = client.acquire("k")
        leader.freeze()
        eventually(lambda: lease.remaining() < 3.8, "a keepalive is due and not answered")
        eventually(lambda: lease.remaining() > 4.5, "another node has renewed it")
        assert not lease.lost
        assert client.inspect("k").holders[0].token == lease.token
        assert lease.release()
        leader.thaw()


def test_p1_a_lease_ends_for_its_client_before_the_cluster_passes_it_on(cluster: ClusterProcesses) -> None:
    """The client is cut off by freezing all nodes past its TTL: it knows of the loss without them."""
    with lockd.Client(cluster.endpoints, ttl=3) as client:
        lease = client.acquire("passed on")
        lost_at: list[float] = []
        lease.on_lost(lambda: lost_at.append(time.monotonic()))
        cluster.freeze()
        assert lease.wait_lost(10)
        assert lease.lost
        cluster.thaw()
        with lockd.Client(cluster.endpoints) as other, other.lock("passed on") as successor:
            granted_at = time.monotonic()
            assert successor.token > lease.token
        assert lost_at[0] < granted_at
        with pytest.raises(lockd.LeaseLost):
            client.acquire("passed on", wait=0)
        assert not lease.release()


def test_p3_a_held_lease_survives_kill_9_of_all_nodes(cluster: ClusterProcesses) -> None:
    with lockd.Client(cluster.endpoints, ttl=30) as client:
        lease = client.acquire("durable")
        cluster.kill()
        cluster.start().await_ready()
        lease.check(20.0)
        assert client.inspect("durable").holders[0].token == lease.token
        assert lease.release()
        with client.lock("durable") as again:
            assert again.token > lease.token
