"""What became of every nominal fire; on SQLite, PostgreSQL and MariaDB."""

from collections import Counter
from datetime import datetime, timedelta

import pytest
from sqlalchemy import delete, update

from lockd_scheduler import audit as audits
from lockd_scheduler.asking import Asking
from lockd_scheduler.audit import PENDING, JobAudit, Miss, Verdict, audit
from lockd_scheduler.runs import State
from lockd_scheduler.tables import attempt, run
from tests.scheduler.harness import MINUTE, NOON, SECOND, Process, World

HOUR = timedelta(hours=1)


@pytest.fixture
def process(world: World) -> Process:
    """In office, with an hourly job that does nothing."""

    @world.cron.every("1h", name="tick", overlap="allow", catch_up="all")
    def tick() -> None: ...

    return world.process().elected(1)


def live(world: World, process: Process, *, hours: int) -> None:
    """Turn the clock hour by hour, running what is due."""
    for _ in range(hours):
        process.turn()
        process.run_all()
        world.clock.turn(HOUR)


def judged(world: World, since: datetime = NOON) -> JobAudit:
    [found] = audit(world.engine, since=since, now=world.clock.now())
    return found


def counts(world: World, since: datetime = NOON) -> dict[str, int]:
    return {verdict.value: count for verdict, count in judged(world, since).counts.items()}


def test_p5_a_row_that_was_deleted_is_a_real_miss(world: World, process: Process) -> None:
    live(world, process, hours=6)
    world.clock.turn(-MINUTE * 30)
    assert counts(world) == {"on_time": 6}
    gone = world.runs()[2]
    with world.engine.begin() as connection:
        connection.execute(delete(attempt).where(attempt.c.run_id == gone.id))
        connection.execute(delete(run).where(run.c.id == gone.id))
    found = judged(world)
    assert found.counts == Counter({Verdict.ON_TIME: 5, Verdict.REAL_MISS: 1})
    assert found.misses == [Miss(NOON + HOUR * 2, NOON + HOUR * 2, 1)]
    assert judged(world, NOON + HOUR * 3).counts == Counter({Verdict.ON_TIME: 3})


def test_every_state_has_its_verdict(world: World, process: Process) -> None:
    live(world, process, hours=8)
    world.clock.turn(-MINUTE * 30)
    states = (State.FAILED, State.TIMED_OUT, State.LOST, State.CANCELLED, State.RUNNING, State.CLAIMED)
    rows = world.runs()
    late = rows[6]
    with world.engine.begin() as connection:
        for row, state in zip(rows, states, strict=False):
            connection.execute(update(run).where(run.c.id == row.id).values(state=state))
        started = late.fire_time + MINUTE + SECOND
        connection.execute(update(run).where(run.c.id == late.id).values(started_at=started))
    assert counts(world) == {
        "failed": 2,
        "lost": 1,
        "cancelled": 1,
        "running": 1,
        "pending": 1,
        "late": 1,
        "on_time": 1,
    }


def test_a_range_stands_for_all_its_fires(world: World) -> None:
    @world.cron.every("1m", name="often")
    def often() -> None: ...

    process = world.process().elected(1)
    process.turn()
    process.run_all()
    world.clock.turn(HOUR)
    process.turn()
    process.run_all()
    found = judged(world)
    assert found.reasons == Counter({"missed": 58, "overlap": 1})
    assert found.counts == Counter({Verdict.SKIPPED: 59, Verdict.ON_TIME: 2})


def test_the_newest_fires_are_pending_and_older_ones_missed_when_nobody_serves(
    world: World, process: Process
) -> None:
    live(world, process, hours=1)
    world.clock.set(NOON + HOUR + PENDING - SECOND)
    assert counts(world) == {"on_time": 1, "pending": 1}
    world.clock.set(NOON + HOUR + PENDING)
    assert counts(world) == {"on_time": 1, "real_miss": 1}
    world.clock.set(NOON + HOUR * 4)
    found = judged(world)
    assert found.misses == [Miss(NOON + HOUR, NOON + HOUR * 3, 3)]
    assert found.counts[Verdict.PENDING] == 1


def test_pauses_and_parking_explain_what_has_no_row(world: World, process: Process) -> None:
    asking = Asking(world.engine, "ops")
    live(world, process, hours=1)
    asking.pause("tick", now=NOON + MINUTE)
    world.clock.set(NOON + HOUR * 3 + MINUTE * 30)
    assert counts(world) == {"on_time": 1, "paused": 3}
    asking.resume("tick", now=world.clock.now())
    process.turn()
    world.clock.set(NOON + HOUR * 4)
    live(world, process, hours=1)
    world.clock.turn(-MINUTE * 30)
    assert counts(world) == {"on_time": 2, "skipped": 3}
    tick = world.cron.jobs.pop("tick")
    world.process().elected(2)
    world.clock.turn(HOUR * 2)
    assert counts(world, NOON + HOUR * 5) == {"paused": 2}
    world.cron.jobs["tick"] = tick
    third = world.process().elected(3)
    third.turn()
    third.run_all()
    assert counts(world, NOON + HOUR * 5) == {"late": 2}


def test_a_changed_trigger_is_judged_by_what_held_at_the_time(world: World, process: Process) -> None:
    live(world, process, hours=3)
    del world.cron.jobs["tick"]

    @world.cron.every("30m", name="tick")
    def tick() -> None: ...

    world.clock.set(NOON + HOUR * 2 + MINUTE * 10)
    second = world.process().elected(2)
    for minutes in (30, 60, 90):
        world.clock.set(NOON + HOUR * 2 + MINUTE * minutes)
        second.turn()
        second.run_all()
    assert process.is_active
    assert counts(world) == {"on_time": 6}


def test_a_schedule_owes_nothing_before_it_was_made(world: World, process: Process) -> None:
    live(world, process, hours=1)
    world.clock.turn(-MINUTE * 30)
    assert counts(world, NOON - timedelta(days=30)) == {"on_time": 1}


def test_what_was_forgotten_on_purpose_is_no_miss(world: World) -> None:
    @world.cron.every("1m", name="often", keep={"runs": 2})
    def often() -> None: ...

    process = world.process().elected(1)
    process.turn()
    process.run_all()
    world.clock.turn(HOUR)
    process.turn()  # one row for the minutes that nobody ran
    process.run_all()
    world.clock.turn(SECOND * 20)
    process.turn()
    assert [row.fire_time for row in world.runs()] == [NOON + MINUTE * 59, NOON + HOUR]
    assert counts(world) == {"on_time": 1, "skipped": 1, "pruned": 59}


def test_a_long_stretch_is_counted_to_a_limit_and_told_as_a_floor(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audits, "FIRES_MAX", 100)

    @world.cron.every("1s", name="seconds", catch_up="none")
    def seconds() -> None: ...

    process = world.process().elected(1)
    process.turn()
    process.run_all()
    world.clock.turn(HOUR * 24 * 365)
    found = judged(world)
    assert found.is_floor
    assert found.counts[Verdict.REAL_MISS] == 100
    assert found.misses[0].first == NOON + SECOND
    process.turn()
    found = judged(world)
    assert found.is_floor
    assert found.counts[Verdict.SKIPPED] >= 100
    assert found.counts[Verdict.REAL_MISS] == 0


def test_many_schedules_are_read_in_turns_and_one_can_be_chosen(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audits, "SCHEDULES_AT_ONCE", 20)
    for number in range(45):
        world.cron.every("1h", name=f"job-{number}")(lambda: None)
    process = world.process().elected(1)
    process.turn()
    process.run_all()
    found = list(audit(world.engine, since=NOON, now=NOON + MINUTE))
    assert len({one.job for one in found}) == 45
    assert [one for one in found if one.counts != Counter({Verdict.ON_TIME: 1})] == []
    [one] = audit(world.engine, since=NOON, now=NOON + MINUTE, scope="ops", job="job-7")
    assert one.job == "job-7"
    assert list(audit(world.engine, since=NOON, now=NOON + MINUTE, scope="other")) == []
