"""The simulated cluster: nodes with disks, a network with faults, and the faults themselves."""

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from lockd.disk.record import LogWrite
from lockd.disk.recovery import Recovered
from lockd.disk.snapshots import SnapshotStore
from lockd.ids import ClusterId, Incarnation, InstanceId, NodeId
from lockd.raft.node import RaftConfig, Role
from lockd.server import frames
from lockd.server.driver import Driver, DriverSettings, Ports
from lockd.server.recovering import recovered_core
from tests.disk.memory import SimulatedLog
from tests.server.snapshots import DirectSnapshots
from tests.sim.clock import MILLISECOND, MachineClock, Schedule
from tests.sim.history import History
from tests.sim.invariants import Invariants

TICK_MS = 50
ELECTION_TIMEOUT_MS = 500
LOOP_US = 200
"""What arrives within so short a time shares a turn, as in one round of an event loop."""


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


class Disk:
    """A node's log on a simulated disk, and the writer that a real node has as a thread."""

    def __init__(self, world: "World", node: "SimNode") -> None:
        self._world = world
        self._node = node
        self._log = SimulatedLog(
            node.node_id,
            lambda: InstanceId(f"{world.random.getrandbits(128):032x}"),
            founding={voter: f"node{voter}:7421" for voter in world.voters},
        )
        self._busy = False

    @property
    def recovered(self) -> Recovered:
        return self._log.recovered

    @property
    def snapshots(self) -> SnapshotStore:
        return self._log.snapshots

    def submit(self, write: LogWrite) -> None:
        self._log.submit(write)
        if not self._busy:
            self._busy = True
            latency = self._world.random.expovariate(1 / self._world.faults.disk_ms) * MILLISECOND
            self._world.schedule.after(int(latency), functools.partial(self._sync, self._node.life))

    def lose_power(self) -> None:
        """Whatever was not synced is lost, torn or kept, sector by sector; then recover."""
        self._busy = False
        self._log.crash(self._world.random)

    def flush(self) -> None:
        self._log.sync()

    def _sync(self, life: int) -> None:
        if life != self._node.life:
            return
        self._busy = False
        ticket = self._log.sync()
        if ticket is not None:
            self._node.now_or_after_pause(functools.partial(self._node.up.on_durable, ticket))


class SimNode:
    """One node through all its lives. `up` is the driver of the current one."""

    def __init__(self, world: "World", node_id: NodeId) -> None:
        self.world = world
        self.node_id = node_id
        self.clock = MachineClock(world.schedule, world.random)
        self.life = 0
        self.disk = Disk(world, self)
        self.running = False
        self.paused = False
        self.bindings: dict[NodeId, InstanceId] = {}
        self._driver: Driver | None = None
        self._postponed: list[Callable[[], None]] = []
        self._turn_scheduled = False

    @property
    def up(self) -> Driver:
        assert self._driver is not None
        return self._driver

    def start(self) -> None:
        """Recover from the disk and run, as a new process with a new boot number."""
        world = self.world
        self.life += 1
        recovered = self.disk.recovered
        raft, machine = recovered_core(
            recovered,
            RaftConfig(
                node_id=self.node_id, election_ticks=ELECTION_TIMEOUT_MS // TICK_MS, heartbeat_ticks=1
            ),
            draw=world.random.randint,
        )
        self._driver = Driver(
            settings=DriverSettings(
                election_timeout_ms=ELECTION_TIMEOUT_MS,
                answer_ms_max=10 * ELECTION_TIMEOUT_MS,
                peer_address=f"node{self.node_id}:7421",
                client_address=f"node{self.node_id}:7420",
                http_address=f"node{self.node_id}:7422",
                version="simulated",
                snapshot_log_bytes=2**40,
            ),
            identity=recovered.identity,
            addresses=recovered.addresses,
            boot=world.random.getrandbits(62) + 1,
            raft=raft,
            machine=machine,
            ports=Ports(
                disk=self.disk,
                network=Wire(world, self),
                clock_ms=self.clock.ms,
                wake=self._wake,
                draw_cluster=lambda: (
                    ClusterId(f"{world.random.getrandbits(128):032x}"),
                    Incarnation(f"{world.random.getrandbits(32):08x}"),
                ),
                snapshots=DirectSnapshots(lambda: self.disk.snapshots, lambda then: then()),
                unix_s=lambda: 1_800_000_000,
                members_changed=lambda: None,
            ),
        )
        self.running, self.paused = True, False
        self._turn_scheduled = False
        self._tick(self.life)

    def crash(self) -> None:
        """The power goes: clients lose their connections, the disk what was not synced."""
        self.running, self._driver = False, None
        self.life += 1
        self._postponed.clear()
        self.disk.lose_power()
        self.world.met["crashes"] += 1
        self.world.invariants.on_crash(self.node_id)

    def stop(self) -> None:
        """As SIGTERM: whoever waits is told, what was submitted is written, then it ends."""
        self.up.stop()
        self.disk.flush()
        self.crash()

    def pause(self, ms: float) -> None:
        """As SIGSTOP: nothing runs until it goes on; what arrived meanwhile is handled then."""
        self.paused = True
        self.world.met["pauses"] += 1
        self.world.schedule.after(int(ms * MILLISECOND), functools.partial(self._resume, self.life))

    def now_or_after_pause(self, step: Callable[[], None]) -> None:
        """Take a step of the present life, unless that is over; look at the invariants after it."""
        if self.paused:
            self._postponed.append(step)
        elif self.running:
            step()
            self.world.invariants.after_step(self.node_id, self.up)

    def _resume(self, life: int) -> None:
        if life != self.life or not self.running:
            return
        self.paused = False
        postponed, self._postponed = self._postponed, []
        for step in postponed:
            self.now_or_after_pause(step)

    def _tick(self, life: int) -> None:
        if life != self.life:
            return
        self.world.schedule.after(self.clock.true_delay(TICK_MS), functools.partial(self._tick, life))
        if not self.paused:  # ticks that are missed stay missed
            self.now_or_after_pause(self.up.tick)

    def _wake(self) -> None:
        if not self._turn_scheduled:
            self._turn_scheduled = True
            self.world.schedule.after(LOOP_US, functools.partial(self._turn, self.life))

    def _turn(self, life: int) -> None:
        if life == self.life:
            self._turn_scheduled = False
            self.now_or_after_pause(self.up.turn)


@dataclass
class Wire:
    """What a node sends: encoded, delayed, lost, doubled, reordered, decoded."""

    world: "World"
    node: SimNode

    def send(self, node: NodeId, frame: frames.Frame) -> bool:
        world, sender = self.world, self.node.node_id
        receiver = world.nodes[node]
        if not receiver.running:
            return False
        world.bind(receiver, self.node)
        if (sender, node) in world.cut or world.random.random() < world.faults.loss:
            world.met["frames lost"] += 1
            return True
        copies = 1
        # Streams don't double what they carry; Raft must stand it all the same.
        if isinstance(frame, frames.Raft) and world.random.random() < world.faults.doubling:
            copies = 2
            world.met["frames doubled"] += 1
        data = frames.encode(frame, cluster=ClusterId(""), instance=InstanceId("0" * 32))
        for _ in range(copies):
            delay = world.random.expovariate(1 / world.faults.delay_ms) * MILLISECOND
            header = frames.decode_header(data[: frames.HEADER.size])
            arriving = frames.decode_body(header, data[frames.HEADER.size :])
            world.schedule.after(
                int(delay), functools.partial(self._arrive, receiver, receiver.life, sender, arriving)
            )
        return True

    def is_connected(self, node: NodeId) -> bool:
        return self.world.nodes[node].running

    def _arrive(self, receiver: SimNode, life: int, sender: NodeId, frame: frames.Frame) -> None:
        if life == receiver.life and receiver.running:  # a connection ends with its process
            receiver.now_or_after_pause(functools.partial(receiver.up.on_frame, sender, frame))


class World:
    """One seed: a cluster, its faults, and what was met on the way."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.schedule = Schedule()
        self.faults = Faults.draw(self.random)
        size = self.random.choice((1, 3, 3, 3, 3, 3, 3, 5))
        self.voters = tuple(NodeId(number) for number in range(1, size + 1))
        self.met: Counter[str] = Counter()
        self.cut: set[tuple[NodeId, NodeId]] = set()
        self.history = History(self.schedule)
        self.invariants = Invariants(self.history)
        self.nodes = {node: SimNode(self, node) for node in self.voters}

    def start(self) -> None:
        for node in self.nodes.values():
            node.start()

    def bind(self, node: SimNode, peer: SimNode) -> None:
        """The handshake of real connections binds instances; here they are written once (C8)."""
        instance = peer.disk.recovered.identity.instance
        if peer.node_id not in node.bindings:
            node.up.bind_peer(peer.node_id, instance, lambda: None)
        assert node.bindings.setdefault(peer.node_id, instance) == instance

    def run(self, ms: float) -> None:
        """Let so much true time pass."""
        until = self.schedule.now + int(ms * MILLISECOND)
        while self.schedule.step(until):
            pass

    def leader(self) -> SimNode | None:
        """The running leader of the highest term, if any."""
        leaders = [n for n in self.nodes.values() if n.running and n.up.raft.role is Role.LEADER]
        return max(leaders, key=lambda node: node.up.raft.term, default=None)

    def isolate(self, node: NodeId, *, one_way: bool) -> None:
        self.met["partitions"] += 1
        for other in self.voters:
            if other != node:
                self.cut.add((node, other))
                if not one_way:
                    self.cut.add((other, node))

    def black_out(self) -> None:
        """The power of all nodes goes at once: what any of them had only in memory is gone (P3)."""
        self.met["blackouts"] += 1
        for node in self.nodes.values():
            if node.running:
                node.crash()

    def heal(self) -> None:
        self.cut.clear()
