"""Functions for the tests of jobs in a process of their own, which import them by name."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from sqlalchemy import text

from lockd_scheduler import Run, RunTimedOut


def tell(run: Run, *, region: str, file: str) -> None:
    """Say what it was given and where it is."""
    print(run.job, run.attempt, run.token, run.key, region)
    run.log(f"logged by {run.id}")
    print("said on stderr", file=sys.stderr)
    Path(file).write_text(f"{os.getpid()}\n")


async def wait_a_little() -> None:
    await asyncio.sleep(0.01)
    print("awaited")


def fail() -> None:
    raise ValueError("no such region")


def leave() -> None:
    os._exit(7)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def write(run: Run) -> None:
    with run.fenced_session() as session:
        session.execute(text("INSERT INTO effects VALUES (:fire)"), {"fire": run.key})


def write_and_crash(run: Run) -> None:
    write(run)
    os.kill(os.getpid(), signal.SIGKILL)


def sleep_on(*, file: str) -> None:
    """Hold on in one call, as one would that hangs; say how it was told to end."""
    Path(file).write_text(f"{os.getpid()}\n")
    try:
        time.sleep(600)
    except RunTimedOut as error:
        print("cleaned up:", error)
        raise


def finish_all_the_same(run: Run, *, file: str) -> None:
    Path(file).write_text(f"{os.getpid()}\n")
    while True:
        try:
            run.wait(600)
        except RunTimedOut:
            return


def busy_and_deaf(*, file: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(file).write_text(f"{os.getpid()}\n")
    while True:
        pass
