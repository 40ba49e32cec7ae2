"""The demo's processes: started, watched, killed, and gone at the end whatever happens."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import lockd
from lockd.testing.ports import free_port
from lockd_scheduler.demo import jobs, worker

T = TypeVar("T")

NODES = (1, 2, 3)
PATIENCE_SECONDS = 30.0
STOP_SECONDS = 10.0


class StageError(Exception):
    """A process did not come up, or something that must happen did not: the demo can't go on."""


def await_that(find: Callable[[], T | None], what: str) -> T:
    """Poll until the answer is not None or False. Raises StageError after PATIENCE_SECONDS."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        found = find()
        if found is not None and found is not False:
            return found
        time.sleep(0.02)
    raise StageError(f"not within {PATIENCE_SECONDS:.0f} s: {what}")


class Stage:
    """A directory, and everything that runs in it."""

    def __init__(self, directory: Path, database: str) -> None:
        self.directory = directory
        self.database = database
        self._ports = {node: (free_port(), free_port(), free_port()) for node in NODES}
        self._running: dict[str, subprocess.Popen[str]] = {}

    @property
    def endpoints(self) -> str:
        return ",".join(f"127.0.0.1:{ports[0]}" for ports in self._ports.values())

    def endpoint(self, node: int) -> str:
        return f"127.0.0.1:{self._ports[node][0]}"

    def start_node(self, node: int) -> None:
        client, peer, http = self._ports[node]
        members = ",".join(f"{other}=127.0.0.1:{ports[1]}" for other, ports in self._ports.items())
        self._start(
            f"node {node}",
            [
                *("-m", "lockd", "serve", f"--node-id={node}"),
                f"--data-dir={self.directory / f'node{node}'}",
                f"--listen-client=127.0.0.1:{client}",
                f"--listen-peer=127.0.0.1:{peer}",
                f"--listen-http=127.0.0.1:{http}",
                f"--initial-cluster={members}",
            ],
        )

    def start_scheduler(self, name: str) -> None:
        self._start(
            f"scheduler {name}",
            [
                *("-m", "lockd_scheduler.cli", "serve", str(jobs.__file__)),
                *("--db", self.database, "--lockd", self.endpoints),
                *("--lease-ttl", "2s", "--lost-after", "3s", "--drain", "10s"),
            ],
        )

    def start_worker(self) -> "Worker":
        process = self._start("worker", ["-m", worker.__name__, self.endpoints, self.database], talks=True)
        return Worker(process)

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def kill(self, name: str) -> float:
        """SIGKILL. Returns the monotonic moment of it."""
        process = self._running.pop(name)
        moment = time.monotonic()
        process.kill()
        process.wait()
        return moment

    def stop(self, name: str) -> int:
        """SIGTERM, and wait for the end. Returns the exit status."""
        process = self._running.pop(name)
        process.terminate()
        try:
            return process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def status(self, node: int) -> dict[str, Any] | None:
        """What a node says of the cluster; None when it does not answer."""
        try:
            with lockd.Client(self.endpoint(node), ttl=5) as client:
                status = dict(client.status())
        except lockd.LockdError:
            return None
        return status if status["node"] == node else None

    def leader(self) -> int | None:
        """Who leads by its own word."""
        for node in NODES:
            process = self._running.get(f"node {node}")
            if process is not None and process.poll() is not None:
                raise StageError(f"node {node} ended with status {process.returncode}")
            if process is not None:
                status = self.status(node)
                if status is not None and status["role"] == "leader":
                    return node
        return None

    def what_runs(self) -> list[str]:
        return sorted(self._running)

    @contextlib.contextmanager
    def curtain(self) -> Iterator[None]:
        """Nothing that was started outlives the block."""
        try:
            yield
        finally:
            for process in self._running.values():
                process.send_signal(signal.SIGCONT)
                process.terminate()
            for process in self._running.values():
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _start(self, name: str, arguments: list[str], *, talks: bool = False) -> subprocess.Popen[str]:
        environ = {key: value for key, value in os.environ.items() if not key.startswith("LOCKD_")}
        log_path = self.directory / f"{name.replace(' ', '-')}.log"
        with log_path.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - our own modules, by the Python that runs us
                [sys.executable, *arguments],
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else log,
                stderr=log,
                text=True,
                env=environ,
            )
        self._running[name] = process
        return process


class Worker:
    """The worker's process, and what it says."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def hear(self, event: str) -> dict[str, Any]:
        """Read its next line, which must be of that event."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise StageError("the worker ended before its time; see worker.log")
        words = dict(json.loads(line))
        if words["event"] != event:
            raise StageError(f"the worker says {words!r} instead of {event!r}")
        return words

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """SIGCONT, and a line for it to go on with."""
        self._process.send_signal(signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
