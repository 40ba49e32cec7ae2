"""The ledger's contract, on SQLite and on PostgreSQL."""

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import pytest
from sqlalchemy import Engine, event, select, text
from sqlalchemy.exc import OperationalError, PendingRollbackError

from lockd_scheduler import AttemptFenced, Cron, Run
from lockd_scheduler.attempts import Attempts, Finish, Result
from lockd_scheduler.errors import ForeignOffice, OfficeLost
from lockd_scheduler.mandates import Mandate
from lockd_scheduler.policies import Policy
from lockd_scheduler.runs import State
from lockd_scheduler.tables import schedule_revision
from tests.scheduler.harness import LOST_AFTER, MINUTE, NOON, SECOND, World


@pytest.fixture
def ticks(world: World) -> list[Run]:
    """A job that fires each minute; what it returns are the runs it saw."""
    seen: list[Run] = []

    @world.cron.every("1m", name="tick", overlap="allow", catch_up="all")
    def tick(run: Run) -> None:
        seen.append(run)

    return seen


def test_a_fire_becomes_a_run_an_attempt_and_a_success(world: World, ticks: list[Run]) -> None:
    process = world.process().elected(7)
    process.turn()
    process.run_all()
    [row] = world.runs()
    assert (row.fire_time, row.kind, row.key, row.state, row.attempts) == (
        NOON,
        "scheduled",
        "",
        "succeeded",
        1,
    )
    [attempt] = world.attempts()
    assert (attempt.office_token, attempt.ordinal, attempt.number) == (7, 1, 1)
    assert attempt.worker == "process-1"
    [seen] = ticks
    assert (seen.fire_at, seen.token, seen.attempt) == (NOON, (7, 1), 1)
    assert seen.headers == {
        "Idempotency-Key": "ops/tick/scheduled/2026-06-01T12:00:00Z",
        "Fencing-Token": "7.1",
    }


def test_p5_the_same_fire_is_claimed_once(world: World, ticks: list[Run]) -> None:
    """P5: a schedule that was set back (a restored row, a bug) makes no second row for a fire."""
    process = world.process().elected(7)
    process.turn()
    with world.engine.begin() as connection:
        connection.execute(text("UPDATE lockd_schedule SET next_fire_at = last_fire_at"))
    process.turn()
    process.run_all()
    assert world.states() == ["succeeded"]
    assert len(ticks) == 1
    assert world.schedules()[0].next_fire_at == NOON + MINUTE, "it goes on from there"


def test_r2_fire_times_are_nominal_however_late_they_are_claimed(world: World, ticks: list[Run]) -> None:
    """R2: the run carries the schedule's moment, never "now"."""
    process = world.process().elected(1)
    world.clock.turn(SECOND * 137)
    process.turn()
    process.run_all()
    assert [run.fire_at for run in ticks] == [NOON, NOON + MINUTE, NOON + MINUTE * 2]


@pytest.mark.usefixtures("ticks")
def test_r1_taking_office_needs_a_newer_token(world: World) -> None:
    """R1: an old seat, an equal token of another holder, and a second source all change nothing."""
    world.process().elected(7)

    def mandate(token: int, *, source: str = "local", holder: str = "other") -> Mandate:
        return Mandate("ops", source, token, holder)

    for old in (mandate(6), mandate(7)):
        with pytest.raises(OfficeLost):
            world.ledger.take_office(old, now=NOON)
    with pytest.raises(ForeignOffice, match="tokens can't be compared"):
        world.ledger.take_office(mandate(9, source="c" * 32), now=NOON)
    assert world.ledger.last_token() == 7
    # An unknown commit may be asked again.
    world.ledger.take_office(mandate(7, holder="process-1"), now=NOON)


@pytest.mark.parametrize("work", ["claim_due", "keep_schedules", "take_over", "mark_lost"])
@pytest.mark.usefixtures("ticks")
def test_r1_every_transaction_of_the_office_is_guarded(world: World, work: str) -> None:
    """R1: zero rows in the fence, nothing changes."""
    world.process().elected(7)
    old = Mandate("ops", "local", 6, "process-0")
    works: dict[str, Callable[[], object]] = {
        "claim_due": lambda: world.ledger.claim_due(old, now=NOON),
        "keep_schedules": lambda: world.ledger.keep_schedules(old, {}, now=NOON),
        "take_over": lambda: world.ledger.take_over(old, keep=frozenset(), now=NOON),
        "mark_lost": lambda: world.ledger.mark_lost(old, silent_since=NOON, now=NOON),
    }
    before = (world.runs(), world.schedules())
    with pytest.raises(OfficeLost):
        works[work]()
    assert (world.runs(), world.schedules()) == before


def test_overlap_skip_has_a_row_with_its_reason(world: World) -> None:
    @world.cron.every("1m", name="slow")
    def slow() -> None: ...

    process = world.process().elected(1)
    process.turn()
    claimed = process.pop()
    world.clock.turn(MINUTE)
    process.turn()
    assert world.states() == ["claimed", "skipped:overlap"]
    process.worker.execute(claimed)
    world.clock.turn(MINUTE)
    process.turn()
    assert world.states() == ["succeeded", "skipped:overlap", "claimed"]


def test_what_was_missed_has_one_row_for_its_range(world: World) -> None:
    @world.cron.every("1m", name="tick")
    def tick() -> None: ...

    world.process().elected(1)
    world.clock.turn(timedelta(hours=5, seconds=30))
    process = world.process().elected(2)
    process.turn()
    missed, on_time = world.runs()
    assert (missed.reason, missed.fire_time, missed.skipped_until) == (
        "missed", NOON, NOON + timedelta(hours=4, minutes=59, seconds=30))  # fmt: skip
    assert on_time.fire_time == NOON + timedelta(hours=5)


def test_a_failure_is_retried_after_its_delay_and_then_final(world: World) -> None:
    @world.cron.every("1h", name="bad", retries=1, backoff="10s")
    def bad(run: Run) -> None:
        raise ValueError(f"attempt {run.attempt}")

    process = world.process().elected(3)
    process.turn()
    process.run_all()
    [row] = world.runs()
    assert (row.state, row.next_attempt_at) == ("claimed", NOON + SECOND * 10)
    process.turn()
    assert not process.runner.attempts, "not before its delay"
    world.clock.turn(SECOND * 10)
    process.turn()
    process.run_all()
    [row] = world.runs()
    assert (row.state, row.attempts) == ("failed", 2)
    assert "ValueError: attempt 2" in row.error
    assert [(one.number, one.office_token, one.ordinal, one.state) for one in world.attempts()] == [
        (1, 3, 1, "failed"),
        (2, 3, 2, "failed"),
    ]


@pytest.mark.usefixtures("ticks")
def test_every_change_of_a_schedule_is_a_revision(world: World) -> None:
    world.process().elected(1)
    changed = Cron("ops")
    changed.every("2m", name="tick")(lambda: None)
    world.clock.turn(SECOND)
    world.process(changed).elected(2)
    world.process(Cron("ops")).elected(3)
    world.process(changed).elected(4)
    with world.engine.connect() as connection:
        rows = connection.execute(select(schedule_revision).order_by(schedule_revision.c.revision)).all()
    assert [(row.revision, row.change, row.office_token) for row in rows] == [
        (1, "created", 1),
        (2, "changed", 2),
        (3, "parked", 3),
        (4, "resumed", 4),
    ]
    assert rows[0].definition["trigger"]["period"] == "1m"
    [schedule] = world.schedules()
    assert schedule.next_fire_at == NOON + MINUTE * 2


def test_a_parked_schedule_fires_nothing_and_its_gap_has_a_row_when_it_comes_back(
    world: World, ticks: list[Run]
) -> None:
    world.process().elected(1)
    gone = world.process(Cron("ops")).elected(2)
    world.clock.turn(MINUTE * 10)
    gone.turn()
    assert world.runs() == []
    back = world.process().elected(3)
    back.turn()
    back.run_all()
    assert [run.fire_at for run in ticks] == [NOON + MINUTE * number for number in range(11)]


@pytest.mark.usefixtures("ticks")
def test_two_schedulers_in_one_database_do_not_meet(world: World) -> None:
    world.process().elected(40)
    other = World(world.engine)
    other.ledger.scope = "other"
    process = other.process()
    process.officer.ledger = other.ledger
    process.elected(1)
    assert process.is_active


def test_r3_a_second_start_of_the_same_claim_does_nothing(world: World, ticks: list[Run]) -> None:
    """R3: claimed -> running happens once; a redelivered attempt ends right there."""
    process = world.process().elected(1)
    process.turn()
    claimed = process.pop()
    process.worker.execute(claimed)
    process.worker.execute(claimed)
    assert len(ticks) == 1


@pytest.mark.usefixtures("ticks")
def test_r5_after_an_unknown_commit_only_the_own_nonce_goes_on(world: World) -> None:
    """R5: asked again, start finds its own commit by the nonce; another's is not taken for it."""
    process = world.process().elected(1)
    process.turn()
    claims = [(process.pop(), Policy())]
    attempts = Attempts(world.engine)
    mine = attempts.start(claims, nonce="a" * 32, worker="w", now=NOON)
    assert len(mine) == 1
    assert attempts.start(claims, nonce="a" * 32, worker="w", now=NOON) == mine
    assert attempts.start(claims, nonce="b" * 32, worker="w", now=NOON) == []


@pytest.mark.usefixtures("ticks")
def test_a_finish_may_be_asked_again(world: World) -> None:
    process = world.process().elected(1)
    process.turn()
    attempts = Attempts(world.engine)
    [started] = attempts.start([(process.pop(), Policy())], nonce="a" * 32, worker="w", now=NOON)
    failed = Result(started, Policy(), State.FAILED, "no")
    assert attempts.finish([failed], now=NOON) == [Finish.COUNTED]
    assert attempts.finish([failed], now=NOON) == [Finish.ALREADY]
    [row] = world.attempts()
    assert (row.state, row.late_state) == ("failed", None)


@pytest.mark.usefixtures("ticks")
def test_only_missed_heartbeats_make_an_attempt_lost(world: World) -> None:
    """R1: with heartbeats an attempt goes on for ever; without, it is lost, and its result is late."""
    process = world.process().elected(1)
    process.turn()
    attempts = process.worker.attempts
    [started] = attempts.start([(process.pop(), Policy())], nonce="a" * 32, worker="process-1", now=NOON)
    attempt_id = started.claimed.attempt_id
    for _ in range(5):
        world.clock.turn(LOST_AFTER)
        now = world.clock.now()
        assert attempts.heartbeat([attempt_id], worker="process-1", now=now) == {attempt_id}
        process.turn()
        assert world.attempts()[0].state == "running"
    world.clock.turn(LOST_AFTER + SECOND)
    process.turn()
    assert world.attempts()[0].state == world.runs()[0].state == "lost"
    assert attempts.heartbeat([attempt_id], worker="process-1", now=world.clock.now()) == set()
    late = Result(started, Policy(), State.SUCCEEDED)
    assert attempts.finish([late], now=world.clock.now()) == [Finish.LATE]
    [first, *_] = world.attempts()
    assert (first.state, first.late_state) == ("lost", "succeeded")
    assert world.runs()[0].state == "lost"


def test_an_outage_of_the_ledger_longer_than_the_patience_makes_no_living_attempt_lost(
    world: World,
) -> None:
    """R1: nobody's heartbeat could be written; when the database answers, the living speak first."""

    def refuse(*_: object) -> None:
        raise OperationalError("no answer", None, Exception("down"))

    @world.cron.every("1h", name="long")
    def long(run: Run) -> None:
        event.listen(world.engine, "before_cursor_execute", refuse)
        try:
            world.clock.turn(2 * LOST_AFTER)
            process.turn()
        finally:
            event.remove(world.engine, "before_cursor_execute", refuse)
        process.turn()
        process.worker.heartbeat()
        assert not run.is_fenced

    process = world.process().elected(1)
    process.turn()
    process.run_all()
    assert world.states() == ["succeeded"]
    world.clock.turn(2 * LOST_AFTER)
    process.turn()
    assert world.states() == ["succeeded"]


def test_a_lost_attempt_is_followed_by_another_at_least_once(world: World) -> None:
    @world.cron.every("1h", name="sure", delivery="at_least_once", backoff="1s")
    def sure(run: Run) -> None: ...

    process = world.process().elected(1)
    process.turn()
    process.worker.attempts.start([(process.pop(), Policy())], nonce="a" * 32, worker="gone", now=NOON)
    world.clock.turn(LOST_AFTER + SECOND)
    process.turn()
    world.clock.turn(SECOND)
    process.turn()
    process.run_all()
    assert [one.state for one in world.attempts()] == ["lost", "succeeded"]
    assert world.states() == ["succeeded"]


def test_a_fenced_session_commits_effect_and_success_together(world: World, engine: Engine) -> None:
    @world.cron.every("1m", name="write")
    def write(run: Run) -> None:
        with run.fenced_session() as session:
            session.execute(text("INSERT INTO effects VALUES (:fire)"), {"fire": run.key})
        raise RuntimeError("after the commit: too late to matter")

    process = world.process().elected(1)
    process.turn()
    process.run_all()
    assert world.states() == ["succeeded"]
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM effects")).scalar_one() == 1


def test_an_error_inside_a_fenced_session_commits_neither(world: World, engine: Engine) -> None:
    @world.cron.every("1m", name="write")
    def write(run: Run) -> None:
        with run.fenced_session() as session:
            session.execute(text("INSERT INTO effects VALUES (:fire)"), {"fire": run.key})
            raise RuntimeError("no")

    process = world.process().elected(1)
    process.turn()
    process.run_all()
    assert world.states() == ["failed"]
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM effects")).scalar_one() == 0


def test_r1_a_fenced_session_stays_closed_to_a_body_that_swallows_the_error(
    world: World, engine: Engine
) -> None:
    """R1: a refused transaction is refused to its end, also when the next statement is tried anyway."""

    @world.cron.every("1m", name="write")
    def write(run: Run) -> None:
        with run.fenced_session() as session:
            session.commit()
            world.clock.turn(LOST_AFTER + SECOND)
            process.turn()
            for _ in range(3):
                with suppress(AttemptFenced, PendingRollbackError):
                    session.execute(text("INSERT INTO effects VALUES ('x')"))
            with suppress(PendingRollbackError):
                session.commit()

    process = world.process().elected(1)
    process.turn()
    process.worker.execute(process.pop())
    assert world.attempts()[0].state == "lost"
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM effects")).scalar_one() == 0


def test_a_constraint_that_refuses_the_commit_is_no_unknown_outcome(world: World, engine: Engine) -> None:
    """S9 is for lost replies: here the database has answered, and nothing was written."""
    if engine.dialect.name in ("mariadb", "mysql"):
        pytest.skip("MariaDB knows no constraint that waits for the commit")
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE effects"))
        connection.execute(
            text(
                "CREATE TABLE effects (id INTEGER PRIMARY KEY, fire INTEGER"
                " REFERENCES effects (id) DEFERRABLE INITIALLY DEFERRED)"
            )
        )

    @world.cron.every("1m", name="write")
    def write(run: Run) -> None:
        with run.fenced_session() as session:
            session.execute(text("INSERT INTO effects VALUES (1, 99)"))

    process = world.process().elected(1)
    process.turn()
    process.run_all()
    assert world.states() == ["failed"]
    assert "IntegrityError" in world.runs()[0].error
    assert "OutcomeUnknown" not in world.runs()[0].error


@pytest.mark.parametrize("commit_first", [False, True])
def test_r1_a_lost_attempt_writes_nothing_in_a_fenced_session(
    world: World, engine: Engine, commit_first: bool
) -> None:
    """R1: every transaction of the session is guarded by the attempt's row, not only the first."""
    seen: list[str] = []

    @world.cron.every("1m", name="write")
    def write(run: Run) -> None:
        def lose() -> None:
            world.clock.turn(LOST_AFTER + SECOND)
            process.turn()

        if not commit_first:
            lose()
        try:
            with run.fenced_session() as session:
                session.commit()
                lose()
                session.execute(text("INSERT INTO effects VALUES ('x')"))
                session.commit()
        except AttemptFenced:
            seen.append("fenced")

    process = world.process().elected(1)
    process.turn()
    process.worker.execute(process.pop())
    assert seen == ["fenced"]
    assert world.attempts()[0].state == "lost"
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM effects")).scalar_one() == 0


def test_a_database_error_ends_a_turn_and_not_the_officer(
    world: World, ticks: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R6's last complaint: one error must not stop the loop while it says it runs."""
    process = world.process().elected(1)
    good = world.ledger.claim_due

    def fails(*_: object, **__: object) -> None:
        raise OperationalError("SELECT", {}, Exception("the server went away"))

    monkeypatch.setattr(world.ledger, "claim_due", fails)
    assert process.officer.turn() > 0
    assert process.is_active
    monkeypatch.setattr(world.ledger, "claim_due", good)
    process.turn()
    process.run_all()
    assert len(ticks) == 1


@pytest.mark.usefixtures("ticks")
def test_a_ledger_that_stays_silent_ends_the_tenure(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    process = world.process()
    seat = process.elect(1)
    process.turn()

    def fails(*_: object, **__: object) -> None:
        raise OperationalError("SELECT", {}, Exception("the server went away"))

    monkeypatch.setattr(world.ledger, "claim_due", fails)
    pauses = [process.officer.turn() for _ in range(8)]
    assert 5 < sum(pauses) < 20
    assert not process.is_active
    assert seat.resigned


def test_a_claim_whose_commit_was_unknown_is_found_again(
    world: World, ticks: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = world.process().elected(1)
    good = world.ledger.claim_due

    def commits_and_fails(*args: object, **kwargs: object) -> None:
        good(*args, **kwargs)  # type: ignore[arg-type]
        raise OperationalError("COMMIT", {}, Exception("the reply was lost"))

    monkeypatch.setattr(world.ledger, "claim_due", commits_and_fails)
    process.turn()
    assert world.states() == ["claimed"]
    assert not process.runner.attempts
    monkeypatch.setattr(world.ledger, "claim_due", good)
    process.turn()
    process.run_all()
    assert world.states() == ["succeeded"]
    assert len(ticks) == 1
