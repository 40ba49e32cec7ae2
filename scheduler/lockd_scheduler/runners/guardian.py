"""Stands between the service and a job's processes, and ends when none of them is left.

    python -I -S guardian.py '{"command": [...], "cwd": null, "report": 5, "pass": [], "grace": 5, ...}'

The command runs in a session of its own. Processes that leave it, or whose parents have ended, become
children of this one (PR_SET_CHILD_SUBREAPER), so that on Linux nothing of the job is overlooked. Elsewhere
only the command's process group is watched.

Standard input says when to end it all: a line, or its end, since the service has then gone. TERM comes
first, KILL after `grace` seconds. After the command has ended by itself, what it left behind has `linger`
seconds. The file descriptor `report` is told, one JSON object a line: started, refused, exited, left, gone.
Runs as a script: it imports nothing of ours, and no package.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
KILL_AGAIN_SECONDS = 0.1
IS_LINUX = sys.platform == "linux"


class Guardian:
    """One command and everything that it starts."""

    def __init__(self, words: dict) -> None:  # type: ignore[type-arg]
        self.report_to: int = words["report"]
        self.grace: float = words["grace"]
        self.linger: float = words["linger"]
        self.is_stopping = False
        self.is_told = False
        """The service has said so, or has gone."""
        self.kill_at: float | None = None
        self.stop_at: float | None = None
        self.exited: int | None = None
        self.wake, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        signal.set_wakeup_fd(self._waker)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        self.prctl = ctypes.CDLL(None).prctl if IS_LINUX else None
        if self.prctl is not None:
            self.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.pid = self._start(words)

    def _start(self, words: dict) -> int:  # type: ignore[type-arg]
        me = os.getpid()

        def before_exec() -> None:
            # This process may be killed; then at least the command itself ends with it.
            if self.prctl is not None:
                self.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                if os.getppid() != me:
                    os.kill(os.getpid(), signal.SIGKILL)

        child = subprocess.Popen(  # noqa: S603 - to run commands is what a scheduler is for
            words["command"],
            cwd=words["cwd"],
            stdin=subprocess.DEVNULL,
            pass_fds=words["pass"],
            start_new_session=True,
            preexec_fn=before_exec,  # noqa: PLW1509 - this process has one thread
        )
        child.returncode = 0  # it is waited for below, together with those it leaves behind
        return child.pid

    def tell(self, **words: object) -> None:
        with suppress(BrokenPipeError):
            os.write(self.report_to, json.dumps(words).encode() + b"\n")

    def watch(self) -> None:
        """Return when no process of the job is left."""
        service = [sys.stdin.fileno()]
        while not self.is_empty():
            ready, _, _ = select.select([self.wake, *service], [], [], self._pause())
            if self.wake in ready and set(os.read(self.wake, 4096)) - {signal.SIGCHLD}:
                self.is_told = True
            if service and service[0] in ready:
                self.is_told = True
                if not os.read(service[0], 4096):
                    service.clear()
            self._act()

    def _pause(self) -> float | None:
        moments = [moment for moment in (self.kill_at, self.stop_at) if moment is not None]
        if self.prctl is None and self.exited is not None:
            moments.append(time.monotonic() + KILL_AGAIN_SECONDS)
        return max(min(moments) - time.monotonic(), 0.0) if moments else None

    def _act(self) -> None:
        now = time.monotonic()
        if self.stop_at is not None and now >= self.stop_at:
            self.stop_at = None
            self.tell(left=max(len(descendants()), 1))
            self.is_told = True
        if self.is_told and not self.is_stopping:
            self.is_stopping = True
            self.stop_at = None
            self.kill_at = now + self.grace
            self.signal_all(signal.SIGTERM)
            self.signal_all(signal.SIGCONT)  # one that is stopped would not hear the other
        elif self.kill_at is not None and now >= self.kill_at:
            self.kill_at = now + KILL_AGAIN_SECONDS
            self.signal_all(signal.SIGKILL)

    def is_empty(self) -> bool:
        """Take leave of those that have ended; whether none is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return self.prctl is not None or not self._has_group()
            if pid == 0:
                return False
            if pid == self.pid:
                self.exited = status
                self.tell(exited=os.waitstatus_to_exitcode(status), stopped=self.is_stopping)
                if not self.is_stopping:
                    self.stop_at = time.monotonic() + self.linger

    def _has_group(self) -> bool:
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def signal_all(self, number: int) -> None:
        """Send it once to each process: those of the command's group, and those that have left it."""
        theirs = descendants()
        if self.prctl is None or self.pid in theirs.values():  # else the group's number may be another's
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)
        for pid, group in theirs.items():
            if group != self.pid:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)


def descendants() -> dict[int, int]:
    """The process groups of all that descend from this process, by process id. Empty but on Linux."""
    children: dict[int, list[tuple[int, int]]] = {}
    for name in os.listdir("/proc") if IS_LINUX else ():  # noqa: PTH208 - no package
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:  # noqa: PTH123 - no package
                _, parent, its_group = stat.read().rpartition(b")")[2].split()[:3]
                children.setdefault(int(parent), []).append((int(name), int(its_group)))
    found: dict[int, int] = {}
    ahead = [os.getpid()]
    while ahead:
        for pid, group in children.get(ahead.pop(), ()):
            found[pid] = group
            ahead.append(pid)
    return found


def main(words: dict) -> None:  # type: ignore[type-arg]
    try:
        guardian = Guardian(words)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        os.write(words["report"], json.dumps({"refused": str(error)}).encode() + b"\n")
        return
    guardian.tell(started=guardian.pid)
    # What the job says goes past this process; its end must show.
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    guardian.watch()
    guardian.tell(gone=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
