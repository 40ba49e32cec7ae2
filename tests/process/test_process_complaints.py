"""What users of other lock services complained of, tried on real nodes.

docs/COMPARISON.md lists the complaints, and the test that answers each. These are the ones that no other
test answers on real servers.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import hiredis
import pytest

import lockd
from tests.processes import ClusterProcesses, LockdProcess, eventually, running_cluster, running_node

pytestmark = pytest.mark.process

TTL_MS = 2_000
LONG_MS = 60_000
DEAD_WAITERS = 8
FREED_LOCKS = 2_000


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LockdProcess]:
    with running_node(tmp_path_factory.mktemp("complaints")) as found:
        yield found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcesses]:
    with running_cluster(tmp_path_factory.mktemp("complaints")) as found:
        yield found


def queue_length(node: LockdProcess, name: str) -> int:
    return int(node.ask("LOCK.INSPECT", name)["queue_length"])


def wait_and_say_no_more(node: LockdProcess, name: str) -> socket.socket:
    """A Redis client that waits for a lock; once its socket is closed, it is dead."""
    waiter = socket.create_connection(("127.0.0.1", node.ports.client))
    words: tuple[str, ...] = ("LOCK.ACQUIRE", name, "TTL", str(TTL_MS), "WAIT", "FOREVER")
    waiter.sendall(hiredis.pack_command(words))  # type: ignore[arg-type] # its stub means a tuple of one
    return waiter


def test_etcd_11456_a_waiter_whose_own_session_ends_is_told_then_and_is_granted_nothing(
    node: LockdProcess,
) -> None:
    """There, Lock returned without an error to a waiter whose lease had expired (G5, P1)."""
    held = node.ask("LOCK.ACQUIRE", "11456", "TTL", LONG_MS)
    session = node.ask("SESSION.OPEN", TTL_MS)["session"]
    answer = node.ask("LOCK.ACQUIRE", "11456", "SESSION", session, "WAIT", LONG_MS, timeout=30.0)
    assert isinstance(answer, hiredis.ReplyError)
    assert str(answer).startswith("NOSESSION")
    # It was told while the holder still held, and nothing of it is left to be granted.
    assert node.ask("LOCK.VALIDATE", "11456", held["token"]) == "current"
    assert queue_length(node, "11456") == 0
    assert node.ask("LOCK.RELEASE", "11456", held["token"], "SESSION", held["session"]) == 1
    assert node.ask("LOCK.INSPECT", "11456")["status"] == "free"


@pytest.mark.parametrize("wait", [0, 0.2])
def test_python_etcd3_599_no_block_is_entered_without_the_lock(node: LockdProcess, wait: float) -> None:
    """There, `with` went on unlocked when its wait had run out."""
    entered: list[str] = []

    async def try_as_task() -> None:
        async with lockd.AsyncClient(node.endpoint) as client:
            with pytest.raises(lockd.LockTimeout):
                async with client.lock("599", wait=wait):
                    entered.append("task")

    with lockd.Client(node.endpoint) as client, lockd.Client(node.endpoint) as other, other.lock("599"):
        with pytest.raises(lockd.LockTimeout), client.lock("599", wait=wait):
            entered.append("thread")
        with pytest.raises(lockd.LockTimeout):
            client.locked("599", wait=wait)(lambda: entered.append("decorated"))()
        asyncio.run(try_as_task())
        assert entered == []
        assert other.queue("599").queue_length == 0


def test_redisson_4595_waiters_that_died_cost_one_ttl_together_and_not_one_each(node: LockdProcess) -> None:
    """There, each dead thread in a fair queue cost those behind it five seconds (G4, G5)."""
    with lockd.Client(node.endpoint) as client, lockd.Client(node.endpoint) as other:
        lease = client.acquire("4595")
        waiters = []
        for count in range(1, DEAD_WAITERS + 1):
            waiters.append(wait_and_say_no_more(node, "4595"))
            eventually(lambda count=count: queue_length(node, "4595") == count, "it waits")  # type: ignore[misc]
        granted: list[float] = []

        def wait_behind_them() -> None:
            with other.lock("4595"):
                granted.append(time.monotonic())

        thread = threading.Thread(target=wait_behind_them)
        thread.start()
        eventually(lambda: queue_length(node, "4595") == DEAD_WAITERS + 1, "the living one waits behind them")
        for waiter in waiters:
            waiter.close()
        died = time.monotonic()
        assert lease.release()
        thread.join(60)
    assert granted[0] - died < DEAD_WAITERS / 2 * TTL_MS / 1000


def test_redisson_6510_locks_that_are_free_again_leave_nothing_in_the_state(node: LockdProcess) -> None:
    """There, every lock that was ever used kept a counter for its tokens (G1, G9)."""

    def saved_bytes() -> int:
        return int(node.ask("CLUSTER.SNAPSHOT")["bytes"])

    # What is granted first is behind the cluster's id in the log, and before that there is no copy.
    session = node.ask("SESSION.OPEN", LONG_MS)["session"]
    assert node.ask("SESSION.CLOSE", session) == 1
    before = saved_bytes()
    session = node.ask("SESSION.OPEN", LONG_MS)["session"]
    highest = 0
    for first in range(0, FREED_LOCKS, 500):
        names = [f"6510:{number}" for number in range(first, first + 500)]
        grants = node.ask_all([("LOCK.ACQUIRE", name, "SESSION", session) for name in names])
        tokens = [int(grant["token"]) for grant in grants]
        assert tokens == sorted(set(tokens))
        assert tokens[0] > highest
        highest = tokens[-1]
        released = node.ask_all(
            [("LOCK.RELEASE", *pair, "SESSION", session) for pair in zip(names, tokens, strict=True)]
        )
        assert released == [1] * 500
    assert node.ask("SESSION.CLOSE", session) == 1
    assert node.status()["locks"] == 0
    assert saved_bytes() - before < 100, "counters that have grown by a digit, and nothing for each lock"


def test_kubernetes_47671_consul_1172_who_waits_with_a_short_ttl_takes_nothing_from_a_long_one(
    node: LockdProcess,
) -> None:
    """There, each candidate judged by its own lease duration; or a dead holder kept its lock for two TTLs."""
    asked = time.monotonic()
    session = node.ask("SESSION.OPEN", 2 * TTL_MS)["session"]
    opened = time.monotonic()
    token = node.ask("LOCK.ACQUIRE", "47671", "SESSION", session)["token"]
    # From here on the holder is dead.
    with lockd.Client(node.endpoint, ttl=1.5) as client:
        with pytest.raises(lockd.LockTimeout):
            client.acquire("47671", wait=max(0.0, asked + TTL_MS / 1000 - time.monotonic()))
        assert client.validate("47671", token) == "current"
        with client.lock("47671") as lease:
            granted = time.monotonic()
            assert lease.token > token
    assert granted - asked >= 2 * TTL_MS / 1000, "T2: not before its TTL"
    assert granted - opened < 4 * TTL_MS / 1000, "and not after two of them"


def test_etcd_9888_a_dead_session_ends_though_no_leader_lasts_as_long_as_its_ttl(
    cluster: ClusterProcesses,
) -> None:
    """There, each new leader gave every lease its full time again, and dead ones lived on (T2)."""
    node = cluster.leader()
    session = node.ask("SESSION.OPEN", 2 * TTL_MS)["session"]
    node.ask("LOCK.ACQUIRE", "9888", "SESSION", session)
    # From here on the holder is dead, and each leadership lasts for somewhat more than half of its TTL.
    with lockd.Client(cluster.endpoints) as client:

        def is_free_at_last() -> bool:
            try:
                return client.acquire("9888", wait=1.3 * TTL_MS / 1000).release()
            except lockd.LockTimeout:
                return False

        leaders = 1
        while not is_free_at_last():
            assert leaders < 5, "it lives on"
            cluster.leader().ask("CLUSTER.TRANSFER")
            leaders += 1
    assert leaders > 1, "T2: it was given its TTL"


def test_kazoo_760_who_gave_up_waiting_during_a_failover_stands_in_no_queue(
    cluster: ClusterProcesses,
) -> None:
    """There, an acquire that timed out left a contender behind that owned the lock for ever (G4, K4)."""
    leader = cluster.leader()
    outcomes: list[str] = []
    with lockd.Client(cluster.endpoints) as holder, lockd.Client(cluster.endpoints, ttl=3) as client:
        lease = holder.acquire("760")

        def give_up() -> None:
            try:
                client.acquire("760", wait=5).release()
            except lockd.LockdError as error:
                outcomes.append(type(error).__name__)

        threads = [threading.Thread(target=give_up) for _ in range(8)]
        for thread in threads:
            thread.start()
        eventually(lambda: holder.queue("760").queue_length == len(threads), "they wait")
        leader.kill()
        for thread in threads:
            thread.join(60)
        assert len(outcomes) == len(threads), "none of them was granted what another holds"
        assert set(outcomes) <= {"LockTimeout", "Unavailable", "OutcomeUnknown"}
        eventually(lambda: holder.queue("760").queue_length == 0, "nobody is left in the queue")
        assert lease.release()
        again = holder.try_lock("760")
        assert again is not None
        assert again.release()
    leader.start().await_ready()


def test_curator_1193_a_release_in_the_midst_of_a_failover_arrives(cluster: ClusterProcesses) -> None:
    """There, a release that met a lost connection was forgotten, and the lock stayed (G7, K4)."""
    leader = cluster.leader()
    others = [node.endpoint for node in cluster if node is not leader]
    with lockd.Client([leader.endpoint, *others], ttl=20) as client:
        lease = client.acquire("1193")
        leader.kill()
        assert lease.release()
        with lockd.Client(others) as other:
            successor = other.try_lock("1193")
            assert successor is not None, "long before the TTL"
            assert successor.token > lease.token
            assert successor.release()
    leader.start().await_ready()
