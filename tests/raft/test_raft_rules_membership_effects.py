"""SAFETY C7: what a membership change does once it is in force, to leaders, quorums, joiners and restarts."""

import pytest

from lockd.ids import NO_NODE, NodeId
from lockd.raft.entries import EntryKind
from lockd.raft.membership import Transition, apply_change
from lockd.raft.messages import AppendEntries, Heartbeat, Message
from lockd.raft.node import NotLeader, RaftConfig, Role
from tests.raft.network import Network
from tests.raft.single import (
    ELECTION_TICKS,
    LATEST,
    ack_from,
    change_of,
    configuration_of,
    finish,
    heartbeat_from,
    heartbeat_reply_from,
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
    vote_from,
    vote_request,
)


def test_c7_a_leader_that_becomes_a_learner_steps_down() -> None:
    node = ready_leader()
    node.propose_change(change_of("l1"))
    settle(node)
    step(node, ack_from(2, 1, 2))
    assert node.configuration == configuration_of((2, 3), learners=(1,))
    assert node.role is Role.FOLLOWER


def test_c7_the_others_hear_of_the_commit_before_a_removed_leader_steps_down() -> None:
    network = Network(3)
    network.elect(1)
    network.change(change_of("r1"))
    network.settle(lambda m: not isinstance(m, Heartbeat))
    assert [network.node(i).configuration.voters for i in (2, 3)] == [(2, 3)] * 2


def test_c7_without_step_down_a_removed_leader_goes_on_and_accepts_nothing() -> None:
    """As etcd's scripts have it: its followers elect another when it stops."""
    node = make_node(config=RaftConfig(NodeId(1), step_down_on_removal=False))
    make_leader(node)
    step(node, ack_from(2, 1, 1))
    node.propose_change(change_of("r1"))
    settle(node)
    step(node, ack_from(2, 1, 2))
    assert node.is_leader_ready
    with pytest.raises(NotLeader):
        node.propose(EntryKind.COMMANDS, b"x")
    tick(node, ELECTION_TICKS)
    assert node.role is Role.FOLLOWER, "it does not count itself among those it hears"


def test_c7_a_smaller_quorum_commits_at_once_what_waited() -> None:
    node = ready_leader(1, 2, 3, 4)
    node.propose_change(change_of("r4"))
    waiting = propose(node)
    settle(node)
    step(node, ack_from(2, 1, waiting))
    assert node.commit_index == 1
    step(node, ack_from(3, 1, waiting - 1))
    assert node.commit_index == waiting, "two of three have it"


def test_c7_a_smaller_quorum_confirms_at_once_the_reads_that_waited() -> None:
    node = ready_leader(1, 2, 3, 4)
    node.propose_change(change_of("r4"))
    settle(node)
    sequence = node.read_index()
    settle(node)
    step(node, heartbeat_reply_from(2, 1, sequence), ack_from(2, 1, 2))
    node.step(ack_from(3, 1, 2))
    for ready in readies(node):
        assert ready.reads == ()
        finish(node, ready)
    (confirmed,) = [read for ready in readies(node) for read in ready.reads]
    assert confirmed.sequence == sequence


def test_c7_a_read_needs_a_quorum_of_whoever_votes_now() -> None:
    """One that was added must be asked too: a quorum of before is none any more."""
    node = ready_leader()
    node.propose_change(change_of("v4 v5", Transition.IMPLICIT))
    settle(node)
    step(node, ack_from(2, 1, 2))
    assert node.configuration == configuration_of((1, 2, 3, 4, 5), outgoing=(1, 2, 3))
    sequence = node.read_index()
    settle(node)
    node.step(heartbeat_reply_from(2, 1, sequence))
    assert not any(ready.reads for ready in readies(node))
    node.step(heartbeat_reply_from(4, 1, sequence))
    assert any(ready.reads for ready in readies(node))


def test_c7_a_new_voter_does_not_cost_the_leader_its_quorum_before_it_could_answer() -> None:
    node = make_node(voters=(1,))
    tick(node, LATEST)
    tick(node, ELECTION_TICKS - 1)
    node.propose_change(change_of("v2"))
    settle(node)
    tick(node)
    assert node.is_leader_ready
    tick(node, ELECTION_TICKS)
    assert node.role is Role.FOLLOWER, "and then it has to be heard"


def test_c7_a_new_leader_leaves_the_joint_mode_that_the_last_one_entered() -> None:
    network = Network(3)
    network.elect(1)
    network.join(4)
    network.change(change_of("v4 r3"))

    def keep(message: Message) -> bool:
        return not isinstance(message, AppendEntries) or message.entries.last <= 2

    for _ in range(2):
        network.settle(keep)
        network.tick(1)
    # The joint configuration is committed and in force; leaving it reaches nobody.
    assert [network.node(i).configuration.is_joint for i in (1, 2, 3)] == [True] * 3
    network.in_flight.clear()
    network.crash(1)
    network.elect(2)
    network.beat()
    assert network.node(2).configuration == configuration_of((1, 2, 4))


def test_c7_who_is_added_and_gets_a_snapshot_of_before_finds_itself_in_the_entries_after_it() -> None:
    """Unlike etcd: see lockd.raft.replication.handle_snapshot."""
    network = Network(3)
    network.elect(1)
    network.propose(b"x")
    network.settle()
    network.take_snapshot(1)
    network.join(4)
    network.change(change_of("v4"))
    network.settle(lambda m: m.receiver != 4)
    joiner = network.node(4)
    for _ in range(3):
        network.tick(1)
        network.settle()
    assert network.installed == {4: 1}
    assert network.disks[NodeId(4)].snapshot.configuration.voters == (1, 2, 3)
    assert joiner.configuration.voters == (1, 2, 3, 4)
    assert network.commands(4) == [b"x"]


def test_c7_until_then_it_has_no_vote_of_its_own_to_stand_with() -> None:
    network = Network(1)
    network.elect(1)
    network.propose(b"x")
    network.settle()
    network.take_snapshot(1)
    network.join(2)
    network.change(change_of("v2"))
    for _ in range(3):
        network.settle(lambda m: not (isinstance(m, AppendEntries) and network.installed))
        network.tick(1)
    joiner = network.node(2)
    assert (joiner.last_applied, joiner.configuration.voters) == (2, (1,))
    assert tick(joiner, 5 * LATEST) == []
    assert (joiner.role, joiner.term) == (Role.FOLLOWER, 1)


def test_c7_a_member_that_comes_back_from_its_disk_has_the_configuration_of_its_log() -> None:
    network = Network(3)
    network.elect(1)
    for node_id in (4, 5):
        network.join(node_id)
    network.change(change_of("v4 v5"))
    network.settle()
    network.beat(2)
    network.take_snapshot(4)
    for node_id in network.ids:
        network.crash(node_id)
        network.restart(node_id)
    network.elect(5)
    network.beat(2)
    assert [node.configuration for node in network.nodes.values()] == [configuration_of((1, 2, 3, 4, 5))] * 5


def test_c7_a_candidates_votes_are_counted_by_its_own_configuration_alone() -> None:
    """A vote of someone who is no voter here changes nothing."""
    node = make_node(voters=(1, 2, 3), learners=(4, 5))
    make_candidate(node)
    step(node, vote_from(4, 1), vote_from(5, 1), vote_from(9, 1))
    assert node.leader_id == NO_NODE
    step(node, vote_from(3, 1))
    assert node.leader_id == 1


def test_c7_a_demoted_voter_becomes_a_learner_when_the_joint_mode_is_left() -> None:
    """It votes in the outgoing half until then, and nobody has both roles."""
    joint = apply_change(configuration_of(), change_of("l3", Transition.EXPLICIT))
    assert (joint.voters, joint.voters_outgoing) == ((1, 2), (1, 2, 3))
    assert (joint.learners, joint.learners_next) == ((), (3,))
    assert apply_change(joint, change_of()) == configuration_of((1, 2), learners=(3,))
    assert apply_change(configuration_of(), change_of("l3")) == configuration_of((1, 2), learners=(3,))


def test_who_forgets_its_leader_listens_to_candidates_at_once() -> None:
    node = make_node()
    step(node, heartbeat_from(2, 1))
    assert step(node, vote_request(3, 2, pre_vote=True)) == []
    node.forget_leader()
    assert (node.leader_id, node.term) == (NO_NODE, 1)
    assert step(node, vote_request(3, 2, pre_vote=True)) == [pre_vote_from(1, 2, receiver=3)]
    leader = ready_leader()
    leader.forget_leader()
    assert leader.leader_id == 1
