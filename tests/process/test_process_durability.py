"""kill -9 on real nodes: no acknowledged grant is lost, and tokens go on upward (P2, P3, D1)."""

import contextlib
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import lockd
from tests.processes import ClusterProcesses, LockdProcess, eventually, running_cluster

pytestmark = pytest.mark.process

TTL_MS = 600_000
BEFORE, AFTER = 20, 20
"""Grants that are awaited before a fault and after it."""


@dataclass
class Granter:
    """Takes one lock after the other, for good, and notes what was acknowledged."""

    endpoints: str
    acknowledged: dict[str, int] = field(default_factory=dict)
    """Lock to token, in the order of the grants."""

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with lockd.Client(self.endpoints, ttl=TTL_MS / 1000) as client:
            number = 0
            while not self._stop.is_set():
                number += 1
                with contextlib.suppress(lockd.LockdError):
                    granted = client.acquire_ttl(f"grant:{number}", ttl=TTL_MS / 1000, wait=5)
                    self.acknowledged[granted.lock] = granted.token

    def await_more(self, count: int) -> None:
        """Wait for so many further grants."""
        wanted = len(self.acknowledged) + count
        eventually(lambda: len(self.acknowledged) >= wanted, f"{wanted} grants")

    def stop(self) -> dict[str, int]:
        self._stop.set()
        self._thread.join()
        return dict(self.acknowledged)


def held(node: LockdProcess) -> dict[str, int]:
    """Every lock that the node, asked for a linearizable answer, says is held, with its token."""
    found: dict[str, int] = {}
    after = ""
    while True:
        page = node.ask("LOCK.LIST", "PREFIX", "grant:", "AFTER", after, "COUNT", 1000)
        locks = page["locks"]
        if not locks:
            return found
        for lock in locks:
            found[lock["lock"]] = lock["holders"][0]["token"]
        after = locks[-1]["lock"]


def check_nothing_lost(cluster: ClusterProcesses, acknowledged: dict[str, int]) -> None:
    """Every node that runs has every acknowledged grant, under the token that was told."""
    assert len(acknowledged) >= BEFORE
    tokens = list(acknowledged.values())
    assert tokens == sorted(set(tokens)), "P2: tokens strictly increase in the order of the grants"
    for node in cluster.running:
        on_node = held(node)
        lost = {lock: token for lock, token in acknowledged.items() if on_node.get(lock) != token}
        assert not lost, f"P3: {node} lost acknowledged grants"


@pytest.mark.parametrize("victim", ["leader", "follower"])
def test_p3_kill_9_of_one_node_loses_no_acknowledged_grant(tmp_path: Path, victim: str) -> None:
    with running_cluster(tmp_path) as cluster:
        granter = Granter(cluster.endpoints)
        granter.await_more(BEFORE)
        node = cluster.leader() if victim == "leader" else cluster.followers()[0]
        node.kill()
        granter.await_more(AFTER)
        node.start()
        cluster.await_ready()
        granter.await_more(AFTER)
        check_nothing_lost(cluster, granter.stop())


def test_p3_kill_9_of_all_nodes_and_a_restart_lose_no_acknowledged_grant(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster:
        granter = Granter(cluster.endpoints)
        granter.await_more(BEFORE)
        cluster.kill()
        before = max(granter.acknowledged.values())
        cluster.start().await_ready()
        granter.await_more(AFTER)
        acknowledged = granter.stop()
        check_nothing_lost(cluster, acknowledged)
        assert max(acknowledged.values()) > before


def test_p3_a_session_lives_through_the_restart_of_every_node(tmp_path: Path) -> None:
    """T2: the new leader gives it its full TTL; the lease goes on, with its token."""
    with running_cluster(tmp_path) as cluster, lockd.Client(cluster.endpoints, ttl=20) as client:
        lease = client.acquire("kept", wait=10)
        cluster.kill()
        cluster.start().await_ready()
        lease.check(need=15.0)
        assert not lease.lost
        assert client.inspect("kept").holders[0].token == lease.token
        assert lease.release()


def test_c8_a_node_with_a_lost_disk_cannot_come_back_under_its_old_id(tmp_path: Path) -> None:
    """It is refused by those who bound its id to the old instance, exits 2 and says what to do."""
    with running_cluster(tmp_path) as cluster:
        node = cluster.followers()[0]
        node.kill()
        node.data_dir.rename(node.data_dir.with_name("lost"))
        node.start()
        assert node.await_end() == 2
        assert "lockd members remove" in node.log_text().splitlines()[-1] + node.log_text()
