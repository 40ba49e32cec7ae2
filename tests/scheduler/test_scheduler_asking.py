"""What people ask of the ledger: run now, cancel, pause, resume, backfill, on SQLite and PostgreSQL."""

from datetime import timedelta

import pytest
from sqlalchemy import select

from lockd_scheduler import BadSchedule, Cron, Run, SchedulerError
from lockd_scheduler.asking import Asking
from lockd_scheduler.runs import State
from lockd_scheduler.tables import backfill, schedule_revision
from tests.scheduler.harness import MINUTE, NOON, Process, World

HOUR = timedelta(hours=1)


@pytest.fixture
def asking(world: World) -> Asking:
    return Asking(world.engine, "ops")


@pytest.fixture
def seen(world: World) -> list[tuple[Run, str]]:
    """What an hourly job was given."""
    found: list[tuple[Run, str]] = []

    @world.cron.every("1h", name="tick", overlap="allow", catch_up="all", args={"region": "eu"})
    def tick(run: Run, *, region: str) -> None:
        found.append((run, region))

    return found


@pytest.fixture
def process(world: World, seen: list[tuple[Run, str]]) -> Process:
    """In office, with the first fire behind it."""
    process = world.process().elected(1)
    process.turn()
    process.run_all()
    seen.clear()
    return process


def test_a_trigger_that_is_changed_when_a_pause_has_just_ended_has_both_revisions(world: World) -> None:
    """Ending the pause and changing the trigger are two revisions, and the office can be taken."""

    @world.cron.every("1m", name="tick")
    def tick() -> None: ...

    world.process().elected(1).turn()
    until = world.clock.now() + 2 * MINUTE
    Asking(world.engine, "ops").pause("tick", until=until, now=world.clock.now())
    world.clock.turn(3 * MINUTE)
    changed = Cron("ops")
    changed.every("7m", name="tick")(lambda: None)
    world.process(changed).elected(2)
    assert world.schedules()[0].revision == 4


def test_p5_a_trigger_that_is_changed_during_a_pause_leaves_rows_for_what_fell_into_it(world: World) -> None:
    """P5: the pause goes on under the new trigger, and the old one's fires have their row."""

    @world.cron.every("1m", name="tick")
    def tick() -> None: ...

    world.process().elected(1).turn()
    asking = Asking(world.engine, "ops")
    asking.pause("tick", note="holidays", now=world.clock.now())
    world.clock.turn(3 * MINUTE)
    changed = Cron("ops")
    changed.every("7m", name="tick")(lambda: None)
    world.process(changed).elected(2).turn()
    assert world.states() == ["claimed", "skipped:paused"]
    assert (world.runs()[1].fire_time, world.runs()[1].skipped_until) > (NOON, NOON + 3 * MINUTE)
    [row] = world.schedules()
    assert (row.pause_note, row.paused_at) == ("holidays", NOON)


def changes(world: World) -> list[tuple[str, str | None, str | None]]:
    with world.engine.connect() as connection:
        rows = connection.execute(select(schedule_revision).order_by(schedule_revision.c.revision)).all()
    return [(row.change, row.changed_by, row.note) for row in rows]


def test_a_run_now_has_its_own_arguments_and_happens_once_for_a_key(
    world: World, asking: Asking, process: Process, seen: list[tuple[Run, str]]
) -> None:
    world.clock.turn(MINUTE)
    now = world.clock.now()
    asked = asking.start("tick", args={"region": "us"}, key="ticket-42", by="ann", now=now)
    assert asking.start("tick", args={"region": "us"}, key="ticket-42", now=now + MINUTE) == asked
    process.turn()
    process.run_all()
    [(run, region)] = seen
    assert (run.id, run.fire_at, region) == (asked, now, "us")
    assert run.key == "ops/tick/manual/2026-06-01T12:01:00Z/ticket-42"
    row = world.runs()[1]
    assert (row.kind, row.asked_by, row.state) == ("manual", "ann", "succeeded")


def test_a_run_asked_for_later_starts_then(world: World, asking: Asking, process: Process) -> None:
    asking.start("tick", key="later", at=NOON + MINUTE * 10, now=world.clock.now())
    process.turn()
    assert process.runner.attempts == []
    world.clock.turn(MINUTE * 10)
    process.turn()
    assert [one.fire_time for one in process.runner.attempts] == [NOON + MINUTE * 10]


def test_a_run_now_waits_for_its_turn_unless_overlap_is_allowed(world: World, asking: Asking) -> None:
    @world.cron.every("1h", name="alone")
    def alone() -> None: ...

    process = world.process().elected(1)
    process.turn()
    asking.start("alone", key="a", now=NOON)
    process.turn()
    assert len(process.runner.attempts) == 1, "the scheduled one"
    process.run_all()
    process.turn()
    process.run_all()
    assert world.states() == ["succeeded", "succeeded"]


@pytest.mark.parametrize(
    ("job", "key", "args", "told"),
    [
        ("nobody", "a", {}, "no job 'nobody'"),
        ("tick", "", {}, "key"),
        ("tick", "a", {"region": {1}}, "JSON"),
    ],
)
@pytest.mark.usefixtures("process")
def test_a_wrong_request_is_refused(
    asking: Asking, job: str, key: str, args: dict[str, object], told: str
) -> None:
    with pytest.raises(SchedulerError, match=told):
        asking.start(job, args=args, key=key, now=NOON)


def test_cancelling_ends_what_has_not_begun_and_its_attempt_can_not_start(
    world: World, asking: Asking, process: Process, seen: list[tuple[Run, str]]
) -> None:
    asked = asking.start("tick", key="a", now=NOON)
    process.turn()
    claimed = process.pop()
    assert asking.cancel(asked, reason="wrong day", now=NOON) is State.CLAIMED
    process.turn()
    assert world.states() == ["succeeded", "cancelled"]
    process.worker.execute(claimed)
    assert seen == []
    assert asking.cancel(asked, now=NOON) is State.CANCELLED
    with pytest.raises(SchedulerError, match="no run 4711"):
        asking.cancel(4711, now=NOON)


def test_a_pause_is_over_when_it_is_resumed_and_leaves_one_row(
    world: World, asking: Asking, process: Process, seen: list[tuple[Run, str]]
) -> None:
    assert asking.pause("tick", note="migration", by="ann", now=NOON)
    assert not asking.pause("tick", note="still", now=NOON)
    world.clock.turn(HOUR * 3)
    process.turn()
    assert len(world.runs()) == 1
    assert asking.resume("tick", by="bob", now=world.clock.now() + MINUTE)
    assert not asking.resume("tick", now=world.clock.now() + MINUTE)
    world.clock.turn(HOUR)
    process.turn()
    process.run_all()
    [_, skipped, run] = world.runs()
    assert (skipped.state, skipped.reason, skipped.fire_time) == ("skipped", "paused", NOON + HOUR)
    assert skipped.skipped_until == NOON + HOUR * 3 + MINUTE
    assert run.fire_time == NOON + HOUR * 4
    assert len(seen) == 1
    assert changes(world) == [
        ("created", None, None),
        ("paused", "ann", "migration"),
        ("paused", None, "still"),
        ("unpaused", "bob", None),
    ]


def test_a_pause_with_an_end_is_over_by_itself_with_a_revision(
    world: World, asking: Asking, process: Process
) -> None:
    asking.pause("tick", until=NOON + HOUR * 2 - MINUTE, now=NOON)
    world.clock.turn(HOUR)
    process.turn()
    assert len(world.runs()) == 1
    world.clock.turn(HOUR)
    process.turn()
    assert world.states() == ["succeeded", "skipped:paused", "claimed"]
    assert changes(world)[-1] == ("unpaused", None, "its time was over")
    with pytest.raises(BadSchedule, match="has passed"):
        asking.pause("tick", until=NOON, now=NOON)


def test_a_backfill_runs_every_fire_of_its_range_a_few_at_a_time(
    world: World, asking: Asking, process: Process, seen: list[tuple[Run, str]]
) -> None:
    number = asking.backfill("tick", start=NOON - HOUR * 5, end=NOON, parallel=2, by="ann", now=NOON)
    most = 0
    for _ in range(10):
        process.turn()
        most = max(most, len(process.runner.attempts))
        process.run_all()
    assert [run.fire_at for run, _ in seen] == [NOON - HOUR * hours for hours in (5, 4, 3, 2, 1)]
    assert most == 2
    rows = world.runs()[:5]
    assert {(row.kind, row.key, row.asked_by) for row in rows} == {("backfill", str(number), "ann")}
    with world.engine.connect() as connection:
        assert connection.execute(select(backfill.c.ended_at)).scalar_one() == NOON


def test_a_cancelled_backfill_makes_nothing_more(world: World, asking: Asking, process: Process) -> None:
    number = asking.backfill("tick", start=NOON - HOUR * 5, end=NOON, parallel=2, now=NOON)
    process.turn()
    with pytest.raises(SchedulerError, match="no backfill"):
        Asking(world.engine, "another").cancel_backfill(number, now=NOON)
    asking.cancel_backfill(number, now=NOON)
    process.turn()
    process.run_all()
    process.turn()
    assert world.states() == ["cancelled", "cancelled", "succeeded"]
    with pytest.raises(SchedulerError, match="no backfill"):
        asking.cancel_backfill(number, now=NOON)


@pytest.mark.usefixtures("process")
def test_a_range_that_can_not_be_filled_is_refused(asking: Asking) -> None:
    for start, end, told in (
        (NOON, NOON - HOUR, "past"),
        (NOON - HOUR, NOON + HOUR, "past"),
        (NOON - MINUTE * 50, NOON - MINUTE, "no fire"),
    ):
        with pytest.raises(BadSchedule, match=told):
            asking.backfill("tick", start=start, end=end, now=NOON)
    with pytest.raises(BadSchedule, match="parallel 0"):
        asking.backfill("tick", start=NOON - HOUR, end=NOON, parallel=0, now=NOON)


def test_a_new_trigger_does_not_drop_what_the_old_one_had_due(world: World, process: Process) -> None:
    """P5: a deploy after an outage changes the line; the fires of before still get their rows."""
    world.clock.turn(HOUR * 2)
    del world.cron.jobs["tick"]

    @world.cron.every("1d", name="tick", overlap="allow", catch_up="all", args={"region": "eu"})
    def tick(run: Run, *, region: str) -> None: ...

    world.process().elected(2)
    assert [row.fire_time for row in world.runs()] == [NOON, NOON + HOUR, NOON + HOUR * 2]
    assert world.schedules()[0].next_fire_at == NOON + HOUR * 12
    assert process.is_active
