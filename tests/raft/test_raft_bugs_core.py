"""Bugs of other Raft implementations, as scenarios on the core. `test_raft_bugs` lists all of them."""

import random

import pytest

from lockd.ids import LogIndex, NodeId, Term
from lockd.raft.entries import EntryKind, EntryRun
from lockd.raft.membership import Transition, encode_change
from lockd.raft.messages import RequestVote
from lockd.raft.node import ChangeRefused, Role
from lockd.raft.progress import Progress
from tests.raft.network import Network
from tests.raft.single import (
    ELECTION_TICKS,
    LATEST,
    ack_from,
    change_of,
    configuration_of,
    make_leader,
    make_node,
    pre_vote_from,
    settle,
    snapshot_from,
    step,
    tick,
)


def test_bug_03_pysyncobj_202_a_restart_of_all_overwrites_nothing() -> None:
    """The term started at 0 again, so an old term was led twice and committed entries were replaced."""
    network = Network(3)
    for leader in (1, 2, 3):
        network.elect(leader)
        network.propose(b"term %d" % network.node(leader).term)
        network.settle()
    network.beat()
    agreed = list(network.agreed)
    for node_id in network.ids:
        network.crash(node_id)
    for node_id in network.ids:
        network.restart(node_id)
    assert network.elect(1).term == 4
    network.propose(b"after")
    network.settle()
    assert network.agreed[: len(agreed)] == agreed
    assert network.commands(1) == [b"term 1", b"term 2", b"term 3", b"after"]


def test_bug_06_hashicorp_605_a_leader_of_before_counts_its_own_pre_vote() -> None:
    """A node that lost its office refused its own pre-vote, as it took itself for the leader still."""
    node = make_node()
    make_leader(node)
    tick(node, ELECTION_TICKS)
    assert node.leader_id == 0
    tick(node, LATEST)
    step(node, pre_vote_from(2, 2))
    assert (node.role, node.term) == (Role.CANDIDATE, 2)


@pytest.mark.parametrize("seed", range(20))
def test_bug_12_etcd_raft_pr_149_next_index_stays_above_match_index(seed: int) -> None:
    """A stale refusal took Next to Match or below it, and entries were sent again for ever."""
    draw = random.Random(seed)
    progress = Progress(LogIndex(draw.randint(1, 10)), inflight_appends_max=3, inflight_bytes_max=50)
    for _ in range(300):
        index = LogIndex(draw.randint(0, 12))
        match draw.randrange(6):
            case 0 if not progress.paused:
                entries = 0 if progress.is_window_full else draw.randint(0, 3)
                progress.sent(entries, draw.randint(0, 30), index)
            case 1:
                progress.acknowledged(index, log_base=LogIndex(draw.randint(0, 6)))
            case 2:
                progress.refused(index, LogIndex(draw.randint(0, 12)))
            case 3:
                progress.become_probe()
            case 4 if draw.random() < 0.3 and index > progress.match_index:
                progress.become_snapshot(index)
            case _:
                pass
        progress.check_invariants()


def test_bug_14_ongaro_2015_no_disjoint_quorums_across_a_leader_change() -> None:
    """Ongaro, raft-dev, 2015-07-10: S1 appends "add 5" and loses office; S2 appends "remove 1" before
    its no-op is committed, and commits it by {2, 3}; S1 is elected again by {1, 4, 5}, the quorum
    of a change that only it has. Both commit. Here a change is in force once it is applied, and
    none begins before the no-op is committed."""
    network = Network(4)
    network.elect(1)
    network.join(5)
    network.isolate(1)
    network.change(change_of("v5"))
    network.settle()
    assert network.node(1).log.last_index == 2
    network.isolate(4)
    for node_id in (3, 4):
        network.tick(node_id, ELECTION_TICKS)
    # 4 is needed for three of four, and hears nothing of the new leader but its request for a vote.
    network.cut.clear()
    network.isolate(1)
    network.tick(2, LATEST)
    network.settle(lambda m: m.receiver != 4 or isinstance(m, RequestVote))
    leader = network.node(2)
    assert (leader.role, leader.term, leader.is_leader_ready) == (Role.LEADER, 2, False)
    with pytest.raises(ChangeRefused):
        leader.propose_change(change_of("r1"))
    # Whatever S1 reaches, the quorum it counts with is of {1, 2, 3, 4}.
    network.in_flight.clear()
    network.heal()
    network.cut |= {(NodeId(a), NodeId(b)) for a in (1, 4, 5) for b in (2, 3)}
    network.cut |= {(b, a) for a, b in network.cut}
    for _ in range(4):
        network.tick(4, ELECTION_TICKS)
        network.tick(1, LATEST)
        network.settle()
    assert network.node(1).role is not Role.LEADER
    assert network.node(1).configuration.voters == (1, 2, 3, 4)
    network.heal()
    network.beat(3)
    assert network.node(2).is_leader_ready
    network.change(change_of("r1"))
    network.settle()
    assert network.node(2).configuration.voters == (2, 3, 4)


def test_bug_16_rejoin_survey_a_late_ack_of_a_removed_node_moves_nobody() -> None:
    """drmingdrmer's survey: a node is removed and added again within a term, and acks of its first
    life count for its second. An id is used once (SAFETY C8, see the table), and with a removal all
    that the leader knew of the node is gone."""
    node = make_node(voters=(1, 2, 3))
    make_leader(node)
    step(node, ack_from(2, 1, 1), ack_from(3, 1, 1))
    node.propose_change(change_of("r3"))
    settle(node)
    step(node, ack_from(2, 1, 2))
    assert NodeId(3) not in node.progress
    before = node.commit_index
    step(node, ack_from(3, 1, 2))
    assert (NodeId(3) in node.progress, node.commit_index) == (False, before)
    node.propose_change(change_of("v4"))
    settle(node)
    step(node, ack_from(2, 1, 3))
    assert node.progress[NodeId(4)].match_index == 0


def test_bug_17_camunda_60086_an_inherited_joint_mode_is_committed_before_it_is_left() -> None:
    """A new leader found an uncommitted joint configuration in its log and left it at once."""
    payload = encode_change(change_of("v4 v5 r2", Transition.IMPLICIT))
    inherited = EntryRun(LogIndex(1), (Term(1),), (EntryKind.CONFIGURATION,), (payload,))
    node = make_node(log=inherited, term=1)
    make_leader(node)
    tick(node)
    assert (node.log.last_index, node.configuration) == (2, configuration_of())
    step(node, ack_from(3, 2, 1))
    assert (node.commit_index, node.log.last_index) == (0, 2), "not by counting an old term's entry"
    step(node, ack_from(3, 2, 2))
    assert node.configuration == configuration_of((1, 3, 4, 5), outgoing=(1, 2, 3))
    assert node.log.last_index == 3
    # And leaving it takes both majorities.
    step(node, ack_from(4, 2, 3), ack_from(5, 2, 3))
    assert node.configuration.is_joint
    step(node, ack_from(3, 2, 3))
    assert node.configuration == configuration_of((1, 3, 4, 5))


def test_bug_19_matrixone_24966_a_stale_snapshots_membership_does_not_win() -> None:
    """A snapshot's index was that of a configuration change, and an older membership came back with it."""
    node = make_node()
    step(node, snapshot_from(2, 3, (9, 2), configuration=configuration_of((1, 2, 4))))
    for at in ((8, 2), (9, 2), (2, 1)):
        step(node, snapshot_from(2, 3, at, configuration=configuration_of((1, 2, 3))))
        assert node.configuration == configuration_of((1, 2, 4))
    # In a cluster, index and configuration of a snapshot are of one moment.
    network = Network(3)
    network.elect(1)
    for node_id, words in ((4, "v4"), (5, "v5"), (0, "r2")):
        if node_id:
            network.join(node_id)
        before = network.take_snapshot(1)
        index = network.change(change_of(words))
        network.settle()
        after = network.take_snapshot(1)
        assert before.index < index <= after.index
        assert before.configuration != after.configuration == network.configurations[index]


def test_bug_22_etcd_12704_no_lease_outlives_a_transfer_or_a_pause() -> None:
    """etcd#12704, etcd-io/raft#99 and #166 ask what a lease is worth while a transfer is under way or
    the process stands still. Here no read rests on time: the old leader's is never confirmed."""
    network = Network(3)
    leader = network.elect(1)
    network.beat()
    leader.transfer_leadership(NodeId(3))
    network.pump(1)
    (asked,) = network.in_flight
    network.isolate(1)  # Node 1 stands still from here on, and takes itself for the leader.
    network.in_flight.clear()
    network.nodes[NodeId(3)].step(asked)
    network.settle()
    assert network.role(3) is Role.LEADER
    network.propose(b"unseen by 1")
    network.settle()
    network.beat()
    assert leader.role is Role.LEADER
    sequence = leader.read_index()
    network.heal()
    network.tick(1)
    network.settle()
    assert sequence not in [read.sequence for read in network.reads[NodeId(1)]]
    assert (leader.role, network.reads_dropped[NodeId(1)]) == (Role.FOLLOWER, 1)
