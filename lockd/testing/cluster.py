"""Three real nodes for tests: processes with data on disk, which can be killed, paused and cut off."""

import contextlib
import http.client
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import hiredis

from lockd.client.aio import AsyncClient
from lockd.client.connection import pack
from lockd.client.sync import Client
from lockd.testing import tied
from lockd.testing.doors import Doors
from lockd.testing.ports import free_port, give_back
from lockd.testing.threads import LoopThread

T = TypeVar("T")

_PATIENCE_SECONDS = 30.0
_STOP_SECONDS = 10.0
_ANSWER_SECONDS = 2.0
_POLL_SECONDS = 0.02
_NODES = (1, 2, 3)


class Node:
    """One node of a Cluster, and its process."""

    def __init__(self, number: int, directory: Path) -> None:
        self.number = number
        """1 to 3: its id in the cluster."""
        self._ports = self.client_port, self.peer_port, self.http_port, self.door = (
            free_port(),
            free_port(),
            free_port(),
            free_port(),
        )
        self.is_paused = False
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True)

    def __repr__(self) -> str:
        return f"<lockd.testing node {self.number} at {self.endpoint}>"

    @property
    def endpoint(self) -> str:
        """For clients: host:port."""
        return f"127.0.0.1:{self.client_port}"

    @property
    def is_running(self) -> bool:
        """Whether it has a process, paused or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What it has logged, over all its starts."""
        path = self._directory / "log.txt"
        return path.read_text(errors="replace") if path.exists() else ""

    def launch(self, members: str) -> None:
        """Start its process, with the data that it has."""
        command = [
            *(sys.executable, "-m", "lockd", "serve", f"--node-id={self.number}"),
            f"--data-dir={self._directory / 'data'}",
            f"--initial-cluster={members}",
            f"--listen-client=127.0.0.1:{self.client_port}",
            f"--listen-peer=127.0.0.1:{self.peer_port}",
            f"--advertise-peer=127.0.0.1:{self.door}",
            f"--listen-http=127.0.0.1:{self.http_port}",
        ]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LOCKD_")}
        with (self._directory / "log.txt").open("ab") as log:
            # Tied to this process: should it be killed, the kernel kills the node.
            self._process = subprocess.Popen(  # noqa: S603 - our own modules, by the Python that runs us
                [sys.executable, "-S", "-E", str(tied.__file__), str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )

    def is_ready(self) -> bool:
        """Whether it knows a leader and has applied the log. Raises RuntimeError when it has ended."""
        if not self.is_running:
            raise RuntimeError(f"{self!r} has ended:\n{self.log[-2000:]}")
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=_ANSWER_SECONDS)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        """CLUSTER.STATUS as it sees it. Raises OSError when it does not answer."""
        reader = hiredis.Reader(encoding="utf-8", notEnoughData=None)
        with socket.create_connection(("127.0.0.1", self.client_port), _ANSWER_SECONDS) as connection:
            connection.sendall(pack(("HELLO", 3)) + pack(("CLUSTER.STATUS",)))
            replies: list[Any] = []
            while len(replies) < 2:
                while (reply := reader.gets()) is None:
                    if not (data := connection.recv(65536)):
                        raise ConnectionResetError(f"{self!r} closed the connection")
                    reader.feed(data)
                replies.append(reply)
        return dict(replies[1])

    def kill(self) -> None:
        """kill -9, and wait for the end. Also when it is paused or has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.is_paused = False

    def pause(self) -> None:
        """SIGSTOP: its connections stay, and it says nothing. Returns when it stands still."""
        self._send(signal.SIGSTOP)
        _eventually(self._stands_still, f"{self!r} stands still")
        self.is_paused = True

    def resume(self) -> None:
        """SIGCONT."""
        self._send(signal.SIGCONT)
        self.is_paused = False

    def ask_to_stop(self) -> None:
        """SIGTERM, if it runs."""
        if self.is_running:
            self.resume()
            self._send(signal.SIGTERM)

    def end(self) -> None:
        """Wait for its end, and bring it about when that takes too long. It is not started again."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
        self.kill()
        for port in self._ports:
            give_back(port)

    def _send(self, number: signal.Signals) -> None:
        if self._process is None or not self.is_running:
            raise RuntimeError(f"{self!r} does not run")
        self._process.send_signal(number)

    def _stands_still(self) -> bool:
        assert self._process is not None, "it runs"
        stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"


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
            _eventually(node.is_ready, f"{node!r} is ready")
        return self

    def leader(self) -> Node:
        """The node that leads, once all that can reach each other agree on it. Waits for an election."""
        return _eventually(self._agreed_leader, "the nodes agree on a leader")

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


def _eventually(find: Callable[[], T | None], what: str) -> T:
    """Ask until the answer is not None or False. Raises TimeoutError after 30 seconds."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not (found := find()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {_PATIENCE_SECONDS:.0f} s: {what}")
        time.sleep(_POLL_SECONDS)
    return found
