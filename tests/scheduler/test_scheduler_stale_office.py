"""The holes that a paused active process leaves, replayed step by step (research on schedulers, part 3).

`old` is paused somewhere; `new` is elected with a later token meanwhile; then `old` goes on, knowing of
nothing: its seat is not lost as far as it can see.
"""

from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from lockd_scheduler import Run, engines
from lockd_scheduler.asking import Asking
from lockd_scheduler.attempts import Finish
from lockd_scheduler.ledger import Ledger, guard_office
from lockd_scheduler.mandates import Mandate
from lockd_scheduler.runs import State
from tests.scheduler.harness import MINUTE, NOON, Process, World


@pytest.fixture
def ran(world: World) -> list[tuple[int, int]]:
    """A job each minute; its list has the token of each call."""
    tokens: list[tuple[int, int]] = []

    @world.cron.every("1m", name="tick", overlap="allow")
    def tick(run: Run) -> None:
        tokens.append(run.token)

    return tokens


@pytest.fixture
def old(world: World, ran: list[tuple[int, int]]) -> Process:  # noqa: ARG001 - the job must be there
    return world.process().elected(10)


def test_r1_paused_before_the_claim(world: World, old: Process, ran: list[tuple[int, int]]) -> None:
    """R1, tx1: the old one's claim finds a newer fence row and steps down; the fire runs once."""
    new = world.process().elected(11)
    new.turn()
    new.run_all()
    old.turn()
    assert not old.is_active
    assert not old.runner.attempts
    assert world.states() == ["succeeded"]
    assert ran == [(11, 1)]


def test_r1_r4_paused_between_claim_and_start(world: World, old: Process, ran: list[tuple[int, int]]) -> None:
    """R1, R4, tx2: the new one claims it again under its token, and the old start moves zero rows."""
    old.turn()
    claimed = old.pop()
    assert (claimed.office_token, claimed.ordinal) == (10, 1)
    new = world.process().elected(11)
    new.turn()
    [again] = new.runner.attempts
    assert again.attempt_id == claimed.attempt_id
    assert (again.office_token, again.ordinal) == (11, 1)
    old.worker.execute(claimed)
    assert ran == []
    new.run_all()
    assert ran == [(11, 1)]
    assert world.states() == ["succeeded"]


def test_r1_started_before_the_other_took_over(
    world: World, old: Process, ran: list[tuple[int, int]]
) -> None:
    """The other order: what has started is left alone, and runs once under the old token."""
    old.turn()
    claimed = old.pop()
    new = world.process()
    new.elect(11)
    new.turn()  # the fence row has moved, the claimed ones are not taken over yet
    old.worker.execute(claimed)
    new.turn()
    new.run_all()
    assert ran == [(10, 1)]
    assert world.states() == ["succeeded"]


@pytest.mark.usefixtures("ran")
def test_r1_paused_in_the_job(world: World) -> None:
    """R1: a change of office fences no running attempt. Its finish counts; a deploy loses no work."""
    news: list[Process] = []

    @world.cron.every("1m", name="long", overlap="allow")
    def long(run: Run) -> None:
        news.append(world.process().elected(11))
        news[0].turn()
        run.check()

    old = world.process().elected(10)
    old.turn()
    [one] = [claimed for claimed in old.runner.attempts if claimed.job == "long"]
    old.runner.attempts.remove(one)
    old.worker.execute(one)
    [attempt] = [row for row in world.attempts() if row.id == one.attempt_id]
    assert (attempt.state, attempt.office_token, attempt.late_state) == ("succeeded", 10, None)
    assert news[0].is_active


@pytest.mark.parametrize(
    ("delivery", "states"), [("at_most_once", ["lost"]), ("at_least_once", ["lost", "succeeded"])]
)
def test_r3_paused_at_the_finish_past_its_heartbeats(world: World, delivery: str, states: list[str]) -> None:
    """R3, tx3: the row was moved meanwhile; the result is stored beside it and moves nothing."""
    calls: list[int] = []

    @world.cron.every("1h", name="job", delivery=delivery, backoff="1s")
    def job(run: Run) -> None:
        calls.append(run.attempt)
        if run.attempt > 1:
            return
        new = world.process().elected(11)
        world.clock.turn(MINUTE)
        new.turn()
        world.clock.turn(MINUTE)
        new.turn()
        new.run_all()

    old = world.process().elected(10)
    old.turn()
    old.run_all()
    first, *others = world.attempts()
    assert [first.state, *[row.state for row in others]] == states
    assert (first.late_state, first.late_at) == ("succeeded", world.clock.now())
    assert world.states() == states[-1:]
    assert calls == list(range(1, len(states) + 1))


def test_r4_a_later_attempt_has_a_greater_token_whatever_happens(world: World) -> None:
    """R4: (office token, ordinal) grows over retries, over jobs, and over a change of office."""
    tokens: list[tuple[int, int]] = []

    @world.cron.every("1m", name="a", retries=1, backoff="1s", overlap="allow")
    def a(run: Run) -> None:
        tokens.append(run.token)
        raise ValueError

    @world.cron.every("1m", name="b", overlap="allow")
    def b(run: Run) -> None:
        tokens.append(run.token)

    first = world.process().elected(10)
    for process in (first, first, first):
        process.turn()
        process.run_all()
        world.clock.turn(MINUTE)
    second = world.process().elected(12)
    for _ in range(2):
        second.turn()
        second.run_all()
        world.clock.turn(MINUTE)
    assert len(tokens) > 10
    assert tokens == sorted(set(tokens))


@pytest.mark.usefixtures("ran")
def test_a_seat_that_is_known_to_be_lost_ends_the_tenure_at_once(world: World) -> None:
    process = world.process()
    seat = process.elect(10)
    process.turn()
    seat.lost = True
    process.turn()
    assert not process.is_active
    assert world.runs() == []


def test_r2_a_clock_that_jumps_makes_no_fire_twice(
    world: World, old: Process, ran: list[tuple[int, int]]
) -> None:
    """R2: back and forth by an hour: each fire still has one row, and runs once."""
    for moment in (NOON, NOON + MINUTE, NOON - MINUTE * 60, NOON + MINUTE, NOON + MINUTE * 2):
        world.clock.set(moment)
        old.turn()
        old.run_all()
    assert [row.fire_time for row in world.runs()] == [NOON, NOON + MINUTE, NOON + MINUTE * 2]
    assert len(ran) == 3
    assert State.SUCCEEDED in set(world.states())


@pytest.mark.postgres
def test_s5_paused_inside_the_claim_transaction(
    postgres_ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S5: a paused process holds the fence row; PostgreSQL ends its transaction, and another takes office."""
    monkeypatch.setattr(engines, "IDLE_IN_TRANSACTION_MS", 300)
    engine = engines.open_engine(postgres_ledger_url)
    ledger = Ledger(engine, "paused")
    old = Mandate("paused", "local", 1, "old")
    ledger.take_office(old, now=NOON)
    with engine.connect() as paused:
        guard_office(paused, old)
        ledger.take_office(Mandate("paused", "local", 2, "new"), now=NOON)
        with pytest.raises(DBAPIError):
            paused.execute(text("SELECT 1"))
        paused.invalidate()
    assert ledger.last_token() == 2
    engine.dispose()


def test_r3_a_late_result_of_an_attempt_that_was_forgotten_moves_nothing(world: World) -> None:
    """R3: its run was lost and pruned meanwhile; its id is nobody else's, and its worker is told "late"."""

    @world.cron.every("1m", name="short", overlap="allow", keep={"runs": 1})
    def short() -> None: ...

    stale = world.process().elected(1)
    stale.turn()
    results = [stale.worker.carry(one) for one in stale.worker.start([stale.pop()])]
    for token in (2, 3):
        world.clock.turn(MINUTE)
        healthy = world.process().elected(token)
        healthy.turn()
        healthy.run_all()
        healthy.turn()
        world.clock.turn(MINUTE)
        healthy.turn()
    forgotten = results[0].started.claimed
    assert forgotten.run_id not in {row.id for row in world.runs()}
    before = world.attempts()
    assert stale.worker.attempts.finish(results, now=world.clock.now()) == [Finish.LATE]
    assert world.attempts() == before


def test_ids_of_forgotten_runs_are_not_given_out_again(world: World) -> None:
    """R3: a stale worker knows its attempts by them."""

    seen: list[int] = []

    @world.cron.every("1m", name="short", overlap="allow", keep={"runs": 1})
    def short(run: Run) -> None:
        seen.append(run.id)

    process = world.process().elected(1)
    process.turn()
    Asking(world.engine, "ops").backfill("short", start=NOON - 3 * MINUTE, end=NOON, now=NOON)
    for _ in range(12):
        process.run_all()
        world.clock.turn(timedelta(seconds=11))  # the past is forgotten every ten seconds
        process.turn()
    assert len(seen) >= 6
    assert len(seen) == len(set(seen))
