"""Nothing grows without end, however much is asked and whoever does not answer (SAFETY C10)."""

import pytest

from lockd.ids import ClusterId, InstanceId, NodeId
from lockd.locks.commands import (
    WAIT_FOREVER,
    Acquire,
    AcquireAll,
    Command,
    FreeRevoked,
    Granted,
    OpenSession,
    Origin,
    Outcome,
    Queued,
    Refused,
    SessionOpened,
)
from lockd.raft.messages import AppendEntries
from lockd.raft.progress import Pace
from lockd.server import calls, frames, proposals
from tests.server.cluster import TTL_MS, Cluster


def led_by_1() -> Cluster:
    cluster = Cluster()
    cluster.elect(1)
    cluster.tick(3)
    return cluster


def open_sessions(cluster: Cluster, node: int, count: int) -> list[list[Outcome]]:
    return [
        cluster.ask(node, OpenSession(TTL_MS, "", ""), session=f"{node}-{number}") for number in range(count)
    ]


def test_c10_a_leader_queues_so_many_commands_and_leaves_the_rest_where_they_came_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proposals, "PROPOSALS_MAX", 20)
    cluster = led_by_1()
    cluster[1].fill_log()
    cluster[1].driver.turn()
    cluster.hold_back(AppendEntries)  # nothing is committed, so the log takes nothing more
    own = open_sessions(cluster, 1, 30)
    cluster.settle()
    assert len(cluster[1].driver._proposals._queue) == 20
    forwarded = open_sessions(cluster, 2, 10)
    cluster.settle()
    assert len(cluster[1].driver._proposals._queue) == 20
    (refused,) = (frame for _, to, frame in cluster.sent if isinstance(frame, frames.ForwardRefused))
    assert len(refused.origins) == 10
    assert own + forwarded == [[] for _ in range(40)], "nobody is told anything yet"
    cluster.hold_back()
    cluster.tick(5)
    assert all(isinstance(told[0], SessionOpened) for told in own + forwarded)


def test_c10_a_node_works_at_so_many_commands_reads_and_renewals_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = led_by_1()
    monkeypatch.setattr(calls, "CALLS_MAX", 4)
    taken: list[list[Outcome]] = open_sessions(cluster, 2, 2)
    reads, renewals = cluster.read(2), cluster.keepalive(2, "2-0")
    (refused,) = open_sessions(cluster, 2, 1)
    text = "this node has 4 commands open, which is its limit"
    assert refused == cluster.read(2) == cluster.keepalive(2, "2-0") == [Refused("UNAVAILABLE", text)]
    assert cluster[2].driver.calls_refused == 3
    assert (cluster[2].driver.open_calls, cluster[2].driver.open_reads) == (2, 2)
    cluster.settle()
    assert reads == [None]
    assert all(isinstance(told[0], SessionOpened) for told in taken)
    assert len(renewals) == 1
    assert (cluster[2].driver.open_calls, cluster[2].driver.open_reads) == (0, 0)
    assert cluster.read(2) == []


def test_c10_p6_who_fills_a_node_with_waits_keeps_others_from_waiting_there_and_from_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = led_by_1()
    cluster.open_session(2, "s", ttl_ms=600_000)
    monkeypatch.setattr(calls, "CALLS_MAX", 3)
    cluster.open_session(1, "holder", ttl_ms=600_000)
    for number in range(4):
        cluster.acquire(1, f"lock{number}", "holder", request=number + 1)
        if number < 3:
            cluster.acquire(2, f"lock{number}", "s", request=number + 1)
    wait, at_once = (
        cluster.ask(2, Acquire(lock, 0, wait_ms, ""), session="s", request=request)
        for lock, wait_ms, request in (("lock3", WAIT_FOREVER, 5), ("other", 0, 6))
    )
    cluster.settle()
    assert wait == [Refused("UNAVAILABLE", "this node has 3 waits open, which is its limit")]
    assert not isinstance(at_once[0], Refused | Queued)


def test_c10_a_follower_that_nothing_can_be_sent_to_is_probed_and_fills_no_window() -> None:
    """As in etcd, whose ReportUnreachable this is: what was certainly not sent is not in flight."""
    cluster = led_by_1()
    cluster.open_session(1, "s")
    progress = cluster[1].driver.raft.progress[NodeId(3)]
    assert progress.pace is Pace.REPLICATE
    cluster.unconnected = {(1, 3)}
    for number in range(10):
        cluster.open_session(1, f"s{number}")
    assert (progress.pace, progress.inflight_appends) == (Pace.PROBE, 0)
    cluster.unconnected.clear()
    cluster.tick(3)
    assert progress.pace is Pace.REPLICATE
    assert cluster[3].driver.machine.stats.sessions == cluster[1].driver.machine.stats.sessions


def test_p6_what_is_passed_on_to_the_leader_fits_into_a_frame_however_large_the_commands_are() -> None:
    """A hundred names of 512 bytes each, 256 times, in one turn: it ended the node that passed them on."""
    cluster = led_by_1()
    cluster.open_session(2, "s")
    names = tuple(f"{number:03}".ljust(512, "x") for number in range(100))
    asked = [cluster.ask(2, AcquireAll(names, 0, ""), session="s") for _ in range(256)]
    cluster.settle()
    sizes = [
        len(frames.encode(frame, cluster=ClusterId(""), instance=InstanceId("")))
        for _, _, frame in cluster.sent
        if isinstance(frame, frames.Forward)
    ]
    assert len(sizes) > 1
    assert max(sizes) < 2 * proposals.FORWARD_BYTES_MAX < frames.BODY_BYTES_MAX
    assert isinstance(asked[0][0], Granted)
    assert all(isinstance(told[0], Refused) and told[0].code == "BUSY" for told in asked[1:])


def test_t1_that_a_ttl_has_run_since_a_grant_was_revoked_is_for_the_leader_alone_to_say() -> None:
    """P1: no node passes it on, neither as a peer's command nor when its own term is over."""
    command = Command("", "", "", 0, Origin(2, 1, 0, 1), FreeRevoked((1,)))
    assert proposals.is_decision(command)
    cluster = led_by_1()
    with pytest.raises(frames.FrameError):
        cluster[1].driver.on_frame(NodeId(2), frames.Forward((command,)))
