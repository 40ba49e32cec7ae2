"""`cron.clock`: what a user's tests see of their own jobs, without sleeping."""

import time
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from lockd_scheduler import BadSchedule, Cron, Run, RunTimedOut, SchedulerError
from lockd_scheduler.reports import RunLine
from lockd_scheduler.testing import moment
from tests.scheduler.harness import MINUTE, NOON, SECOND


@pytest.fixture
def cron() -> Cron:
    return Cron("ops")


def states(lines: list[RunLine]) -> list[str]:
    return [line.state if line.reason is None else f"{line.state}:{line.reason}" for line in lines]


def test_a_nightly_job_fires_once_on_each_night_also_where_clocks_change(cron: Cron) -> None:
    regions = []

    @cron.job("30 2 * * *", tz="Europe/Berlin", args={"region": "eu"})
    def nightly(run: Run, *, region: str) -> None:
        regions.append((run.fire_at, region))

    with cron.clock("2026-03-28 23:59 Europe/Berlin") as clock:
        clock.run_until("+2d")
        assert nightly.fires == [
            moment("2026-03-29 03:00 Europe/Berlin"),
            moment("2026-03-30 02:30 Europe/Berlin"),
        ]
        assert regions == [(fire, "eu") for fire in nightly.fires]
        assert clock.now == moment("2026-03-31 00:59 Europe/Berlin")
    with pytest.raises(SchedulerError, match=r"cron\.clock"):
        _ = nightly.fires


def test_a_failure_is_tried_again_after_its_backoff(cron: Cron) -> None:
    begun = []

    @cron.at(NOON, retries=3, backoff="1m..1h", name="shaky")
    def shaky(run: Run) -> None:
        begun.append(clock.now)
        if run.attempt < 3:
            raise ValueError("not yet")

    with cron.clock(NOON - SECOND) as clock:
        clock.turn("1h")
        assert begun == [NOON, NOON + MINUTE, NOON + 3 * MINUTE]
        [line] = clock.runs(shaky)
        assert (line.state, line.attempts, shaky.fires) == ("succeeded", 3, [NOON])


def test_overlap_and_time_out_follow_the_clock(cron: Cron) -> None:
    stopped = []

    @cron.every("1m", name="slow", timeout="150s")
    def slow(run: Run) -> None:
        try:
            run.wait(3600)
        except RunTimedOut:
            stopped.append(clock.now)
            raise

    with cron.clock(NOON) as clock:
        clock.run_until(NOON + 3 * MINUTE)
        assert states(clock.runs(slow)) == ["timed_out", "skipped:overlap", "skipped:overlap", "running"]
        assert stopped == [NOON + 150 * SECOND]


def test_a_run_lasts_as_long_as_the_test_says(cron: Cron) -> None:
    @cron.every("1m", name="report", overlap="queue_one")
    async def report() -> None: ...

    with cron.clock(NOON + SECOND) as clock:
        clock.takes(report, "90s")
        clock.run_until(NOON + 2 * MINUTE)
        assert states(clock.runs(report)) == ["running", "claimed"]
        clock.turn("30s")
        assert states(clock.runs(report)) == ["succeeded", "running"]


def test_a_wait_of_one_job_lets_the_others_go_on(cron: Cron) -> None:
    told = []

    @cron.at(NOON, name="long")
    def long(run: Run) -> None:
        run.wait(90)
        told.append(("long", clock.now))

    @cron.every("1m", name="tick")
    def tick() -> None:
        told.append(("tick", clock.now))

    with cron.clock(NOON - SECOND) as clock:
        clock.turn("2m1s")
        assert told == [
            ("tick", NOON), ("tick", NOON + MINUTE), ("long", NOON + 90 * SECOND), ("tick", NOON + 2 * MINUTE)
        ]  # fmt: skip


def test_what_people_ask_happens_at_once(cron: Cron) -> None:
    given = []

    @cron.job("@daily", name="export", args={"region": "eu"})
    def export(run: Run, *, region: str) -> None:
        given.append(region)
        run.wait(60)

    with cron.clock(NOON) as clock:
        run_id = clock.start(export, region="us")
        assert given == ["us"]
        assert clock.start(export, region="us") == run_id, "the same key is the same run"
        clock.cancel(run_id)
        assert states(clock.runs(export)) == ["cancelled"]
        clock.asking.pause("export", until=NOON + timedelta(days=2), now=clock.now)
        clock.turn("3d")
        assert states(clock.runs(export)) == ["cancelled", "skipped:paused", "succeeded"]


def test_a_fenced_session_writes_beside_the_ledger(cron: Cron) -> None:
    @cron.every("1h", name="effect")
    def effect(run: Run) -> None:
        with run.fenced_session() as session:
            session.execute(text("INSERT INTO effects VALUES (:key)"), {"key": run.key})

    with cron.clock("2026-06-01 12:30 UTC") as clock:
        with clock.engine.begin() as connection:
            connection.execute(text("CREATE TABLE effects (fire TEXT)"))
        clock.turn("3h")
        with clock.engine.connect() as connection:
            keys = connection.scalars(text("SELECT fire FROM effects")).all()
        assert [f"ops/effect/scheduled/2026-06-01T{hour}:00:00Z" for hour in (13, 14, 15)] == keys


def test_a_year_takes_seconds(cron: Cron) -> None:
    @cron.job("0 2 * * *", tz="Europe/Berlin", name="nightly")
    def nightly() -> None: ...

    began_at = time.monotonic()
    with cron.clock("2026-01-01 00:00 Europe/Berlin") as clock:
        clock.run_until("2027-01-01 00:00 Europe/Berlin")
        assert len(nightly.fires) == 365
    assert time.monotonic() - began_at < 20


@pytest.mark.parametrize(
    ("start", "wrong"),
    [
        ("2026-03-28 23:59", "needs one zone|unknown time zone|not a moment"),
        ("2026-03-29 02:30 Europe/Berlin", "never show"),
        ("noon UTC", "not a moment"),
        (datetime(2026, 1, 1), "no zone"),  # noqa: DTZ001
    ],
)
def test_a_moment_that_cannot_be_is_refused(cron: Cron, start: str | datetime, wrong: str) -> None:
    with pytest.raises(BadSchedule, match=wrong):
        cron.clock(start)


def test_the_clock_turns_forward_and_not_inside_of_a_job(cron: Cron) -> None:
    @cron.at(NOON + MINUTE, name="turner")
    def turner() -> None:
        clock.turn("1m")

    with cron.clock(datetime(2026, 6, 1, 12, tzinfo=UTC)) as clock:
        with pytest.raises(BadSchedule, match="forward only"):
            clock.run_until("2026-06-01 11:00 UTC")
        clock.turn("2m")
        [line] = clock.runs(turner)
        assert line.error is not None
        assert "waits with run.wait" in line.error
