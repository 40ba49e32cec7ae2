"""A cluster of drivers that a test moves by hand: nothing happens unless it is told to.

Each node has the production driver, a simulated disk and a monotonic clock with its own origin.
Time passes with `tick`; `settle` carries out everything that needs no time. What the network is
to lose, which disks stall and who is not to tick is the test's to say.
"""

import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

from lockd.disk.record import LogWrite
from lockd.disk.recovery import Recovered
from lockd.ids import ClusterId, Incarnation, InstanceId, LogIndex, NodeId, Term
from lockd.locks.codec import decode_batch, encode_batch
from lockd.locks.commands import (
    WAIT_FOREVER,
    Acquire,
    Batch,
    CloseSession,
    Command,
    OpenSession,
    Operation,
    Origin,
    Outcome,
    SessionOpened,
)
from lockd.raft.codec import decode_message
from lockd.raft.entries import EntryKind
from lockd.raft.messages import Message
from lockd.raft.node import RaftConfig, Role
from lockd.server import frames
from lockd.server.driver import Driver
from lockd.server.recovering import recovered_core
from lockd.server.surroundings import DriverSettings, Ports
from tests.disk.memory import SimulatedLog
from tests.server.snapshots import DirectSnapshots

TICK_MS = 50
ELECTION_TICKS = 10
ELECTION_TIMEOUT_MS = ELECTION_TICKS * TICK_MS
ANSWER_MS_MAX = 10 * ELECTION_TIMEOUT_MS
TTL_MS = 4_000
UNCOMMITTED_BYTES_MAX = 60_000

M = TypeVar("M", bound=Message)
P = TypeVar("P", bound=Operation)


class Member:
    """One node through its lives, and the ports of its driver."""

    def __init__(self, cluster: "Cluster", node: NodeId, founders: Iterable[NodeId]) -> None:
        self.node = node
        self.disk_stalls = False
        """Writes are taken, and nothing becomes durable."""
        self.written: list[LogWrite] = []
        self.life = 0
        self._cluster = cluster
        self._origin_ms = random.Random(node).randrange(10**9)
        founding = {founder: f"node{founder}:7421" for founder in founders}
        self._log = SimulatedLog(node, lambda: InstanceId(f"{node:032x}"), founding=founding)
        self.woken = False
        self.driver = self._start()

    def _start(self) -> Driver:
        self.life += 1
        recovered = self._log.recovered
        raft, machine = recovered_core(
            recovered,
            RaftConfig(
                node_id=self.node, election_ticks=ELECTION_TICKS, uncommitted_bytes_max=UNCOMMITTED_BYTES_MAX
            ),
            draw=lambda _low, high: high,
        )
        return Driver(
            settings=DriverSettings(
                election_timeout_ms=ELECTION_TIMEOUT_MS,
                answer_ms_max=ANSWER_MS_MAX,
                peer_address=f"node{self.node}:7421",
                client_address=f"node{self.node}:7420",
                http_address=f"node{self.node}:7422",
                version="test",
                snapshot_log_bytes=self._cluster.snapshot_log_bytes,
            ),
            identity=recovered.identity,
            addresses=recovered.addresses,
            boot=1000 * self.node + self.life,
            raft=raft,
            machine=machine,
            ports=Ports(
                disk=self,
                network=self,
                clock_ms=self.clock_ms,
                wake=self._wake,
                draw_cluster=lambda: (ClusterId("c" * 32), Incarnation("0000000a")),
                snapshots=DirectSnapshots(lambda: self._log.snapshots, lambda then: then()),
                unix_s=lambda: 1_800_000_000,
                members_changed=lambda: None,
            ),
        )

    def recover(self) -> Recovered:
        """The power goes, and with it what was not synced; what the disk has when it is back."""
        return self._log.crash(random.Random(0))

    def restart(self) -> None:
        """The power went and came back: the same disk, another boot, new connections."""
        self.recover()
        self._cluster.lose(lambda sender, receiver, _: self.node in (sender, receiver))
        self.driver = self._start()

    def clock_ms(self) -> int:
        return self._origin_ms + self._cluster.now_ms

    def submit(self, write: LogWrite) -> None:
        self.written.append(write)
        self._log.submit(write)

    def turn(self) -> bool:
        """Give the driver the turn that it has asked for, if any."""
        if not self.woken:
            return False
        self.woken = False
        self.driver.turn()
        return True

    def sync(self) -> bool:
        """Make everything that was submitted durable, and say so."""
        ticket = None if self.disk_stalls else self._log.sync()
        if ticket is not None:
            self.driver.on_durable(ticket)
        return ticket is not None

    def send(self, node: NodeId, frame: frames.Frame) -> bool:
        if (self.node, node) in self._cluster.unconnected:
            return False
        return self._cluster.send(self.node, node, frame)

    def is_connected(self, node: NodeId) -> bool:
        return (self.node, node) not in self._cluster.cut

    def _wake(self) -> None:
        self.woken = True

    def fill_log(self) -> None:
        """As the leader, append one entry that leaves room for no other before it is committed."""

        def payload(padding: int) -> bytes:
            command = Command("", "x" * padding, "", 0, Origin(self.node, 1, 0, 1), CloseSession())
            return encode_batch(Batch(Batch.VERSION, 0, (command,)))

        around = len(payload(50_000)) - 50_000
        self.driver.raft.propose(EntryKind.COMMANDS, payload(UNCOMMITTED_BYTES_MAX - around))
        self._wake()

    # What the test looks at.

    def leads(self) -> bool:
        return self.driver.raft.role is Role.LEADER

    @property
    def entries(self) -> list[tuple[Term, Batch]]:
        """The batches in its log, with their terms."""
        log = self.driver.raft.log
        run = log.slice(LogIndex(log.base + 1), log.last_index, 2**40)
        return [
            (term, decode_batch(payload))
            for term, kind, payload in zip(run.terms, run.kinds, run.payloads, strict=True)
            if kind is EntryKind.COMMANDS
        ]

    def logged(self, kind: type[P]) -> list[P]:
        """The operations of that kind in its log."""
        commands = (command for _, batch in self.entries for command in batch.commands)
        return [command.operation for command in commands if isinstance(command.operation, kind)]


class Cluster:
    """`size` nodes, numbered from 1. No leader until `elect`."""

    def __init__(self, size: int = 3, *, snapshot_log_bytes: int = 2**40) -> None:
        self.now_ms = 0
        self.snapshot_log_bytes = snapshot_log_bytes
        self.nodes = tuple(NodeId(number) for number in range(1, size + 1))
        self.cut: set[tuple[int, int]] = set()
        self.unconnected: set[tuple[int, int]] = set()
        """Who has no connection to whom: unlike over one that is cut, nothing is taken for sending."""
        self.holds_back: Callable[[NodeId, NodeId, frames.Frame], bool] = lambda *_: False
        """Which frames stay on the wire: `settle` delivers them once this says no."""
        self.sent: list[tuple[NodeId, NodeId, frames.Frame]] = []
        """Every frame that was taken for sending, delivered or not."""
        self._wire: deque[tuple[NodeId, NodeId, frames.Frame]] = deque()
        self.members = {node: Member(self, node, self.nodes) for node in self.nodes}
        self._connections = itertools.count(1)

    def __getitem__(self, node: int) -> Member:
        return self.members[NodeId(node)]

    def start_empty(self, node: int) -> Member:
        """Start a node that joins: it has been told which cluster this is, and is no member yet."""
        new, anyone = NodeId(node), self[1].driver
        self.members[new] = Member(self, new, ())
        told = anyone.identity
        self.members[new].driver.joined(
            told.cluster, told.incarnation, founders=told.founders, addresses=anyone.addresses
        )
        self.nodes = (*self.nodes, new)
        return self.members[new]

    # What happens.

    def messages(self, sender: int, kind: type[M]) -> list[M]:
        """The Raft messages of one kind that a node has sent so far."""
        carried = [
            decode_message(frame.message)
            for node, _, frame in self.sent
            if node == sender and isinstance(frame, frames.Raft)
        ]
        return [message for message in carried if isinstance(message, kind)]

    def settle(self, only: Iterable[int] | None = None, *, until: Callable[[], bool] = lambda: False) -> None:
        """Deliver, sync and turn, among `only` or all, until nothing is left to do or `until` holds."""
        nodes = [NodeId(node) for node in only] if only is not None else list(self.nodes)
        moved = True
        while moved and not until():
            moved = False
            for node in nodes:
                moved |= self.members[node].turn()
                if not until():
                    moved |= self.members[node].sync()
            moved |= not until() and self._deliver(nodes)

    def _deliver(self, nodes: list[NodeId]) -> bool:
        waiting, self._wire = self._wire, deque()
        delivered = False
        for sender, receiver, frame in waiting:
            if receiver not in nodes or self.holds_back(sender, receiver, frame):
                self._wire.append((sender, receiver, frame))
            elif (sender, receiver) not in self.cut:
                self.members[receiver].driver.on_frame(sender, frame)
                delivered = True
        return delivered

    def send(self, sender: NodeId, receiver: NodeId, frame: frames.Frame) -> bool:
        self.sent.append((sender, receiver, frame))
        self._wire.append((sender, receiver, frame))
        return True

    def lose(self, which: Callable[[NodeId, NodeId, frames.Frame], bool]) -> None:
        """Frames that are on the wire never arrive."""
        self._wire = deque(entry for entry in self._wire if not which(*entry))

    def tick(self, times: int = 1, only: Iterable[int] | None = None) -> None:
        """Let so many ticks pass; those who are not in `only` are as if paused."""
        nodes = [NodeId(node) for node in only] if only is not None else list(self.nodes)
        for _ in range(times):
            self.now_ms += TICK_MS
            for node in nodes:
                self.members[node].driver.tick()
            self.settle(nodes)

    def pass_ms(self, ms: int, only: Iterable[int] | None = None) -> None:
        self.tick(-(-ms // TICK_MS), only)

    def isolate(self, *nodes: int) -> None:
        """Cut these off from the others, not from each other."""
        inside = {NodeId(node) for node in nodes}
        for one, other in itertools.permutations(self.nodes, 2):
            if (one in inside) != (other in inside):
                self.cut.add((one, other))

    def heal(self) -> None:
        self.cut.clear()

    def hold_back(self, *kinds: type[frames.Frame] | type[Message]) -> None:
        """Keep frames, or Raft messages, of these kinds on the wire until `hold_back()`."""

        def held(_sender: NodeId, _receiver: NodeId, frame: frames.Frame) -> bool:
            carried = decode_message(frame.message) if isinstance(frame, frames.Raft) else frame
            return isinstance(carried, kinds)

        self.holds_back = held

    def elect(self, node: int, *, settle: bool = True) -> Member:
        """Have the node win an election among those it is connected to; the others stand still."""
        reachable = [n for n in self.nodes if n == node or (n, NodeId(node)) not in self.cut]
        followers = [n for n in reachable if n != node]
        for _ in range(ELECTION_TICKS):
            self.now_ms += TICK_MS
            for follower in followers:
                self.members[follower].driver.tick()
        # No heartbeat may reach them now, so they have no leader; their own time-out is longer.
        self.lose(lambda _sender, _receiver, frame: isinstance(frame, frames.Raft))
        candidate = self.members[NodeId(node)]
        for _ in range(4 * ELECTION_TICKS):
            self.now_ms += TICK_MS
            candidate.driver.tick()
            self.settle(reachable, until=lambda: candidate.leads())
            if candidate.leads():
                break
        assert candidate.leads(), f"node {node} is not elected"
        if settle:
            self.settle(reachable)
        return candidate

    # What clients do.

    def ask(
        self,
        node: int,
        operation: Operation,
        *,
        session: str = "",
        user: str = "ann",
        request: int | str = 0,
        connection: int = 0,
    ) -> list[Outcome]:
        """Submit at a node; the list fills with what the caller is told."""
        outcomes: list[Outcome] = []
        self.members[NodeId(node)].driver.submit(
            user=user,
            session=session,
            owner="",
            request=request,
            operation=operation,
            connection=connection or next(self._connections),
            on_outcome=outcomes.append,
        )
        return outcomes

    def keepalive(self, node: int, session: str, user: str = "ann") -> list[Outcome]:
        outcomes: list[Outcome] = []
        self.members[NodeId(node)].driver.keepalive(user=user, session=session, on_outcome=outcomes.append)
        return outcomes

    def read(self, node: int) -> list[Outcome | None]:
        """Ask for a barrier: None arrives in the list when the node's state may be read."""
        done: list[Outcome | None] = []
        self.members[NodeId(node)].driver.read(done.append)
        return done

    def open_session(self, node: int, session: str, ttl_ms: int = TTL_MS) -> None:
        outcomes = self.ask(node, OpenSession(ttl_ms, session, ""), session=session)
        self.settle()
        assert outcomes == [SessionOpened(session, ttl_ms)]

    def acquire(
        self, node: int, lock: str, session: str, *, request: int | str = 0, connection: int = 0
    ) -> list[Outcome]:
        """Acquire and wait for ever; settles."""
        outcomes = self.ask(
            node,
            Acquire(lock, 0, WAIT_FOREVER, ""),
            session=session,
            request=request,
            connection=connection,
        )
        self.settle()
        return outcomes
