"""A cluster of real `lockd serve` processes that reach each other, and are reached, through our network.

Every node listens on ports that only its proxies dial, and advertises the proxies' ports: to its peers,
and to clients. `node.ask` and `node.http` go to the node itself, past the network: they observe.
"""

import contextlib
import itertools
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from lockd.testing.ports import free_port
from tests.nemesis import clocks
from tests.nemesis.disks import SmallDisk
from tests.nemesis.flow import client_speaks, node_speaks
from tests.nemesis.network import Network
from tests.processes import (
    PATIENCE_S,
    ClusterProcesses,
    LockdProcess,
    NodePorts,
    eventually,
    process_state,
)

ENDS_BY_US = (None, 0, -signal.SIGKILL, -signal.SIGTERM)
"""It runs, was stopped in order, was killed, or was told to stop before it could listen to that."""
OBSERVE_S = 1.0
"""How long a node may take to answer when it is only looked at: a frozen one never does."""


class Doors(NamedTuple):
    """The ports at which a node is reached: its own are known to its proxies alone."""

    client: int
    peer: int


class NemesisNode(LockdProcess):
    """One node behind its doors, with a clock and a disk that may be its own."""

    def __init__(
        self,
        directory: Path,
        *,
        node_id: int,
        doors: Doors,
        flags: Sequence[str],
        disk: SmallDisk | None = None,
    ) -> None:
        """`doors`: the ports that it advertises."""
        super().__init__(
            directory,
            node_id=node_id,
            ports=NodePorts.draw(),
            flags=[
                f"--advertise-client=127.0.0.1:{doors.client}",
                f"--advertise-peer=127.0.0.1:{doors.peer}",
                *flags,
            ],
        )
        self.clock_shift_s = 0
        """How far its monotonic clock is ahead of this machine's, from its next start on."""
        self.disk = disk
        if disk is not None:
            self.data_dir = disk.path / "data"
        self.doors = doors

    @property
    def endpoint(self) -> str:
        """For clients: its door."""
        return f"127.0.0.1:{self.doors.client}"

    @property
    def peer_address(self) -> str:
        """For peers: its other door."""
        return f"127.0.0.1:{self.doors.peer}"

    @property
    def command(self) -> list[str]:
        plain = clocks.shifted(super().command, self.clock_shift_s)
        return plain if self.disk is None else self.disk.within(plain)

    @property
    def is_frozen(self) -> bool:
        return self.is_running and process_state(self.pid) == "T"

    def start(self) -> Self:
        """As of LockdProcess; one that has ended by itself is not started over."""
        self.check_not_failed()
        return super().start()

    def check_not_failed(self) -> None:
        """Raise AssertionError if it has ended in a way that no fault of ours is."""
        ended = None if self.process is None else self.process.poll()
        text = self.log_text()
        assert ended in ENDS_BY_US, f"{self} ended by itself with status {ended}:\n{text[-3000:]}"
        assert "CRITICAL" not in text, f"{self} found a failure:\n{text[-3000:]}"

    def glimpse(self) -> dict[str, object] | None:
        """Its CLUSTER.STATUS, or None if it does not answer promptly."""
        if not self.is_running or self.is_frozen:
            return None
        try:
            reply = self.ask("CLUSTER.STATUS", timeout=OBSERVE_S)
        except OSError:
            return None
        return reply if isinstance(reply, dict) else None


@dataclass(frozen=True)
class Replacement:
    """A node that is lost, and the one that takes its place."""

    lost: int
    new: NemesisNode

    def __str__(self) -> str:
        return f"node {self.lost} is lost, node {self.new.node_id} takes its place"

    def go_on(self, leader: NemesisNode, nodes: dict[int, NemesisNode]) -> bool:
        """One step, of which the leader may refuse any: it is asked again. Returns whether all is done.

        It is told by the leader's own view, which may be old: a step that is done already changes nothing.
        """
        seen = leader.glimpse()
        if seen is None:
            return False
        assert isinstance(seen["members"], list), seen
        voters = {member["node"]: bool(member["voter"]) for member in seen["members"]}
        with contextlib.suppress(OSError):
            if self.lost in voters:
                leader.ask("CLUSTER.REMOVE", self.lost, timeout=OBSERVE_S)
            elif self.new.node_id not in voters:
                leader.ask("CLUSTER.ADD", self.new.node_id, self.new.peer_address, timeout=OBSERVE_S)
            elif self.new.node_id not in nodes:
                nodes[self.new.node_id] = self.new.start()
        return voters.get(self.new.node_id, False)


class NemesisCluster(ClusterProcesses):
    """Nodes 1 to `size`, those that replaced some of them, and the network between them and everybody."""

    nodes: dict[int, NemesisNode]  # type: ignore[assignment] # the same nodes, with more to ask of them

    def __init__(
        self,
        directory: Path,
        network: Network,
        *,
        size: int,
        flags: Sequence[str],
        disks: Mapping[int, SmallDisk],
    ) -> None:
        self.network = network
        self._directory = directory
        self._flags = flags
        doors = {node: Doors(free_port(), free_port()) for node in range(1, size + 1)}
        members = ",".join(f"{node}=127.0.0.1:{its.peer}" for node, its in doors.items())
        self.nodes = {
            node: NemesisNode(
                directory / f"node{node}",
                node_id=node,
                doors=doors[node],
                flags=[f"--initial-cluster={members}", *flags],
                disk=disks.get(node),
            )
            for node in doors
        }
        for node in self:
            network.open_door(port=node.doors.peer, to=(node.node_id, node.ports.peer), who=node_speaks)
            network.open_door(port=node.doors.client, to=(node.node_id, node.ports.client), who=client_speaks)
        self._ids = itertools.count(size + 1)
        self.replacement: Replacement | None = None
        """The one that is not finished."""
        self.replaced = 0

    def __iter__(self) -> Iterator[NemesisNode]:
        return iter(self.nodes.values())

    def leader_now(self) -> NemesisNode | None:
        """The node that leads by its own word, in the highest term; None when none says so.

        Unlike `leader` it neither waits nor wants agreement: it is for times of trouble.
        """
        glimpses = [(node, seen) for node in self if (seen := node.glimpse()) is not None]
        leaders = [(int(str(seen["term"])), node) for node, seen in glimpses if seen["role"] == "leader"]
        return max(leaders, key=lambda pair: pair[0])[1] if leaders else None

    def leader_among(self, *nodes: int, patience: float = PATIENCE_S) -> NemesisNode:
        """Wait until one of these leads."""

        def found() -> NemesisNode | None:
            leader = self.leader_now()
            return leader if leader is not None and leader.node_id in nodes else None

        return eventually(found, f"one of nodes {nodes} leads", patience=patience)

    def begin_to_replace(self, lost: NemesisNode) -> None:
        """Lose a node's disk for good. One with another id takes its place, behind its doors (SAFETY C8)."""
        assert self.replacement is None, "one at a time: two lost disks of three are a majority (P3)"
        lost.check_not_failed()
        lost.kill()
        del self.nodes[lost.node_id]
        number = next(self._ids)
        helper = next(node for node in self if node is not lost)
        new = NemesisNode(
            self._directory / f"node{number}",
            node_id=number,
            doors=lost.doors,
            flags=[f"--join={helper.peer_address}", *self._flags],
        )
        self.network.lead_door(port=new.doors.peer, to=(number, new.ports.peer))
        self.network.lead_door(port=new.doors.client, to=(number, new.ports.client))
        self.replacement = Replacement(lost.node_id, new)

    def go_on_replacing(self, *, at_most_s: float) -> bool:
        """Have the leader do the next steps, if somebody is being replaced. Returns whether that is done."""
        until = time.monotonic() + at_most_s
        eventually(lambda: self._is_replaced() or time.monotonic() >= until, "time passes")
        return self.replacement is None

    def _is_replaced(self) -> bool:
        """Take one step, if there is one to take and a leader to ask."""
        if self.replacement is None:
            return True
        leader = self.leader_now()
        if leader is None or not self.replacement.go_on(leader, self.nodes):
            return False
        self.replacement = None
        self.replaced += 1
        return True

    def recover(self, *, patience: float = PATIENCE_S) -> None:
        """End every fault: heal, thaw, make room, start what is dead, replace what is lost; then wait for a
        leader of all."""
        self.network.heal()
        for node in self:
            if node.disk is not None:
                node.disk.make_room()
            if node.is_running:
                node.thaw()
        self.start()
        assert self.go_on_replacing(at_most_s=patience), (
            f"not replaced within {patience} s: {self.replacement}"
        )
        self.await_ready(patience=patience)
        self.leader(patience=patience)

    def check_not_failed(self) -> None:
        """Raise AssertionError if a node has ended by itself."""
        for node in self:
            node.check_not_failed()

    def await_caught_up(self, *, patience: float = PATIENCE_S) -> int:
        """Wait until every node has applied the same log to its end. Returns that index."""

        def positions() -> int | None:
            glimpses = [node.glimpse() for node in self]
            told = {
                (seen["commit_index"], seen["last_applied"], seen["log_last"]) if seen else None
                for seen in glimpses
            }
            if len(told) != 1 or (position := told.pop()) is None or len(set(position)) != 1:
                return None
            return int(str(position[0]))

        return eventually(positions, "all nodes have applied the same log", patience=patience)

    def term(self) -> int:
        """The highest term that any node knows."""
        return max((int(str(seen["term"])) for node in self if (seen := node.glimpse())), default=0)


@contextlib.contextmanager
def nemesis_cluster(
    directory: Path,
    *,
    size: int = 3,
    flags: Sequence[str] = (),
    disks: Mapping[int, SmallDisk] | None = None,
) -> Iterator[NemesisCluster]:
    """A cluster whose nodes are all ready and whose network is whole. `disks`: the small ones, by node.

    Call it on the thread that will end it: nodes live no longer than the thread that started them.
    """
    with Network() as network:
        folder = directory / f"nemesis-{next(_numbers)}"
        cluster = NemesisCluster(folder, network, size=size, flags=flags, disks=disks or {})
        try:
            cluster.start().await_ready()
            cluster.leader()
            yield cluster
        finally:
            network.heal()
            cluster.stop()


_numbers = itertools.count(1)
