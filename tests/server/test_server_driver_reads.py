"""Reads: never served from a state that may be older than the question (SAFETY C6)."""

import pytest

from lockd.ids import SessionId
from lockd.locks.commands import OpenSession, Outcome, Refused
from lockd.raft.messages import AppendEntries, AppendEntriesReply, HeartbeatReply
from lockd.server import frames
from tests.server.cluster import ANSWER_MS_MAX, TICK_MS, TTL_MS, Cluster

MAY_READ: list[Outcome | None] = [None]


def led_by(node: int) -> Cluster:
    cluster = Cluster()
    cluster.elect(node)
    return cluster


def knows(cluster: Cluster, node: int, session: str) -> bool:
    return cluster[node].driver.machine.session(SessionId(session)) is not None


@pytest.mark.parametrize("node", [1, 2])
def test_c6_a_read_waits_for_a_quorum_to_confirm_the_leader(node: int) -> None:
    cluster = led_by(1)
    cluster.hold_back(HeartbeatReply)
    done = cluster.read(node)
    cluster.tick(2)
    assert done == []
    cluster.hold_back()
    cluster.settle()
    assert done == MAY_READ


@pytest.mark.parametrize("node", [1, 3])
def test_c6_reads_on_an_isolated_old_leader_and_whoever_is_with_it_are_never_served(node: int) -> None:
    cluster = Cluster(5)
    cluster.elect(1)
    cluster.isolate(1, 3)
    cluster.elect(2)
    cluster.ask(2, OpenSession(TTL_MS, "", ""), session="new")
    cluster.settle((2, 4, 5))
    assert knows(cluster, 2, "new")
    assert cluster[1].leads()
    done = cluster.read(node)
    cluster.tick(8, only=(1, 3))
    assert cluster[1].leads()
    assert done == []
    cluster.tick(20, only=(1, 3))
    assert done == []
    cluster.heal()
    cluster.tick(20)
    assert done == MAY_READ
    assert knows(cluster, node, "new")


def test_c6_a_read_asked_of_a_leader_that_is_cut_off_is_asked_again_of_the_next() -> None:
    cluster = led_by(1)
    cluster.hold_back(frames.ReadRequest)
    done = cluster.read(3)
    cluster.settle()
    cluster.isolate(1)
    cluster.hold_back()
    cluster.elect(2)
    cluster.tick(2, only=(2, 3))
    assert done == MAY_READ


def test_c6_a_read_that_nobody_can_answer_is_refused_in_time() -> None:
    cluster = led_by(1)
    cluster.isolate(2)
    done = cluster.read(2)
    cluster.tick(ANSWER_MS_MAX // TICK_MS, only=(2,))
    assert isinstance(done[0], Refused)
    assert done[0].code == "UNAVAILABLE"


def test_c6_a_follower_serves_a_read_once_it_has_applied_what_the_leader_had_committed() -> None:
    cluster = led_by(1)
    cluster.cut.update({(1, 3)})
    cluster.ask(1, OpenSession(TTL_MS, "", ""), session="new")
    cluster.settle()
    assert knows(cluster, 1, "new")
    cluster.heal()
    cluster.hold_back(AppendEntries)
    done = cluster.read(3)
    cluster.tick(2)
    assert any(isinstance(frame, frames.ReadReply) for _, receiver, frame in cluster.sent if receiver == 3)
    assert not knows(cluster, 3, "new")
    assert done == []
    cluster.hold_back()
    cluster.tick(2)
    assert knows(cluster, 3, "new")
    assert done == MAY_READ


def test_c6_a_new_leader_serves_none_before_an_entry_of_its_term_is_committed() -> None:
    cluster = led_by(1)
    cluster.hold_back(AppendEntriesReply)
    cluster.isolate(1)
    cluster.elect(2)
    done = [cluster.read(2), cluster.read(3)]
    cluster.tick(3, only=(2, 3))
    assert done == [[], []]
    cluster.hold_back()
    cluster.tick(3, only=(2, 3))
    assert done == [MAY_READ, MAY_READ]


def test_c6_a_read_in_flight_when_leadership_is_lost_is_asked_anew() -> None:
    cluster = led_by(1)
    cluster.hold_back(HeartbeatReply)
    done = [cluster.read(1), cluster.read(3)]
    cluster.settle()
    cluster.isolate(1)
    cluster.lose(lambda *_: True)
    cluster.hold_back()
    cluster.elect(2)
    cluster.ask(2, OpenSession(TTL_MS, "", ""), session="new")
    cluster.settle((2, 3))
    cluster.heal()
    cluster.tick(3)
    assert done == [MAY_READ, MAY_READ]
    assert knows(cluster, 1, "new")
    assert knows(cluster, 3, "new")


def test_c6_a_late_reply_to_an_earlier_boot_answers_nothing_of_the_next_one() -> None:
    cluster = led_by(1)
    cluster.hold_back(frames.ReadReply)
    cluster.read(2)
    cluster.settle()
    late = [frame for _, _, frame in cluster.sent if isinstance(frame, frames.ReadReply)]
    assert late
    cluster[2].restart()
    cluster.tick(3)  # It has applied what the late reply names, and would serve a read at once.
    cluster.isolate(2)
    done = cluster.read(2)
    cluster.settle()
    for frame in late:
        cluster[2].driver.on_frame(cluster.nodes[0], frame)
    cluster.settle()
    assert done == []
