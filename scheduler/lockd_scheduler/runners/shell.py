"""A command line, run by /bin/sh in a process group of its own."""

import signal
from contextlib import suppress

from lockd_scheduler.bounds import ENDS_AS
from lockd_scheduler.runners import Outcome, Work
from lockd_scheduler.runners.children import Ended, environment, run_child
from lockd_scheduler.runs import State


def execute(work: Work) -> Outcome:
    """Run the line. It succeeds by exit status 0, unless it was told to end: then that counts."""
    runner = work.job.spec.runner
    command = ["/bin/sh", "-c", runner["command"]]
    env = environment(work, runner.get("env", {}))
    ended = run_child(work, command, env=env, cwd=runner.get("cwd"))
    unfinished = outcome_unless_ended(work, ended)
    if unfinished is not None:
        return unfinished
    if ended.status == 0:
        return Outcome(State.SUCCEEDED, exit_status=0)
    return Outcome(State.FAILED, failure_text(ended, work.output.last_line), ended.status)


def outcome_unless_ended(work: Work, ended: Ended) -> Outcome | None:
    """What a command came to that did not end by itself; None if it did."""
    if ended.refused is not None:
        return Outcome(State.FAILED, f"it can't be started: {ended.refused}")
    if ended.is_unknown:
        text = "its guardian process was killed: whether it did its work is not known"
        return Outcome(State.LOST, text, ended.status)
    reason = work.bounds.reason
    if ended.was_stopped and reason is not None:
        return Outcome(
            ENDS_AS[reason], f"{reason.value}: told to end, {failure_text(ended, '')}", ended.status
        )
    return None


def failure_text(ended: Ended, last_line: str) -> str:
    """How it ended, in one line, with the last that it said."""
    status = ended.status
    text = f"exit status {status}"
    if status is not None and status > 128:
        with suppress(ValueError):
            text = f"ended by {signal.Signals(status - 128).name}"
    return f"{text}: {last_line}" if last_line else text
