"""A Python function in an interpreter of its own, which can be killed and takes no part of ours with it.

The interpreter is started afresh and imports `module:function`; arguments are JSON, nothing is pickled. It
is told what it is through an unnamed file on a descriptor it inherits, and leaves there what it came to.
"""

import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from lockd_scheduler.bounds import ENDS_AS, Bounds, Stop
from lockd_scheduler.runners import Outcome, Work
from lockd_scheduler.runners.children import Ended, environment, run_child
from lockd_scheduler.runners.shell import failure_text, outcome_unless_ended
from lockd_scheduler.runs import State

BOOT = (
    "import json, os, sys\n"
    "words = json.loads(os.read(int(sys.argv[1]), 1 << 30))\n"
    "sys.path[:] = words['path']\n"
    "from lockd_scheduler.runners.child import main\n"
    "main(words)\n"
)


def execute(work: Work) -> Outcome:
    """Run the function there. It has succeeded when it returned, also if it had been told to end."""
    with _reason_told(work.bounds) as reason_from, tempfile.TemporaryFile() as exchange:
        exchange.write(json.dumps(_words(work, exchange.fileno(), reason_from)).encode())
        length = exchange.tell()
        exchange.seek(0)
        command = [sys.executable, "-c", BOOT, str(exchange.fileno())]
        descriptors = [exchange.fileno(), reason_from]
        ended = run_child(work, command, env=environment(work, {}), pass_fds=descriptors)
        return _outcome(work, ended, _left(exchange, length))


@contextmanager
def _reason_told(bounds: Bounds) -> Iterator[int]:
    """A descriptor from which the reason of a stop can be read: the signal for it does not say."""
    reason_from, reason_to = os.pipe()
    telling, is_over = threading.Lock(), threading.Event()

    def tell(reason: Stop) -> None:
        with telling:
            if not is_over.is_set():
                os.write(reason_to, reason.value.encode())

    bounds.on_stop(tell)
    try:
        yield reason_from
    finally:
        with telling:
            is_over.set()
            os.close(reason_to)
        os.close(reason_from)


def _outcome(work: Work, ended: Ended, left: dict[str, Any]) -> Outcome:
    if left.get("returned"):
        return Outcome(State.SUCCEEDED, exit_status=ended.status)
    unfinished = outcome_unless_ended(work, ended)
    if unfinished is not None:
        return unfinished
    error = left.get("error") or failure_text(ended, "") + ", without a result"
    reason = work.bounds.reason
    is_stopped = reason is not None and left.get("stopped")
    end = ENDS_AS[reason] if reason and is_stopped else State.FAILED
    # A decorated one is the code's: it is parked when the code is next served without it.
    is_gone = bool(left.get("gone")) and work.job.function is None
    return Outcome(end, error, ended.status, is_gone)


def _left(exchange: IO[bytes], start: int) -> dict[str, Any]:
    """What the interpreter wrote as its last act; nothing if it did not get so far."""
    data = os.pread(exchange.fileno(), 1 << 24, start)
    try:
        left: dict[str, Any] = json.loads(data)
    except ValueError:
        return {}
    return left


def _words(work: Work, exchange: int, reason_from: int) -> dict[str, Any]:
    return {
        "path": sys.path,
        **_reference(work),
        "exchange": exchange,
        "reason": reason_from,
        "scope": work.run.scope,
        "claimed": work.started.claimed.to_json(),
        "nonce": work.started.nonce,
        "policy": work.job.spec.policy.to_json(),
        "db": work.db,
    }


def _reference(work: Work) -> dict[str, str | None]:
    function: Callable[..., Any] | None = work.job.function
    if function is None:
        module, _, name = work.job.spec.runner["function"].partition(":")
        return {"module": module, "name": name, "file": None}
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None) if function.__module__ == "__main__" else None
    return {"module": function.__module__, "name": function.__qualname__, "file": file}
