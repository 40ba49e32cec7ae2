"""SAFETY C7: when a membership change may begin, what it waits for, and what becomes of it."""

from dataclasses import replace

import pytest

from lockd.ids import NO_NODE, LogIndex, NodeId, Term
from lockd.raft.entries import EntryKind, EntryRun
from lockd.raft.membership import LEAVE_JOINT, Transition, encode_change
from lockd.raft.node import ChangeRefused, NotLeader, RaftConfig, RaftNode, Role, TooMuchUncommitted
from tests.raft.network import Network
from tests.raft.single import (
    ELECTION_TICKS,
    LATEST,
    ack_from,
    change_of,
    configuration_of,
    finish,
    heartbeat_from,
    make_candidate,
    make_leader,
    make_node,
    pre_vote_from,
    propose,
    readies,
    ready_leader,
    settle,
    step,
    tick,
    timeout_now_from,
    vote_from,
    vote_request,
)


def run_with_change(words: str, *, first: int = 1, term: int = 1) -> EntryRun:
    """One CONFIGURATION entry."""
    payload = encode_change(change_of(words))
    return EntryRun(LogIndex(first), (Term(term),), (EntryKind.CONFIGURATION,), (payload,))


def test_c7_no_change_before_the_leaders_no_op_is_committed() -> None:
    node = make_node()
    make_leader(node)
    with pytest.raises(ChangeRefused, match="own"):
        node.propose_change(change_of("l4"))
    assert node.log.last_index == 1
    step(node, ack_from(2, 1, 1))
    assert node.propose_change(change_of("l4")) == (1, 2)


def test_c7_a_change_of_an_earlier_leader_counts_as_pending_until_it_is_applied() -> None:
    node = make_node(log=run_with_change("l4"), term=1)
    make_leader(node)
    node.step(ack_from(2, 2, 2))
    with pytest.raises(ChangeRefused, match="under way, in entry 1"):
        node.propose_change(change_of("l5"))
    settle(node)
    assert node.configuration.learners == (4,)
    assert not node.has_change_pending
    node.propose_change(change_of("l5"))


def test_c7_one_change_is_pending_at_a_time() -> None:
    node = ready_leader()
    node.propose_change(change_of("l4"))
    assert node.has_change_pending
    for change in (change_of("l5"), change_of("r4"), LEAVE_JOINT):
        with pytest.raises(ChangeRefused, match="under way"):
            node.propose_change(change)
    settle(node)
    node.step(ack_from(2, 1, 2))
    with pytest.raises(ChangeRefused, match="under way"):
        node.propose_change(change_of("l5"))  # Committed, and not applied yet.
    settle(node)
    node.propose_change(change_of("l5"))


def test_c7_while_joint_only_leaving_is_accepted() -> None:
    node = ready_leader()
    node.propose_change(change_of("v4 r2", Transition.EXPLICIT))
    settle(node)
    step(node, ack_from(2, 1, 2))
    assert node.configuration.is_joint
    assert node.has_change_pending
    with pytest.raises(ChangeRefused, match="joint"):
        node.propose_change(change_of("l5"))
    step(node, ack_from(4, 1, 2))
    assert node.log.last_index == 2, "an explicit joint mode is not left by itself"
    node.propose_change(LEAVE_JOINT)
    settle(node)
    step(node, ack_from(2, 1, 3), ack_from(4, 1, 3))
    assert node.configuration == configuration_of((1, 3, 4))


def test_c7_leaving_what_is_not_joint_is_refused() -> None:
    node = ready_leader()
    with pytest.raises(ChangeRefused, match="not joint"):
        node.propose_change(LEAVE_JOINT)
    assert node.log.last_index == 1


def test_c7_the_last_voter_cannot_be_removed_or_demoted() -> None:
    node = make_node(voters=(1,), learners=(2,))
    tick(node, LATEST)
    assert node.role is Role.LEADER
    for words in ("r1", "l1", "r1 r2"):
        with pytest.raises(ChangeRefused, match="no voter"):
            node.propose_change(change_of(words))
    assert node.log.last_index == 1


def test_c7_only_a_leader_changes_membership() -> None:
    node = make_node()
    step(node, heartbeat_from(3, 1))
    with pytest.raises(NotLeader) as refused:
        node.propose_change(change_of("l4"))
    assert refused.value.leader_id == 3


def test_c7_a_change_takes_effect_when_it_is_applied() -> None:
    node = ready_leader()
    node.propose_change(change_of("v4"))
    assert node.configuration == configuration_of((1, 2, 3))
    settle(node)
    assert node.configuration == configuration_of((1, 2, 3))
    step(node, ack_from(2, 1, 2))
    assert node.configuration == configuration_of((1, 2, 3, 4))


@pytest.mark.parametrize("by", ["time", "campaign", "timeout now"])
def test_c7_no_campaign_with_a_change_that_is_committed_and_not_applied(by: str) -> None:
    node = make_node(log=run_with_change("v4"), term=1, commit=1)

    def stand() -> None:
        match by:
            case "time":
                for _ in range(2 * LATEST):
                    node.tick()
            case "campaign":
                node.campaign()
            case _:
                node.step(timeout_now_from(2, 1))

    stand()
    assert node.role is Role.FOLLOWER
    (ready,) = readies(node)
    stand()
    assert node.role is Role.FOLLOWER, "to have it handed out is not to have it applied"
    finish(node, ready)
    assert node.configuration.voters == (1, 2, 3, 4)
    stand()
    assert node.role is not Role.FOLLOWER


def test_c7_an_uncommitted_change_does_not_keep_from_standing() -> None:
    """Else a change that its leader could not commit would end all elections."""
    node = make_node(log=run_with_change("v4"), term=1)
    tick(node, LATEST)
    assert node.role is Role.PRE_CANDIDATE


def test_c7_a_change_that_is_cut_off_has_no_effect() -> None:
    network = Network(3)
    network.elect(1)
    network.isolate(1)
    network.change(change_of("v4"))
    network.settle()
    network.elect(2)
    network.propose(b"x")
    network.settle()
    network.heal()
    network.beat(2)
    assert [node.configuration.voters for node in network.nodes.values()] == [(1, 2, 3)] * 3
    assert EntryKind.CONFIGURATION not in [kind for _, kind, _ in network.agreed]
    # Nor does it stand in the way of the next one, whoever proposes that.
    network.change(change_of("l5"))
    network.settle()
    network.elect(1)
    network.change(change_of("l6"))
    network.settle()
    assert network.node(1).configuration.learners == (5, 6)


def test_c7_the_commit_index_is_on_disk_with_the_entries_that_rest_on_it() -> None:
    """Why HardState.commit is written along with entries: without, two leaders in one term.

    {1, 2, 3} becomes {1, 2, 3, 4} and then {1 to 5}; 2 hears of neither. Node 1 writes the second
    change, which only came about as the first was in force, and crashes. If its disk did not say
    that the first is committed, node 1 would stand again for a quorum of {1, 2, 3}, get the vote of 2, and
    lead the term that 4 leads with the votes of {3, 4, 5}.
    """
    network = Network(3)
    network.elect(3)
    network.isolate(2)
    for node_id in (4, 5):
        network.join(node_id)
        network.change(change_of(f"v{node_id}"))
        network.settle()
    network.beat()
    assert network.node(3).configuration.voters == (1, 2, 3, 4, 5)
    network.crash(1)
    disk = network.disks[NodeId(1)]
    assert disk.kinds[1:] == [EntryKind.CONFIGURATION] * 2
    assert disk.hard_state.commit >= 2, "the second change rests on the first"
    network.crash(3)
    network.restart(3)
    network.heal()
    network.cut |= {(NodeId(a), NodeId(b)) for a in (1, 2) for b in (3, 4, 5)}
    network.cut |= {(b, a) for a, b in network.cut}
    network.restart(1)
    for _ in range(3):
        network.tick(1, LATEST)
        network.tick(2, ELECTION_TICKS)
        network.settle()
    assert network.role(1) is not Role.LEADER, "two of four elected a leader"
    for node_id in (3, 5):
        network.tick(node_id, ELECTION_TICKS)
    network.tick(4, LATEST)
    network.settle()
    assert network.role(4) is Role.LEADER


def test_c7_that_a_change_is_committed_is_written_without_another_entry() -> None:
    leader, follower = ready_leader(), make_node(log=run_with_change("v4"), term=1)
    leader.propose_change(change_of("v4"))
    settle(leader)
    leader.step(ack_from(2, 1, 2))
    follower.step(heartbeat_from(2, 1, commit=1))
    for node in (leader, follower):
        (ready,) = readies(node)
        assert ready.hard_state is not None
        assert ready.hard_state.commit == node.commit_index
        assert ready.must_sync


def test_p3_a_change_outlives_the_power_of_all_and_the_loss_of_a_voter_of_before() -> None:
    """The simulator's seed 10: node 3 made a third voter, then node 2 was lost for good and the power of all
    failed. The two that were left, of three, had the change in their logs, did not know it to be
    committed any more, and waited for node 2 for ever.
    """
    network = Network(2)
    network.elect(2)
    network.join(3)
    for words in ("l3", "v3"):
        network.change(change_of(words))
        network.settle()
        network.beat()
    assert network.node(1).configuration.voters == (1, 2, 3)
    for node_id in (1, 2, 3):
        network.crash(node_id)
    for node_id in (1, 3):
        network.restart(node_id)
    assert network.elect(1).is_leader_ready


def make_outvoted() -> RaftNode:
    """Return node 1 with a log in which {1, 2, 3, 4} gives way to {1, 2}, not knowing that this is committed.

    Node 2 knows and has a shorter log; 3 and 4 know, have longer logs, and stand no more.
    """
    leave = run_with_change("")
    return make_node(
        voters=(1, 2),
        outgoing=(1, 2, 3, 4),
        log=EntryRun(
            LogIndex(1),
            (Term(1),) * 3,
            (EntryKind.CONFIGURATION, EntryKind.COMMANDS, EntryKind.COMMANDS),
            (*leave.payloads, b"x", b"y"),
        ),
        term=1,
    )


def test_c7_who_refuses_a_vote_learns_what_the_candidate_knows_to_be_committed() -> None:
    """tikv/raft-rs, maybe_commit_by_vote; found here by the seed 0-3 of test_raft_chaos: all elections
    were at an end, as neither 1 nor 2 could win and nobody else stood."""
    node = make_outvoted()
    request = vote_request(2, 2, last=(1, 1), commit=(1, 1), pre_vote=True)
    (refusal,) = step(node, request)
    assert refusal == pre_vote_from(1, 1, granted=False, receiver=2)
    assert node.configuration == configuration_of((1, 2))
    tick(node, LATEST)
    step(node, pre_vote_from(2, 2), vote_from(2, 2))
    assert node.leader_id == 1


@pytest.mark.parametrize("real", [False, True])
def test_c7_a_candidate_that_is_refused_learns_what_the_voter_knows_to_be_committed(real: bool) -> None:
    """It stands no longer for the quorum of before: it asks anew when the change is in force."""
    node = make_outvoted()
    tick(node, LATEST)
    if real:
        step(node, *(pre_vote_from(peer, 2) for peer in (2, 3)))
    assert node.role is (Role.CANDIDATE if real else Role.PRE_CANDIDATE)
    refusal = vote_from(3, node.term, granted=False, commit=(1, 1))
    node.step(replace(refusal, pre_vote=not real))
    assert (node.role, node.commit_index, node.leader_id) == (Role.FOLLOWER, 1, NO_NODE)
    settle(node)
    assert node.configuration == configuration_of((1, 2))


@pytest.mark.parametrize("commit", [(1, 2), (4, 1), (9, 9), (0, 0)])
def test_c7_what_is_not_in_the_own_log_is_not_learnt(commit: tuple[int, int]) -> None:
    node = make_outvoted()
    (refusal,) = step(node, vote_request(2, 2, last=(1, 1), commit=commit))
    assert refusal == vote_from(1, 2, granted=False, receiver=2)
    assert (node.commit_index, node.configuration.is_joint) == (0, True)


def test_c7_only_a_change_is_learnt_so() -> None:
    """Of other entries a leader tells."""
    node = make_node([1, 1, 1])
    step(node, vote_request(2, 2, last=(2, 1), commit=(2, 1)))
    assert node.commit_index == 0


def test_c7_a_request_for_votes_says_what_is_committed() -> None:
    node = make_node([1, 1, 2], commit=2)
    settle(node)
    sent = make_candidate(node)
    assert sent == [vote_request(1, 3, last=(3, 2), commit=(2, 1), receiver=peer) for peer in (2, 3)]


def test_c7_a_change_with_no_room_in_the_uncommitted_tail_is_refused_and_leaves_no_trace() -> None:
    """SAFETY C10 holds for it too; leaving a joint mode alone always has room."""
    node = make_node(config=RaftConfig(NodeId(1), uncommitted_bytes_max=10))
    make_leader(node)
    step(node, ack_from(2, 1, 1))
    propose(node, b"0123456789")
    with pytest.raises(TooMuchUncommitted):
        node.propose_change(change_of("l4"))
    assert not node.has_change_pending
    assert node.log.last_index == 2


def test_c7_a_removed_leader_steps_down_and_drops_its_reads() -> None:
    node = ready_leader()
    node.read_index()
    node.propose_change(change_of("r1"))
    settle(node)
    node.step(ack_from(2, 1, 2))
    found = readies(node)
    finish(node, found[-1])
    assert (node.role, node.leader_id) == (Role.FOLLOWER, NO_NODE)
    (dropped,) = readies(node)
    assert dropped.reads_dropped
    assert tick(node, 5 * LATEST) == []
