"""What happens as the state's clock moves on: timers fire, answers are forgotten (SAFETY T1, G3)."""

from lockd.locks.deadlines import DelayOver, HoldOver, OrphanOver, QuietOver, WaitOver
from lockd.locks.refusals import timed_out
from lockd.locks.revoking import hold_over
from lockd.locks.state import LockState


def advance_clock(state: LockState, stamp_ms: int) -> None:
    """Move the clock to `stamp_ms`, never back; forget old answers; fire what is due, in order."""
    state.clock_ms = max(state.clock_ms, stamp_ms)
    state.private_answers.forget_old(state.clock_ms)
    while (due := state.timers.take_due(state.clock_ms)) is not None:
        match due:
            case WaitOver(request):
                state.end_request(request, timed_out(state, request))
            case OrphanOver(request):
                state.end_orphan(request)
            case HoldOver(request):
                hold_over(state, request)
            case DelayOver(lock):
                state.end_delay(lock)
            case QuietOver():
                state.end_quiet_period()
