"""What Ongaro's thesis says of leadership transfer (§3.10), claim by claim."""

import pytest

from lockd.ids import NO_NODE, LogIndex, NodeId, Term
from lockd.raft.entries import EntryKind
from lockd.raft.messages import AppendEntries, Message, RequestVote, TimeoutNow
from lockd.raft.node import NotLeader, RaftConfig, Role
from tests.raft.network import Network
from tests.raft.single import (
    ELECTION_TICKS,
    ack_from,
    append_from,
    change_of,
    heartbeat_from,
    heartbeat_reply_from,
    make_candidate,
    make_leader,
    make_node,
    propose,
    ready_leader,
    settle,
    step,
    tick,
    timeout_now_from,
    vote_request,
)


def timeouts(sent: list[Message]) -> list[int]:
    return [message.receiver for message in sent if isinstance(message, TimeoutNow)]


def test_3_10_the_target_takes_over_although_everybody_hears_the_leader() -> None:
    network = Network(3)
    network.elect(1)
    network.node(1).transfer_leadership(NodeId(3))
    network.settle()
    network.beat()
    assert [network.role(i) for i in (1, 2, 3)] == [Role.FOLLOWER, Role.FOLLOWER, Role.LEADER]
    assert {node.term for node in network.nodes.values()} == {2}
    assert network.node(1).leader_id == 3


def test_3_10_a_target_that_is_up_to_date_is_asked_at_once() -> None:
    node = ready_leader()
    node.transfer_leadership(NodeId(2))
    assert timeouts(settle(node)) == [2]


def test_3_10_the_target_is_brought_up_to_date_first() -> None:
    """ "The prior leader fully updates the target server's log to match its own log"."""
    node = ready_leader()
    propose(node)
    settle(node)
    step(node, ack_from(3, 1, 2))
    node.transfer_leadership(NodeId(2))
    assert timeouts(settle(node)) == []
    assert timeouts(step(node, ack_from(2, 1, 1))) == []
    assert timeouts(step(node, ack_from(2, 1, 2))) == [2]


def test_3_10_a_target_behind_the_log_is_sent_a_snapshot_first() -> None:
    network = Network(3)
    leader = network.elect(1)
    network.isolate(3)
    network.propose_numbers(10)
    network.take_snapshot(1)
    network.heal()
    leader.transfer_leadership(NodeId(3))
    network.beat(3)
    assert (network.role(3), network.installed) == (Role.LEADER, {3: 1})
    assert network.commands(3) == [b"%d" % number for number in range(10)]


def test_3_10_the_prior_leader_accepts_nothing_meanwhile() -> None:
    """ "The prior leader stops accepting new client requests"; who asks is told of the target."""
    node = ready_leader()
    node.transfer_leadership(NodeId(2))
    with pytest.raises(NotLeader) as refused:
        node.propose(EntryKind.COMMANDS, b"x")
    assert refused.value.leader_id == 2
    with pytest.raises(NotLeader):
        node.propose_change(change_of("l4"))
    assert node.log.last_index == 1


def test_3_10_the_target_stands_at_once_and_says_that_it_was_asked() -> None:
    """ "It starts a new election by incrementing its term"; without a pre-vote, which would be refused."""
    node = make_node([1])
    step(node, heartbeat_from(2, 1))
    sent = step(node, timeout_now_from(2, 1))
    assert (node.role, node.term) == (Role.CANDIDATE, 2)
    assert sent == [vote_request(1, 2, last=(1, 1), transfer=True, receiver=peer) for peer in (2, 3)]


def test_3_10_a_later_election_of_the_same_node_is_an_ordinary_one() -> None:
    node = make_node([1])
    step(node, timeout_now_from(2, 1))
    sent = tick(node, 2 * ELECTION_TICKS)
    assert sent
    assert all(isinstance(m, RequestVote) and m.pre_vote and not m.transfer for m in sent)


def test_3_10_after_an_election_timeout_the_prior_leader_goes_on() -> None:
    """ "If leadership transfer does not complete after about an election timeout, the prior leader
    aborts the transfer and resumes accepting client requests"."""
    node = ready_leader()
    tick(node, ELECTION_TICKS - 1)
    node.transfer_leadership(NodeId(2))
    settle(node)
    for _ in range(ELECTION_TICKS - 1):
        tick(node)
        step(node, heartbeat_reply_from(3, 1))
        with pytest.raises(NotLeader):
            node.propose(EntryKind.COMMANDS, b"x")
    tick(node)
    assert propose(node) == 2
    sent = step(node, ack_from(2, 1, 2))
    assert timeouts(sent) == [], "the transfer is over"


def test_3_10_a_target_that_is_gone_costs_no_more_than_that() -> None:
    network = Network(3)
    leader = network.elect(1)
    network.crash(3)
    leader.transfer_leadership(NodeId(3))
    network.beat(ELECTION_TICKS + 1)
    assert (leader.role, leader.term) == (Role.LEADER, 1)
    index = network.propose(b"x")
    network.settle()
    assert leader.commit_index == index


@pytest.mark.parametrize("target", [1, 4, 9])
def test_3_10_itself_a_learner_or_a_stranger_is_no_target(target: int) -> None:
    node = make_node(voters=(1, 2, 3), learners=(4,))
    make_leader(node)
    step(node, ack_from(2, 1, 1), ack_from(4, 1, 1))
    node.transfer_leadership(NodeId(target))
    assert settle(node) == []
    assert propose(node) == 2


def test_3_10_only_a_leader_hands_over() -> None:
    node = make_node()
    step(node, heartbeat_from(3, 1))
    with pytest.raises(NotLeader) as refused:
        node.transfer_leadership(NodeId(2))
    assert refused.value.leader_id == 3


def test_3_10_a_second_transfer_takes_the_place_of_the_first() -> None:
    node = ready_leader()
    propose(node)
    settle(node)
    node.transfer_leadership(NodeId(2))
    node.transfer_leadership(NodeId(3))
    assert timeouts(step(node, ack_from(2, 1, 2))) == []
    assert timeouts(step(node, ack_from(3, 1, 2))) == [3]


def test_3_10_asking_again_does_not_prolong_it() -> None:
    node = ready_leader()
    node.transfer_leadership(NodeId(2))
    for _ in range(ELECTION_TICKS):
        node.transfer_leadership(NodeId(2))
        tick(node)
        step(node, heartbeat_reply_from(3, 1))
    assert propose(node) == 2


def test_3_10_a_transfer_ends_with_the_office() -> None:
    node = ready_leader()
    node.transfer_leadership(NodeId(2))
    step(node, append_from(3, 2, prev=(1, 1)))
    make_leader(node)
    assert propose(node) == node.log.last_index


def test_3_10_a_target_that_is_removed_ends_it() -> None:
    node = ready_leader()
    node.propose_change(change_of("r2"))
    settle(node)
    node.transfer_leadership(NodeId(2))
    step(node, ack_from(3, 1, 2))
    assert node.configuration.voters == (1, 3)
    assert propose(node) == 3


@pytest.mark.parametrize("case", ["learner", "removed", "leader", "candidate", "old term"])
def test_3_10_who_may_not_or_need_not_stand_does_not(case: str) -> None:
    match case:
        case "learner":
            node = make_node([1], voters=(2, 3), learners=(1,))
        case "removed":
            node = make_node([1], voters=(2, 3))
        case "leader":
            node = ready_leader()
        case "candidate":
            node = make_node()
            make_candidate(node)
        case _:
            node = make_node([2])
    before = (node.role, node.term)
    assert step(node, timeout_now_from(2, 1)) == []
    assert (node.role, node.term) == before


def test_3_10_c7_who_has_not_applied_a_committed_change_does_not_stand() -> None:
    network = Network(3)
    network.elect(1)
    network.slow_disks.add(NodeId(3))  # It knows of the commit and may not apply what its disk lacks.
    network.change(change_of("l4"))
    network.settle()
    node = network.node(3)
    assert (node.commit_index, node.last_applied) == (2, 1)
    network.hand(TimeoutNow(NodeId(1), NodeId(3), Term(1)))
    assert (node.role, node.term) == (Role.FOLLOWER, 1)
    network.sync(3)
    network.pump(3)
    network.hand(TimeoutNow(NodeId(1), NodeId(3), Term(1)))
    assert (node.role, node.term) == (Role.CANDIDATE, 2)


def test_3_10_a_target_that_lacks_an_entry_is_not_elected() -> None:
    """§5.4.1 holds for it as well: a late TimeoutNow does no harm."""
    network = Network(3)
    leader = network.elect(1)
    network.isolate(3)
    network.propose(b"x")
    network.settle()
    network.heal()
    network.hand(TimeoutNow(NodeId(1), NodeId(3), leader.term))
    network.settle()
    assert network.role(3) is not Role.LEADER
    assert network.elect(2).log.matches(LogIndex(2), Term(1))


def test_3_10_with_nobody_to_take_over_nothing_happens() -> None:
    node = make_node(voters=(1,), config=RaftConfig(NodeId(1)))
    tick(node, 2 * ELECTION_TICKS)
    assert node.role is Role.LEADER
    node.transfer_leadership(NO_NODE)
    assert propose(node) == 2
    assert not any(isinstance(m, AppendEntries) for m in settle(node))
