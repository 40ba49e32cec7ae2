"""Members that come and go, as real processes: replaced, removed, joining, and refused (C7, C8)."""

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lockd
from lockd.errors import LockdError
from tests.processes import (
    ClusterProcesses,
    LockdProcess,
    eventually,
    run_lockd,
    running_cluster,
    running_node,
)

pytestmark = pytest.mark.process

REMOVED = {0, 2}
"""How a running node ends that is removed: it applies that itself, or its peers tell it first."""


def members(cluster_endpoints: str, *arguments: object) -> str:
    """`lockd members ...`, which must succeed; its output."""
    done = run_lockd("members", *arguments, environ={"LOCKD_ENDPOINTS": cluster_endpoints})
    assert done.returncode == 0, done.stderr
    return done.stdout


def peer_address(node: LockdProcess) -> str:
    return f"127.0.0.1:{node.ports.peer}"


def newcomer(
    cluster: ClusterProcesses, directory: Path, node_id: int, *, through: LockdProcess
) -> LockdProcess:
    """An empty node that is to join; the cluster's block ends it."""
    node = LockdProcess(
        directory / f"node-{node_id}", node_id=node_id, flags=[f"--join={peer_address(through)}"]
    )
    cluster.nodes[node_id] = node
    return node


def await_voters(node: LockdProcess, *expected: int) -> None:
    def are_there() -> bool:
        found: list[dict[str, Any]] = node.status()["members"]
        return [(member["node"], member["voter"]) for member in found] == [(number, 1) for number in expected]

    eventually(are_there, f"{node} knows the voters {expected}")


class Worker(threading.Thread):
    """A client that takes and gives back one lock again and again, and holds another all the time."""

    def __init__(self, endpoints: str) -> None:
        super().__init__()
        self.tokens: list[int] = []
        self.failures: list[LockdError] = []
        self.is_over = threading.Event()
        self._client = lockd.Client(endpoints, ttl=10)
        self.held = self._client.acquire("held", wait=10)

    def run(self) -> None:
        while not self.is_over.is_set():
            try:
                with self._client.lock("busy", wait=10) as lease:
                    self.tokens.append(lease.token)
            except LockdError as error:
                self.failures.append(error)

    def end(self) -> None:
        self.is_over.set()
        self.join()
        self._client.close()


@contextlib.contextmanager
def working(endpoints: str) -> Iterator[Worker]:
    worker = Worker(endpoints)
    worker.start()
    try:
        yield worker
    finally:
        worker.end()


def test_c7_a_dead_node_of_three_is_replaced_while_clients_keep_locking(tmp_path: Path) -> None:
    """And then the cluster does without another of the first three: the new one counts."""
    with running_cluster(tmp_path) as cluster, working(cluster.endpoints) as worker:
        dead = cluster.leader()
        dead.kill()
        endpoints = cluster.endpoints
        helper = cluster.leader()
        new = newcomer(cluster, tmp_path, 4, through=helper).start()
        members(endpoints, "remove", dead.node_id)
        members(endpoints, "add", 4, peer_address(new))
        new.await_ready()
        staying = sorted(node.node_id for node in cluster.running)
        for node in cluster.running:
            await_voters(node, *staying)
        before = len(worker.tokens)
        eventually(lambda: len(worker.tokens) > before + 5, "the client goes on locking")
        assert not worker.held.lost
        assert worker.failures == []
        assert worker.tokens == sorted(set(worker.tokens))  # P2

        helper.kill()  # one of the first three: what is left is a quorum only with the new node
        before = len(worker.tokens)
        eventually(lambda: len(worker.tokens) > before + 5, "the client locks with the new node's vote")
        worker.held.check()
        assert worker.failures == []
        assert worker.tokens == sorted(set(worker.tokens))
        listed = json.loads(members(endpoints, "--json"))
        assert listed["removed"] == [dead.node_id]


@pytest.mark.parametrize("first", ["added", "started"])
def test_a_node_joins_whether_it_is_added_or_started_first(tmp_path: Path, first: str) -> None:
    with running_cluster(tmp_path) as cluster:
        follower = cluster.followers()[0]
        held = follower.ask("LOCK.ACQUIRE", "k", "TTL", 60_000)["token"]
        new = newcomer(cluster, tmp_path, 4, through=follower)
        if first == "started":
            new.start()
            command = f"lockd members add 4 {peer_address(new)}"
            eventually(lambda: command in new.log_text(), "it says what to do")
            assert new.log_text().count(command) == 1
            assert new.http("/readyz")[0] != 200
        members(cluster.endpoints, "add", 4, peer_address(new))
        if first == "added":
            new.start()
        new.await_ready()
        await_voters(new, 1, 2, 3, 4)
        assert new.ask("LOCK.INSPECT", "k")["holders"][0]["token"] == held
        # With its data it needs no --join any more, and takes no notice of one.
        new.kill()
        new.start().await_ready()
        assert f"join {peer_address(follower)} is ignored" in new.log_text()
        await_voters(new, 1, 2, 3, 4)


def test_a_node_that_waits_to_be_added_can_be_told_to_stop(tmp_path: Path) -> None:
    with running_node(tmp_path) as member:
        node = LockdProcess(tmp_path / "new", node_id=2, flags=[f"--join={peer_address(member)}"])
        try:
            node.start()
            eventually(lambda: "waiting to be added" in node.log_text(), "it waits")
            assert node.terminate() == 0
            assert "Traceback" not in node.log_text()
        finally:
            node.stop()


def test_a_single_node_grows_to_three_and_shrinks_again(tmp_path: Path) -> None:
    with running_node(tmp_path) as one, contextlib.ExitStack() as stack:
        added = []
        for number in (2, 3):
            node = LockdProcess(
                tmp_path / f"added-{number}", node_id=number, flags=[f"--join={peer_address(one)}"]
            )
            stack.callback(node.stop)
            members(one.endpoint, "add", number, peer_address(node))
            added.append(node.start().await_ready())
            await_voters(one, *range(1, number + 1))
        token = one.ask("LOCK.ACQUIRE", "k", "TTL", 60_000)["token"]
        assert members(one.endpoint, "transfer", 3) == "node 3 leads\n"
        endpoints = f"{one.endpoint},{added[1].endpoint}"
        members(endpoints, "remove", 2)
        assert added[0].await_end() in REMOVED
        members(endpoints, "remove", 1)
        assert one.await_end() in REMOVED
        await_voters(added[1], 3)
        assert added[1].ask("LOCK.ACQUIRE", "l", "TTL", 60_000)["token"] > token
        refused = run_lockd("members", "remove", 3, "--endpoints", added[1].endpoint)
        assert refused.returncode == 1
        assert "last voter" in refused.stderr


@pytest.mark.parametrize("role", ["follower", "leader"])
def test_c8_a_removed_node_ends_with_what_to_do_and_its_id_never_comes_back(
    tmp_path: Path, role: str
) -> None:
    with running_cluster(tmp_path) as cluster:
        node = cluster.leader() if role == "leader" else cluster.followers()[0]
        staying = [other for other in cluster if other is not node]
        endpoints = ",".join(other.endpoint for other in staying)
        members(endpoints, "remove", node.node_id)
        says = f"node {node.node_id} was removed from this cluster; ids are never used again"
        assert node.await_end() in REMOVED
        before = len(node.log_text())
        assert node.start().await_end() == 2  # also with its data
        assert says in node.log_text()[before:]
        refused = run_lockd("members", "add", node.node_id, peer_address(node), "--endpoints", endpoints)
        assert refused.returncode == 1
        assert "ids are not used again" in refused.stderr
        node.data_dir.rename(node.data_dir.with_name("lost"))
        node.flags = [f"--join={peer_address(staying[0])}"]
        before = len(node.log_text())
        assert node.start().await_end() == 2  # and without
        assert says in node.log_text()[before:]
        assert "ready" in staying[0].http("/readyz")[1]


def test_c8_a_wiped_node_is_refused_however_it_is_started(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster:
        node = cluster.followers()[0]
        other = next(member for member in cluster if member is not node)
        founding = node.flags
        node.kill()
        for number, flags in enumerate((founding, [f"--join={peer_address(other)}"])):
            node.data_dir.rename(node.data_dir.with_name(f"lost-{number}"))
            node.flags = flags
            before = len(node.log_text())
            assert node.start().await_end() == 2
            said = node.log_text()[before:]
            assert f"lockd members remove {node.node_id}" in said
            assert "--join" in said
        # What it was told works.
        new = newcomer(cluster, tmp_path, 4, through=other)
        members(cluster.endpoints, "remove", node.node_id)
        members(cluster.endpoints, "add", 4, peer_address(new))
        new.start().await_ready()
        await_voters(new, *sorted({1, 2, 3, 4} - {node.node_id}))


def test_c8_a_node_that_came_later_knows_a_lost_disk_from_the_log(tmp_path: Path) -> None:
    """It has never met the node whose disk it was: who that is was registered before its time."""
    with running_cluster(tmp_path) as cluster:
        node = cluster.followers()[0]
        node.kill()
        new = newcomer(cluster, tmp_path, 4, through=cluster.leader())
        members(cluster.endpoints, "add", 4, peer_address(new))
        new.start().await_ready()
        node.data_dir.rename(node.data_dir.with_name("lost"))
        node.flags = [f"--join={peer_address(new)}"]
        before = len(node.log_text())
        assert node.start().await_end() == 2
        assert f"the node at {peer_address(new)} refuses this data directory" in node.log_text()[before:]


def test_an_empty_node_that_would_found_a_cluster_with_members_of_one_is_told_how_to_join(
    tmp_path: Path,
) -> None:
    with running_cluster(tmp_path) as cluster:
        stranger = LockdProcess(tmp_path / "stranger", node_id=4)
        founding = ",".join(
            [f"{node.node_id}={peer_address(node)}" for node in list(cluster)[:2]]
            + [f"4={peer_address(stranger)}"]
        )
        stranger.flags = [f"--initial-cluster={founding}"]
        cluster.nodes[4] = stranger
        assert stranger.start().await_end() == 2
        said = stranger.log_text()
        assert "can't found a cluster" in said
        for command in ("lockd members remove 4", "lockd members add NEW_ID", "--join"):
            assert command in said


def test_c7_a_change_whose_new_quorum_cannot_be_reached_is_refused_unless_forced(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster:
        one, other = cluster.followers()
        leader = cluster.leader()
        one.kill()
        eventually(
            lambda: any(
                member["node"] == one.node_id and not member["alive"] for member in leader.status()["members"]
            ),
            "the leader misses the dead node",
        )
        refused = run_lockd("members", "remove", other.node_id, "--endpoints", leader.endpoint)
        assert refused.returncode == 1, refused.stderr
        assert "FORCE" in refused.stderr
        assert len(leader.status()["members"]) == 3
        members(leader.endpoint, "remove", one.node_id)
        await_voters(leader, *sorted({leader.node_id, other.node_id}))


def test_c7_a_node_that_was_away_follows_a_leader_that_it_has_never_heard_of(tmp_path: Path) -> None:
    """Nobody but that leader can tell it of that leader: it is heard, and dialled back where it says."""
    with running_cluster(tmp_path) as cluster:
        away = cluster.followers()[0]
        away.kill()
        leader = cluster.leader()
        new = newcomer(cluster, tmp_path, 4, through=leader)
        members(cluster.endpoints, "add", 4, peer_address(new))
        new.start().await_ready()
        await_voters(leader, 1, 2, 3, 4)
        members(cluster.endpoints, "transfer", 4)
        assert cluster.leader() is new
        away.start().await_ready()
        await_voters(away, 1, 2, 3, 4)
        assert away.status()["leader"] == 4
        assert away.ask("LOCK.ACQUIRE", "k", "TTL", 60_000)["token"]  # passed on to the leader


def test_a_learner_stays_one_until_it_is_promoted(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster:
        leader = cluster.leader()
        new = newcomer(cluster, tmp_path, 4, through=leader)
        members(cluster.endpoints, "add", 4, peer_address(new), "--learner")
        new.start().await_ready()
        (learner,) = [member for member in leader.status()["members"] if member["node"] == 4]
        assert (learner["voter"], learner["wants_vote"]) == (0, 0)
        assert "4     learner " in members(cluster.endpoints)
        members(cluster.endpoints, "promote", 4)
        await_voters(leader, 1, 2, 3, 4)
