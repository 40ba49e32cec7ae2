"""A child process with a process group of its own, and the terminal that it runs in.

The group is what is stopped, not the child alone: a shell script's commands are the work too. A
process that leaves the group on purpose (setsid) is out of reach; the fence is what stops that one.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn, Self

from lockd.cli.exits import ExitStatus, NotExecutedError
from lockd.client import clock

_LOOK_SECONDS: Final = 0.02


class ProcessGroup:
    """A process group, by its number."""

    def __init__(self, group: int) -> None:
        self.group = group

    def send(self, number: int) -> None:
        """Send a signal to the whole group, if there is any of it left."""
        # EPERM: what is left has changed its user, and is not ours to end.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.group, number)

    def stop(self, *, kill_after: float) -> None:
        """Send TERM, and KILL to what is left after so many seconds. On return all of it is gone."""
        kill_at = clock.now() + kill_after
        self.send(signal.SIGTERM)
        self.send(signal.SIGCONT)  # one that stands still can't act on TERM
        is_killed = False
        while not self.is_gone():
            if not is_killed and clock.now() >= kill_at:
                self.send(signal.SIGKILL)
                is_killed = True
            time.sleep(_LOOK_SECONDS)

    def is_gone(self) -> bool:
        """Whether nothing of the group runs any more."""
        try:
            os.killpg(self.group, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        # Zombies count for killpg, and in a container nobody may ever reap them.
        return sys.platform == "linux" and not any(_members(self.group))


class ChildGroup(ProcessGroup):
    """A command in a process group of its own, forked now and begun later, or never.

    So its group is known, can be guarded and has the terminal before the command does anything; and
    this process forks before it starts a thread. Leaving the block before `begin` dismisses it.
    """

    def __init__(self, command: tuple[str, ...]) -> None:
        """Fork. No thread may have been started yet."""
        gate, self._gate = os.pipe()
        self._verdict, verdict = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(self._gate)
            os.close(self._verdict)
            _become(command, gate, verdict)
        os.close(gate)
        os.close(verdict)
        super().__init__(process)
        self._command = command[0]
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(process, process)  # the child does too: whoever comes first

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._gate >= 0:
            os.close(self._gate)
            os.close(self._verdict)
            os.waitpid(self.group, 0)

    def begin(self, variables: Mapping[str, str]) -> None:
        """Execute the command with these variables beside ours. Raises NotExecutedError."""
        with contextlib.suppress(BrokenPipeError), os.fdopen(self._gate, "wb") as gate:
            gate.write(json.dumps(variables).encode())
        self._gate = -1
        with os.fdopen(self._verdict, "rb") as verdict:
            failure = verdict.read()
        if failure:
            os.waitpid(self.group, 0)
            raise NotExecutedError(self._command, int(failure))

    def watch(self, *, on_end: Callable[[int], None], on_stop: Callable[[int], None]) -> None:
        """Once it has begun: tell on another thread when the child is stopped and when it has ended.

        `on_stop` gets the signal (Ctrl-Z is SIGTSTP), `on_end` the exit status as a shell has it:
        128 + n when signal n ended it.
        """

        def wait() -> None:
            while True:
                _, status = os.waitpid(self.group, os.WUNTRACED)
                if not os.WIFSTOPPED(status):
                    break
                on_stop(os.WSTOPSIG(status))
            code = os.waitstatus_to_exitcode(status)
            on_end(128 - code if code < 0 else code)

        threading.Thread(target=wait, name="lockd-child", daemon=True).start()


def _become(command: tuple[str, ...], gate: int, verdict: int) -> NoReturn:
    """In the child: wait for the word, and turn into the command."""
    try:
        os.setpgid(0, 0)
        with os.fdopen(gate, "rb") as words:
            variables = words.read()
        if variables:
            os.environ.update(json.loads(variables))
            for number in (signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)  # Python ignores them
            os.execvp(command[0], command)  # noqa: S606 - it is the user's command
    except OSError as error:
        os.write(verdict, str(error.errno).encode())
    finally:
        os._exit(ExitStatus.INTERNAL)


def _members(group: int) -> Iterator[int]:
    """The processes of a group that are not zombies, from /proc."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        state, _, its_group = stat.rpartition(")")[2].split()[:3]
        if int(its_group) == group and state not in "ZX":
            yield int(entry.name)


class Terminal:
    """The terminal on standard input. While we are its foreground, the child has to be.

    In a background group it could not read the keyboard, and Ctrl-C would not reach it.
    """

    def __init__(self) -> None:
        self._own_group = os.getpgrp()

    @contextlib.contextmanager
    def lent_to(self, child: ChildGroup) -> Iterator[None]:
        """Inside, the child is in the foreground, if we were."""
        self.lend(child)
        try:
            yield
        finally:
            self.take_back(child)

    def lend(self, child: ChildGroup) -> None:
        if self._foreground() == self._own_group:
            self._give(child.group)
            child.send(signal.SIGCONT)

    def take_back(self, child: ChildGroup) -> None:
        if self._foreground() == child.group:
            self._give(self._own_group)

    def on_stopped(self, child: ChildGroup, number: int) -> None:
        """The child was stopped by a signal: from the keyboard, or as it used a terminal that it has not.

        Then this process stops as well, so that the shell is back, and goes on with it. A child that
        somebody else stops stays so: its lease is kept.
        """
        foreground = self._foreground()
        if foreground is None:
            return
        if number in (signal.SIGTTIN, signal.SIGTTOU):
            if foreground in (self._own_group, child.group):
                # It was quicker than `lend`.
                self.lend(child)
                child.send(signal.SIGCONT)
                return
        elif foreground != child.group:
            return
        self.take_back(child)
        os.kill(os.getpid(), signal.SIGSTOP)
        self.lend(child)
        child.send(signal.SIGCONT)

    @staticmethod
    def _give(group: int) -> None:
        # Whoever is not in the foreground and does this gets SIGTTOU.
        before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        try:
            os.tcsetpgrp(sys.stdin.fileno(), group)
        finally:
            signal.signal(signal.SIGTTOU, before)

    def _foreground(self) -> int | None:
        """Which group has the terminal; None without one."""
        try:
            return os.tcgetpgrp(sys.stdin.fileno())
        except (OSError, ValueError):
            return None
