"""Random runs to record: lost, doubled, overtaking messages, crashes, cuts, transfers, changes of members."""

import random
from collections.abc import Callable
from contextlib import suppress

from lockd.errors import CorruptData
from lockd.ids import NodeId
from lockd.raft.membership import Change, ChangeKind
from lockd.raft.node import ChangeRefused, NotLeader, RaftConfig, RaftNode, Role, TooMuchUncommitted
from tests.tla.events import Recording
from tests.tla.recording import BeyondTheSpecification, RecordedNetwork

_ROUNDS_MAX = 20_000
_SIZES = (3, 3, 5, 1)


class Scenario:
    """One seeded run. The seed says how many nodes there are and what may happen to them."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.check_quorum = self.random.random() < 0.5
        self.changes_members = self.random.random() < 0.5
        unrest = self.random.choice((1, 1, 8))
        size = _SIZES[seed % len(_SIZES)]
        self.network = RecordedNetwork(
            size,
            sends_at_once=self.random.random() < 0.5,
            draw=self.random.randint,
            config=self._config,
        )
        self.proposed = 0
        self.actions: list[tuple[int, Callable[[], None]]] = [
            (500, self._deliver),
            (70, self._tick),
            (300, self._sync),
            (40, self._propose),
            (15 * unrest, self._duplicate),
            (15, self._lose),
            (3 * unrest, self._crash),
            (30 * unrest, self._restart),
            (2 * unrest, self._cut),
            (15 * unrest, self.network.heal),
            (3, self._transfer),
            (3 * unrest, self._campaign),
            (20 if self.changes_members else 0, self._change),
        ]

    def record(self, events_max: int) -> Recording:
        """Run until so many events are there, or as far as the specification can follow.

        A core that finds its own state wrong ends the recording as well; what it did before is in it.
        """
        end, failed = f"{events_max} events", False
        actions, weights = [act for _, act in self.actions], [weight for weight, _ in self.actions]
        try:
            for action in self.random.choices(actions, weights, k=_ROUNDS_MAX):
                action()
                if len(self.network.events) >= events_max:
                    break
        except BeyondTheSpecification as beyond:
            end = str(beyond)
        except (AssertionError, CorruptData) as wrong:
            end, failed = f"{type(wrong).__name__}: {wrong}", True
        return self.network.recording(f"seed {self.seed}", end, failed=failed)

    def _config(self, node_id: NodeId) -> RaftConfig:
        """Appends are small, so that an old term's entries are acknowledged one by one."""
        return RaftConfig(
            node_id,
            election_ticks=6,
            append_bytes_max=4,
            inflight_appends_max=4,
            uncommitted_bytes_max=40,
            apply_bytes_max=6,
            pre_vote=False,
            check_quorum=self.check_quorum,
        )

    def _any_node(self) -> NodeId | None:
        return self.random.choice(list(self.network.nodes)) if self.network.nodes else None

    def _leaders(self) -> list[RaftNode]:
        return [node for node in self.network.nodes.values() if node.role is Role.LEADER]

    def _deliver(self) -> None:
        for _ in range(self.random.randint(1, 4)):
            if self.network.in_flight:
                self.network.deliver(self.random.choice(self.network.in_flight[:6]))

    def _tick(self) -> None:
        for node_id in list(self.network.nodes):
            if self.random.random() < 0.7:
                self.network.tick(node_id)

    def _sync(self) -> None:
        if (node_id := self._any_node()) is not None:
            self.network.sync(node_id)

    def _propose(self) -> None:
        for node in self._leaders():
            self.proposed += 1
            with suppress(NotLeader, TooMuchUncommitted):
                self.network.propose_at(node, self.proposed)

    def _duplicate(self) -> None:
        if self.network.in_flight:
            self.network.duplicate(self.random.choice(self.network.in_flight))

    def _lose(self) -> None:
        if self.network.in_flight:
            self.network.lose(self.random.choice(self.network.in_flight))

    def _crash(self) -> None:
        if (node_id := self._any_node()) is not None:
            self.network.crash(node_id)

    def _restart(self) -> None:
        for node_id in self.network.ids:
            if node_id not in self.network.nodes:
                self.network.restart(node_id)

    def _cut(self) -> None:
        if (node_id := self._any_node()) is not None:
            self.network.isolate(node_id)

    def _transfer(self) -> None:
        for node in self._leaders():
            with suppress(NotLeader):
                self.network.transfer(node, self.random.choice(node.configuration.members))

    def _campaign(self) -> None:
        if (node_id := self._any_node()) is not None:
            self.network.campaign(node_id)

    def _change(self) -> None:
        for node in self._leaders():
            if self.network.may_change(node):
                with suppress(NotLeader, ChangeRefused, TooMuchUncommitted):
                    self.network.change_at(node, self._draw_change(node))

    def _draw_change(self, leader: RaftNode) -> Change:
        """Add a learner that is new, promote one, add a voter that is new, or remove a member."""
        now = leader.configuration
        new = NodeId(len(self.network.ids) + 1)
        if len(now.voters) > 2 and (len(now.members) >= 5 or self.random.random() < 0.3):
            return Change(ChangeKind.REMOVE, self.random.choice(now.members))
        if now.learners and self.random.random() < 0.6:
            return Change(ChangeKind.ADD_VOTER, self.random.choice(now.learners))
        self.network.join(new)
        return Change(self.random.choice((ChangeKind.ADD_LEARNER, ChangeKind.ADD_VOTER)), new)
