"""Sending attempts to an engine that loses messages, does not answer, or never begins them."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lockd_scheduler import BadSchedule, Run
from lockd_scheduler.app import Settings, make_service
from lockd_scheduler.handover import Message, sending
from lockd_scheduler.handover.sending import HandingOver
from lockd_scheduler.handover.site import DB_VARIABLE, Sites
from lockd_scheduler.jobs import Job
from lockd_scheduler.mandates import Claimed
from tests.scheduler.harness import Process, World
from tests.scheduler.running import until


@dataclass
class TwinEngine:
    """An engine in memory, which carries what the test takes out of it."""

    name: str = "celery"
    messages: list[tuple[str, float, Message]] = field(default_factory=list)
    fails: int = 0
    jobs: dict[str, Mapping[str, Job[..., Any]]] = field(default_factory=dict)
    is_closed: bool = False

    def attach(self, scope: str, jobs: Mapping[str, Job[..., Any]]) -> None:
        self.jobs[scope] = jobs

    def send(self, message: Message, *, task_id: str, expires_seconds: float) -> None:
        if self.fails > 0:
            self.fails -= 1
            raise ConnectionError("no broker")
        self.messages.append((task_id, expires_seconds, message))

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def twin(world: World) -> TwinEngine:
    """With one job that it is to run and one that it is not."""
    twin = TwinEngine()
    world.cron.hand_over(twin)

    @world.cron.every("1h", name="far", runner="celery")
    def far(run: Run) -> None:
        run.log("done far away")

    world.cron.every("1h", name="near")(lambda: None)
    return twin


@pytest.fixture
def db_url(tmp_path: Path) -> str:
    """What is shown here is between a process and an engine: one kind of ledger will do."""
    return f"sqlite:///{tmp_path}/ledger.db"


def in_office(world: World, token: int = 1) -> tuple[Process, HandingOver]:
    process = world.process()
    handing = HandingOver(
        process.runner,
        scope="ops",
        jobs=world.cron.jobs,
        engines=world.cron.engines,
        attempts=process.worker.attempts,
        lost_after=timedelta(seconds=30),
    )
    process.officer.runner = handing
    return process.elected(token), handing


def test_a_message_has_the_claim_and_is_called_like_the_attempt(world: World, twin: TwinEngine) -> None:
    process, handing = in_office(world)
    process.turn()
    until(lambda: twin.messages)
    [(task_id, expires, message)] = twin.messages
    attempt = next(row for row in world.attempts() if row.id != process.runner.attempts[0].attempt_id)
    assert (task_id, expires) == (f"ops/{attempt.id}", sending.RESEND_SECONDS)
    assert message["scope"] == "ops"
    assert message["lost_after"] == 30
    claimed = Claimed.from_json(message["claimed"])
    assert (claimed.attempt_id, claimed.job) == (attempt.id, "far")
    assert [one.job for one in process.runner.attempts] == ["near"]
    assert handing.queued() == {row.id for row in world.attempts()}
    handing.close()
    assert twin.is_closed


def test_what_nobody_begins_is_sent_again_and_what_somebody_has_begun_is_not(
    world: World, twin: TwinEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pauses double, and each message expires before the next: a full queue fills up with no copies."""
    monkeypatch.setattr(sending, "RESEND_SECONDS", 0.02)
    process, handing = in_office(world)
    process.turn()
    until(lambda: len(twin.messages) >= 3)
    assert [expires for _, expires, _ in twin.messages][:3] == [0.02, 0.04, 0.08]
    assert len({str(message) for _, _, message in twin.messages}) == 1
    process.worker.execute(Claimed.from_json(twin.messages[0][2]["claimed"]))
    until(lambda: handing.queued() == {process.runner.attempts[0].attempt_id})
    handing.close()


def test_an_engine_that_does_not_answer_is_asked_again(
    world: World, twin: TwinEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sending, "TROUBLE_SECONDS", 0.01)
    twin.fails = 3
    process, handing = in_office(world)
    process.turn()
    until(lambda: twin.messages)
    told = [record for record in caplog.records if "not handed over" in record.message]
    assert len(told) == 1
    assert "no broker" in told[0].message
    handing.close()


def test_r1_a_process_that_steps_down_forgets_what_it_sent(world: World, twin: TwinEngine) -> None:
    """R1: the next office claims it anew, and sends it with its own token."""
    process, handing = in_office(world, 1)
    process.turn()
    until(lambda: twin.messages)
    process.officer.stop()
    assert handing.queued() == set()
    second, other = in_office(world, 2)
    second.turn()
    until(lambda: len(twin.messages) == 2)
    old, new = (Claimed.from_json(message["claimed"]) for _, _, message in twin.messages)
    assert (old.attempt_id, old.office_token) == (new.attempt_id, 1)
    assert new.office_token == 2
    assert second.worker.start([old]) == []
    handing.close()
    other.close()


def test_a_worker_carries_messages_with_heartbeats_of_its_own(
    world: World, twin: TwinEngine, db_url: str
) -> None:
    @world.cron.every("1h", name="async", runner="celery")
    async def waits(run: Run) -> None:
        run.log(f"{threading.current_thread().name}")

    process, handing = in_office(world)
    process.turn()
    until(lambda: len(twin.messages) == 2)
    sites = Sites(db_url)
    sites.attach("ops", world.cron.jobs)
    assert [sites.carry(message) for _, _, message in twin.messages] == ["carried", "carried"]
    assert sites.carry(twin.messages[0][2]).startswith("not started")
    done = {row.id: row for row in world.attempts() if row.state == "succeeded"}
    assert len(done) == 2
    assert len({row.worker for row in done.values()}) == 1
    handing.close()


def test_a_worker_that_lacks_something_says_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DB_VARIABLE, raising=False)
    message = {"scope": "ops", "claimed": {}, "lost_after": 30}
    with pytest.raises(BadSchedule, match="needs the ledger's URL: db=, or LOCKD_SCHEDULER_DB"):
        Sites(None).carry(message)
    with pytest.raises(BadSchedule, match="has no jobs of 'ops': its job file is not imported"):
        Sites("sqlite:///none.db").carry(message)


def test_an_engine_that_nobody_named_is_refused_at_the_start(world: World, db_url: str) -> None:
    world.cron.every("1h", name="far", runner="dask")(lambda: None)
    with pytest.raises(BadSchedule, match=r"job 'far' runs on dask, and no cron.hand_over\(...\) says where"):
        make_service(
            "ops",
            world.cron.jobs,
            Settings.from_words(db=db_url),
            loop=None,
            open_office=lambda *_: pytest.fail("no office for this"),
        )
