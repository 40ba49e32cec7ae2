"""Random runs of a small cluster: lost, doubled and reordered messages, slow disks, crashes that
lose unsynced writes, cuts; and meanwhile members come and go, snapshots are taken and installed, and
leadership is handed over. `Network` checks Figure 3 after every step.

Each run ends with the faults removed; then the cluster must make progress, every member must have
the same log, and every entry that any node ever applied must be in it.
"""

import random
from collections.abc import Callable
from contextlib import suppress

import pytest

from lockd.ids import LogIndex, NodeId
from lockd.raft.entries import Configuration, EntryKind
from lockd.raft.membership import LEAVE_JOINT, Change, ChangeKind, ConfigurationChange, Transition
from lockd.raft.messages import Message
from lockd.raft.node import ChangeRefused, NotLeader, RaftConfig, Role, TooMuchUncommitted
from tests.raft.network import Network


def small_limits(node_id: NodeId) -> RaftConfig:
    """Set limits so low that every one of them is met."""
    return RaftConfig(
        node_id,
        inflight_appends_max=3,
        inflight_bytes_max=200,
        append_bytes_max=60,
        uncommitted_bytes_max=600,
        apply_bytes_max=50,
        read_rounds_max=2,
    )


class Chaos:
    """One seeded run."""

    def __init__(self, seed: int, size: int) -> None:
        self.random = random.Random(seed)
        self.network = Network(size, draw=self.random.randint, config=small_limits)
        self.past: list[Message] = []
        self.proposed = 0
        # Rounds asked for: leader, sequence, and what any node had committed by then.
        self.reads: dict[tuple[NodeId, int], LogIndex] = {}
        for node_id in self.network.ids:
            self.network.slow_disks.add(node_id)
        self.actions: list[tuple[int, Callable[[], None]]] = [
            (500, self.deliver),
            (60, self.tick),
            (300, self.sync),
            (80, self.propose),
            (40, self.read),
            (20, self.repeat),
            (15, self.lose),
            (4, self.crash),
            (10, self.restart),
            (4, self.cut),
            (20, self.network.heal),
            (12, self.change),
            (15, self.take_snapshot),
            (20, self.network.resend_snapshots),
            (3, self.fail_snapshots),
            (4, self.transfer),
            (2, self.disturb),
        ]

    def run(self, steps: int) -> None:
        weights = [weight for weight, _ in self.actions]
        for number, (_, action) in enumerate(self.random.choices(self.actions, weights, k=steps)):
            action()
            if number % 50 == 0:
                self.network.check_logs()
            for node_id in list(self.network.nodes):
                self.network.pump(node_id)
            self.check_reads()

    def any_node(self) -> NodeId | None:
        return self.random.choice(list(self.network.nodes)) if self.network.nodes else None

    def leader_or_any_node(self) -> NodeId | None:
        leader = self.network.leader()
        return leader.leader_id if leader and self.random.random() < 0.5 else self.any_node()

    def deliver(self) -> None:
        for _ in range(self.random.randint(1, 4)):
            if self.network.in_flight:
                message = self.random.choice(self.network.in_flight[:6])
                self.past = [*self.past[-200:], message]
                self.network.deliver(message)

    def tick(self) -> None:
        for node_id in list(self.network.nodes):
            if self.random.random() < 0.7:
                self.network.tick(node_id)

    def sync(self) -> None:
        if (node_id := self.any_node()) is not None:
            self.network.sync(
                node_id, min(self.random.randint(1, 3), len(self.network.disks[node_id].pending))
            )

    def propose(self) -> None:
        for node in self.network.nodes.values():
            if node.role is Role.LEADER:
                self.proposed += 1
                body = str(self.proposed).encode() * self.random.randint(1, 20)
                try:
                    node.propose(EntryKind.COMMANDS, body)
                except TooMuchUncommitted:
                    assert node.log.last_index > node.commit_index
                except NotLeader:
                    pass  # It is handing over.

    def read(self) -> None:
        for node_id, node in self.network.nodes.items():
            try:
                sequence = node.read_index()
            except NotLeader:
                continue
            known = max(other.commit_index for other in self.network.nodes.values())
            self.reads[node_id, sequence] = max(known, LogIndex(len(self.network.agreed)))

    def check_reads(self) -> None:
        """C6: a read sees all that was committed before it was asked for, anywhere."""
        for node_id, confirmed in self.network.reads.items():
            for round_ in confirmed:
                asked = self.reads.get((node_id, round_.sequence), LogIndex(0))
                assert round_.index >= asked, "a stale read was confirmed"
            confirmed.clear()

    def repeat(self) -> None:
        if self.past:
            self.network.hand(self.random.choice(self.past))

    def lose(self) -> None:
        if self.network.in_flight:
            self.network.in_flight.remove(self.random.choice(self.network.in_flight))

    def crash(self) -> None:
        if (node_id := self.leader_or_any_node()) is not None:
            disk = self.network.disks[node_id]
            for _ in range(self.random.randint(0, len(disk.pending))):
                disk.sync_one()  # The write was durable and nobody was told.
            self.network.crash(node_id)
            self.reads = {key: index for key, index in self.reads.items() if key[0] != node_id}

    def restart(self) -> None:
        for node_id in self.network.ids:
            if node_id not in self.network.nodes:
                self.network.restart(node_id)

    def cut(self) -> None:
        if (node_id := self.leader_or_any_node()) is not None:
            self.network.isolate(node_id)

    def change(self) -> None:
        """Have whoever leads propose some change; most are refused, as they come too early."""
        leader = self.network.leader()
        if leader is None:
            return
        with suppress(NotLeader, ChangeRefused, TooMuchUncommitted):
            leader.propose_change(self.draw_change(leader.configuration))

    def draw_change(self, now: Configuration) -> ConfigurationChange:
        if now.is_joint:
            return LEAVE_JOINT
        kinds = (ChangeKind.ADD_VOTER, ChangeKind.ADD_LEARNER, ChangeKind.REMOVE)
        known = [*now.members]
        if len(known) < 7 and len(self.network.ids) < 14:
            known.append(NodeId(len(self.network.ids) + 1))
        chosen = self.random.sample(known, min(len(known), self.random.choice((1, 1, 2, 3))))
        # A node that was removed never comes back under its id, and too few voters make no test.
        removable = len(now.voters) > 3
        changes = [Change(self.random.choice(kinds if removable else kinds[:1]), node) for node in chosen]
        for change in changes:
            if change.node not in self.network.ids and change.kind is not ChangeKind.REMOVE:
                self.network.join(change.node)
                self.network.slow_disks.add(change.node)
        return ConfigurationChange(tuple(changes), self.random.choice(list(Transition)))

    def take_snapshot(self) -> None:
        node_id = self.any_node()
        if node_id is None or not self.network.node(node_id).last_applied:
            return
        if not any(ready.snapshot for ready in self.network.disks[node_id].pending):
            self.network.take_snapshot(node_id, keep=self.random.choice((0, 0, 3, 10)))

    def fail_snapshots(self) -> None:
        for node in self.network.nodes.values():
            for peer in list(node.progress):
                node.report_snapshot_failed(peer)

    def transfer(self) -> None:
        leader = self.network.leader()
        if leader is not None:
            leader.transfer_leadership(self.random.choice(leader.configuration.members))

    def disturb(self) -> None:
        if (node_id := self.any_node()) is not None:
            node = self.network.nodes[node_id]
            self.random.choice((node.campaign, node.forget_leader))()

    def recover(self) -> None:
        """Remove all faults and let time pass."""
        network = self.network
        network.heal()
        self.restart()
        network.slow_disks.clear()
        for node_id in network.ids:
            network.sync(node_id)
        for _ in range(120):
            for node_id in network.ids:
                network.tick(node_id)
            network.resend_snapshots()
            network.settle()
            self.check_reads()
            leader = network.leader()
            if leader is not None and leader.configuration.is_joint:
                with suppress(ChangeRefused, NotLeader):
                    leader.propose_change(LEAVE_JOINT)


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("seed", range(10))
def test_the_promises_hold_through_chaos_and_progress_resumes(seed: int, size: int) -> None:
    name = "test_the_promises_hold_through_chaos_and_progress_resumes"
    print(f"replay: python -m pytest -n 0 'tests/raft/test_raft_chaos.py::{name}[{seed}-{size}]'")
    chaos = Chaos(seed, size)
    network = chaos.network
    chaos.run(8000)
    chaos.recover()
    leader = network.leader()
    assert leader is not None
    assert leader.is_leader_ready, "no leader after the faults ended"
    assert not leader.has_change_pending, "a membership change came to no end"
    before = list(network.agreed)
    index = network.propose(b"last")
    network.settle()
    network.beat()
    network.check_logs()
    assert network.agreed[: len(before)] == before
    for node_id in leader.configuration.members:
        node = network.nodes[node_id]
        assert (node.commit_index, node.last_applied) == (index, index)
        assert network.applied[node_id] == network.agreed
        assert node.configuration == leader.configuration
    # A run in which nothing happens proves nothing.
    assert len(network.leaders) >= 2
    assert len(network.agreed) > 20
    assert network.configurations
    assert network.installed
