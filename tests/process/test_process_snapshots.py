"""Snapshots on real nodes: the log stays short, and who was away is caught up (§7, SAFETY C9, C11)."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ClusterProcesses, LockdProcess, eventually, running_cluster, running_node

pytestmark = pytest.mark.process

TTL_MS = 600_000
LOG_BYTES = 64 * 1024
META = '{"note": "' + "x" * 1500 + '"}'
FLAGS = (f"--snapshot-log-bytes={LOG_BYTES}",)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ClusterProcesses]:
    with running_cluster(tmp_path, flags=FLAGS) as running:
        yield running


def grant_many(node: LockdProcess, prefix: str, count: int) -> dict[str, int]:
    """Take so many locks of about 1.5 KiB each; returns their tokens."""
    acquire: list[tuple[object, ...]] = [
        ("LOCK.ACQUIRE", f"{prefix}:{n}", "TTL", TTL_MS, "META", META) for n in range(count)
    ]
    return {answer["lock"]: answer["token"] for answer in ask_in_parts(node, acquire)}


def ask_in_parts(node: LockdProcess, commands: Sequence[tuple[object, ...]]) -> list[Any]:
    """A hundred at a time: who sends thousands and reads nothing is cut off."""
    return [answer for part in batched(commands, 100) for answer in node.ask_all(part)]


def batched(commands: Sequence[tuple[object, ...]], count: int) -> Iterator[Sequence[tuple[object, ...]]]:
    for start in range(0, len(commands), count):
        yield commands[start : start + count]


def tokens(node: LockdProcess, locks: dict[str, int], *, stale: bool = False) -> dict[str, int]:
    how = ("STALE",) if stale else ()
    views = ask_in_parts(node, [("LOCK.INSPECT", name, *how) for name in locks])
    return {view["lock"]: view["holders"][0]["token"] for view in views if view["holders"]}


def snapshots(node: LockdProcess) -> list[str]:
    return sorted(path.name for path in node.data_dir.glob("snapshot-*.snap"))


def test_c9_a_follower_that_was_away_is_caught_up_by_a_snapshot(cluster: ClusterProcesses) -> None:
    leader, away = cluster.leader(), cluster.followers()[0]
    away.kill()
    granted = grant_many(leader, "lock", 400)  # some 600 KiB of log: many snapshots
    eventually(lambda: snapshots(leader), "the leader's first snapshot")
    leader.ask("LOCK.ACQUIRE", "last", "TTL", TTL_MS)

    away.start().await_ready()
    eventually(
        lambda: away.status()["last_applied"] >= leader.status()["commit_index"], "the follower catches up"
    )
    assert "snapshot of entry" in away.log_text(), "it came by a snapshot"
    assert tokens(away, granted, stale=True) == granted

    leader.kill()  # now the one that was caught up counts for the quorum, and may lead
    cluster.await_ready()
    assert tokens(away, granted) == granted
    assert away.ask("LOCK.ACQUIRE", "next", "TTL", TTL_MS, "WAIT", 5000)["token"] > max(granted.values())


def test_p3_g1_all_nodes_restart_from_their_snapshots(cluster: ClusterProcesses) -> None:
    granted = grant_many(cluster.leader(), "lock", 400)
    for node in cluster:
        eventually(partial(snapshots, node), f"a snapshot of {node}")
    cluster.kill()
    cluster.start().await_ready()
    leader = cluster.leader()
    assert tokens(leader, granted) == granted
    assert leader.ask("LOCK.ACQUIRE", "next", "TTL", TTL_MS)["token"] > max(granted.values())


def test_the_log_on_disk_begins_with_the_newest_snapshot(tmp_path: Path) -> None:
    """Segments of 4 MiB go once a snapshot stands for them; so do older snapshots."""
    with running_node(tmp_path, flags=["--snapshot-log-bytes=1000000"]) as node:
        acquired: dict[str, int] = {}
        for round_number in range(8):
            acquired |= grant_many(node, f"round{round_number}", 1000)
        first = eventually(
            lambda: min(path.name for path in node.data_dir.glob("*.log")) > f"{1:016}.log" or None,
            "the first segment is removed",
        )
        assert first
        eventually(lambda: len(snapshots(node)) == 1, "older snapshots are removed")
        node.kill()
        node.start().await_ready()
        assert tokens(node, acquired) == acquired


def test_c9_a_snapshot_whose_writer_is_killed_costs_nothing(tmp_path: Path) -> None:
    """It is written by a child process; without it the log goes on growing until the next is due."""
    with running_node(tmp_path, flags=FLAGS) as node:
        children = Path(f"/proc/{node.pid}/task/{node.pid}/children")
        stop = threading.Event()

        def kill_writers() -> None:
            while not stop.is_set():
                for child in children.read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(child), signal.SIGKILL)

        killer = threading.Thread(target=kill_writers)
        killer.start()
        try:
            granted = grant_many(node, "lock", 300)
            eventually(lambda: "cannot take a snapshot" in node.log_text(), "a killed writer is noticed")
        finally:
            stop.set()
            killer.join()
        granted |= grant_many(node, "more", 100)
        eventually(lambda: snapshots(node), "the next snapshot")
        assert "lockd_snapshots_taken_total" in node.http("/metrics")[1]
        node.kill()
        node.start().await_ready()
        assert tokens(node, granted) == granted
