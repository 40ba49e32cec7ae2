"""The processes that tests run: they can be waited for, frozen, killed and brought back."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import eventually, is_alive, running_cluster, running_node

pytestmark = pytest.mark.process


def test_a_node_keeps_a_grant_over_kill_9(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        granted = node.ask("LOCK.ACQUIRE", "k", "TTL", 60_000)
        node.kill()
        node.start().await_ready()
        assert node.ask("LOCK.INSPECT", "k")["granted_last"] == granted["token"]


def test_a_cluster_elects_another_leader_and_takes_the_old_one_back(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster:
        first = cluster.leader()
        first.kill()
        second = cluster.leader()
        assert second is not first
        assert first not in cluster.followers()
        first.start().await_ready()
        assert len(cluster.followers()) == 2


def test_a_frozen_node_stands_still_and_can_be_stopped(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        node.freeze()
        assert node.http("/healthz") == (0, "")
        node.thaw()
        node.await_ready()
        node.freeze()
    assert not node.is_running


def test_nodes_die_with_the_process_that_started_them(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from tests.processes import running_node\n"
        f"with running_node(pathlib.Path({str(tmp_path)!r})) as node:\n"
        "    print(node.pid, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        starter.kill()
    eventually(lambda: not is_alive(pid), f"process {pid} is gone")
