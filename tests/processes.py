"""Real `lockd serve` processes on free ports: start, wait, ask, freeze, kill -9, start again.

    with running_node(tmp_path) as node:
        node.ask("LOCK.ACQUIRE", "k", "TTL", 5000)["token"]

    with running_cluster(tmp_path) as cluster:
        leader = cluster.leader()
        leader.kill()
        cluster.await_ready()           # those that run
        leader.start().await_ready()    # same data, same ports

Nothing survives: what is left at the end of a block is killed, and the kernel kills the rest if
the test process dies. Start nodes from the thread that runs the test: they live no longer than
the thread that started them.
"""

import contextlib
import http.client
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import hiredis

from lockd.testing import tied
from lockd.testing.ports import free_port

T = TypeVar("T")

PATIENCE_S = 30.0
"""How long a test waits for what must come, before it fails. The machine may be busy."""
STOP_S = 10.0
ASK_S = 10.0

_POLL_S = 0.02


def eventually(find: Callable[[], T | None], what: str, *, patience: float = PATIENCE_S) -> T:
    """Ask again and again until the answer is not None (or False), and return it."""
    deadline = time.monotonic() + patience
    while True:
        found = find()
        if found is not None and found is not False:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patience} s: {what}")
        time.sleep(_POLL_S)


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie (one that nobody reaps is dead enough)."""
    return process_state(pid) not in ("", "Z")


def process_state(pid: int) -> str:
    """R, S, T (stopped), Z, ... as in /proc; "" when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(")")[2].split()[0]


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without LOCKD_ variables, and `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LOCKD_")}
    return kept | dict(extra or {})


def lockd_command(*arguments: object) -> list[str]:
    """The command line of `lockd`, run by the Python that runs the tests."""
    return [sys.executable, "-m", "lockd", *(str(argument) for argument in arguments)]


def run_lockd(
    *arguments: object, environ: Mapping[str, str] | None = None, timeout: float = PATIENCE_S, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `lockd ...` to its end."""
    return subprocess.run(
        lockd_command(*arguments),
        env=clean_environment(environ),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class NodePorts(NamedTuple):
    """Where one node listens on 127.0.0.1."""

    client: int
    peer: int
    http: int

    @classmethod
    def draw(cls) -> Self:
        return cls(free_port(), free_port(), free_port())


class LockdProcess:
    """One node: its ports, its directory and, between `start` and its end, its process."""

    def __init__(
        self,
        directory: Path,
        *,
        node_id: int = 1,
        ports: NodePorts | None = None,
        flags: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """`directory` will have the data in `data/` and what the node logs in `log.txt`."""
        self.node_id = node_id
        self.ports = ports or NodePorts.draw()
        self.data_dir = directory / "data"
        self.log_path = directory / "log.txt"
        self.flags = list(flags)
        self.environ = dict(environ or {})
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    def __repr__(self) -> str:
        return f"<node {self.node_id} at {self.endpoint}, pid {self.process and self.process.pid}>"

    @property
    def endpoint(self) -> str:
        """For clients."""
        return f"127.0.0.1:{self.ports.client}"

    @property
    def command(self) -> list[str]:
        client, peer, http_port = self.ports
        return lockd_command(
            "serve",
            f"--node-id={self.node_id}",
            f"--data-dir={self.data_dir}",
            f"--listen-client=127.0.0.1:{client}",
            f"--listen-peer=127.0.0.1:{peer}",
            f"--listen-http=127.0.0.1:{http_port}",
            *self.flags,
        )

    @property
    def pid(self) -> int:
        return self._process().pid

    @property
    def is_running(self) -> bool:
        """Whether it has a process, frozen or not."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> Self:
        """Start the process, with the data that it has. Returns at once: see `await_ready`."""
        assert not self.is_running, f"{self} runs already"
        with self.log_path.open("ab") as log_file:
            self.process = subprocess.Popen(
                [sys.executable, "-S", "-E", str(tied.__file__), str(os.getpid()), *self.command],
                env=clean_environment(self.environ),
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
            )
        return self

    def await_ready(self, *, patience: float = PATIENCE_S) -> Self:
        """Wait for /readyz: a leader is known, and the log is applied."""
        eventually(
            lambda: self._still_runs() and self.http("/readyz")[0] == 200,
            f"{self} is ready",
            patience=patience,
        )
        return self

    def await_end(self, *, patience: float = PATIENCE_S) -> int:
        """Wait for the process to end. Returns its exit status."""
        return self._process().wait(patience)

    def kill(self) -> None:
        """kill -9, and wait for the end. Also when it is frozen or has ended."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def terminate(self, *, patience: float = STOP_S) -> int:
        """Ask it to stop (SIGTERM) and wait. Returns its exit status."""
        self._process().terminate()
        return self.await_end(patience=patience)

    def freeze(self) -> None:
        """SIGSTOP: it keeps its connections and says nothing. Returns when it stands still."""
        self._process().send_signal(signal.SIGSTOP)
        eventually(lambda: process_state(self.pid) == "T", f"{self} stands still")

    def thaw(self) -> None:
        """SIGCONT."""
        self._process().send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Make sure that it does not run: TERM, then KILL. Idempotent."""
        if self.process is None:
            return
        if self.is_running:
            self.thaw()
            self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_S)
        self.kill()

    def log_text(self) -> str:
        """What it has written to standard output and error, over all its starts."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def http(self, path: str) -> tuple[int, str]:
        """GET from the HTTP side: status and text; status 0 when it could not be reached."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports.http, timeout=1.0)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except (OSError, http.client.HTTPException):
            return 0, ""
        finally:
            connection.close()

    def ask(self, *words: object, timeout: float = ASK_S) -> Any:
        """One command on a RESP3 connection of its own. An error reply is returned as hiredis.ReplyError."""
        return self.ask_all([words], timeout=timeout)[0]

    def ask_all(self, commands: Sequence[Sequence[object]], *, timeout: float = ASK_S) -> list[Any]:
        """Several commands on one connection, in order. Raises OSError when the node can't be reached."""
        reader = hiredis.Reader(encoding="utf-8", notEnoughData=None)
        with socket.create_connection(("127.0.0.1", self.ports.client), timeout) as connection:
            for words in (("HELLO", 3), *commands):
                packed: Any = tuple(str(word) for word in words)  # hiredis' stub means a tuple of one
                connection.sendall(hiredis.pack_command(packed))
            replies: list[Any] = []
            while len(replies) < len(commands) + 1:
                while (reply := reader.gets()) is None:
                    data = connection.recv(65536)
                    if not data:
                        raise ConnectionResetError(f"{self} closed the connection")
                    reader.feed(data)
                if not isinstance(reply, hiredis.PushNotification):
                    replies.append(reply)
        return replies[1:]

    def status(self) -> dict[str, Any]:
        """CLUSTER.STATUS as this node knows it."""
        reply = self.ask("CLUSTER.STATUS")
        assert isinstance(reply, dict), reply
        return reply

    def _process(self) -> subprocess.Popen[bytes]:
        assert self.process is not None, f"{self} was not started"
        return self.process

    def _still_runs(self) -> bool:
        if self._process().poll() is not None:
            raise AssertionError(
                f"{self} ended with {self._process().returncode}:\n{self.log_text()[-2000:]}"
            )
        return True


class ClusterProcesses:
    """Nodes 1 to `size` of one cluster."""

    def __init__(self, directory: Path, *, size: int = 3, flags: Sequence[str] = ()) -> None:
        """`flags` are every node's."""
        ports = {node_id: NodePorts.draw() for node_id in range(1, size + 1)}
        members = ",".join(f"{node_id}=127.0.0.1:{drawn.peer}" for node_id, drawn in ports.items())
        self.nodes = {
            node_id: LockdProcess(
                directory / f"node{node_id}",
                node_id=node_id,
                ports=drawn,
                flags=[f"--initial-cluster={members}", *flags],
            )
            for node_id, drawn in ports.items()
        }

    def __iter__(self) -> Iterator[LockdProcess]:
        return iter(self.nodes.values())

    @property
    def endpoints(self) -> str:
        """All nodes, as LOCKD_ENDPOINTS has them."""
        return ",".join(node.endpoint for node in self)

    @property
    def running(self) -> list[LockdProcess]:
        return [node for node in self if node.is_running]

    def start(self) -> Self:
        """Start those that do not run."""
        for node in self:
            if not node.is_running:
                node.start()
        return self

    def await_ready(self, *, patience: float = PATIENCE_S) -> Self:
        """Wait until every node that runs is ready. None of them may be frozen."""
        for node in self.running:
            node.await_ready(patience=patience)
        return self

    def leader(self, *, patience: float = PATIENCE_S) -> LockdProcess:
        """The node that leads by its own word, with all that answer agreeing."""
        return eventually(self._agreed_leader, "the nodes that run agree on a leader", patience=patience)

    def followers(self) -> list[LockdProcess]:
        """Those that run and do not lead."""
        leader = self.leader()
        return [node for node in self.running if node is not leader]

    def kill(self) -> None:
        """kill -9 all of them at once: none sees another go."""
        for node in self.running:
            node._process().kill()
        for node in self:
            node.kill()

    def freeze(self) -> None:
        for node in self.running:
            node.freeze()

    def thaw(self) -> None:
        for node in self.running:
            node.thaw()

    def stop(self) -> None:
        """Make sure that none runs."""
        self.thaw()
        for node in self.running:
            node._process().terminate()
        for node in self:
            node.stop()

    def _agreed_leader(self) -> LockdProcess | None:
        leaders = set()
        for node in self.running:
            try:
                leaders.add(int(node.status()["leader"]))
            except (OSError, KeyError):
                return None
        if len(leaders) != 1 or not (found := self.nodes.get(leaders.pop())) or not found.is_running:
            return None
        return found if found.status()["role"] == "leader" else None


@contextlib.contextmanager
def running_node(directory: Path, **options: Any) -> Iterator[LockdProcess]:
    """A node alone, ready. `options` as of LockdProcess."""
    node = LockdProcess(directory / f"node-{next(_numbers)}", **options)
    try:
        yield node.start().await_ready()
    finally:
        node.stop()


@contextlib.contextmanager
def running_cluster(
    directory: Path, *, size: int = 3, flags: Sequence[str] = ()
) -> Iterator[ClusterProcesses]:
    """A cluster whose nodes are all ready. `flags` are every node's."""
    cluster = ClusterProcesses(directory / f"cluster-{next(_numbers)}", size=size, flags=flags)
    try:
        yield cluster.start().await_ready()
    finally:
        cluster.stop()


_numbers = itertools.count(1)
