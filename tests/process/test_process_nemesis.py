"""Real nodes under faults of processes, the network and clocks, with histories that are checked.

`python -m tests.nemesis` runs the seeded schedule for as long as you like; tests/nemesis has the faults.
"""

import itertools
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hiredis
import pytest

import lockd
from lockd.client import clock
from tests.nemesis import clocks, disks
from tests.nemesis.checks import check
from tests.nemesis.clients import running_lockers
from tests.nemesis.cluster import NemesisCluster, NemesisNode, nemesis_cluster
from tests.nemesis.faults import FAULTS
from tests.nemesis.history import History
from tests.nemesis.network import ANYONE, NODES, Disturbance, Effect, only
from tests.nemesis.run import run
from tests.processes import eventually

pytestmark = pytest.mark.process

CALM = ("--election-timeout-ms=1000",)
"""For tests that count terms: a machine that is busy with other tests must not make elections of its own."""
HASTY = ("--election-timeout-ms=300",)
"""A call that can't be settled is answered after ten of these."""
TTL_FLOOR_MS = 1_500
"""3 election timeouts of 500 ms."""
MONTHS_S = 200 * 24 * 3600


@pytest.mark.parametrize("seed", [1])
def test_p1_p2_p3_histories_under_a_schedule_of_faults(tmp_path: Path, seed: int) -> None:
    report = run(tmp_path, seed=seed, seconds=10, faults_min=6)
    print(report)
    # A run in which nothing happens proves nothing; how much does happen is the machine's to say.
    assert report.terms >= 2
    assert report.grants >= 10


# One-way partitions.


def await_undisturbed_leader(cluster: NemesisCluster, *nodes: int) -> tuple[int, int]:
    """One of these leads, grants for longer than elections take, and stays leader in its term."""
    leader = cluster.leader_among(*nodes)
    term = leader.status()["term"]
    until = time.monotonic() + 2.2
    with lockd.Client(leader.endpoint, ttl=5) as client:
        while time.monotonic() < until:
            with client.lock("progress", wait=5):
                pass
    seen = leader.status()
    assert (seen["role"], seen["term"]) == ("leader", term), f"C5: {leader} was disturbed"
    return leader.node_id, term


def test_c5_a_leader_that_is_heard_and_does_not_hear_gives_way(tmp_path: Path) -> None:
    """Its heartbeats would keep the others from electing for ever: check-quorum ends that."""
    with nemesis_cluster(tmp_path, flags=CALM) as cluster, lockd.Client(cluster.endpoints, ttl=20) as client:
        lease = client.acquire("outlives", wait=10)
        deaf = cluster.leader()
        others = [node for node in cluster.nodes if node != deaf.node_id]
        with cluster.network.disturbed(Disturbance(NODES, only(deaf.node_id), Effect.HOLD)):
            leader, term = await_undisturbed_leader(cluster, *others)
            assert deaf.status()["role"] != "leader"
        # It hears again, of all that happened meanwhile, late: nobody minds.
        cluster.await_caught_up()
        assert (cluster.leader().node_id, cluster.term()) == (leader, term)
        assert client.inspect("outlives").holders[0].token == lease.token
        assert lease.release()


def test_c5_a_leader_that_is_not_heard_gives_way_and_a_follower_that_does_not_hear_disturbs_nobody(
    tmp_path: Path,
) -> None:
    with nemesis_cluster(tmp_path, flags=CALM) as cluster:
        mute = cluster.leader()
        others = [node for node in cluster.nodes if node != mute.node_id]
        with cluster.network.disturbed(Disturbance(only(mute.node_id), NODES, Effect.LOSE)):
            await_undisturbed_leader(cluster, *others)
            assert mute.status()["role"] != "leader"
        cluster.await_caught_up()
        leader, term = cluster.leader(), cluster.term()
        deaf = cluster.followers()[0]
        with cluster.network.disturbed(Disturbance(NODES, only(deaf.node_id), Effect.HOLD)):
            assert await_undisturbed_leader(cluster, leader.node_id) == (leader.node_id, term)
        cluster.await_caught_up()
        assert (cluster.leader(), cluster.term()) == (leader, term)


# Pauses, restarts, clocks.


def test_t3_a_leader_that_slept_past_its_leases_says_nothing_of_them(tmp_path: Path) -> None:
    """It wakes up as the leader it was, hears nothing yet, and is asked while another has the lock (C6)."""
    with nemesis_cluster(tmp_path, flags=HASTY) as cluster:
        sleeper = cluster.leader()
        held = sleeper.ask("LOCK.ACQUIRE", "k", "TTL", TTL_FLOOR_MS)
        others = [node.endpoint for node in cluster if node is not sleeper]
        questions = ("SESSION.KEEPALIVE", held["session"]), ("LOCK.INSPECT", "k")
        with ThreadPoolExecutor() as pool, lockd.Client(others, ttl=5) as client:
            sleeper.freeze()
            with cluster.network.disturbed(Disturbance(NODES, only(sleeper.node_id), Effect.HOLD)):
                asked = [pool.submit(sleeper.ask, *question, timeout=60) for question in questions]
                lease = client.acquire("k", wait=30)
                assert lease.token > held["token"]
                sleeper.thaw()
                renewal, seen = (each.result() for each in asked)
            assert isinstance(renewal, hiredis.ReplyError), f"T3: a dead session was renewed: {renewal}"
            assert isinstance(seen, hiredis.ReplyError), f"C6: answered by a leader of the past: {seen}"
            cluster.await_caught_up()
            assert lease.release()


def test_p1_a_client_that_is_cut_off_has_lost_its_lease_when_another_is_granted_the_lock(
    tmp_path: Path,
) -> None:
    """K1, T2: by its own clock, without a word from anybody. What it sent meanwhile comes too late."""
    with (
        nemesis_cluster(tmp_path) as cluster,
        lockd.Client(cluster.endpoints, ttl=2, name="lonely") as lonely,
        lockd.Client(cluster.endpoints, ttl=2, name="next") as client,
    ):
        lost = lonely.acquire("k", wait=10)
        there = Disturbance(only("lonely"), NODES, Effect.HOLD)
        back = Disturbance(NODES, only("lonely"), Effect.HOLD)
        with cluster.network.disturbed(there, back):
            lease = client.acquire("k", wait=30)
            granted_s = clock.now()
            assert lost.lost
            assert lost.grant.trust.deadline <= granted_s, "P1: both trust their leases"
        lost.release()
        assert client.inspect("k").holders[0].token == lease.token
        assert lease.release()
        with lonely.lock("k", wait=10) as again:
            assert again.token > lease.token


def test_p3_a_lease_and_every_promise_outlive_a_restart_storm(tmp_path: Path) -> None:
    history = History()
    with nemesis_cluster(tmp_path) as cluster, lockd.Client(cluster.endpoints, ttl=30) as client:
        lease = client.acquire("outlives", wait=10)
        with running_lockers(cluster.endpoints, history, count=3, seed=1):
            with (
                FAULTS["restart storm"](cluster, random.Random(1)),
                FAULTS["all killed"](cluster, random.Random(1)),
            ):
                assert history.await_grants(10, at_most_s=30)
            cluster.recover()
            assert history.await_grants(10, at_most_s=30)
        cluster.await_caught_up()
        lease.check(need=20.0)
        assert client.inspect("outlives").holders[0].token == lease.token
        assert lease.release()
    check(history)


@pytest.mark.skipif(bool(clocks.why_not()), reason=f"NOT TRIED, clocks that jump: {clocks.why_not()}")
def test_t1_clocks_that_jump_by_months_neither_end_leases_nor_freeze_them(tmp_path: Path) -> None:
    """The whole cluster is restarted with monotonic clocks far ahead, then far back again."""
    with nemesis_cluster(tmp_path) as cluster, lockd.Client(cluster.endpoints, ttl=20) as client:
        lease = client.acquire("outlives", wait=10)
        for number, shift_s in enumerate((MONTHS_S, 0), start=1):
            cluster.kill()
            for node in cluster:
                node.clock_shift_s = shift_s
            cluster.start().await_ready()
            cluster.leader().ask("LOCK.ACQUIRE", f"short {number}", "TTL", TTL_FLOOR_MS)
            began = time.monotonic()
            late = cluster.leader().ask("LOCK.ACQUIRE", "outlives", "TTL", 60_000, "WAIT", 500)
            assert str(late).startswith("TIMEOUT"), f"T1: {late}"
            assert time.monotonic() - began >= 0.5, "T1: a wait ended early"
            lease.check(need=15.0)
            with client.lock(f"short {number}", wait=15):
                pass  # nobody renewed it: it has ended, in time
            assert client.inspect("outlives").holders[0].token == lease.token, "T1, T2"
        assert lease.release()


# Members.


def test_c7_c8_two_nodes_are_replaced_one_after_the_other_while_leaders_die(tmp_path: Path) -> None:
    """Each by a node with another id and an empty disk, behind the same doors; nobody's lock is lost."""
    history = History()
    draw = random.Random(0)
    with nemesis_cluster(tmp_path, flags=HASTY) as cluster:
        with running_lockers(cluster.endpoints, history, count=3, seed=0):
            for _ in range(2):
                with FAULTS["node replaced"](cluster, draw), FAULTS["leader killed"](cluster, draw):
                    history.await_grants(20, at_most_s=1.0)
                cluster.recover()
                assert history.await_grants(10, at_most_s=30)
        cluster.await_caught_up()
        members = cluster.leader().status()["members"]
        assert {member["node"] for member in members if member["voter"]} == set(cluster.nodes)
        assert (cluster.replaced, max(cluster.nodes)) == (2, 5)
        cluster.check_not_failed()
    check(history)


# A full disk.


needs_small_disk = pytest.mark.skipif(
    bool(disks.why_not()), reason=f"NOT TRIED, a full disk: {disks.why_not()}"
)
DISK_BYTES = 24 * 1024 * 1024
ROOM_BYTES = 6 * 1024 * 1024
"""For one segment of 4 MiB, not for two."""
META = json.dumps("x" * 4_000)
FULL = "the disk is full: this node takes no writes until there is room"


def write_until_full(node: NemesisNode) -> dict[str, int]:
    """Take locks with much metadata, for good, until the node says that its disk is full.

    Returns what was acknowledged: lock to token.
    """
    acknowledged: dict[str, int] = {}
    for batch in itertools.count():
        names = [f"grant:{batch}:{number}" for number in range(50)]
        replies = node.ask_all(
            [("LOCK.ACQUIRE", name, "TTL", 600_000, "META", META) for name in names], timeout=60
        )
        for name, reply in zip(names, replies, strict=True):
            if not isinstance(reply, hiredis.ReplyError):
                acknowledged[name] = reply["token"]
        if FULL in node.log_text():
            return acknowledged
        assert batch < 200, "the disk never was full"
    raise AssertionError("not reached")


def lost(node: NemesisNode, acknowledged: dict[str, int]) -> list[str]:
    """Which of these the node does not have as they were told."""
    missing: list[str] = []
    names = list(acknowledged)
    for start in range(0, len(names), 50):
        batch = names[start : start + 50]
        replies = node.ask_all([("LOCK.INSPECT", name) for name in batch])
        for name, reply in zip(batch, replies, strict=True):
            if [holder["token"] for holder in reply["holders"]] != [acknowledged[name]]:
                missing.append(name)
    return missing


@needs_small_disk
def test_d4_a_node_with_a_full_disk_says_so_loses_nothing_and_goes_on_when_there_is_room(
    tmp_path: Path,
) -> None:
    with (
        disks.small_disk(tmp_path / "disk", size_bytes=DISK_BYTES, room_bytes=ROOM_BYTES) as disk,
        nemesis_cluster(tmp_path, size=1, disks={1: disk}, flags=HASTY) as cluster,
    ):
        (node,) = cluster
        acknowledged = write_until_full(node)
        assert acknowledged
        assert node.is_running
        refused = node.ask("LOCK.ACQUIRE", "more", "TTL", 600_000)
        assert isinstance(refused, hiredis.ReplyError), f"D4: acknowledged on a full disk: {refused}"
        assert "disk of this node is full" in str(refused)
        disk.make_room()
        eventually(
            lambda: not isinstance(node.ask("LOCK.ACQUIRE", "more", "TTL", 600_000), hiredis.ReplyError),
            "it goes on",
        )
        node.kill()
        node.start().await_ready()
        assert lost(node, acknowledged) == [], "D4, P3: lost what was acknowledged"


@needs_small_disk
def test_d4_a_leader_with_a_full_disk_makes_way_and_catches_up_when_there_is_room(tmp_path: Path) -> None:
    with (
        disks.small_disk(tmp_path / "disk", size_bytes=DISK_BYTES, room_bytes=ROOM_BYTES) as disk,
        nemesis_cluster(tmp_path, disks={1: disk}, flags=HASTY) as cluster,
        lockd.Client(cluster.endpoints, ttl=20) as client,
    ):
        lease = client.acquire("outlives", wait=10)
        full = cluster.nodes[1]
        eventually(lambda: lead(cluster, full), "node 1 leads")
        acknowledged = write_until_full(full)
        cluster.leader_among(2, 3)
        with client.lock("progress", wait=20):
            assert full.is_running
        disk.make_room()
        cluster.await_caught_up()
        assert lost(full, acknowledged) == [], "D4, P3: lost what was acknowledged"
        lease.check(need=10.0)
        assert lease.release()


def lead(cluster: NemesisCluster, node: NemesisNode) -> bool:
    """Have the node lead. Returns whether it does."""
    leader = cluster.leader()
    if leader is not node:
        leader.ask("CLUSTER.TRANSFER", node.node_id)
    return cluster.leader() is node


# The network itself.


def test_p2_late_bytes_of_an_old_leader_change_nothing(tmp_path: Path) -> None:
    """All that a leader said and was told is held back until two others have gone on without it (C2, C3)."""
    history = History()
    with nemesis_cluster(tmp_path) as cluster:
        with running_lockers(cluster.endpoints, history, count=3, seed=2):
            for _ in range(2):
                old = cluster.leader()
                itself = only(old.node_id)
                others = [node for node in cluster.nodes if node != old.node_id]
                with cluster.network.disturbed(
                    Disturbance(itself, ANYONE, Effect.HOLD), Disturbance(ANYONE, itself, Effect.HOLD)
                ):
                    cluster.leader_among(*others)
                    assert history.await_grants(20, at_most_s=30)
                assert history.await_grants(20, at_most_s=30)
        eventually(lambda: not cluster.leader().ask("LOCK.LIST")["locks"], "what the clients held is free")
        cluster.await_caught_up()
    check(history)
