"""A simulated node through all its lives, and its wire to the others."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lockd.ids import NO_NODE, ClusterId, Incarnation, InstanceId, NodeId
from lockd.raft.node import RaftConfig, Role
from lockd.server import frames
from lockd.server.driver import Driver
from lockd.server.recovering import recovered_core
from lockd.server.surroundings import DriverSettings, Ports
from tests.sim.clock import MILLISECOND, MachineClock
from tests.sim.disk import Disk, Snapshots

if TYPE_CHECKING:
    from tests.sim.world import World

TICK_MS = 50
ELECTION_TIMEOUT_MS = 500
LOOP_US = 200
"""What arrives within so short a time shares a turn, as in one round of an event loop."""
JOIN_AGAIN_MS = 200
DOUBLED = frames.Raft | frames.SnapshotChunk | frames.SnapshotAck
"""Streams don't double what they carry; Raft and the transfer of snapshots must stand it all the same."""


class SimNode:
    """One node through all its lives. `up` is the driver of the current one."""

    def __init__(self, world: "World", node_id: NodeId, *, founders: tuple[NodeId, ...]) -> None:
        """Without founders it is an empty node, which asks to join."""
        self.world = world
        self.node_id = node_id
        self.clock = MachineClock(world.schedule, world.random)
        self.life = 0
        self.disk = Disk(
            self,
            world.schedule,
            world.random,
            latency_ms=world.faults.disk_ms,
            founding={founder: f"node{founder}:7421" for founder in founders},
        )
        self.running = False
        self.paused = False
        self.is_gone = False
        """Removed from the cluster, or its disk is lost: it never starts again."""
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
        if recovered.snapshot is not None:
            world.met["starts from a snapshot"] += 1
            world.invariants.on_snapshot(self.node_id, recovered.snapshot.header.meta, machine)
        self._driver = Driver(
            settings=DriverSettings(
                election_timeout_ms=ELECTION_TIMEOUT_MS,
                answer_ms_max=10 * ELECTION_TIMEOUT_MS,
                peer_address=f"node{self.node_id}:7421",
                client_address=f"node{self.node_id}:7420",
                http_address=f"node{self.node_id}:7422",
                version="simulated",
                snapshot_log_bytes=world.snapshot_log_bytes,
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
                snapshots=Snapshots(self.disk, self, world.invariants),
                unix_s=lambda: 1_800_000_000,
                members_changed=self._notice_removal,
            ),
        )
        self.paused = False
        self._turn_scheduled = False
        if raft.configuration.members or recovered.identity.cluster:
            self._run(self.life)
        else:
            self._join(self.life)

    def _join(self, life: int) -> None:
        """Ask for the cluster until a member says that this node is one; nothing runs before that."""
        if life != self.life or self.is_gone:
            return
        world = self.world
        able = [node for node in world.running() if not node.paused and not world.is_cut(node, self)]
        asked = world.random.choice(able).up if able else None
        if asked and asked.machine.cluster and self.node_id in asked.raft.configuration.members:
            found = asked.identity
            self.up.joined(
                found.cluster, found.incarnation, founders=found.founders, addresses=asked.addresses
            )
            self._run(life)
        else:
            world.schedule.after(JOIN_AGAIN_MS * MILLISECOND, functools.partial(self._join, life))

    def _run(self, life: int) -> None:
        self.running = True
        self._tick(life)

    def crash(self) -> None:
        """The power goes: clients lose their connections, the disk what was not synced."""
        self.note_snapshots()
        self.running, self._driver = False, None
        self.life += 1
        self._postponed.clear()
        self.disk.lose_power()
        self.world.met["crashes"] += 1
        self.world.invariants.on_crash(self.node_id)

    def fail(self) -> None:
        """A sync has failed: nothing may be said after it (SAFETY D1)."""
        self.world.met["failed syncs"] += 1
        self.crash()

    def stop(self) -> None:
        """As SIGTERM: leadership is handed over; whoever waits is told, what was submitted is written."""
        life = self.life

        def end(_: object = None) -> None:
            if life == self.life and self.running:
                self.up.stop()
                self.disk.flush()
                self.crash()

        self.world.met["stops"] += 1
        if self.up.raft.role is Role.LEADER and len(self.up.raft.configuration.voters) > 1:
            self.world.met["transfers at a stop"] += 1
            self.up.transfer(target=NO_NODE, on_outcome=end)
        else:
            end()

    def leave(self) -> None:
        """Its data is of no use any more: the process ends, and is never started again."""
        if not self.is_gone:
            self.is_gone = True
            if self.running:
                self.crash()
            self.life += 1

    def pause(self, ms: float) -> None:
        """As SIGSTOP: nothing runs until it goes on; what arrived meanwhile is handled then."""
        self.paused = True
        self.world.met["pauses"] += 1
        self.world.schedule.after(int(ms * MILLISECOND), functools.partial(self._resume, self.life))

    def resume(self) -> None:
        """As SIGCONT, before the pause would have ended by itself."""
        self._resume(self.life)

    def now_or_after_pause(self, step: Callable[[], None]) -> None:
        """Take a step of the present life, unless that is over; look at the invariants after it."""
        if self.paused:
            self._postponed.append(step)
        elif self.running:
            step()
            if self.running:  # it may have been its last
                self.disk.promises.check_log(self.up.raft)
                self.world.invariants.after_step(self.node_id, self.up)

    def _notice_removal(self) -> None:
        """As the process does: who was removed is cut off, and this node itself ends an election timeout
        after it has learned that it is out.
        """
        self.world.hang_up_on_removed(self)
        if self.node_id in self.up.machine.removed:
            delay = self.clock.true_delay(ELECTION_TIMEOUT_MS)
            self.world.schedule.after(delay, self.leave)

    def note_snapshots(self) -> None:
        """Add what this life did with snapshots to what the seed has met."""
        if self._driver is not None:
            self.world.met["snapshots taken"] += self._driver.checkpoints.taken
            self.world.met["snapshots streamed"] += self._driver.sending.sent
            self.world.met["snapshots received"] += self._driver.receiving.received

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
        if self.running and not self._turn_scheduled:  # one that has died in its step wakes nobody
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
        world, sender = self.world, self.node
        receiver = world.nodes.get(node)
        if not sender.running:
            return False  # a sync failed in the midst of this turn: the process is gone
        if receiver is None or not world.connect(sender, receiver):
            return False
        if isinstance(frame, frames.Raft):
            sender.disk.promises.check_sent(sender.up.raft, frame)
        if world.is_cut(sender, receiver) or world.random.random() < world.faults.loss:
            world.met["frames lost"] += 1
            return True
        copies = 1
        if isinstance(frame, DOUBLED) and world.random.random() < world.faults.doubling:
            copies = 2
            world.met["frames doubled"] += 1
        data = frames.encode(frame, cluster=ClusterId(""), instance=InstanceId("0" * 32))
        for _ in range(copies):
            delay = world.random.expovariate(1 / world.faults.delay_ms) * MILLISECOND
            header = frames.decode_header(data[: frames.HEADER.size])
            arriving = frames.decode_body(header, data[frames.HEADER.size :])
            world.schedule.after(
                int(delay), functools.partial(self._arrive, receiver, receiver.life, arriving)
            )
        return True

    def is_connected(self, node: NodeId) -> bool:
        peer = self.world.nodes.get(node)
        return peer is not None and peer.running

    def _arrive(self, receiver: SimNode, life: int, frame: frames.Frame) -> None:
        if life == receiver.life and receiver.running:  # a connection ends with its process
            receiver.now_or_after_pause(functools.partial(self._hand_over, receiver, frame))

    def _hand_over(self, receiver: SimNode, frame: frames.Frame) -> None:
        """Nonsense ends a connection. Of a member none is expected: who was removed may not know it yet."""
        try:
            receiver.up.on_frame(self.node.node_id, frame)
        except frames.FrameError:
            if self.node.node_id in receiver.up.raft.configuration.members:
                raise
            self.world.hang_up(self.node, receiver)
