"""Three real nodes for tests: processes with data on disk, which can be killed, paused and cut off."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import hiredis

from lockd.client.aio import AsyncClient
from lockd.client.sync import Client
from lockd.testing.doors import Doors
from lockd.testing.nodes import Node, eventually
from lockd.testing.threads import LoopThread

_NODES = (1, 2, 3)


class Cluster:
    """Nodes 1 to 3, with the network between them. See `running_cluster`."""

    def __init__(self, directory: Path) -> None:
        """`directory` will have what the nodes store and log."""
        self.nodes = {number: Node(number, directory / f"node{number}") for number in _NODES}
        self._members = ",".join(f"{node.number}=127.0.0.1:{node.door}" for node in self)
        self._apart: frozenset[int] = frozenset()
        self._doors = Doors()
        self._thread = LoopThread("lockd-testing-doors")

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def __getitem__(self, number: int) -> Node:
        return self.nodes[number]

    @property
    def endpoints(self) -> str:
        """All nodes, for clients, as LOCKD_ENDPOINTS has them."""
        return ",".join(node.endpoint for node in self)

    def client(self, *, ttl: float = 10.0, name: str = "") -> Client:
        """A client of all nodes, for `with`: it is yours to close."""
        return Client(self.endpoints, ttl=ttl, name=name)

    def async_client(self, *, ttl: float = 10.0, name: str = "") -> AsyncClient:
        """As `client`, for the event loop that uses it: `async with` closes it."""
        return AsyncClient(self.endpoints, ttl=ttl, name=name)

    def start(self) -> Self:
        """Start the nodes that do not run, and wait until all that are not paused or cut off are ready."""
        for node in self:
            if not node.is_running:
                node.launch(self._members)
        for node in self._reachable():
            eventually(node.is_ready, f"{node!r} is ready")
        return self

    def leader(self) -> Node:
        """The node that leads, once all that can reach each other agree on it. Waits for an election."""
        return eventually(self._agreed_leader, "the nodes agree on a leader")

    def followers(self) -> list[Node]:
        """Those that run and do not lead."""
        leader = self.leader()
        return [node for node in self if node.is_running and node is not leader]

    def kill(self, node: Node) -> None:
        """kill -9. `start` starts it again, with its data."""
        node.kill()

    def pause(self, node: Node) -> None:
        """SIGSTOP."""
        node.pause()

    def resume(self, node: Node) -> None:
        """SIGCONT."""
        node.resume()

    def partition(self, *nodes: Node) -> None:
        """Cut these off from the others, not from each other, in place of an earlier partition.

        Clients still reach all of them: one that is cut off answers, but can promise nothing.
        """
        self._apart = frozenset(node.number for node in nodes)
        self._thread.call(lambda: self._doors.part(self._apart))

    def heal(self) -> None:
        """End the partition. The nodes connect again by themselves."""
        self.partition()

    def open_doors(self) -> None:
        """Let the nodes reach each other. Once, before `start`."""
        for node in self:
            self._thread.run(self._doors.open(node.number, node.peer_port, door=node.door))

    def stop(self) -> None:
        """End all that runs."""
        for node in self:
            node.ask_to_stop()
        for node in self:
            node.end()
        self._thread.run(self._doors.close())
        self._thread.stop()

    def _reachable(self) -> list[Node]:
        """Those that run, on the side of a partition which has a majority."""
        majority_is_apart = len(self._apart) > len(_NODES) // 2
        return [
            node
            for node in self
            if node.is_running and not node.is_paused and (node.number in self._apart) == majority_is_apart
        ]

    def _agreed_leader(self) -> Node | None:
        try:
            seen = {node.number: node.status() for node in self._reachable()}
        except (OSError, hiredis.HiredisError):
            return None
        leaders = {int(status["leader"]) for status in seen.values()}
        found = leaders.pop() if len(leaders) == 1 else 0
        return self.nodes[found] if found in seen and seen[found]["role"] == "leader" else None


@contextlib.contextmanager
def running_cluster(directory: Path) -> Iterator[Cluster]:
    """Three `lockd serve` processes on free ports inside `with`, ready; none of them outlives it.

    They live no longer than the thread that enters the block, and keep their data in `directory`.
    Their time is the machine's. Raises TimeoutError when they are not ready in time.
    """
    cluster = Cluster(directory / f"lockd-cluster-{next(_numbers)}")
    try:
        cluster.open_doors()
        yield cluster.start()
    finally:
        cluster.stop()


_numbers = itertools.count(1)
