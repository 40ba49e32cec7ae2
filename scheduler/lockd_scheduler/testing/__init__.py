"""Tests of schedules without sleeping: a clock to set and turn, real functions, a real ledger.

    with cron.clock("2026-03-28 23:59 Europe/Berlin") as clock:
        clock.run_until("+2d")
        assert nightly.fires == [moment("2026-03-29 02:30 Europe/Berlin"), ...]

`clock` is one scheduler process on a private SQLite file (or on an engine that you give), turned by hand:
it jumps from one due moment to the next and calls the jobs. What it does is done by the code that
serves, so overlap, missed fires, retries with their pauses, time-outs and cancels are those of
production. `chaos` kills it at each of the places where a scheduler may die and tells what every job's
`delivery` makes of that.

As a fixture:

    @pytest.fixture
    def clock():
        with cron.clock("2026-06-01 12:00 UTC") as clock:
            yield clock

Start reading at `clock`; `hands` has a process without threads of its own, `strands` the attempts that
wait for the clock, `chaos` the deaths.
"""

from lockd_scheduler.testing.chaos import Hole, Report, Verdict
from lockd_scheduler.testing.clock import TurnedClock
from lockd_scheduler.testing.moments import moment

__all__ = ["Hole", "Report", "TurnedClock", "Verdict", "moment"]
