"""Real processes: a lockd node, two schedulers on one SQLite file, kill -9 and SIGSTOP past the lease."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lockd.testing.ports import free_port

BIN = Path(sys.executable).parent
PATIENCE = 40.0
JOBS = """
from pathlib import Path
from lockd_scheduler import Cron, Run

cron = Cron("ops")

@cron.every("1s", overlap="allow", catch_up="all")
def tick(run: Run) -> None:
    with Path("calls").open("a") as calls:
        calls.write(run.key + chr(10))
"""

pytestmark = pytest.mark.process


class Machine:
    """A folder with jobs.py, and the processes that were started in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client_port, self.peer_port, self.http_port = free_port(), free_port(), free_port()
        self._processes: list[subprocess.Popen[bytes]] = []
        (folder / "jobs.py").write_text(JOBS)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start a command of ours; what it says goes to `log`."""
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [str(BIN / words[0]), *words[1:]], cwd=self.folder, stdout=log, stderr=log
            )
        self._processes.append(process)
        return process

    def lockd(self) -> subprocess.Popen[bytes]:
        return self.start(
            "lockd", "serve", "--data-dir", "data",
            "--listen-client", f"127.0.0.1:{self.client_port}",
            "--listen-peer", f"127.0.0.1:{self.peer_port}",
            "--listen-http", f"127.0.0.1:{self.http_port}",
        )  # fmt: skip

    def scheduler(self, *more: str) -> subprocess.Popen[bytes]:
        lockd = ["--lockd", f"127.0.0.1:{self.client_port}", "--lease-ttl", "3s", "--lost-after", "5s"]
        return self.start("lockd-scheduler", "serve", "jobs.py", *(more or lockd))

    def runs(self) -> list[dict[str, Any]]:
        """The runs as the command tells them; none while there is no ledger."""
        words = [str(BIN / "lockd-scheduler"), "runs", "--json", "--limit", "1000"]
        done = subprocess.run(words, cwd=self.folder, capture_output=True, check=False)
        return list(json.loads(done.stdout)) if done.returncode == 0 else []

    def succeeded(self) -> int:
        return sum(run["state"] == "succeeded" for run in self.runs())

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().split()

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def stop(self) -> None:
        for process in reversed(self._processes):
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self._processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.stop()


def test_p5_no_fire_is_lost_or_doubled_across_kill_and_pause(machine: Machine) -> None:
    """P5, R1: the active one is killed; its successor is stopped past its lease, then wakes."""
    machine.lockd()
    active = machine.scheduler()
    _until(lambda: machine.succeeded() >= 2, machine)
    standby = machine.scheduler()
    _until(lambda: machine.log().count("serving scope") == 2, machine)
    active.kill()
    active.wait()
    before = machine.succeeded()
    _until(lambda: machine.succeeded() >= before + 3, machine)

    third = machine.scheduler()
    _until(lambda: machine.log().count("serving scope") == 3, machine)
    os.kill(standby.pid, signal.SIGSTOP)
    before = machine.succeeded()
    _until(lambda: machine.succeeded() >= before + 3, machine)
    os.kill(standby.pid, signal.SIGCONT)
    _until(lambda: "stepping down" in machine.log() or "seat lost" in machine.log(), machine)
    before = machine.succeeded()
    _until(lambda: machine.succeeded() >= before + 2, machine)

    third.terminate()
    standby.terminate()
    assert (third.wait(PATIENCE), standby.wait(PATIENCE)) == (0, 0)
    runs = machine.runs()
    fires = sorted(run["fire_time"] for run in runs)
    assert len(fires) == len(set(fires))
    first = time.mktime(time.strptime(fires[0][:19], "%Y-%m-%dT%H:%M:%S"))
    last = time.mktime(time.strptime(fires[-1][:19], "%Y-%m-%dT%H:%M:%S"))
    assert last - first == len(fires) - 1, "a second has no row"
    calls = machine.calls()
    assert len(calls) == len(set(calls)), "a fire ran twice"
    # Only the two attempts that were killed or stopped in the middle may be anything else.
    assert sum(run["state"] != "succeeded" for run in runs) <= 2


def test_sigterm_hands_the_office_over_at_once(machine: Machine) -> None:
    machine.lockd()
    active = machine.scheduler()
    _until(lambda: machine.succeeded() >= 1, machine)
    machine.scheduler()
    _until(lambda: machine.log().count("serving scope") == 2, machine)
    active.terminate()
    assert active.wait(PATIENCE) == 0
    left_at = time.monotonic()
    _until(lambda: machine.log().count("active scope") == 2, machine)
    assert time.monotonic() - left_at < 2.5, "it waited for the lease to run out"


def test_a_second_process_on_the_same_file_exits_2_and_says_why(machine: Machine) -> None:
    alone = ("--db", "sqlite:///lockd-scheduler.db")
    machine.scheduler(*alone)
    _until(lambda: "active scope" in machine.log(), machine)
    second = machine.scheduler(*alone)
    assert second.wait(PATIENCE) == 2
    [told] = [line for line in machine.log().splitlines() if line.startswith("Error: ")]
    assert "is served by process" in told
    assert "Traceback" not in machine.log()


def _until(condition: Callable[[], bool], machine: Machine) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, f"waited in vain; the log:\n{machine.log()}"
        time.sleep(0.1)
