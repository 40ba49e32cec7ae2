"""What the extended Raft paper (§6) and Ongaro's thesis (chapter 4) say of membership, claim by claim.

One departure, argued in lockd.raft.membership: a change takes effect when it is applied, not when it
is appended.
"""

import pytest

from lockd.ids import NodeId
from lockd.raft.entries import Configuration, EntryKind
from lockd.raft.membership import Transition
from lockd.raft.messages import AppendEntries, Message
from lockd.raft.node import ChangeRefused, NotLeader, Role
from tests.raft.network import Network
from tests.raft.single import (
    ELECTION_TICKS,
    LATEST,
    ack_from,
    change_of,
    configuration_of,
    joint_leader,
    make_leader,
    make_node,
    pre_vote_from,
    propose,
    settle,
    step,
    tick,
    vote_from,
    vote_request,
)

JOINT = configuration_of((1, 2, 3), outgoing=(3, 4, 5))


def joint_network() -> Network:
    """Voters 1 to 3 come, 3 to 5 go; nobody leaves the joint mode by itself."""
    voters, outgoing = JOINT.voters, JOINT.voters_outgoing
    return Network(5, configuration=Configuration(voters, outgoing))


def joined(network: Network, node_id: int) -> None:
    """Add an empty node as a learner and let it catch up."""
    network.join(node_id)
    network.change(change_of(f"l{node_id}"))
    network.settle()
    network.beat(2)


def test_6_log_entries_are_replicated_to_all_servers_in_both_configurations() -> None:
    """§6: "Log entries are replicated to all servers in both configurations"."""
    network = joint_network()
    network.elect(1)
    network.propose(b"x")
    network.settle()
    assert [network.commands(node_id) for node_id in network.ids] == [[b"x"]] * 5


def test_6_any_server_from_either_configuration_may_serve_as_leader() -> None:
    """§6: "Any server from either configuration may serve as leader"."""
    for node_id in range(1, 6):
        network = joint_network()
        assert network.elect(node_id).is_leader_ready


@pytest.mark.parametrize(
    ("voters", "won"),
    [((2, 3), False), ((2,), False), ((4, 5), False), ((3,), False), ((2, 4, 5), True), ((3, 4), True)],
)
def test_6_an_election_requires_separate_majorities(voters: tuple[int, ...], won: bool) -> None:
    """§6: "Agreement (for elections and entry commitment) requires separate majorities from both
    the old and new configurations"."""
    node = make_node(voters=(1, 2, 3), outgoing=(3, 4, 5))
    tick(node, LATEST)
    step(node, *(pre_vote_from(peer, 1) for peer in (3, 4)))
    assert node.term == 1
    step(node, *(vote_from(peer, 1) for peer in voters))
    assert (node.role is Role.LEADER) is won


@pytest.mark.parametrize(
    ("voters", "won"), [((2, 3), False), ((4, 5), False), ((2, 4, 5), True), ((3, 4), True)]
)
def test_6_a_pre_vote_requires_separate_majorities_too(voters: tuple[int, ...], won: bool) -> None:
    node = make_node(voters=(1, 2, 3), outgoing=(3, 4, 5))
    tick(node, LATEST)
    step(node, *(pre_vote_from(peer, 1) for peer in voters))
    assert (node.role is Role.CANDIDATE) is won


@pytest.mark.parametrize(
    ("holders", "committed"),
    [((2, 3), False), ((4, 5), False), ((3,), False), ((2, 4, 5), True), ((3, 4), True)],
)
def test_6_commitment_requires_separate_majorities(holders: tuple[int, ...], committed: bool) -> None:
    node = joint_leader()
    step(node, *(ack_from(peer, 1, 1) for peer in holders))
    assert (node.commit_index == 1) is committed


@pytest.mark.parametrize(
    ("heard", "leads"), [((2, 3), False), ((4, 5), False), ((2, 4, 5), True), ((3, 4), True)]
)
def test_6_a_leader_needs_to_hear_both_majorities(heard: tuple[int, ...], leads: bool) -> None:
    """Thesis §6.2's step-down, under the rule of §6."""
    node = joint_leader()
    step(node, *(ack_from(peer, 1, 1) for peer in heard))
    tick(node, ELECTION_TICKS)
    assert (node.role is Role.LEADER) is leads


def test_6_neither_majority_can_decide_alone() -> None:
    """§6: neither C-old nor C-new can make unilateral decisions while both are in force."""
    for cut_off in ({1, 2}, {4, 5}):
        network = joint_network()
        leader = network.elect(3)
        for node_id in cut_off:
            network.isolate(node_id)
        before = leader.commit_index
        network.propose(b"x")
        network.settle()
        assert leader.commit_index == before
        network.beat(2 * ELECTION_TICKS)
        assert network.role(3) is Role.FOLLOWER
        for node_id in (3, *sorted({1, 2, 4, 5} - cut_off)):
            network.tick(node_id, LATEST)
            network.settle()
            assert network.role(node_id) is not Role.LEADER


def test_6_a_change_of_several_goes_through_joint_consensus_and_out_of_it() -> None:
    """§6, Figure 11: C-old, then C-old,new, and once that is committed C-new."""
    network = Network(3)
    network.elect(1)
    for node_id in (4, 5):
        network.join(node_id)
    network.change(change_of("v4 v5 r2 r3"))
    network.settle()
    network.beat(3)
    stages = [(c.voters, c.voters_outgoing) for c in network.configurations.values()]
    assert stages == [((1, 4, 5), (1, 2, 3)), ((1, 4, 5), ())]
    assert [network.node(i).configuration for i in (1, 4, 5)] == [configuration_of((1, 4, 5))] * 3


def test_6_the_cluster_serves_requests_throughout_a_change() -> None:
    """§6: joint consensus "allows the cluster to continue servicing client requests throughout"."""
    network = Network(3)
    leader = network.elect(1)
    for node_id in (4, 5):
        network.join(node_id)
    network.change(change_of("v4 v5 r2 r3", Transition.EXPLICIT))
    expected = []
    for number in range(20):
        if leader.configuration.is_joint and number == 10:
            network.change(change_of())
        body = b"%d" % number
        network.propose(body)
        network.settle()
        expected.append(body)
        assert network.commands(1) == expected
    assert leader.configuration.voters == (1, 4, 5)
    assert not leader.configuration.is_joint


def test_6_the_new_configuration_is_not_proposed_before_the_joint_one_is_committed() -> None:
    """§6: "Once C-old,new has been committed, [...] it is now safe for the leader to create a log
    entry describing C-new"."""
    node = make_node()
    make_leader(node)
    step(node, ack_from(2, 1, 1))
    node.propose_change(change_of("v4 r2"))
    settle(node)
    assert node.log.last_index == 2
    step(node, ack_from(2, 1, 2))
    assert node.log.last_index == 3
    assert node.configuration.is_joint
    # C-new is committed by both, as C-old,new is what is in force.
    step(node, ack_from(4, 1, 3))
    assert node.configuration.is_joint, "3 and 2 of the old have not acknowledged it"
    step(node, ack_from(3, 1, 3))
    assert not node.configuration.is_joint


def test_6_non_voting_members_are_replicated_to_and_not_counted() -> None:
    """§6: new servers "join the cluster as non-voting members (the leader replicates log entries to
    them, but they are not considered for majorities)"; thesis §4.2.1."""
    network = Network(3)
    leader = network.elect(1)
    network.propose(b"before")
    network.settle()
    joined(network, 4)
    assert leader.configuration.learners == (4,)
    assert network.commands(4) == [b"before"]
    network.isolate(2)
    network.isolate(3)
    index = network.propose(b"x")
    network.settle()
    assert network.node(4).log.last_index == index
    assert leader.commit_index == index - 1
    network.tick(4, 5 * LATEST)
    assert network.role(4) is Role.FOLLOWER


def test_4_2_1_a_caught_up_learner_is_promoted_by_another_change() -> None:
    network = Network(3)
    leader = network.elect(1)
    joined(network, 4)
    network.change(change_of("v4"))
    network.settle()
    assert (leader.configuration.voters, leader.configuration.learners) == ((1, 2, 3, 4), ())
    network.crash(1)
    assert network.elect(4).is_leader_ready


def test_4_2_1_a_slow_new_server_does_not_hold_up_the_others() -> None:
    """Thesis §4.2.1: adding servers with empty logs as voters at once leaves a gap in
    availability; as learners they leave none."""
    network = Network(3)
    leader = network.elect(1)
    network.join(4)
    network.isolate(4)
    network.change(change_of("l4"))
    network.settle()
    network.isolate(3)
    index = network.propose(b"x")
    network.settle()
    assert leader.commit_index == index


def test_6_a_leader_outside_the_new_configuration_replicates_but_does_not_count_itself() -> None:
    """§6: while C-new is being committed the leader "manages a cluster that does not include itself;
    it replicates log entries but does not count itself in majorities"."""
    node = make_node()
    make_leader(node)
    step(node, ack_from(2, 1, 1))
    node.propose_change(change_of("r1 v4"))
    settle(node)
    step(node, ack_from(2, 1, 2))
    assert node.configuration == configuration_of((2, 3, 4), outgoing=(1, 2, 3))
    # 1 and 2 are a majority of the old, and only 2 is of the new.
    step(node, ack_from(2, 1, 3))
    assert node.commit_index == 2
    step(node, ack_from(4, 1, 3))
    assert node.commit_index == 3


def test_6_a_leader_that_is_not_in_the_new_configuration_steps_down() -> None:
    """§6: "the leader steps down (returns to follower state) once it has committed the C-new log
    entry"; the others learn of the commit before that."""
    network = Network(3)
    leader = network.elect(1)
    network.change(change_of("r1"))
    network.settle()
    assert (leader.role, leader.leader_id) == (Role.FOLLOWER, 0)
    assert [network.node(i).configuration.voters for i in (2, 3)] == [(2, 3)] * 2
    with pytest.raises(NotLeader):
        leader.propose(EntryKind.COMMANDS, b"x")
    network.tick(1, 5 * LATEST)
    network.settle()
    assert (network.role(1), leader.term) == (Role.FOLLOWER, 1)
    assert network.elect(2).is_leader_ready


def test_6_an_added_voter_counts_from_when_the_change_is_in_force() -> None:
    node = make_node(voters=(1, 2, 3))
    make_leader(node)
    step(node, ack_from(2, 1, 1))
    node.propose_change(change_of("v4"))
    settle(node)
    step(node, ack_from(2, 1, 2))
    assert node.commit_index == 2, "two of three have it: the old rule commits the change"
    propose(node)
    settle(node)
    step(node, ack_from(2, 1, 3))
    assert node.commit_index == 2, "two of four are no majority"
    step(node, ack_from(4, 1, 3))
    assert node.commit_index == 3


def test_6_a_removed_server_can_disrupt_nobody() -> None:
    """§6, last problem: servers that are not in C-new "will not receive heartbeats, so they will time
    out and start new elections"; pre-vote and stickiness keep the leader in office."""
    network = Network(4)
    leader = network.elect(1)
    network.isolate(4)
    network.change(change_of("r4"))
    network.settle()
    network.heal()
    removed = network.node(4)
    assert removed.configuration.voters == (1, 2, 3, 4), "it does not know"
    for _ in range(10):
        network.tick(4, LATEST)
        network.beat()
        network.settle()
    assert (leader.role, leader.term) == (Role.LEADER, 1)
    # It stands for real, as one that got its pre-votes before would.
    network.hand(vote_request(4, 9, last=(9, 8), receiver=2))
    network.settle()
    assert (leader.role, network.node(2).term) == (Role.LEADER, 1)


def test_6_a_removed_server_is_sent_nothing_more() -> None:
    network = Network(4)
    network.elect(1)
    network.change(change_of("r4"))
    network.settle()
    network.propose(b"x")
    to_removed: list[Message] = []

    def record(message: Message) -> bool:
        if message.receiver == 4:
            to_removed.append(message)
        return True

    network.settle(record)
    for _ in range(3):
        network.tick(1)
        network.settle(record)
    assert to_removed == []


def test_4_1_single_server_changes_go_in_one_step() -> None:
    """Thesis §4.1: majorities of configurations that differ by one server overlap."""
    network = Network(3)
    leader = network.elect(1)
    network.join(4)
    network.change(change_of("v4"))
    network.settle()
    assert leader.configuration == configuration_of((1, 2, 3, 4))
    network.change(change_of("r2"))
    network.settle()
    assert leader.configuration == configuration_of((1, 3, 4))


def test_4_1_a_change_waits_for_the_one_before_it() -> None:
    """Thesis §4.1: "a leader must not append a new configuration entry while one is uncommitted"."""
    network = Network(3)
    leader = network.elect(1)
    network.isolate(1)
    network.change(change_of("l4"))
    network.settle()
    with pytest.raises(ChangeRefused, match="under way"):
        network.change(change_of("l5"))
    network.heal()
    network.beat()
    network.change(change_of("l5"))
    network.settle()
    assert leader.configuration.learners == (4, 5)


def test_6_a_new_server_needs_nothing_but_the_leader_to_learn_all() -> None:
    """Thesis §4.4: it is no voter by its own log yet, and grants votes and takes entries all the same."""
    network = Network(1)
    network.elect(1)
    network.join(2)
    network.change(change_of("v2"))
    network.settle()
    network.beat(2)
    assert network.node(2).configuration.voters == (1, 2)
    assert network.applied[NodeId(2)] == network.agreed
    network.crash(1)
    network.restart(1)
    assert network.elect(1).is_leader_ready, "with the vote of 2, without which there is no quorum"


def test_a_voter_that_thinks_it_is_a_learner_votes() -> None:
    """etcd-io/raft, campaign_learner_must_vote: its promotion is committed, and it has not heard."""
    learner = make_node(node_id=1, voters=(2, 3), learners=(1,))
    assert step(learner, vote_request(2, 1)) == [vote_from(1, 1, receiver=2)]


def test_6_changes_to_learners_do_not_touch_the_majority() -> None:
    node = make_node(voters=(1, 2), learners=(3,))
    make_leader(node)
    step(node, ack_from(2, 1, 1), ack_from(3, 1, 1))
    node.propose_change(change_of("l4 r3", Transition.IMPLICIT))
    sent = settle(node)
    assert {m.receiver for m in sent if isinstance(m, AppendEntries)} == {2, 3}
    step(node, ack_from(2, 1, 2))
    step(node, ack_from(2, 1, 3))
    assert node.configuration == configuration_of((1, 2), learners=(4,))
