"""The command line in the test's own process, against one node."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from lockd.cli import main
from tests.processes import LockdProcess, clean_environment, lockd_command


class Lockd:
    """`lockd("ls", "--json")` runs a command to its end."""

    def __init__(self, node: LockdProcess, capsys: pytest.CaptureFixture[str]) -> None:
        self._node = node
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        command, *rest = arguments
        status = main([command, "--endpoints", self._node.endpoint, *rest])
        shown = self._capsys.readouterr()
        assert "Traceback" not in shown.err
        return status, shown.out, shown.err

    def json(self, *arguments: str, status: int = 0) -> Any:
        """The one document on standard output, or on standard error when there is none."""
        found, out, err = self(*arguments, "--json")
        assert found == status, err
        return json.loads(out or err)


class Running:
    """A command that goes on until it is stopped, as a process of its own."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def line(self) -> str:
        """The next line that it prints, as soon as it is there."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        return line.rstrip("\n")

    def document(self) -> Any:
        return json.loads(self.line())

    def ends(self, timeout: float = 30.0) -> int:
        """Wait for its end. Returns its exit status."""
        return self.process.wait(timeout)


@contextlib.contextmanager
def running(node: LockdProcess, *arguments: str) -> Iterator[Running]:
    """`lockd ...` on its way. It is killed at the end, if it still runs."""
    command, *rest = arguments
    with subprocess.Popen(
        lockd_command(command, "--endpoints", node.endpoint, *rest),
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Running(process)
        finally:
            process.kill()
