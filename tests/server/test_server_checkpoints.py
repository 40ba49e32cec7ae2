"""Snapshots of the nodes that a test moves by hand: taken, streamed, compared (SAFETY C9, C11)."""

import pytest

from lockd.disk.snapshot_file import decode_snapshot
from lockd.disk.snapshots import SnapshotReader
from lockd.errors import CorruptData
from lockd.ids import LogIndex, NodeId, Term
from lockd.locks.commands import Granted, OriginGone, Refused
from lockd.locks.fingerprint import fingerprint
from lockd.raft.codec import decode_message
from lockd.raft.messages import Heartbeat, InstallSnapshot
from lockd.raft.progress import Pace
from lockd.server import frames, snapshots
from lockd.server.port import Backup
from tests.server.cluster import Cluster

LOG_BYTES = 2_000


def busy(cluster: Cluster, rounds: int) -> None:
    """Have grants in the log, so that snapshots become due."""
    for number in range(rounds):
        cluster.acquire(1, f"lock{number}", "s")


def elected(log_bytes: int = LOG_BYTES) -> Cluster:
    cluster = Cluster(snapshot_log_bytes=log_bytes)
    cluster.elect(1)
    cluster.tick(3)
    cluster.open_session(1, "s", ttl_ms=600_000)
    return cluster


def state_of(cluster: Cluster, node: int) -> bytes:
    return fingerprint(cluster[node].driver.machine.state)


def behind(cluster: Cluster) -> None:
    """Node 3 misses so much that the log in memory begins after where it is."""
    cluster.isolate(3)
    busy(cluster, 60)
    raft = cluster[1].driver.raft
    assert raft.log.base > cluster[3].driver.raft.log.last_index
    cluster.heal()


def test_c11_all_nodes_take_their_snapshots_at_the_same_entries_and_compare_them() -> None:
    cluster = elected()
    busy(cluster, 40)
    newest = {cluster[node].driver.raft.snapshot for node in (1, 2, 3)}
    assert len(newest) == 1
    hashes = {
        (frame.index, frame.state_hash) for _, _, frame in cluster.sent if isinstance(frame, frames.StateHash)
    }
    assert len(hashes) == len({index for index, _ in hashes}) > 1


def test_c11_a_node_whose_state_differs_from_a_quorums_stops() -> None:
    cluster = elected(2**40)
    checkpoints = cluster[1].driver.checkpoints
    checkpoints.compare(cluster.nodes[0], LogIndex(9), "aa" * 16)
    checkpoints.compare(cluster.nodes[1], LogIndex(9), "bb" * 16)  # one other is no quorum
    with pytest.raises(CorruptData, match=r"differs from that of nodes 2, 3 at entry 9"):
        checkpoints.compare(cluster.nodes[2], LogIndex(9), "bb" * 16)


def test_c11_those_who_do_not_vote_are_no_quorum() -> None:
    cluster = elected(2**40)
    checkpoints = cluster[1].driver.checkpoints
    checkpoints.compare(cluster.nodes[0], LogIndex(9), "aa" * 16)
    checkpoints.compare(cluster.nodes[1], LogIndex(9), "bb" * 16)
    for listener in (4, 5):
        checkpoints.compare(NodeId(listener), LogIndex(9), "bb" * 16)


def test_c11_the_nodes_of_the_quorum_go_on() -> None:
    cluster = elected(2**40)
    checkpoints = cluster[2].driver.checkpoints
    for node, state_hash in zip(cluster.nodes, ("aa" * 16, "bb" * 16, "bb" * 16), strict=True):
        checkpoints.compare(node, LogIndex(9), state_hash)


def test_c9_who_is_behind_the_log_is_caught_up_by_a_snapshot() -> None:
    cluster = elected()
    behind(cluster)
    cluster.tick(20)
    assert cluster[3].driver.receiving.received == 1
    assert cluster[1].driver.sending.sent == 1
    assert state_of(cluster, 3) == state_of(cluster, 1)
    cluster[3].restart()
    cluster.tick(20)
    assert state_of(cluster, 3) == state_of(cluster, 1), "what was installed is on its disk"


def test_c9_a_chunk_that_is_lost_is_sent_again() -> None:
    cluster = elected()
    behind(cluster)
    cluster.hold_back(frames.SnapshotChunk, frames.SnapshotAck)
    cluster.tick(5)
    assert cluster[1].driver.raft.progress[cluster.nodes[2]].pace is Pace.SNAPSHOT
    cluster.lose(lambda _s, _r, frame: isinstance(frame, frames.SnapshotChunk))
    cluster.hold_back()
    cluster.tick(40)
    assert cluster[3].driver.receiving.received == 1
    assert state_of(cluster, 3) == state_of(cluster, 1)


def test_c9_a_snapshot_with_a_flipped_bit_is_not_installed_and_sent_anew() -> None:
    cluster = elected()
    behind(cluster)
    flipped: list[frames.SnapshotChunk] = []

    def flip(sender: int, receiver: int, frame: frames.Frame) -> bool:
        if not isinstance(frame, frames.SnapshotChunk) or flipped or not frame.data:
            return False
        flipped.append(frame)
        middle = len(frame.data) // 2
        data = frame.data[:middle] + bytes([frame.data[middle] ^ 4]) + frame.data[middle + 1 :]
        broken = frames.SnapshotChunk(frame.message, frame.file_bytes, frame.offset, data)
        before = cluster[receiver].driver.raft.commit_index
        cluster[receiver].driver.on_frame(cluster.nodes[sender - 1], broken)
        assert cluster[receiver].driver.raft.commit_index == before, "C9: installed whole or not at all"
        return True

    cluster.holds_back = flip
    cluster.tick(60)
    assert flipped
    assert cluster[3].driver.receiving.received == 1
    assert state_of(cluster, 3) == state_of(cluster, 1)


def test_c9_a_transfer_goes_on_under_the_next_leader_from_the_beginning() -> None:
    cluster = elected()
    behind(cluster)
    cluster.hold_back(frames.SnapshotChunk)
    cluster.tick(5)
    cluster.isolate(1)
    cluster.lose(lambda sender, _r, _f: sender == 1)
    cluster.hold_back()
    cluster.tick(80, only=(2, 3))
    assert cluster[2].leads()
    assert state_of(cluster, 3) == state_of(cluster, 2)


def test_c2_a_deposed_leader_sends_no_more_of_its_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece speaks in its sender's present term: that is its successor's now (§5.2)."""
    monkeypatch.setattr(snapshots, "CHUNK_BYTES", 200)
    cluster = elected()
    behind(cluster)
    cluster.hold_back(frames.SnapshotAck)
    cluster.tick(5)
    first, second, _ = cluster.nodes
    raft = cluster[1].driver.raft
    raft.step(Heartbeat(second, first, Term(raft.term + 1), LogIndex(0)))
    sent = len([frame for _, _, frame in cluster.sent if isinstance(frame, frames.SnapshotChunk)])
    assert sent
    cluster.hold_back()
    cluster.settle()
    later = [frame for _, _, frame in cluster.sent if isinstance(frame, frames.SnapshotChunk)][sent:]
    assert later == []


def test_c2_what_a_leader_began_to_send_before_it_was_deposed_speaks_in_its_own_term() -> None:
    """A step may come between Raft's wish to send a snapshot and its first piece (§5.2)."""
    cluster = elected()
    behind(cluster)
    first, second, third = cluster.nodes
    driver = cluster[1].driver
    term, snapshot = driver.raft.term, driver.raft.snapshot
    assert snapshot is not None
    driver.raft.step(Heartbeat(second, first, Term(term + 1), LogIndex(0)))
    sent = len(cluster.sent)
    driver.sending.begin(InstallSnapshot(first, third, term, snapshot))
    pieces = [frame for _, _, frame in cluster.sent[sent:] if isinstance(frame, frames.SnapshotChunk)]
    assert [decode_message(piece.message).term for piece in pieces] == [term]


def test_g4_who_waits_at_a_node_that_is_caught_up_by_a_snapshot_is_told_to_ask_again() -> None:
    cluster = elected()
    cluster.acquire(3, "wanted", "s")
    cluster.open_session(3, "other", ttl_ms=600_000)
    waiting = cluster.acquire(3, "wanted", "other", request=1)
    behind(cluster)
    cluster.tick(20)
    last = waiting[-1]
    assert isinstance(last, Refused)
    assert (last.code, "caught up by a snapshot" in last.text) == ("UNKNOWN", True)
    cluster.tick(5)
    (gone,) = [gone for gone in cluster[1].logged(OriginGone) if gone.operation]
    (wait,) = cluster[1].driver.machine.state.locks["wanted"].waiters.values()
    assert gone.operation == wait.origin.operation, "its wait is withdrawn unless it asks in time"
    assert wait.orphan_timer


def test_a_backup_has_everything_that_was_acknowledged_before_it() -> None:
    cluster = elected(2**40)
    (granted,) = cluster.acquire(1, "lock", "s")
    ready: list[Backup | Refused] = []
    cluster[2].driver.backup(ready.append)
    cluster.tick(5)
    (backup,) = ready
    assert isinstance(backup, Backup)
    assert isinstance(backup.reader, SnapshotReader)
    assert isinstance(granted, Granted)
    stored, body = decode_snapshot(backup.reader.read(0, backup.reader.size), name="backup")
    backup.reader.close()
    assert stored.header.meta.index == backup.index >= cluster[1].driver.raft.commit_index - 3
    assert b"lock" in body
