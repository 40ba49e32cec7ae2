"""How an attempt's work is done, other than by a function on a thread: processes, shell lines, HTTP calls.

An executor is given an attempt whose start is committed, and returns once its work has provably ended
(SAFETY R5). For a process that means that nothing is left of it, its grandchildren included: a guardian
process stands between it and the service, adopts what the job's processes leave behind, and ends all of it
on a stop, after the command's own end, and when the service is gone, by kill -9 too. What a job has started
elsewhere, by systemd, Docker or at, is not its process and goes on.

An HTTP call can't be ended from here. Once its request is under way and no answer came, its outcome is
not known, and the attempt is lost: at_most_once does not call again, at_least_once does.

`lockd_scheduler.declared` reads what a job says; `children` runs a command under `guardian`; `shell`,
`process` and `http_call` are the executors.
"""

from dataclasses import dataclass
from importlib import import_module
from threading import Event
from typing import Any, Protocol

from lockd_scheduler.attempts import Started
from lockd_scheduler.bounds import Bounds
from lockd_scheduler.capture import Output
from lockd_scheduler.handle import Run
from lockd_scheduler.jobs import Job
from lockd_scheduler.runs import ENDS, State


@dataclass(frozen=True)
class Work:
    """An attempt that has started, and what is known about it."""

    job: Job[..., Any]
    started: Started
    run: Run
    bounds: Bounds
    output: Output
    db: str
    """The URL of the ledger's database."""
    abandoned: Event
    """The service leaves what is under way behind: end it, nobody asks for its result."""


@dataclass(frozen=True)
class Outcome:
    """What the work came to."""

    end: State
    error: str | None = None
    exit_status: int | None = None
    """Of a process; 128 and the signal's number if a signal ended it."""
    is_gone: bool = False
    """There was no function to call, where a file had named one."""

    def __post_init__(self) -> None:
        assert self.end in ENDS


class Executor(Protocol):
    """Does the work of attempts; may be used by many threads at once."""

    def __call__(self, work: Work) -> Outcome:
        """Do it to its end, or until `work.bounds` says stop; on return nothing of it goes on here.

        Raises bounds.AbandonedError once `work.abandoned` is set and the work was told to end.
        """


_HOMES = {"process": "process", "shell": "shell", "http": "http_call"}


def executor_of(kind: str) -> Executor | None:
    """What runs jobs of that kind; None for functions, which the worker calls itself."""
    home = _HOMES.get(kind)
    if home is None:
        return None
    execute: Executor = import_module(f"{__name__}.{home}").execute
    return execute
