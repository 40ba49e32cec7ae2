"""Who may change the membership, when, and how leadership passes on (SAFETY C7, C8)."""

import pytest

from lockd.ids import NO_NODE, NodeId
from lockd.locks.commands import (
    AddMember,
    Changed,
    Outcome,
    PromoteMember,
    Refused,
    RemoveMember,
    RequestOrphaned,
)
from lockd.raft.codec import decode_message
from lockd.raft.messages import AppendEntries, TimeoutNow
from lockd.server import frames
from lockd.server.membership import ASK_TIMEOUTS, MemberOperation
from tests.server.cluster import ELECTION_TIMEOUT_MS, Cluster

ADDRESS = "node4:7421"


def change(cluster: Cluster, node: int, operation: MemberOperation, *, force: bool = False) -> list[Outcome]:
    """Ask a node for a change; the list fills with what the operator is told."""
    outcomes: list[Outcome] = []
    cluster[node].driver.change_members(
        user="ann", operation=operation, force=force, on_outcome=outcomes.append
    )
    cluster.tick(3)
    return outcomes


def transfer(cluster: Cluster, node: int, target: int) -> list[Outcome]:
    outcomes: list[Outcome] = []
    cluster[node].driver.transfer(target=NodeId(target), on_outcome=outcomes.append)
    cluster.tick(3)
    return outcomes


def refusal(outcomes: list[Outcome]) -> str:
    (outcome,) = outcomes
    assert isinstance(outcome, Refused)
    return f"{outcome.code} {outcome.text}"


def elected(size: int = 3) -> Cluster:
    """Node 1 leads, and has heard of the others."""
    cluster = Cluster(size)
    cluster.elect(1)
    cluster.tick(3)
    return cluster


def test_c7_a_node_joins_as_a_learner_and_votes_once_it_has_caught_up() -> None:
    cluster = elected()
    cluster.start_empty(4)
    cluster.isolate(4)
    assert change(cluster, 1, AddMember(4, ADDRESS, wants_vote=True)) == [Changed(1)]
    raft = cluster[1].driver.raft
    assert raft.configuration.learners == (4,)
    cluster.tick(5)
    assert raft.configuration.learners == (4,), "it has not been heard of, so it is not promoted"
    cluster.heal()
    cluster.tick(10)
    for node in cluster.nodes:
        assert cluster[node].driver.raft.configuration.voters == cluster.nodes


def test_c7_a_learner_that_wants_no_vote_is_promoted_on_request_alone() -> None:
    cluster = elected()
    cluster.start_empty(4)
    change(cluster, 1, AddMember(4, ADDRESS, wants_vote=False))
    cluster.tick(20)
    assert cluster[1].driver.raft.configuration.learners == (4,)
    assert change(cluster, 2, PromoteMember(4)) == [Changed(1)]
    assert cluster[1].driver.raft.configuration.voters == (1, 2, 3, 4)


def test_any_node_takes_the_wish_and_passes_it_on_to_the_leader() -> None:
    cluster = elected()
    assert change(cluster, 3, RemoveMember(2)) == [Changed(1)]
    assert cluster[1].driver.raft.configuration.voters == (1, 3)


def test_c7_a_wish_is_held_until_a_leader_is_known() -> None:
    cluster = Cluster()
    outcomes = change(cluster, 1, RemoveMember(3))
    assert not outcomes
    cluster.elect(2)
    cluster.tick(5)
    assert outcomes == [Changed(1)]


def test_c7_a_change_whose_new_quorum_does_not_answer_is_refused_unless_forced() -> None:
    cluster = elected()
    cluster.isolate(3)
    cluster.pass_ms(2 * ELECTION_TIMEOUT_MS, only=(1, 2))
    told = refusal(change(cluster, 1, RemoveMember(2)))
    assert told.startswith("ERR of the 2 voters after this change 2 must answer, and nodes 3 do not")
    assert cluster[1].driver.raft.configuration.voters == cluster.nodes
    assert change(cluster, 1, RemoveMember(2), force=True) == [Changed(1)]
    assert cluster[1].driver.raft.configuration.voters == (1, 3)


def test_c7_the_last_voter_stays_also_by_force() -> None:
    cluster = elected(1)
    for force in (False, True):
        told = refusal(change(cluster, 1, RemoveMember(1), force=force))
        assert "the last voter" in told


def test_c8_an_id_is_used_once() -> None:
    cluster = elected()
    change(cluster, 1, RemoveMember(3))
    assert "was removed" in refusal(change(cluster, 1, AddMember(3, ADDRESS, wants_vote=True)))
    assert "a member already" in refusal(change(cluster, 1, AddMember(2, ADDRESS, wants_vote=True)))
    assert "is the address of node 2" in refusal(
        change(cluster, 1, AddMember(5, "node2:7421", wants_vote=True))
    )
    assert "no member" in refusal(change(cluster, 1, RemoveMember(9)))
    assert "a voter already" in refusal(change(cluster, 1, PromoteMember(2)))
    assert "no member" in refusal(change(cluster, 1, PromoteMember(9)))


def test_c7_one_change_at_a_time() -> None:
    cluster = elected()
    cluster.hold_back(AppendEntries)
    first = change(cluster, 1, AddMember(4, ADDRESS, wants_vote=False))
    assert not first
    assert "another change is under way" in refusal(change(cluster, 1, RemoveMember(3)))
    cluster.hold_back()
    cluster.tick(3)
    assert first == [Changed(1)]


@pytest.mark.parametrize("size", [2, 3])
def test_c7_a_leader_hands_over_before_it_is_removed(size: int) -> None:
    """Of two voters, the other would need the word of one that has left to know that it left."""
    cluster = elected(size)
    outcomes = change(cluster, 1, RemoveMember(1))
    cluster.tick(5)
    assert outcomes == [Changed(1)]
    assert cluster[2].leads()
    assert cluster[2].driver.raft.configuration.voters == cluster.nodes[1:]
    assert 1 in cluster[2].driver.machine.removed


def test_c7_a_leader_that_is_removed_by_force_with_nobody_to_take_over_steps_down() -> None:
    cluster = elected()
    cluster.isolate(1)
    cluster.pass_ms(ELECTION_TIMEOUT_MS - 50, only=(1,))
    outcomes = change(cluster, 1, RemoveMember(1), force=True)
    cluster.heal()
    cluster.tick(5)
    assert not cluster[1].leads()
    assert outcomes


def test_c7_a_leader_that_is_too_new_to_know_who_is_silent_asks_for_patience() -> None:
    """ERR is for good: whoever gets it does not ask again."""
    cluster = Cluster()
    cluster.isolate(3)
    cluster.elect(1)
    assert refusal(transfer(cluster, 1, 3)).startswith("UNAVAILABLE node 3 does not answer")
    assert refusal(change(cluster, 1, RemoveMember(2))).startswith("UNAVAILABLE of the 2 voters")
    cluster.pass_ms(ELECTION_TIMEOUT_MS, only=(1, 2))
    assert refusal(transfer(cluster, 1, 3)).startswith("ERR node 3 does not answer")


def test_leadership_is_handed_to_the_node_that_was_named() -> None:
    cluster = elected()
    assert transfer(cluster, 2, 3) == [Changed(1)]
    assert cluster[3].leads()
    assert transfer(cluster, 3, 3) == [Changed(0)]


def test_leadership_is_handed_to_the_most_up_to_date_when_nobody_is_named() -> None:
    cluster = elected()
    cluster.isolate(3)
    cluster.open_session(1, "s")
    cluster.pass_ms(2 * ELECTION_TIMEOUT_MS, only=(1, 2))
    assert transfer(cluster, 1, NO_NODE) == [Changed(1)]
    assert cluster[2].leads()


def test_leadership_is_not_handed_to_one_who_answers_and_lags_behind() -> None:
    cluster = elected()

    def appends_to_2(_sender: NodeId, receiver: NodeId, frame: frames.Frame) -> bool:
        return (
            receiver == 2
            and isinstance(frame, frames.Raft)
            and isinstance(decode_message(frame.message), AppendEntries)
        )

    cluster.holds_back = appends_to_2
    cluster.open_session(1, "s")
    progress = cluster[1].driver.raft.progress
    assert progress[NodeId(2)].match_index < progress[NodeId(3)].match_index
    assert transfer(cluster, 1, NO_NODE) == [Changed(1)]
    assert cluster[3].leads()


def test_a_transfer_that_does_not_happen_leaves_the_leader_in_office() -> None:
    cluster = elected()
    cluster.hold_back(TimeoutNow)
    outcomes = transfer(cluster, 1, 2)
    assert not outcomes
    cluster.pass_ms(3 * ELECTION_TIMEOUT_MS)
    assert refusal(outcomes).startswith("UNKNOWN node 2 has not taken over in time")
    assert cluster[1].leads()
    cluster.open_session(1, "s")  # and it takes commands again


def test_leadership_is_not_handed_to_who_is_silent_or_has_no_vote() -> None:
    cluster = elected()
    cluster.isolate(3)
    cluster.pass_ms(2 * ELECTION_TIMEOUT_MS, only=(1, 2))
    assert refusal(transfer(cluster, 1, 3)) == "ERR node 3 does not answer: leadership stays here"
    assert "no voter" in refusal(transfer(cluster, 1, 7))


def test_c7_who_asked_for_a_leader_is_told_when_another_came_to_lead() -> None:
    """The named one was asked to stand for election, and the third was faster."""
    cluster = elected()
    cluster.hold_back(TimeoutNow, frames.OperatorReply)
    remotely, locally = transfer(cluster, 2, 3), transfer(cluster, 1, 3)
    for node in (2, 3):
        cluster[node].driver.raft.forget_leader()
    cluster[2].driver.raft.campaign()
    cluster[2].driver.turn()
    cluster.settle(only=(2, 3))
    assert cluster[2].leads()
    cluster.hold_back(TimeoutNow)
    cluster.tick(3)
    assert refusal(locally) == refusal(remotely) == "UNKNOWN node 2 leads now"
    told = [frame.outcome for _, _, frame in cluster.sent if isinstance(frame, frames.OperatorReply)]
    assert Changed(1) not in told


def test_a_node_that_stops_while_leadership_is_being_handed_over_waits_for_that() -> None:
    cluster = elected()
    cluster.hold_back(TimeoutNow)
    named, stopping = transfer(cluster, 1, 3), transfer(cluster, 1, NO_NODE)
    assert refusal(transfer(cluster, 1, 2)) == "UNAVAILABLE leadership is being handed to node 3 already"
    assert (named, stopping) == ([], [])
    cluster.hold_back()
    cluster.tick(3)
    assert cluster[3].leads()
    assert (named, stopping) == ([Changed(1)], [Changed(1)])


def test_a_wish_that_no_leader_takes_up_is_given_up_after_the_time_of_an_election() -> None:
    cluster = elected()
    cluster.isolate(1)
    cluster.pass_ms(3 * ELECTION_TIMEOUT_MS, only=(1,))
    outcomes = change(cluster, 1, RemoveMember(3))
    cluster.pass_ms(ASK_TIMEOUTS * ELECTION_TIMEOUT_MS - 200, only=(1,))
    assert not outcomes
    cluster.pass_ms(200, only=(1,))
    assert refusal(outcomes) == "UNAVAILABLE no leader took it up"


def test_d4_a_leader_whose_disk_is_full_hands_over_and_refuses_until_there_is_room() -> None:
    cluster = elected()
    cluster[1].disk_stalls = True
    cluster[1].driver.on_disk_full(is_full=True)
    cluster.tick(5)
    assert not cluster[1].leads()
    assert cluster[2].leads() or cluster[3].leads()
    (told,) = cluster.ask(1, RemoveMember(1))
    assert isinstance(told, Refused)
    assert (told.code, "disk" in told.text) == ("UNAVAILABLE", True)
    cluster[1].disk_stalls = False
    cluster[1].driver.on_disk_full(is_full=False)
    cluster.tick(5)
    cluster.open_session(1, "s")


def test_g4_an_answer_that_could_not_be_written_is_withdrawn_though_the_disk_is_full() -> None:
    cluster = elected()
    cluster.open_session(2, "s", ttl_ms=600_000)
    cluster.acquire(2, "lock", "s", request=1, connection=5)
    cluster[2].disk_stalls = True
    cluster[2].driver.on_disk_full(is_full=True)
    orphaned = cluster.ask(2, RequestOrphaned("lock", 5), session="s", request=1)
    cluster[2].disk_stalls = False
    cluster[2].driver.on_disk_full(is_full=False)
    cluster.tick(5)
    assert not orphaned
    assert cluster[1].logged(RequestOrphaned)
