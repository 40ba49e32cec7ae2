"""Fires that meet earlier runs, on SQLite and PostgreSQL: wait, replace, and what comes after an end."""

import pytest
from sqlalchemy import select

from lockd_scheduler import Run
from lockd_scheduler.ending import Ended, end_runs
from lockd_scheduler.policies import Policy
from lockd_scheduler.runs import State
from lockd_scheduler.tables import outbox
from tests.scheduler.harness import MINUTE, NOON, SECOND, Process, World


def job(world: World, overlap: str, **choices: object) -> list[Run]:
    """A job that fires each minute; the runs that it saw."""
    seen: list[Run] = []

    @world.cron.every("1m", name="tick", overlap=overlap, catch_up="all", **choices)  # type: ignore[arg-type]
    def tick(run: Run) -> None:
        seen.append(run)

    return seen


def minutes(seen: list[Run]) -> list[int]:
    return [(run.fire_at - NOON) // MINUTE for run in seen]


def held(world: World, process: Process, turns: int) -> None:
    """Let that many fires come up while the first run is under way."""
    process.turn()
    for _ in range(turns):
        world.clock.turn(MINUTE)
        process.turn()


def test_queue_all_runs_one_after_the_other_and_each_at_its_own_time(world: World) -> None:
    seen = job(world, "queue_all")
    process = world.process().elected(1)
    held(world, process, 3)
    assert [one.fire_time for one in process.runner.attempts] == [NOON], "the others have no attempt yet"
    assert world.states() == ["claimed"] * 4
    for _ in range(4):
        process.run_all()
        process.turn()
    assert minutes(seen) == [0, 1, 2, 3]
    assert world.states()[:4] == ["succeeded"] * 4


def test_queue_one_lets_one_wait_and_skips_the_others_with_a_row(world: World) -> None:
    seen = job(world, "queue_one")
    process = world.process().elected(1)
    held(world, process, 3)
    assert world.states() == ["claimed", "claimed", "skipped:overlap", "skipped:overlap"]
    process.run_all()
    process.turn()
    process.run_all()
    assert minutes(seen) == [0, 1]


def test_what_waits_is_let_in_by_the_next_office_too(world: World) -> None:
    seen = job(world, "queue_all")
    old = world.process().elected(1)
    held(world, old, 1)
    old.run_all()
    new = world.process().elected(2)
    new.turn()
    new.run_all()
    assert minutes(seen) == [0, 1]


def test_replace_cancels_what_has_not_begun_and_runs_the_newest(world: World) -> None:
    seen = job(world, "replace")
    process = world.process().elected(1)
    held(world, process, 1)
    assert world.states() == ["cancelled", "claimed"]
    assert world.runs()[0].cancel_reason == "replaced by a later fire"
    process.run_all()
    process.turn()
    process.run_all()
    assert minutes(seen) == [1]
    assert world.attempts()[0].state == "cancelled"


def test_r5_replace_waits_until_what_runs_has_ended(world: World) -> None:
    """R5: the next attempt starts once the old one has provably ended."""
    seen: list[Run] = []

    @world.cron.every("1m", name="tick", overlap="replace", catch_up="all")
    def tick(run: Run) -> None:
        seen.append(run)
        if len(seen) == 1:
            world.clock.turn(MINUTE)
            process.worker.heartbeat()
            process.turn()
            assert process.runner.attempts == [], "the old one is still at work"
            assert [row.cancel_asked_at is not None for row in world.runs()] == [True, False]

    process = world.process().elected(1)
    process.turn()
    process.run_all()
    process.turn()
    process.run_all()
    assert minutes(seen) == [0, 1]
    assert world.states() == ["succeeded", "succeeded"], "it ended well before anybody stopped it"


def test_r6_jitter_delays_the_start_and_not_the_fires(world: World) -> None:
    seen = job(world, "allow", jitter="30s")
    process = world.process().elected(1)
    for _ in range(4 * 60):
        process.turn()
        process.run_all()
        world.clock.turn(SECOND)
    assert minutes(seen) == [0, 1, 2, 3]
    delays = [(row.started_at - row.fire_time).total_seconds() for row in world.runs()[:4]]
    assert all(0 <= delay <= 31 for delay in delays)
    assert len(set(delays)) > 1


@pytest.mark.parametrize(
    ("on", "fails", "expected"),
    [
        ("succeeded", False, 1),
        ("succeeded", True, 0),
        ("failed", True, 1),
        ("failed", False, 0),
        ("ended", True, 1),
    ],
)
def test_a_job_that_comes_after_another_has_a_run_for_each_end(
    world: World, on: str, fails: bool, expected: int
) -> None:
    seen: list[Run] = []

    @world.cron.every("1h", name="first")
    def first() -> None:
        if fails:
            raise ValueError("no")

    @world.cron.after(first, on=on, name="second")
    def second(run: Run) -> None:
        seen.append(run)

    process = world.process().elected(1)
    process.turn()
    process.run_all()
    process.turn()
    process.run_all()
    assert len(seen) == expected
    if expected:
        assert (seen[0].fire_at, seen[0].key) == (
            NOON,
            f"ops/second/after/2026-06-01T12:00:00Z/{world.runs()[0].id}",
        )
        assert world.runs()[1].parent_run_id == world.runs()[0].id


def test_nothing_follows_a_failure_that_is_tried_again(world: World) -> None:
    tries: list[int] = []

    @world.cron.every("1h", name="first", retries=1, backoff="10s")
    def first(run: Run) -> None:
        tries.append(run.attempt)
        raise ValueError("no")

    @world.cron.after("first", on="failed", name="second")
    def second() -> None: ...

    process = world.process().elected(1)
    process.turn()
    process.run_all()
    assert world.states() == ["claimed"]
    world.clock.turn(SECOND * 10)
    process.turn()
    process.run_all()
    assert tries == [1, 2]
    assert world.states() == ["failed", "claimed"]


def test_r7_a_notice_is_in_the_transaction_that_ends_the_run(world: World) -> None:
    """R7: it is there if and only if the end is, and says what happened."""

    @world.cron.every("1h", name="first", notify=["failed"])
    def first() -> None:
        raise ValueError("no")

    process = world.process().elected(1)
    process.turn()
    process.run_all()
    with world.engine.connect() as connection:
        [notice] = connection.execute(select(outbox)).all()
    assert (notice.event, notice.run_id, notice.tries) == ("failed", world.runs()[0].id, 0)
    assert notice.payload["job"] == "first"
    assert "ValueError: no" in notice.payload["error"]

    with world.engine.connect() as connection:
        connection.exec_driver_sql("UPDATE lockd_run SET state = 'running', finished_at = NULL")
        policy = Policy.from_words(notify=["lost"])
        end_runs(connection, [Ended(notice.run_id, 1, State.LOST, policy, None)], NOON)
        assert len(connection.execute(select(outbox)).all()) == 2
        connection.rollback()
        assert len(connection.execute(select(outbox)).all()) == 1
