"""For tests of what runs outside of this process: run in the background, wait for what is said, look."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lockd_scheduler.outputs import OutputRow, read_output
from tests.scheduler.harness import Process, World

PATIENCE = 40.0


@contextmanager
def underway(process: Process) -> Iterator[threading.Thread]:
    """The process carries all that it has claimed, beside the test; it has ended on leaving."""
    thread = threading.Thread(target=process.run_all)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(PATIENCE)
        if thread.is_alive():
            process.worker.abandoned.set()
            thread.join(PATIENCE)
            raise AssertionError("an attempt did not end")


def until(true: Callable[[], object], what: str = "what was waited for") -> None:
    """Ask until it is so."""
    give_up = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < give_up, f"{what} did not come"
        time.sleep(0.01)


def said(world: World, stream: str) -> str:
    """What the first attempt has said on that stream, as the ledger has it."""
    return "".join(row.text for row in rows(world) if row.stream == stream)


def rows(world: World, *, after: int = 0) -> list[OutputRow]:
    """What the first attempt has said."""
    return read_output(world.engine, world.attempts()[0].id, after=after)


def ran(world: World) -> Process:
    """A process in office that has run what was due at once."""
    process = world.process().elected(1)
    process.turn()
    process.run_all()
    return process


def pid_in(file: Path) -> int:
    """The process id that a command wrote there, once it is there."""
    until(lambda: file.exists() and file.read_text().endswith("\n"), f"{file.name}")
    return int(file.read_text())


def is_alive(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
