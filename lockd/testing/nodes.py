"""One real node of a cluster under test: its process, which can be killed and paused."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import hiredis

from lockd.client.connection import pack
from lockd.testing import tied
from lockd.testing.ports import free_port, give_back

T = TypeVar("T")

_PATIENCE_SECONDS = 30.0
"""A process has to start, and a busy machine takes its time."""
_STOP_SECONDS = 10.0
_ANSWER_SECONDS = 2.0
_POLL_SECONDS = 0.02


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
        eventually(self._stands_still, f"{self!r} stands still")
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


def eventually(find: Callable[[], T | None], what: str) -> T:
    """Ask until the answer is not None or False. Raises TimeoutError after 30 seconds."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not (found := find()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {_PATIENCE_SECONDS:.0f} s: {what}")
        time.sleep(_POLL_SECONDS)
    return found
