"""SAFETY C4 and C5: how votes are counted, and who cannot disturb."""

import pytest

from lockd.ids import NO_NODE, NodeId
from lockd.raft.entries import HardState
from lockd.raft.messages import AppendEntriesReply, Message, RequestVote
from lockd.raft.node import Role
from tests.raft.network import Network
from tests.raft.single import (
    ELECTION_TICKS,
    LATEST,
    ack_from,
    append_from,
    heartbeat_from,
    heartbeat_reply_from,
    make_candidate,
    make_leader,
    make_node,
    pre_vote_from,
    readies,
    step,
    tick,
    vote_from,
    vote_request,
)


def test_c4_one_voter_answering_twice_is_one_vote() -> None:
    """PySyncObj 0.3.17: `votesCount += 1` let one voter of five elect a leader."""
    node = make_node(voters=range(1, 6))
    make_candidate(node)
    roles = []
    for votes in ([vote_from(2, 1)] * 5, [vote_from(3, 1)]):
        step(node, *votes)
        roles.append(node.role)
    assert roles == [Role.CANDIDATE, Role.LEADER]


def test_c4_the_same_holds_for_pre_votes() -> None:
    node = make_node(voters=range(1, 6))
    tick(node, LATEST)
    step(node, *[pre_vote_from(2, 1)] * 5)
    assert node.role is Role.PRE_CANDIDATE


def test_c4_votes_of_another_term_or_round_do_not_count() -> None:
    node = make_node(voters=range(1, 6))
    make_candidate(node)
    step(node, vote_from(2, 1))
    # Nobody answers; it stands again, in term 2. The old answers arrive late.
    tick(node, LATEST)
    step(node, vote_from(3, 1), pre_vote_from(2, 1), pre_vote_from(3, 1))
    assert (node.role, node.term) == (Role.PRE_CANDIDATE, 1)
    step(node, pre_vote_from(2, 2), pre_vote_from(3, 2))
    assert (node.role, node.term) == (Role.CANDIDATE, 2)
    step(node, vote_from(3, 1), vote_from(4, 1), pre_vote_from(3, 2), pre_vote_from(4, 2))
    assert (node.role, node.term) == (Role.CANDIDATE, 2)


def test_c4_the_same_candidate_is_granted_its_vote_again() -> None:
    """nebula#2419: the reply was lost, and a repeated request was refused."""
    node = make_node()
    for _ in range(3):
        assert step(node, vote_request(2, 1)) == [vote_from(1, 1, receiver=2)]
    assert step(node, vote_request(3, 1)) == [vote_from(1, 1, granted=False, receiver=3)]


@pytest.mark.parametrize("lost_by", ["election", "heartbeat", "silence"])
def test_c4_a_step_down_in_the_same_term_keeps_the_vote(lost_by: str) -> None:
    """hazelcast#16643: the vote was deleted on a step-down, and given to a second candidate."""
    node = make_node()
    match lost_by:
        case "election":
            make_candidate(node)
            step(node, vote_from(2, 1, granted=False), vote_from(3, 1, granted=False))
        case "heartbeat":
            make_candidate(node)
            step(node, heartbeat_from(2, 1))
        case _:
            make_leader(node)
            tick(node, 2 * ELECTION_TICKS)
    assert (node.role, node.term) == (Role.FOLLOWER, 1)
    tick(node, ELECTION_TICKS)
    assert step(node, vote_request(3, 1, last=(9, 1))) == [vote_from(1, 1, granted=False, receiver=3)]


def test_c4_a_vote_is_forgotten_with_its_term_only() -> None:
    node = make_node(term=3, voted_for=3)
    node.step(append_from(2, 4))
    (ready,) = readies(node)
    assert ready.hard_state == HardState(node.term, NO_NODE, node.commit_index)


def test_c4_no_vote_for_another_once_a_leader_of_the_term_is_known() -> None:
    node = make_node()
    step(node, heartbeat_from(2, 1))
    tick(node, ELECTION_TICKS)
    assert step(node, vote_request(3, 1)) == [vote_from(1, 1, granted=False, receiver=3)]


@pytest.mark.parametrize("message", [append_from(2, 1, terms=[1]), heartbeat_from(2, 1)])
def test_c5_a_leader_of_a_lower_term_is_told_the_present_one(message: Message) -> None:
    """etcd-io/raft, raft.go:1134: else a node whose term is ahead is stuck for ever, as it
    ignores the leader and the others ignore its pre-votes."""
    node = make_node(term=4)
    (reply,) = step(node, message)
    assert isinstance(reply, AppendEntriesReply)
    assert (reply.receiver, reply.term, reply.success) == (2, 4, False)


def test_c5_a_node_whose_term_is_ahead_gets_back_into_the_cluster() -> None:
    network = Network(3)
    network.elect(1)
    # Node 3 gets as far as a real election, which nobody hears of.
    network.isolate(3)
    network.tick(3, LATEST)
    network.hand(pre_vote_from(2, 2, receiver=3))
    network.node(3).step(pre_vote_from(2, 2, receiver=3))
    network.settle()
    assert (network.role(3), network.node(3).term) == (Role.CANDIDATE, 2)
    network.heal()
    network.propose(b"x")
    network.settle()
    for _ in range(3 * LATEST):
        for node_id in network.ids:
            network.tick(node_id)
        network.settle()
    leader = network.leader()
    assert leader is not None
    assert leader.is_leader_ready
    assert {node.leader_id for node in network.nodes.values()} == {leader.leader_id}
    assert network.commands(3) == [b"x"]


def test_c5_a_node_that_was_cut_off_returns_without_an_election() -> None:
    network = Network(3)
    leader = network.elect(1)
    network.isolate(3)
    for _ in range(20 * ELECTION_TICKS):
        for node_id in network.ids:
            network.tick(node_id)
        network.settle()
    assert network.role(3) is Role.PRE_CANDIDATE
    network.heal()
    for _ in range(2 * LATEST):
        for node_id in network.ids:
            network.tick(node_id)
        network.settle()
    assert (leader.role, leader.term, network.role(3)) == (Role.LEADER, 1, Role.FOLLOWER)


def test_c5_messages_of_an_old_term_suppress_no_election() -> None:
    """butaneprotocol/oracles#32: heartbeats of an old leader kept everybody from standing."""
    node = make_node(term=3)
    for _ in range(LATEST):
        step(node, heartbeat_from(2, 2), append_from(3, 1), vote_request(2, 2))
        node.tick()
    assert node.role is Role.PRE_CANDIDATE


def test_c5_a_leader_cut_off_from_its_quorum_stops_and_the_others_elect_one() -> None:
    network = Network(5)
    old = network.elect(1)
    network.isolate(1)
    network.elect(2)
    assert old.role is Role.LEADER
    network.tick(1, 2 * ELECTION_TICKS)
    assert (old.role, old.term) == (Role.FOLLOWER, 1)


@pytest.mark.parametrize("role", [Role.CANDIDATE, Role.LEADER])
@pytest.mark.parametrize(
    "message",
    [
        vote_from(9, 50, granted=False),
        pre_vote_from(9, 50, granted=False),
        ack_from(9, 50, 0),
        heartbeat_reply_from(9, 50),
        vote_from(9, 1),
        ack_from(9, 1, 1),
        heartbeat_reply_from(9, 1, 1),
    ],
)
def test_c5_a_reply_from_a_stranger_changes_nothing(role: Role, message: Message) -> None:
    """A removed node may answer late, with whatever term it has since reached."""
    node = make_node()
    make_candidate(node)
    if role is Role.LEADER:
        step(node, vote_from(2, 1))
    assert step(node, message) == []
    assert (node.role, node.term, node.commit_index) == (role, 1, 0)


@pytest.mark.parametrize("pre_vote", [True, False])
def test_c5_a_removed_node_that_stands_is_ignored_by_all_who_hear_the_leader(pre_vote: bool) -> None:
    network = Network(3)
    leader = network.elect(1)
    for _ in range(5):
        network.beat()
        for node_id in network.ids:
            request = vote_request(9, 70, last=(99, 69), pre_vote=pre_vote, receiver=node_id)
            network.hand(request)
        network.settle()
    assert (leader.role, leader.term) == (Role.LEADER, 1)
    assert {node.term for node in network.nodes.values()} == {1}


def test_c5_a_deposed_leader_may_be_elected_again() -> None:
    """hashicorp/raft#605: pre-votes of a former leader were refused because it had been the leader."""
    network = Network(3)
    network.elect(1)
    network.elect(2)
    again = network.elect(1)
    assert (again.role, again.term) == (Role.LEADER, 3)


def test_c5_no_node_stands_that_is_no_voter() -> None:
    removed = make_node(voters=(2, 3))
    assert tick(removed, 100) == []
    assert removed.role is Role.FOLLOWER


def test_pre_votes_of_two_at_once_end_in_one_leader() -> None:
    network = Network(3)
    for node_id in (1, 2):
        network.tick(node_id, LATEST)
    assert {network.role(1), network.role(2)} == {Role.PRE_CANDIDATE}
    assert all(isinstance(message, RequestVote) for message in network.in_flight)
    network.settle()
    for _ in range(3):
        if network.leader() is None:
            network.tick(1, LATEST)
            network.settle()
    leader = network.leader()
    assert leader is not None
    assert set(network.leaders.values()) <= {NodeId(1), NodeId(2)}
