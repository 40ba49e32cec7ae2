"""The three real nodes of lockd.testing: faults, and that nothing is left of them."""

import threading
from pathlib import Path

import pytest

import lockd
from lockd.testing import Cluster, running_cluster

pytestmark = pytest.mark.process


def test_a_lease_outlives_a_partition_a_pause_and_a_kill(lockd_cluster: Cluster) -> None:
    with lockd_cluster.client(ttl=30) as client, client.lock("k") as lease:
        first = lockd_cluster.leader()
        lockd_cluster.partition(first)
        second = lockd_cluster.leader()
        assert second is not first
        lease.check(need=29)
        lockd_cluster.heal()
        lockd_cluster.start()  # waits until the one that was cut off has heard of its successor
        assert lockd_cluster.leader() is not first

        leader = lockd_cluster.leader()
        lockd_cluster.pause(leader)
        assert leader.is_paused
        assert lockd_cluster.leader() is not leader
        lease.check(need=29)
        lockd_cluster.resume(leader)

        leader = lockd_cluster.leader()
        lockd_cluster.kill(leader)
        assert not leader.is_running
        assert lockd_cluster.leader() is not leader
        assert leader not in lockd_cluster.followers()
        lockd_cluster.start()
        lease.check(need=29)
        with lockd.Client() as named_by_environment:
            assert named_by_environment.validate("k", lease.token) == "current"


def test_a_minority_that_is_cut_off_promises_nothing(lockd_cluster: Cluster) -> None:
    alone = lockd_cluster.followers()[0]
    lockd_cluster.partition(alone)
    assert alone.status()["node"] == alone.number
    others = [node for node in lockd_cluster if node is not alone]
    # Two that are cut off from the third are the majority.
    lockd_cluster.partition(*others)
    assert lockd_cluster.leader() in others


def test_nothing_is_left_when_it_is_over(tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    with running_cluster(tmp_path) as cluster:
        nodes = list(cluster)
        cluster.pause(cluster.followers()[0])
        cluster.partition(cluster[1])
    assert [node.is_running for node in nodes] == [False] * 3
    assert set(threading.enumerate()) == threads
    for node in nodes:
        with pytest.raises(OSError, match="refused"):
            node.status()


def test_a_node_that_ends_by_itself_is_told_with_what_it_logged(lockd_cluster: Cluster) -> None:
    lockd_cluster.kill(lockd_cluster[2])
    with pytest.raises(RuntimeError, match=r"(?s)node 2 .* has ended.*serves clients"):
        lockd_cluster[2].is_ready()
    with pytest.raises(RuntimeError, match="does not run"):
        lockd_cluster.pause(lockd_cluster[2])
