"""The simulated cluster: its nodes, the network between them, and what goes wrong."""

from collections import Counter
from dataclasses import dataclass
from random import Random

from lockd.ids import NodeId
from lockd.raft.entries import Configuration
from lockd.raft.node import Role
from tests.sim.clock import MILLISECOND, Schedule
from tests.sim.history import History
from tests.sim.invariants import Invariants
from tests.sim.node import SimNode
from tests.sim.recording import Recorder

UNLIMITED = 2**40
Life = tuple[NodeId, int]


@dataclass
class Faults:
    """How bad the network and the machines are, drawn once a seed."""

    loss: float
    doubling: float
    delay_ms: float
    disk_ms: float

    @classmethod
    def draw(cls, random: Random) -> "Faults":
        return cls(
            loss=random.choice((0.0, 0.01, 0.05, 0.15)),
            doubling=random.choice((0.0, 0.02, 0.1)),
            delay_ms=random.choice((0.5, 3.0, 15.0)),
            disk_ms=random.choice((0.3, 4.0, 25.0)),
        )


class World:
    """One seed: a cluster, its faults, and what was met on the way."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.schedule = Schedule()
        self.faults = Faults.draw(self.random)
        self.snapshot_log_bytes = self.random.choice((2 * 1024, 6 * 1024, 20 * 1024, UNLIMITED))
        size = self.random.choice((1, 3, 3, 3, 3, 3, 3, 5))
        founders = tuple(NodeId(number) for number in range(1, size + 1))
        self.met: Counter[str] = Counter()
        self.history = History(self.schedule, self.met)
        self.invariants = Invariants(self.history)
        self.recorder = Recorder(self.schedule)
        self._cut: set[tuple[NodeId, NodeId]] = set()
        self._connections: set[tuple[Life, Life]] = set()
        self._configured = 0, Configuration(founders)
        self.nodes = {node: SimNode(self, node, founders=founders) for node in founders}

    def start(self) -> None:
        for node in self.nodes.values():
            node.start()

    def run(self, ms: float) -> None:
        """Let so much true time pass."""
        until = self.schedule.now + int(ms * MILLISECOND)
        while self.schedule.step(until):
            pass

    # The nodes.

    def add_empty_node(self) -> SimNode:
        """Start a node on an empty disk, under an id that nobody ever had."""
        new = NodeId(max(self.nodes) + 1)
        node = self.nodes[new] = SimNode(self, new, founders=())
        node.start()
        return node

    def running(self) -> list[SimNode]:
        return [node for node in self.nodes.values() if node.running]

    def down(self) -> list[SimNode]:
        """Those that can be started."""
        return [node for node in self.nodes.values() if not node.running and not node.is_gone]

    def leader(self) -> SimNode | None:
        """The running leader of the highest term, if any."""
        leaders = [node for node in self.running() if node.up.raft.role is Role.LEADER]
        return max(leaders, key=lambda node: node.up.raft.term, default=None)

    def configuration(self) -> Configuration:
        """The newest that any node had in force when this was asked, now or earlier."""
        for node in self.running():
            raft = node.up.raft
            if raft.last_applied >= self._configured[0]:
                self._configured = raft.last_applied, raft.configuration
        return self._configured[1]

    def members(self) -> list[SimNode]:
        """The nodes of the newest configuration, whatever their state."""
        return [self.nodes[node] for node in self.configuration().members]

    # The network.

    def connect(self, sender: SimNode, receiver: SimNode) -> bool:
        """Whether a frame can be sent: a connection once made lasts until a process or the network ends it.

        Who was removed gets no new one, and hears why. The handshake of real connections binds
        instances; here they are bound at the first (C8).
        """
        if not receiver.running:
            return False
        connection = (sender.node_id, sender.life), (receiver.node_id, receiver.life)
        if connection in self._connections or self.is_cut(sender, receiver):
            return True
        if sender.node_id in receiver.up.machine.removed:
            self.met["removed nodes refused"] += 1
            self.schedule.after(0, sender.leave)
            return False
        self._connections.add(connection)
        instance = sender.disk.recovered.identity.instance
        if sender.node_id not in receiver.bindings:
            receiver.up.bind_peer(sender.node_id, instance, lambda: None)
        assert receiver.bindings.setdefault(sender.node_id, instance) == instance
        return True

    def hang_up(self, sender: SimNode, receiver: SimNode) -> None:
        """The receiver ends the connection; the sender may connect again, or be told that it may not."""
        self.met["connections ended for nonsense"] += 1
        self._connections.discard(((sender.node_id, sender.life), (receiver.node_id, receiver.life)))

    def hang_up_on_removed(self, receiver: SimNode) -> None:
        """End the connections from nodes that `receiver` knows to be removed (`PeerNetwork.set_peers`)."""
        here, removed = (receiver.node_id, receiver.life), receiver.up.machine.removed
        self._connections = {
            (there, at) for there, at in self._connections if at != here or there[0] not in removed
        }

    def is_cut(self, sender: SimNode, receiver: SimNode) -> bool:
        return (sender.node_id, receiver.node_id) in self._cut

    def isolate(self, node: NodeId, *, one_way: bool) -> None:
        """Cut what the node sends, and unless one way, what it is sent."""
        self.met["one-way partitions" if one_way else "partitions"] += 1
        for other in self.nodes:
            if other != node:
                self._cut.add((node, other))
                if not one_way:
                    self._cut.add((other, node))

    def heal(self) -> None:
        """The network works again; connections of before are gone."""
        self._cut.clear()
        self._connections.clear()

    def black_out(self) -> None:
        """The power of all nodes goes at once: what any of them had only in memory is gone (P3)."""
        self.met["blackouts"] += 1
        for node in self.running():
            node.crash()
