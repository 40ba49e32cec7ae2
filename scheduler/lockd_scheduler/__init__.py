"""A scheduler that runs each job once, and writes down every fire, also the ones it skipped.

    cron = Cron("ops")

    @cron.job("0 2 * * *", tz="Europe/Berlin")
    def nightly(run: Run): ...

    $ lockd-scheduler serve jobs.py

Promised: one ledger row for each (schedule, kind, fire time, key), made in the transaction that
claims it, and a stale scheduler changes nothing (SAFETY P5). A job that asks for `at_most_once` is
never started again once an attempt's outcome is unknown; `at_least_once` tries a lost attempt again.
A change of the active process disturbs no running attempt (R1). Effects happen exactly once only if
they are made in `run.fenced_session()`, or are fenced or idempotent themselves: a mail is neither.

Refused: pickled jobs, zones and options that are not known, two processes on one SQLite file without
a lock service to choose between them.

Start reading at `planner`, `runs` and `tenure`, which are pure and decide; `ledger` and `attempts`
are the transactions that carry it out, `service` turns them, `cron` is what a user sees.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lockd_scheduler.cron import Cron
    from lockd_scheduler.errors import (
        AttemptFenced,
        BadSchedule,
        ForeignOffice,
        OfficeTaken,
        RunCancelled,
        RunTimedOut,
        SchedulerError,
    )
    from lockd_scheduler.handle import Run

__all__ = [
    "AttemptFenced",
    "BadSchedule",
    "Cron",
    "ForeignOffice",
    "OfficeTaken",
    "Run",
    "RunCancelled",
    "RunTimedOut",
    "SchedulerError",
]


def __getattr__(name: str) -> Any:
    # Loaded when asked for, so that the command can say in one line which extra is missing.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = {"Cron": "cron", "Run": "handle"}.get(name, "errors")
    return getattr(import_module(f"{__name__}.{home}"), name)
