"""A cluster of real `lockd serve` processes that reach each other, and are reached, through our network.

Every node listens on ports that only its proxies dial, and advertises the proxies' ports: to its peers,
and to clients. `node.ask` and `node.http` go to the node itself, past the network: they observe.
"""

import contextlib
import itertools
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

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
    free_port,
    process_state,
)

ENDS_BY_US = (None, 0, -signal.SIGKILL, -signal.SIGTERM)
"""It runs, was stopped in order, was killed, or was told to stop before it could listen to that."""
OBSERVE_S = 1.0
"""How long a node may take to answer when it is only looked at: a frozen one never does."""


class NemesisNode(LockdProcess):
    """One node behind its doors, with a clock and a disk that may be its own."""

    def __init__(
        self,
        directory: Path,
        *,
        node_id: int,
        doors: Mapping[int, tuple[int, int]],
        flags: Sequence[str],
        disk: SmallDisk | None = None,
    ) -> None:
        """`doors`: the ports that each node advertises, to clients and to peers."""
        client, peer = doors[node_id]
        members = ",".join(f"{node}=127.0.0.1:{port}" for node, (_, port) in doors.items())
        super().__init__(
            directory,
            node_id=node_id,
            ports=NodePorts.draw(),
            flags=[
                f"--advertise-client=127.0.0.1:{client}",
                f"--advertise-peer=127.0.0.1:{peer}",
                f"--initial-cluster={members}",
                *flags,
            ],
        )
        self.clock_shift_s = 0
        """How far its monotonic clock is ahead of this machine's, from its next start on."""
        self.disk = disk
        if disk is not None:
            self.data_dir = disk.path / "data"
        self._door = client

    @property
    def endpoint(self) -> str:
        """For clients: its door."""
        return f"127.0.0.1:{self._door}"

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


class NemesisCluster(ClusterProcesses):
    """Nodes 1 to `size`, and the network between them and everybody."""

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
        doors = {node: (free_port(), free_port()) for node in range(1, size + 1)}
        self.nodes = {
            node: NemesisNode(
                directory / f"node{node}", node_id=node, doors=doors, flags=flags, disk=disks.get(node)
            )
            for node in doors
        }
        for node, (client, peer) in doors.items():
            ports = self.nodes[node].ports
            network.open_door(port=peer, to=(node, ports.peer), who=node_speaks)
            network.open_door(port=client, to=(node, ports.client), who=client_speaks)

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

    def recover(self, *, patience: float = PATIENCE_S) -> None:
        """End every fault: heal, thaw, make room, start what is dead; then wait for a leader of all."""
        self.network.heal()
        for node in self:
            if node.disk is not None:
                node.disk.make_room()
            if node.is_running:
                node.thaw()
        self.start()
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
