"""What ends an attempt before its work is done, on SQLite and PostgreSQL."""

import asyncio
import threading
from datetime import timedelta

import pytest
from sqlalchemy import select, text

from lockd_scheduler import AttemptFenced, Run, RunCancelled, RunTimedOut
from lockd_scheduler.asking import Asking
from lockd_scheduler.bounds import Bounds, Stop
from lockd_scheduler.policies import Policy
from lockd_scheduler.tables import outbox
from lockd_scheduler.worker import GRACE_SECONDS
from tests.scheduler.harness import MINUTE, NOON, SECOND, World

GRACE = timedelta(seconds=GRACE_SECONDS)


@pytest.mark.parametrize(("retries", "states"), [(0, ["timed_out"]), (1, ["claimed"])])
def test_a_timed_out_attempt_that_ended_is_a_known_failure(
    world: World, retries: int, states: list[str]
) -> None:
    @world.cron.every("1h", name="slow", timeout="30s", retries=retries)
    def slow(run: Run) -> None:
        world.clock.turn(SECOND * 29)
        process.worker.enforce()
        run.check()
        world.clock.turn(SECOND)
        process.worker.enforce()
        assert run.is_stopping
        run.wait(60)

    process = world.process().elected(1)
    process.turn()
    process.run_all()
    assert world.states() == states
    [attempt] = world.attempts()
    assert (attempt.state, attempt.timeout_at) == ("timed_out", NOON + SECOND * 30)


def test_a_function_that_ends_well_at_its_last_moment_has_succeeded(world: World) -> None:
    """Told to stop and done all the same: the outcome is known, and it is success."""

    @world.cron.every("1h", name="slow", timeout="30s")
    def slow() -> None:
        world.clock.turn(SECOND * 31)
        process.worker.enforce()

    process = world.process().elected(1)
    process.turn()
    process.run_all()
    assert world.states() == ["succeeded"]


def test_cancelling_a_run_tells_its_function(world: World) -> None:
    told: list[BaseException] = []

    @world.cron.every("1h", name="slow", retries=3)
    def slow(run: Run) -> None:
        Asking(world.engine, "ops").cancel(run.id, reason="wrong day", now=world.clock.now())
        process.worker.enforce()
        try:
            run.check()
        except RunCancelled as error:
            told.append(error)
            raise

    process = world.process().elected(1)
    process.turn()
    process.run_all()
    assert world.states() == ["cancelled"]
    assert len(told) == 1
    process.turn()
    assert process.runner.attempts == [], "no retry of what somebody ended"


@pytest.mark.parametrize(
    ("delivery", "run_state", "attempt_state"),
    [("at_most_once", "lost", "lost"), ("at_least_once", "timed_out", "timed_out")],
)
def test_r5_work_that_does_not_end_when_told_to_is_given_up(
    world: World, delivery: str, run_state: str, attempt_state: str
) -> None:
    """R5: of a thread that goes on nothing is known: at_most_once is lost; else its row is moved."""

    @world.cron.every("1h", name="deaf", timeout="30s", delivery=delivery)
    def deaf(run: Run) -> None:
        world.clock.turn(SECOND * 30)
        process.worker.enforce()
        world.clock.turn(GRACE)
        process.worker.enforce()
        writing = run._attempts.fenced_session(run._started, Policy(), now=world.clock.now, idle=5)
        with pytest.raises(AttemptFenced), writing:
            pytest.fail("it was given up: nothing of it counts any more")

    process = world.process().elected(1)
    process.turn()
    process.run_all()
    assert world.states() == [run_state]
    [attempt] = world.attempts()
    assert attempt.state == attempt_state
    assert attempt.late_state == "succeeded", "what it came to is kept beside it"


def test_r5_at_most_once_is_not_tried_again_after_it_was_given_up(world: World) -> None:
    @world.cron.every("1h", name="deaf", timeout="30s", retries=5)
    def deaf() -> None:
        world.clock.turn(SECOND * 30)
        process.worker.enforce()
        world.clock.turn(GRACE)
        process.worker.enforce()

    process = world.process().elected(1)
    process.turn()
    process.run_all()
    world.clock.turn(MINUTE * 20)
    process.turn()
    assert process.runner.attempts == []
    assert world.states() == ["lost"]


def test_an_async_function_is_cancelled_and_may_clean_up(world: World) -> None:
    cleaned: list[str] = []
    begun = threading.Event()

    @world.cron.every("1h", name="waits", timeout="30s")
    async def waits() -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            cleaned.append("yes")

    process = world.process()
    loop = asyncio.new_event_loop()
    turning = threading.Thread(target=loop.run_forever)
    turning.start()
    object.__setattr__(process.worker, "loop", loop)
    process.elected(1)
    process.turn()
    running = threading.Thread(target=process.run_all)
    running.start()
    assert begun.wait(20)
    world.clock.turn(SECOND * 30)
    process.worker.enforce()
    running.join(20)
    loop.call_soon_threadsafe(loop.stop)
    turning.join(20)
    loop.close()
    assert cleaned == ["yes"]
    assert world.states() == ["timed_out"]


def test_a_late_start_is_told_in_the_transaction_that_starts_it(world: World) -> None:
    @world.cron.every("1h", name="late", notify=["late"], alert_if_late="10s", catch_up="all")
    def late() -> None: ...

    process = world.process().elected(1)
    process.turn()
    process.run_all()
    world.clock.turn(timedelta(hours=1, seconds=11))
    process.turn()
    process.run_all()
    with world.engine.connect() as connection:
        [notice] = connection.execute(select(outbox)).all()
    assert (notice.event, notice.run_id) == ("late", world.runs()[1].id)


def test_r7_a_run_that_has_not_begun_is_told_late_once(world: World) -> None:
    """Whoever waits for a notice must not have to wait for the run."""

    @world.cron.every("1h", name="told", notify=["late"], alert_if_late="10s", overlap="allow")
    def told() -> None: ...

    @world.cron.every("1h", name="patient", notify=["late"], alert_if_late="20m", overlap="allow")
    def patient() -> None: ...

    @world.cron.every("1h", name="quiet", overlap="allow", args={"option": "alert_if_late"})
    def quiet(*, option: str) -> None: ...

    def notices() -> list[tuple[str, str, str]]:
        with world.engine.connect() as connection:
            rows = connection.execute(select(outbox).order_by(outbox.c.id)).all()
        return [(row.event, row.payload["job"], row.payload["state"]) for row in rows]

    process = world.process().elected(1)
    process.turn()
    world.clock.turn(SECOND * 9)
    process.turn()
    assert notices() == []
    for _ in range(2):
        world.clock.turn(SECOND * 6)
        process.turn()
    assert notices() == [("late", "told", "claimed")]
    process.run_all()
    assert set(world.states()) == {"succeeded"}
    assert len(notices()) == 1, "it begins late, and that was told"


@pytest.mark.parametrize(
    ("keep", "kept"), [({"runs": 3}, [7, 8, 9]), ({"days": 1}, [9]), ({}, list(range(10)))]
)
def test_the_past_is_forgotten_as_far_as_a_job_asks(
    world: World, keep: dict[str, int], kept: list[int]
) -> None:
    @world.cron.every("1h", name="tick", catch_up="all", overlap="allow", keep=keep)
    def tick() -> None: ...

    process = world.process().elected(1)
    world.clock.turn(timedelta(hours=9))
    process.turn()
    process.run_all()
    if "days" in keep:
        world.clock.turn(timedelta(hours=24))
        with world.engine.begin() as connection:
            connection.execute(text("UPDATE lockd_schedule SET parked_at = next_fire_at"))
    world.clock.turn(SECOND * 10)
    process.turn()
    assert [(row.fire_time - NOON) // timedelta(hours=1) for row in world.runs()] == kept
    assert len(world.attempts()) == len(kept)
    pruned = world.schedules()[0].pruned_until
    assert pruned == (None if len(kept) == 10 else NOON + timedelta(hours=kept[0] - 1))


def test_what_lives_is_never_forgotten(world: World) -> None:
    @world.cron.every("1h", name="tick", catch_up="all", overlap="allow", keep={"runs": 1})
    def tick() -> None: ...

    process = world.process().elected(1)
    world.clock.turn(timedelta(hours=3))
    process.turn()
    world.clock.turn(SECOND * 10)
    process.turn()
    assert world.states() == ["claimed"] * 4


def test_many_attempts_share_their_transactions(world: World) -> None:
    seen: list[Run] = []

    @world.cron.every("1s", name="tick", catch_up="all", overlap="allow")
    def tick(run: Run) -> None:
        seen.append(run)

    process = world.process().elected(1)
    world.clock.turn(SECOND * 99)
    process.turn()
    assert len(process.runner.attempts) == 100
    worker = process.worker
    taken, *claims = process.runner.attempts
    worker.execute(taken)
    begun = worker.start([taken, *claims])
    assert [started.claimed for started in begun] == claims, "one of them had been started before"
    worker.finish([worker.carry(started) for started in begun])
    assert world.states() == ["succeeded"] * 100
    assert len({run.token for run in seen}) == 100
    assert worker.underway == {}


def test_bounds_keep_the_first_reason_and_tell_it_to_whoever_comes_later() -> None:
    bounds = Bounds()
    told: list[Stop] = []
    bounds.on_stop(told.append)
    assert bounds.wait(0) is None
    bounds.stop(Stop.CANCELLED)
    bounds.stop(Stop.TIMED_OUT)
    bounds.on_stop(told.append)
    assert told == [Stop.CANCELLED, Stop.CANCELLED]
    assert bounds.wait(60) is bounds.reason is Stop.CANCELLED


def test_each_reason_has_an_error_of_its_own(world: World) -> None:
    raised: list[type[BaseException]] = []

    @world.cron.every("1s", name="tick", catch_up="all", overlap="allow")
    def tick(run: Run) -> None:
        [attempt] = process.worker.underway.values()
        attempt.bounds.stop(list(Stop)[len(raised)])
        try:
            run.check()
        except (AttemptFenced, RunCancelled, RunTimedOut) as error:
            raised.append(type(error))
            raise

    process = world.process().elected(1)
    world.clock.turn(SECOND * 2)
    process.turn()
    process.run_all()
    assert raised == [RunTimedOut, RunCancelled, AttemptFenced]
    assert world.states() == ["timed_out", "cancelled", "failed"]
