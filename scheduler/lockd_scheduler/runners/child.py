"""The interpreter in which a job's function runs alone: finds it, calls it, leaves what it came to."""

import asyncio
import importlib
import inspect
import json
import os
import runpy
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from lockd_scheduler.attempts import Attempts, Started
from lockd_scheduler.bounds import Bounds, Stop
from lockd_scheduler.clocks import LedgerClock
from lockd_scheduler.engines import open_engine
from lockd_scheduler.errors import AttemptFenced, RunCancelled, RunTimedOut
from lockd_scheduler.finding import finding_jobs
from lockd_scheduler.handle import Run
from lockd_scheduler.jobs import Job, takes_run
from lockd_scheduler.ledger import Ledger
from lockd_scheduler.mandates import Claimed
from lockd_scheduler.policies import Policy

REASON_SECONDS = 1.0
"""How long the reason of a stop may take after the signal for it."""


class _FunctionGoneError(Exception):
    """What is to be called is not there."""


class StandardOutput:
    """Where `run.log` goes here: standard output is captured, and so its place among prints is kept."""

    def write(self, stream: str, text: str) -> None:  # noqa: ARG002 - there is one stream
        """Say it at once."""
        sys.stdout.write(text)
        sys.stdout.flush()


def main(words: dict[str, Any]) -> None:
    """Call the function that the words name; exit status 0 once it has returned."""
    bounds = Bounds()
    threading.Thread(target=_hear_reason, args=(words["reason"], bounds), daemon=True).start()
    left: dict[str, Any] = {"returned": True}
    try:
        function = _find(words)
        run = _run(words, bounds)
        signal.signal(signal.SIGTERM, lambda *_: _on_term(bounds, run))
        _call(function, run, words["claimed"]["args"])
    except (RunCancelled, RunTimedOut, AttemptFenced) as error:
        left = {"stopped": bounds.reason is not None, "error": str(error)}
    except _FunctionGoneError as error:
        left = {"gone": True, "error": str(error)}
        print(error, file=sys.stderr)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a job raises is its result
        left = {"error": "".join(traceback.format_exception(error, limit=-20))}
        traceback.print_exception(error)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is over; what is left is to say so
    sys.stdout.flush()
    os.write(words["exchange"], json.dumps(left).encode())
    sys.exit(0 if "returned" in left else 1)


def _hear_reason(descriptor: int, bounds: Bounds) -> None:
    text = os.read(descriptor, 64).decode().strip()
    if text:
        bounds.stop(Stop(text))


def _on_term(bounds: Bounds, run: Run) -> None:
    bounds.wait(REASON_SECONDS)
    bounds.stop(Stop.CANCELLED)  # unless the reason has come: somebody else's signal
    run.check()


def _call(function: Callable[..., Any], run: Run, args: dict[str, Any]) -> None:
    positional = (run,) if takes_run(function) else ()
    if inspect.iscoroutinefunction(function):
        asyncio.run(function(*positional, **args))
    else:
        function(*positional, **args)


def _find(words: dict[str, Any]) -> Callable[..., Any]:
    module, name, file = words["module"], words["name"], words["file"]
    with finding_jobs(file or module):
        if file is not None:
            found: Any = runpy.run_path(file, run_name=Path(file).stem)
            found = found.get(name.partition(".")[0])
            rest = name.split(".")[1:]
        else:
            found, rest = _import(module), name.split(".")
    for part in rest:
        found = getattr(found, part, None)
    function = found.function if isinstance(found, Job) else found
    if not callable(function):
        raise _FunctionGoneError(f"{file or module} has no function {name!r}")
    result: Callable[..., Any] = function
    return result


def _import(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Another one that this one imports is an error of its own.
        if error.name is not None and (module == error.name or module.startswith(error.name + ".")):
            raise _FunctionGoneError(f"there is no module {module!r}") from None
        raise


def _run(words: dict[str, Any], bounds: Bounds) -> Run:
    engine = open_engine(words["db"])  # connects when the job writes in it
    return Run(
        scope=words["scope"],
        started=Started(Claimed.from_json(words["claimed"]), words["nonce"]),
        policy=Policy.from_json(words["policy"]),
        attempts=Attempts(engine),
        now=LedgerClock(Ledger(engine, words["scope"]).read_time).now,
        bounds=bounds,
        output=StandardOutput(),
    )
