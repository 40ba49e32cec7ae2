"""A process that writes to a fenced directory, and dies or stops between two calls to the operating system.

    python file_writer.py crash DIRECTORY       one child for each call: it is killed before that one
    python file_writer.py stop DIRECTORY        stops itself (SIGSTOP) in a block, before the first rename
    python file_writer.py add DIRECTORY TOKEN   adds 1 to a number in a file, twenty times, with an install

Tests of files start it; SIGKILL leaves a process no time to tidy up.
"""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from lockd.errors import StaleToken
from lockd_storage import NotInstalled
from lockd_storage.filesystem import FileFence
from tests.storage.leases import GivenLease

WATCHED = ("open", "replace", "fsync", "mkdir", "unlink", "pwrite")


def watch(reached: Callable[[str], None]) -> None:
    """Have `reached` called with the name of each call that changes the disk, before it."""
    for name in WATCHED:
        real = getattr(os, name)

        def call(*arguments: Any, _name: str = name, _real: Any = real, **options: Any) -> Any:
            reached(_name)
            return _real(*arguments, **options)

        setattr(os, name, call)


def old_content(folder: Path) -> None:
    """What the directory holds when the writer begins: 33 is installed, and has written a 1 to both files."""
    fence = FileFence(folder)
    fence.install(GivenLease(33))
    with fence.write(GivenLease(33)) as files:
        for name in ("a", "b", "gone"):
            files.write(name, b"1")


def change(folder: Path) -> None:
    """What it does then: 34 installs, and writes a 2 to both in one block."""
    fence = FileFence(folder)
    fence.install(GivenLease(34))
    with fence.write(GivenLease(34)) as files:
        files.write("a", b"2")
        files.write("b", b"2")
        files.write("folder/c", b"2")
        files.delete("gone")


def crash(folder: Path) -> None:
    """Print, for each call at which a child was killed, its number and name; the children's folders stay."""
    number = 0
    while True:
        number += 1
        place = folder / f"{number:03}"
        place.mkdir()
        old_content(place)
        child = os.fork()
        if child == 0:
            die_before(number)
            change(place)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0
            return


def die_before(number: int) -> None:
    """Have this process killed before its watched call of that number, which it prints."""
    calls = count(1)

    def reached(name: str) -> None:
        if next(calls) == number:
            os.write(1, f"{number:03} {name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    watch(reached)


def stop(folder: Path) -> None:
    stopped: list[bool] = []

    def reached(name: str) -> None:
        if name == "replace" and not stopped:
            stopped.append(True)
            os.kill(os.getpid(), signal.SIGSTOP)

    with FileFence(folder).write(GivenLease(33)) as files:
        files.write("a", b"33")
        watch(reached)


def add(folder: Path, token: int) -> None:
    """Each holder adds to the number that it reads; print how often it was not refused."""
    fence, lease = FileFence(folder), GivenLease(token)
    done = 0
    with suppress(StaleToken):
        fence.install(lease, timeout=30)
        for _ in range(20):
            with suppress(NotInstalled), fence.write(lease) as files:
                number = int((folder / "number").read_text())
                files.write("number", str(number + 1).encode())
            done += 1
    sys.stdout.write(f"{done}\n")


if __name__ == "__main__":
    place = Path(sys.argv[2])
    if sys.argv[1] == "add":
        add(place, int(sys.argv[3]))
    else:
        {"crash": crash, "stop": stop}[sys.argv[1]](place)
