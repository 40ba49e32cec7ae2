"""What a node answers around the moment when it goes on from a leader's snapshot (SAFETY C6, C9)."""

from lockd.server import frames
from tests.server.cluster import Cluster


def behind() -> Cluster:
    """Node 3 misses so much that it has to be sent a snapshot; what it is sent stays on the wire."""
    cluster = Cluster(snapshot_log_bytes=2_000)
    cluster.elect(1)
    cluster.tick(3)
    cluster.open_session(1, "s", ttl_ms=600_000)
    cluster.isolate(3)
    for number in range(60):
        cluster.acquire(1, f"lock{number}", "s")
    assert cluster[1].driver.raft.log.base > cluster[3].driver.raft.log.last_index
    cluster.heal()
    return cluster


def read_at(cluster: Cluster) -> tuple[frames.SnapshotChunk, frames.ReadReply, list[int]]:
    """Node 3 has asked for a read: the last of the snapshot, the leader's answer, and what is read."""
    cluster.hold_back(frames.SnapshotChunk, frames.ReadRequest)
    cluster.tick(30)
    node, seen = cluster[3].driver, list[int]()
    node.read(lambda refusal: seen.append(node.machine.state.applied) if refusal is None else None)
    cluster.settle()
    request = [frame for _, _, frame in cluster.sent if isinstance(frame, frames.ReadRequest)][-1]
    chunk = [frame for _, _, frame in cluster.sent if isinstance(frame, frames.SnapshotChunk)][-1]
    snapshot = cluster[1].driver.raft.snapshot
    assert snapshot is not None
    return chunk, frames.ReadReply(request.call, snapshot.index), seen


def test_c6_a_read_that_is_confirmed_right_after_a_snapshot_arrived_sees_the_state_of_the_snapshot() -> None:
    cluster = behind()
    chunk, reply, seen = read_at(cluster)
    cluster[3].driver.on_frame(cluster.nodes[0], chunk)
    cluster[3].driver.on_frame(cluster.nodes[0], reply)
    assert seen == [reply.index]


def test_c6_a_read_that_waits_for_entries_is_answered_once_a_snapshot_brings_them() -> None:
    cluster = behind()
    chunk, reply, seen = read_at(cluster)
    cluster[3].driver.on_frame(cluster.nodes[0], reply)
    assert seen == [], "the entries that it waits for have not arrived"
    cluster[3].driver.on_frame(cluster.nodes[0], chunk)
    assert seen == [reply.index]
