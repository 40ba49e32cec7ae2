"""What a caller may conclude: UNAVAILABLE when nothing was appended, UNKNOWN otherwise."""

import pytest

from lockd.ids import LogIndex, NodeId, SessionId, Term
from lockd.locks.commands import (
    Acquire,
    ClearSilent,
    Command,
    CreateCluster,
    ExpireSessions,
    Granted,
    MarkSilent,
    OpenSession,
    Operation,
    Origin,
    OriginGone,
    Outcome,
    Refused,
    Release,
    SessionOpened,
)
from lockd.raft.codec import encode_message
from lockd.raft.entries import Configuration, SnapshotMeta
from lockd.raft.messages import AppendEntries, AppendEntriesReply, InstallSnapshot
from lockd.server import frames
from tests.server.cluster import ANSWER_MS_MAX, TICK_MS, TTL_MS, Cluster

OPENED: list[Outcome] = [SessionOpened("s", TTL_MS)]


def led_by(node: int) -> Cluster:
    cluster = Cluster()
    cluster.elect(node)
    return cluster


def open_at(cluster: Cluster, node: int) -> list[Outcome]:
    return cluster.ask(node, OpenSession(TTL_MS, "", ""), session="s")


def exists(cluster: Cluster, node: int = 2) -> bool:
    return cluster[node].driver.machine.session(SessionId("s")) is not None


def times_logged(cluster: Cluster, node: int = 2) -> int:
    return len(cluster[node].logged(OpenSession))


def code(outcomes: list[Outcome]) -> str:
    (outcome,) = outcomes
    assert isinstance(outcome, Refused)
    return outcome.code


def forwarded(operation: Operation, *, node: int) -> frames.Forward:
    """What a peer passes on, as if a client of that node had asked."""
    return frames.Forward((Command("ann", "s", "", 0, Origin(node, 1, 1, 1), operation),))


def depose(cluster: Cluster, old: int, new: int) -> None:
    cluster.isolate(old)
    cluster.lose(lambda *_: True)
    cluster.hold_back()
    cluster.elect(new)
    cluster.heal()
    cluster.tick(3)


def test_unavailable_while_no_leader_is_known_and_nothing_comes_of_it_later() -> None:
    cluster = Cluster()
    outcomes = open_at(cluster, 1)
    cluster.tick(ANSWER_MS_MAX // TICK_MS, only=())
    cluster[1].driver.tick()
    assert code(outcomes) == "UNAVAILABLE"
    cluster.elect(2)
    cluster.tick(3)
    assert times_logged(cluster) == 0


def test_unavailable_when_the_entry_was_overwritten_on_the_node_that_was_asked() -> None:
    cluster = led_by(1)
    cluster.hold_back(AppendEntries)
    outcomes = open_at(cluster, 1)
    cluster.settle()
    assert times_logged(cluster, 1) == 1
    depose(cluster, 1, 2)
    assert code(outcomes) == "UNAVAILABLE"
    assert not exists(cluster)
    assert times_logged(cluster, 1) == 0


def test_the_true_outcome_when_the_entry_survives_its_leader() -> None:
    cluster = led_by(1)
    cluster.hold_back(AppendEntriesReply)
    outcomes = open_at(cluster, 1)
    cluster.settle()
    assert outcomes == []
    depose(cluster, 1, 2)
    assert outcomes == OPENED
    assert exists(cluster)


def test_unknown_when_it_was_with_a_leader_that_is_gone() -> None:
    """It may have been appended there, and may yet be on its way to the log of a later leader."""
    cluster = led_by(1)
    cluster.hold_back(frames.Forward)
    outcomes = open_at(cluster, 3)
    cluster.settle()
    assert outcomes == []
    depose(cluster, 1, 2)
    assert code(outcomes) == "UNKNOWN"


def test_unknown_when_it_was_appended_and_no_quorum_answers() -> None:
    cluster = led_by(1)
    cluster.isolate(1)
    outcomes = open_at(cluster, 1)
    cluster.settle()
    assert times_logged(cluster, 1) == 1
    cluster.tick(ANSWER_MS_MAX // TICK_MS, only=(1,))
    assert code(outcomes) == "UNKNOWN"


def test_what_was_queued_and_never_proposed_goes_to_the_next_leader_once() -> None:
    cluster = led_by(1)
    cluster.isolate(1)
    cluster[1].fill_log()
    outcomes = open_at(cluster, 1)
    cluster.settle()
    assert times_logged(cluster, 1) == 0
    depose(cluster, 1, 2)
    assert outcomes == OPENED
    assert times_logged(cluster) == 1


@pytest.mark.parametrize("asked_at", [2, 3])
def test_what_a_leader_took_before_its_no_op_and_lost_goes_to_the_next_one_once(asked_at: int) -> None:
    cluster = led_by(1)
    cluster.isolate(1)
    cluster.hold_back(AppendEntriesReply)
    cluster.elect(2)
    outcomes = open_at(cluster, asked_at)
    cluster.settle((2, 3))
    assert times_logged(cluster, 2) == 0
    cluster.tick(20, only=(1,))
    assert not cluster[1].leads()
    cluster.heal()
    cluster.isolate(2)
    cluster.hold_back()
    cluster.elect(3)
    cluster.heal()
    cluster.tick(3)
    assert outcomes == OPENED or code(outcomes) == "UNKNOWN"
    assert times_logged(cluster, 3) <= 1
    assert asked_at == 3 or outcomes == OPENED, "it never left the node that was asked"


def test_what_the_asked_node_refuses_is_passed_on_to_the_next_leader_once() -> None:
    cluster = led_by(1)
    cluster.hold_back(frames.Forward)
    outcomes = open_at(cluster, 3)
    cluster.settle()
    cluster.cut.update({(1, 2), (2, 1), (1, 3)})
    cluster.elect(2, settle=False)
    cluster.heal()
    cluster.settle(until=lambda: not cluster[1].leads())
    assert not cluster[1].leads()
    cluster.hold_back()
    cluster.tick(3)
    assert outcomes == OPENED or code(outcomes) == "UNKNOWN"
    assert times_logged(cluster) <= 1


def test_a_refusal_of_an_earlier_boot_sends_nothing_of_the_next_one_again() -> None:
    """Their operations count from 1 alike: taken for its own, it would have it appended twice."""
    cluster = led_by(1)
    open_at(cluster, 2)
    cluster.settle()
    (origin,) = (
        command.origin
        for _, batch in cluster[1].entries
        for command in batch.commands
        if isinstance(command.operation, OpenSession)
    )
    cluster[2].restart()
    cluster.tick(3)
    cluster.hold_back(AppendEntriesReply)
    outcomes = cluster.ask(2, Acquire("lock", 0, 0, ""), session="s")
    cluster.settle()
    cluster[2].driver.on_frame(cluster.nodes[0], frames.ForwardRefused((origin,)))
    cluster.tick(2)
    cluster.hold_back()
    cluster.tick(2)
    assert len(cluster[1].logged(Acquire)) == 1
    assert isinstance(outcomes[0], Granted)


def test_an_outcome_for_an_earlier_boot_is_nobodys_now() -> None:
    """The operation numbers of two boots are alike; their callers are not."""
    cluster = led_by(1)
    cluster.open_session(1, "s")
    cluster.hold_back(AppendEntriesReply)
    cluster.ask(2, Release("lock", 7), session="s")
    cluster.settle()
    cluster[2].restart()
    outcomes = cluster.ask(2, Acquire("lock", 0, 0, ""), session="s")
    cluster.hold_back(AppendEntriesReply, frames.Forward)
    cluster.tick(2)
    cluster.hold_back(frames.Forward)
    cluster.tick(2)
    assert outcomes == []
    cluster.hold_back()
    cluster.tick(2)
    assert isinstance(outcomes[0], Granted)


def test_g11_the_entry_carries_the_user_that_the_asked_node_let_in() -> None:
    cluster = led_by(1)
    cluster.ask(3, OpenSession(TTL_MS, "", ""), session="s", user="bob")
    cluster.settle()
    (command,) = (
        command
        for _, batch in cluster[2].entries
        for command in batch.commands
        if isinstance(command.operation, OpenSession)
    )
    assert command.user == "bob"
    assert command.origin.node == 3


@pytest.mark.parametrize(
    "operation",
    [
        CreateCluster("d" * 32, "00000001"),
        ExpireSessions(("s",)),
        MarkSilent((("s", 1_000),)),
        ClearSilent(),
        OriginGone(3, 0, 0, boot_is_alive=True),
        OriginGone(2, 0, 0, boot_is_alive=True),
        OriginGone(3, 3001, 7),
    ],
    ids=lambda operation: type(operation).__name__,
)
def test_g11_a_peer_cannot_have_a_leaders_decision_logged(operation: Operation) -> None:
    cluster = led_by(1)
    count = len(cluster[1].entries)
    with pytest.raises(frames.FrameError, match="forwarded"):
        cluster[1].driver.on_frame(cluster.nodes[1], forwarded(operation, node=2))
    cluster.settle()
    assert len(cluster[1].entries) == count


def test_g11_a_peer_cannot_speak_for_another_nodes_clients() -> None:
    cluster = led_by(1)
    with pytest.raises(frames.FrameError, match="forwarded"):
        cluster[1].driver.on_frame(cluster.nodes[1], forwarded(Release("lock", 1), node=3))


@pytest.mark.parametrize(
    "frame",
    [
        forwarded(Release("lock", 1), node=9),
        frames.ReadRequest(1),
        frames.KeepaliveRequest(1, "ann", "s"),
        frames.OperatorRequest(1, "ann", frames.Transfer(2)),
    ],
)
def test_p6_g11_who_is_no_member_asks_nothing_of_a_leader_for_clients(frame: frames.Frame) -> None:
    cluster = led_by(1)
    with pytest.raises(frames.FrameError, match="node 9 is no member"):
        cluster[1].driver.on_frame(NodeId(9), frame)


def test_c11_a_handshake_frame_in_the_midst_of_a_connection_is_nonsense() -> None:
    cluster = led_by(1)
    with pytest.raises(frames.FrameError, match="after the handshake"):
        cluster[1].driver.on_frame(cluster.nodes[1], frames.Welcome(2))


def test_c8_a_raft_message_of_another_node_than_its_connection_is_nonsense() -> None:
    cluster = led_by(1)
    cluster.tick()
    heartbeat = next(
        frame for sender, _, frame in cluster.sent if sender == 1 and isinstance(frame, frames.Raft)
    )
    with pytest.raises(frames.FrameError, match="sent a message of 1"):
        cluster[2].driver.on_frame(cluster.nodes[2], heartbeat)


def test_c9_a_snapshot_without_its_file_is_nonsense() -> None:
    """Raft would go on from it, and the node would find no state to go on with."""
    cluster = led_by(1)
    meta = SnapshotMeta(LogIndex(10_000), Term(1), Configuration(cluster.nodes))
    message = InstallSnapshot(cluster.nodes[0], cluster.nodes[1], cluster[1].driver.raft.term, meta)
    with pytest.raises(frames.FrameError, match="without its file"):
        cluster[2].driver.on_frame(cluster.nodes[0], frames.Raft(encode_message(message)))
    cluster[2].driver.turn()


def test_a_stopping_node_tells_everyone_who_waits() -> None:
    cluster = led_by(1)
    cluster.isolate(1)
    appended, read = open_at(cluster, 1), cluster.read(1)
    cluster.settle()
    held = open_at(cluster, 2)
    cluster[1].driver.stop()
    cluster[2].driver.stop()
    assert code(appended) == "UNKNOWN"
    assert code(held) == "UNAVAILABLE"
    assert isinstance(read[0], Refused)


def test_origin_names_node_boot_connection_and_operation() -> None:
    """G4: each differs where a caller differs."""
    cluster = led_by(1)
    cluster.ask(2, Release("a", 1), connection=4)
    cluster.ask(2, Release("a", 1), connection=5)
    cluster.settle()
    origins = [
        command.origin
        for _, batch in cluster[1].entries
        for command in batch.commands
        if isinstance(command.operation, Release)
    ]
    assert origins == [Origin(2, 2001, 4, 2), Origin(2, 2001, 5, 3)]
