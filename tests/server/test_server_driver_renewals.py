"""Keepalives: who may answer them, and when (SAFETY T2, T3)."""

import pytest

from lockd.ids import SessionId
from lockd.locks.commands import ClearSilent, ExpireSessions, MarkSilent, Outcome, Refused, SessionOpened
from lockd.raft.messages import AppendEntries, AppendEntriesReply, HeartbeatReply
from lockd.server import frames
from tests.server.cluster import ANSWER_MS_MAX, TICK_MS, TTL_MS, Cluster

S = SessionId("s")
RENEWED: list[Outcome] = [SessionOpened("s", TTL_MS)]


def with_session() -> Cluster:
    cluster = Cluster()
    cluster.elect(1)
    cluster.open_session(1, "s")
    return cluster


@pytest.mark.parametrize("node", [1, 2])
def test_t3_a_keepalive_is_answered_once_a_quorum_has_confirmed_the_leader(node: int) -> None:
    cluster = with_session()
    cluster.hold_back(HeartbeatReply)
    answers = cluster.keepalive(node, "s")
    cluster.pass_ms(100)
    assert answers == []
    cluster.hold_back()
    cluster.settle()
    assert answers == RENEWED


def test_t3_a_confirmation_of_before_the_keepalive_does_not_count() -> None:
    """The round begins after the keepalive arrived: an answer to an older heartbeat says nothing."""
    cluster = with_session()
    cluster.hold_back(HeartbeatReply)
    cluster.tick()
    answers = cluster.keepalive(1, "s")
    cluster[1].driver.turn()
    cluster.isolate(1)
    cluster.cut.difference_update({(2, 1), (3, 1)})
    cluster.hold_back()
    cluster.settle()  # the answers to the heartbeats of before arrive, and nothing new leaves
    assert answers == []


def test_t3_an_isolated_leader_never_answers_even_though_it_still_takes_itself_for_one() -> None:
    cluster = with_session()
    cluster.isolate(1)
    cluster.elect(2)
    assert cluster[1].leads()
    answers = cluster.keepalive(1, "s")
    cluster.tick(5, only=(1,))
    assert cluster[1].leads()
    assert answers == []
    cluster.tick(20, only=(1,))
    assert not cluster[1].leads()
    assert answers == []
    cluster.tick(ANSWER_MS_MAX // TICK_MS, only=(1,))
    assert isinstance(answers[0], Refused)
    assert answers[0].code == "UNAVAILABLE"


def test_t3_one_in_flight_when_leadership_is_lost_is_answered_by_the_next_leader_alone() -> None:
    cluster = with_session()
    cluster.hold_back(HeartbeatReply)
    at_leader, at_follower = cluster.keepalive(1, "s"), cluster.keepalive(3, "s")
    cluster.settle()
    cluster.isolate(1)
    cluster.hold_back()
    cluster.elect(2, settle=False)
    cluster.heal()
    cluster.settle(until=lambda: bool(at_leader or at_follower or not cluster[1].leads()))
    assert (at_leader, at_follower) == ([], [])
    cluster.hold_back(frames.KeepaliveRequest)
    cluster.tick(3)
    assert (at_leader, at_follower) == ([], []), "the old leader has no say any more"
    cluster.hold_back()
    cluster.tick(3)
    assert (at_leader, at_follower) == (RENEWED, RENEWED)


def test_t3_a_confirmed_leader_that_loses_office_before_it_has_applied_so_far_does_not_answer() -> None:
    cluster = with_session()
    cluster[1].disk_stalls = True
    cluster.ask(1, MarkSilent(()), session="")
    cluster.tick()
    assert cluster[1].driver.raft.commit_index > cluster[1].driver.raft.last_applied
    answers = cluster.keepalive(1, "s")
    cluster.settle()
    assert answers == [], "confirmed, and not applied so far"
    cluster.isolate(1)
    cluster.elect(2)
    cluster.heal()
    cluster.tick()
    assert not cluster[1].leads()
    cluster[1].disk_stalls = False
    cluster.hold_back(frames.KeepaliveRequest)
    cluster.tick(3)
    assert answers == []
    cluster.hold_back()
    cluster.tick(3)
    assert answers == RENEWED


def test_t3_a_new_leader_answers_none_before_its_no_op_is_applied() -> None:
    cluster = with_session()
    cluster.isolate(1)
    cluster.hold_back(AppendEntriesReply)
    cluster.elect(2)
    answers = cluster.keepalive(2, "s")
    cluster.tick(3, only=(2, 3))
    assert answers == []
    cluster.hold_back()
    cluster.tick(1, only=(2, 3))
    assert answers == RENEWED


def test_t3_a_session_chosen_for_expiry_is_not_renewed() -> None:
    cluster = with_session()
    cluster.pass_ms(TTL_MS - TICK_MS)
    cluster.hold_back(AppendEntriesReply)
    cluster.tick(2)
    assert cluster[1].logged(ExpireSessions) == [ExpireSessions(("s",))]
    assert cluster[1].driver.machine.session(S) is not None
    answers = cluster.keepalive(1, "s") + cluster.keepalive(2, "s")
    cluster.tick(2)
    assert answers == []
    late = cluster.keepalive(1, "s")
    cluster.hold_back()
    cluster.tick(2)
    assert isinstance(late[0], Refused)
    assert late[0].code == "NOSESSION"


def test_t3_a_choice_that_its_leader_did_not_log_dies_with_the_leadership() -> None:
    """ExpireSessions is never proposed again under the next leader, nor by the same node later."""
    cluster = with_session()
    cluster.pass_ms(TTL_MS - TICK_MS)
    cluster.hold_back(AppendEntriesReply)
    cluster[1].fill_log()
    cluster.tick(2)
    assert cluster[1].logged(ExpireSessions) == []
    calls = cluster[1].driver._proposals.calls._open.values()
    assert any(call.command.operation == ExpireSessions(("s",)) for call in calls)
    cluster.isolate(1)
    cluster.lose(lambda *_: True)
    cluster.hold_back()
    cluster.elect(2)
    cluster.heal()
    cluster.tick(3)
    assert not cluster[1].leads()
    answers = cluster.keepalive(3, "s")
    cluster.tick(2)
    assert answers == RENEWED
    cluster.isolate(2)
    cluster.elect(1)
    cluster.heal()
    cluster.tick(3)
    assert cluster[1].leads()
    assert cluster[1].logged(ExpireSessions) == []
    assert cluster[3].driver.machine.session(S) is not None


@pytest.mark.parametrize("node", [1, 2])
def test_t2_a_renewal_of_a_marked_session_is_answered_once_the_clearing_is_applied(node: int) -> None:
    cluster = with_session()
    cluster.pass_ms(TTL_MS * 3 // 5)
    assert cluster[1].logged(MarkSilent)
    cluster.hold_back(AppendEntries)
    answers = cluster.keepalive(node, "s")
    cluster.pass_ms(100)
    assert answers == [], "confirmed by a quorum, and the next leader would still cut its TTL"
    cluster.hold_back()
    cluster.settle()
    assert answers == RENEWED
    assert cluster[1].logged(ClearSilent)
    session = cluster[2].driver.machine.session(S)
    assert session is not None
    assert session.silent_ms == 0


def test_t2_a_clearing_that_is_lost_with_its_leader_is_not_an_answer() -> None:
    cluster = with_session()
    cluster.pass_ms(TTL_MS * 3 // 5)
    cluster.hold_back(AppendEntries)
    answers = cluster.keepalive(1, "s")
    cluster.settle()
    cluster.isolate(1)
    cluster.lose(lambda *_: True)
    cluster.hold_back()
    cluster.elect(2)
    cluster.heal()
    cluster.tick(3)
    (refusal,) = answers
    assert isinstance(refusal, Refused)
    assert refusal.code == "UNAVAILABLE"
    session = cluster[2].driver.machine.session(S)
    assert session is not None
    assert session.silent_ms > 0


def test_g11_nobody_renews_the_session_of_another_user() -> None:
    cluster = with_session()
    for node in (1, 2):
        answers = cluster.keepalive(node, "s", user="bob")
        cluster.settle()
        assert isinstance(answers[0], Refused)
        assert answers[0].code == "NOSESSION"


def test_t3_a_late_answer_to_an_earlier_boot_renews_nothing_for_the_next_one() -> None:
    cluster = with_session()
    cluster.hold_back(frames.KeepaliveReply)
    cluster.keepalive(2, "s")
    cluster.settle()
    late = [frame for _, _, frame in cluster.sent if isinstance(frame, frames.KeepaliveReply)]
    assert late
    cluster[2].restart()
    cluster.isolate(2)
    answers = cluster.keepalive(2, "another session")
    cluster.settle()
    for frame in late:
        cluster[2].driver.on_frame(cluster.nodes[0], frame)
    cluster.settle()
    assert answers == []
