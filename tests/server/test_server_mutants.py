"""What no other test noticed when it was taken out of the server; see tests/mutations."""

import pytest

import lockd.server.snapshots
from lockd.ids import LogIndex, SessionId
from lockd.locks.commands import AddMember, Changed, OpenSession, PromoteMember, SessionOpened
from lockd.raft.codec import decode_message, encode_message
from lockd.raft.entries import Configuration, SnapshotMeta
from lockd.raft.messages import InstallSnapshot
from lockd.server import frames
from tests.server.cluster import ELECTION_TIMEOUT_MS, Cluster
from tests.server.test_server_checkpoints import behind, busy, elected, state_of
from tests.server.test_server_membership import change, refusal


def test_c7_a_learner_that_lags_behind_is_promoted_by_force_alone() -> None:
    cluster = elected(2**40)
    cluster.start_empty(4)
    assert change(cluster, 1, AddMember(4, "node4:7421", wants_vote=False)) == [Changed(1)]
    cluster.isolate(4)
    busy(cluster, 80)
    lags = "node 4 has not caught up with the log yet"
    assert refusal(change(cluster, 1, PromoteMember(4))) == f"UNAVAILABLE {lags}"
    cluster.pass_ms(ELECTION_TIMEOUT_MS, only=(1, 2, 3))
    told = refusal(change(cluster, 1, PromoteMember(4)))
    assert told == f"ERR {lags}, and does not answer: start it, or say FORCE"
    assert cluster[1].driver.raft.configuration.learners == (4,)
    assert change(cluster, 1, PromoteMember(4), force=True) == [Changed(1)]


def test_c9_a_file_that_is_not_the_snapshot_that_was_announced_is_not_installed() -> None:
    """The file is whole, and of another configuration than the message: one of the two is wrong."""
    cluster = elected()
    behind(cluster)
    announced: list[SnapshotMeta] = []

    def announce_another(sender: int, receiver: int, frame: frames.Frame) -> bool:
        if not isinstance(frame, frames.SnapshotChunk) or announced:
            return False
        message = decode_message(frame.message)
        assert isinstance(message, InstallSnapshot)
        real = message.snapshot
        announced.append(SnapshotMeta(real.index, real.term, Configuration(cluster.nodes[2:])))
        wrong = InstallSnapshot(message.sender, message.receiver, message.term, announced[0])
        chunk = frames.SnapshotChunk(encode_message(wrong), frame.file_bytes, frame.offset, frame.data)
        cluster[receiver].driver.on_frame(cluster.nodes[sender - 1], chunk)
        cluster[receiver].driver.turn()
        return True

    cluster.holds_back = announce_another
    cluster.tick(3)
    assert announced
    assert cluster[3].driver.raft.configuration.voters == cluster.nodes
    cluster.tick(60)
    assert state_of(cluster, 3) == state_of(cluster, 1)


def test_c9_a_piece_that_arrives_twice_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every piece does, so that a receiver that takes both never gets a whole file."""
    monkeypatch.setattr(lockd.server.snapshots, "CHUNK_BYTES", 300)
    cluster = elected()
    behind(cluster)
    twice = 0

    def double(sender: int, receiver: int, frame: frames.Frame) -> bool:
        nonlocal twice
        if isinstance(frame, frames.SnapshotChunk) and frame.offset + len(frame.data) < frame.file_bytes:
            cluster[receiver].driver.on_frame(cluster.nodes[sender - 1], frame)
            twice += 1
            assert twice < 200, "the transfer begins again and again"
        return False

    cluster.holds_back = double
    cluster.tick(20)
    assert twice > 3
    assert cluster[3].driver.receiving.received == 1
    assert state_of(cluster, 3) == state_of(cluster, 1)


def test_c9_a_node_applies_after_its_restart_what_follows_its_snapshot_and_nothing_twice() -> None:
    cluster: Cluster = elected()
    busy(cluster, 40)
    cluster[3].restart()
    raft = cluster[3].driver.raft
    assert raft.snapshot is not None
    assert raft.log.base < raft.snapshot.index == raft.last_applied, "the log has more than it needs"
    cluster.tick(3)
    assert raft.last_applied == LogIndex(cluster[1].driver.raft.last_applied)
    assert state_of(cluster, 3) == state_of(cluster, 1)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_p3_what_was_answered_survives_the_loss_of_any_one_of_three(lost: int) -> None:
    """Lost at the very moment of the answer, with all that is still on the wire."""
    cluster = elected(2**40)
    answers = cluster.ask(1, OpenSession(600_000, "", ""), session="new")
    cluster.settle(until=lambda: bool(answers))
    assert answers == [SessionOpened("new", 600_000)]
    cluster.isolate(lost)
    cluster.lose(lambda *_: True)
    left = [node for node in (1, 2, 3) if node != lost]
    if lost == 1:
        cluster.elect(max(left, key=lambda node: cluster[node].driver.raft.log.last_index))
    cluster.tick(3, only=left)
    for node in left:
        assert cluster[node].driver.machine.session(SessionId("new")) is not None
