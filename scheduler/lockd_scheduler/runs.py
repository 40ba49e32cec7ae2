"""The states of runs and attempts, the moves between them, and what follows when an attempt ends.

    run      (new) -> claimed -> running -> succeeded | failed | timed_out | cancelled | lost
             (new) -> skipped    running -> claimed        a further attempt is due
                      claimed -> cancelled                 it had not begun

    attempt  (new) -> claimed -> running -> succeeded | failed | timed_out | cancelled | lost
                      claimed -> cancelled                 it had not begun

A claimed run may wait: for its turn behind another run, for its jitter, for the pause before a retry.

claimed -> running is committed before the job's first line runs (SAFETY R3), so a claimed attempt has
had no effect and may be claimed again. A run in a final state never moves: the result of an
attempt that was fenced is kept beside the attempt and moves nothing.
"""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from lockd_scheduler.policies import Delivery, Policy


class State(StrEnum):
    """Where a run or an attempt stands."""

    CLAIMED = "claimed"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    LOST = "lost"
    SKIPPED = "skipped"


class SkipReason(StrEnum):
    """Why a fire has a row but no attempt."""

    OVERLAP = "overlap"
    """An earlier run of the schedule had not ended."""
    MISSED = "missed"
    """Nobody was there at its time, and the policy does not run it later."""
    WINDOW = "window"
    """It would have been caught up, but was older than `within`."""
    PAUSED = "paused"
    """Somebody had paused the schedule."""
    REPLACED = "replaced"
    """A later fire replaced it before it began."""


ENDS = frozenset({State.SUCCEEDED, State.FAILED, State.TIMED_OUT, State.CANCELLED, State.LOST})
LIVE = frozenset({State.CLAIMED, State.RUNNING})

ATTEMPT_MOVES: dict[State | None, frozenset[State]] = {
    None: frozenset({State.CLAIMED}),
    State.CLAIMED: frozenset({State.RUNNING, State.CANCELLED}),
    State.RUNNING: ENDS,
}
RUN_MOVES: dict[State | None, frozenset[State]] = {
    None: frozenset({State.CLAIMED, State.SKIPPED}),
    State.CLAIMED: frozenset({State.RUNNING, State.CANCELLED}),
    State.RUNNING: ENDS | {State.CLAIMED},
}


@dataclass(frozen=True, slots=True)
class RunMove:
    """Where a run goes when one of its attempts ends; `retry_in` is set when another follows."""

    state: State
    retry_in: timedelta | None = None

    def __post_init__(self) -> None:
        assert self.state in RUN_MOVES[State.RUNNING]
        assert (self.retry_in is not None) == (self.state is State.CLAIMED)


def after_attempt(end: State, policy: Policy, *, attempt_number: int) -> RunMove:
    """Decide what the run does when attempt `attempt_number` (1, 2, ...) ended as `end`.

    A known failure, which a time-out is once the attempt has ended, is retried as often as the job
    asks. A lost attempt, whose outcome is not known,
    is followed by another only if the job asks for at_least_once, and then always.
    """
    assert end in ENDS
    if end in (State.FAILED, State.TIMED_OUT) and attempt_number <= policy.retries:
        return RunMove(State.CLAIMED, policy.backoff.delay(attempt_number))
    if end is State.LOST and policy.delivery is Delivery.AT_LEAST_ONCE:
        return RunMove(State.CLAIMED, policy.backoff.delay(attempt_number))
    return RunMove(end)
