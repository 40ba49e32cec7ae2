"""Who runs the simulated cluster: members are added, removed and replaced while clients go on."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from lockd.ids import NO_NODE, LogIndex, NodeId
from lockd.locks.commands import AddMember, Changed, Outcome, Refused, RemoveMember
from lockd.raft.entries import EntryKind
from tests.sim.calls import Caller
from tests.sim.node import SimNode

if TYPE_CHECKING:
    from tests.sim.world import World

MEMBERS_MAX = 5
SILENCE_MS = 6_000
"""A node answers an operator within ten election timeouts, or is dead."""
JOBS = ("add", "remove", "remove leader", "replace", "damage", "transfer", "transfer")


class Operator(Caller):
    """One job after another; what has begun is asked again until the answer is certain."""

    def __init__(self, world: "World", number: int) -> None:
        super().__init__(world, number)
        self.is_busy = False
        self._off_duty = False

    def start(self) -> None:
        self.later(self.world.random.uniform(100, 1_000), self._next_job)

    def take_leave(self) -> None:
        """Finish what has begun, and begin nothing new."""
        self._off_duty = True

    def _next_job(self) -> None:
        if self._off_duty:
            return
        self._begin_job()
        if not self.is_busy:
            self.start()

    def _begin_job(self) -> None:
        configuration = self.world.configuration()
        voters = [node for node in configuration.voters if node not in self.world.history.removed]
        few, many = len(voters) <= 2, len(configuration.members) >= MEMBERS_MAX
        match self.world.random.choice(JOBS):
            case "add" if not many:
                self._add(self._done)
            case "remove" if not few:
                self._remove(NodeId(self.world.random.choice(configuration.members)), self._done)
            case "remove leader" if not few and (leader := self.world.leader()) is not None:
                self.world.met["removals of the leader"] += 1
                self._remove(leader.node_id, self._done)
            case "replace" if self._may_lose_one():
                self._lose_and_replace(self._any_voter())
            case "damage" if self._may_lose_one():
                self._damage(self._any_voter())
            case "transfer":
                self._transfer()

    def _done(self) -> None:
        self.is_busy = False
        self.start()

    def _any_voter(self) -> SimNode:
        return self.world.nodes[NodeId(self.world.random.choice(self.world.configuration().voters))]

    def _may_lose_one(self) -> bool:
        """Never more than a minority, of the configuration that is in force and of the next (P3).

        A leader that was deposed and does not know it yet would count the voters of before.
        """
        leader = self.world.leader()
        if leader is None or leader.up.raft.term != self.world.invariants.newest_term_led:
            return False
        if not leader.up.raft.is_leader_ready or leader.up.raft.has_change_pending:
            return False
        running = [node.up.raft for node in self.world.nodes.values() if node.running]
        for raft in running:
            first = LogIndex(raft.last_applied + 1)
            if raft.log.has_kind(EntryKind.CONFIGURATION, first, raft.log.last_index):
                return False  # an earlier leader's change may yet take a voter away
        members = self.world.members()
        return len(leader.up.raft.configuration.voters) >= 3 and not any(node.is_gone for node in members)

    # The jobs.

    def _add(self, then: Callable[[], None]) -> None:
        self.is_busy = True
        new = self.world.add_empty_node().node_id
        self._insist(AddMember(new, f"node{new}:7421", wants_vote=True), then)

    def _remove(self, node: NodeId, then: Callable[[], None]) -> None:
        self.is_busy = True
        self._insist(RemoveMember(node), then)

    def _damage(self, victim: SimNode) -> None:
        """D3: a node whose data is damaged does not start, and is replaced."""
        if victim.running:
            victim.crash()
        self.world.met["flipped bits"] += 1
        if victim.disk.flip_a_bit():
            self.world.met["damaged nodes that refused to start"] += 1
            self._lose_and_replace(victim)

    def _lose_and_replace(self, victim: SimNode) -> None:
        """C8: it never comes back under its id; another takes its place."""
        self.world.met["lost disks"] += 1
        victim.leave()
        self._remove(victim.node_id, lambda: self._add(self._done))

    def _transfer(self) -> None:
        node = self.pick_node()
        voters = self.world.configuration().voters
        if node is None or not voters:
            return

        def done(outcome: Outcome) -> None:
            self.world.met["transfers"] += outcome == Changed(1)

        node.up.transfer(target=self.world.random.choice((NO_NODE, *voters)), on_outcome=done)

    def _insist(self, operation: AddMember | RemoveMember, then: Callable[[], None]) -> None:
        """Ask until it is done. A removal that is refused for certain is given up, unless its node
        is lost.
        """
        open_question = [True]
        node = self.pick_node()

        def again() -> None:
            if open_question:
                open_question.clear()
                self.later(300, lambda: self._insist(operation, then))

        def answered(outcome: Outcome) -> None:
            if not open_question:
                return
            lost = self.world.nodes[NodeId(operation.node)].is_gone
            if isinstance(outcome, Changed) or (_is_error(outcome) and self._is_done(operation)):
                open_question.clear()
                self._note(operation)
                then()
            elif isinstance(operation, RemoveMember) and not lost and _is_certain(outcome):
                open_question.clear()
                then()
            else:
                again()

        self.later(SILENCE_MS, again)
        if node is not None:
            node.up.change_members(
                user="operator",
                operation=operation,
                force=False,
                on_outcome=lambda outcome: self.over_the_wire(lambda: answered(outcome)),
            )

    def _is_done(self, operation: AddMember | RemoveMember) -> bool:
        history = self.world.history
        return operation.node in (history.added if isinstance(operation, AddMember) else history.removed)

    def _note(self, operation: AddMember | RemoveMember) -> None:
        self.world.met["members added" if isinstance(operation, AddMember) else "members removed"] += 1
        assert self._is_done(operation), f"P3: {operation} was acknowledged, and is not in the log"


def _is_certain(outcome: Outcome) -> bool:
    return isinstance(outcome, Refused) and outcome.code != "UNKNOWN"


def _is_error(outcome: Outcome) -> bool:
    """Asked again after an answer was lost: it is so already."""
    return isinstance(outcome, Refused) and outcome.code == "ERR"
