"""Attempts that Celery carries: a real broker and real workers, killed ones, messages that come twice."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from lockd_scheduler.loading import load_cron
from tests.scheduler.conftest import emptied
from tests.scheduler.handing import JOBS, Handing, at_the_ledgers_time, claimed_by, send, silent_too_long
from tests.scheduler.harness import MINUTE, World
from tests.scheduler.running import is_alive, said, until
from tests.servers.valkey import ValkeyServer, running_valkey

pytestmark = [pytest.mark.valkey, pytest.mark.postgres]

ENGINE = """
from celery import Celery
from lockd_scheduler.handover.celery import CeleryEngine

app = Celery(broker=os.environ["BROKER"])
engine = CeleryEngine(app)
"""
WORKER = (
    "from celery.__main__ import main; main()",
    *("-A", "far_jobs", "worker", "--loglevel", "INFO"),
    *("--without-gossip", "--without-mingle", "--without-heartbeat", "--concurrency"),
)


@pytest.fixture(scope="module")
def broker() -> Iterator[ValkeyServer]:
    with running_valkey() as server:
        yield server


@pytest.fixture
def handing(
    world: World,
    db_url: str,
    broker: ValkeyServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Handing]:
    broker.reset()
    env = {"BROKER": f"redis://127.0.0.1:{broker.port}/0"}
    monkeypatch.setenv("BROKER", env["BROKER"])
    (tmp_path / "far_jobs.py").write_text(JOBS.format(engine=ENGINE))
    monkeypatch.syspath_prepend(tmp_path)
    cron = load_cron(str(tmp_path / "far_jobs.py"))
    at_the_ledgers_time(world)
    handing = Handing(world, cron, tmp_path, db_url, env)
    yield handing
    handing.close()
    app = cron.engines["celery"]._task.app  # type: ignore[attr-defined]
    assert isinstance(app, Celery)
    app.close()


@pytest.fixture
def db_url(postgres_ledger_url: str) -> str:
    """What is shown here is between the scheduler, the broker and the workers: one kind of ledger will do."""
    return emptied(postgres_ledger_url)


def test_r3_each_attempt_is_started_once_whatever_the_broker_brings(handing: Handing) -> None:
    """R3, R1: the worker's first act is claimed -> running. A message that comes twice, before, while or
    after it runs, as with a visibility timeout that is too short, and one of an office that is gone,
    start nothing."""
    engine, world = handing.cron.engines["celery"], handing.world
    before = handing.process(1)
    handing.ask(before, "once", "first")
    [old] = claimed_by(before)
    process = handing.process(2)
    process.turn()
    [first] = claimed_by(process)
    assert (first.attempt_id, first.number, first.office_token) == (old.attempt_id, 1, 2)
    send(process, engine, first)
    assert world.states() == ["claimed"]
    assert before.runner.attempts == process.runner.attempts == [], "it is only sent"

    handing.hold()
    with handing.worker(*WORKER, "1"):
        until(handing.begun)
        send(process, engine, first)
        handing.let_go()
        handing.until_ended(1)
        send(process, engine, first)
        handing.ask(process, "once", "last")  # its message comes after all the others
        handing.until_ended(2)

    assert world.states() == ["succeeded", "succeeded"]
    assert [begun.run_id for begun in handing.begun()] == [row.id for row in world.runs()]
    assert [(row.number, row.office_token) for row in world.attempts()] == [(1, 2), (1, 2)]
    [one, other] = handing.begun()
    assert world.attempts()[0].worker.split(":")[1] == str(one.pid) == str(other.pid)
    assert one.pid != os.getpid()
    assert said(world, "log") == f"attempt 1 has token (2, {first.ordinal})\n"


def test_r5_a_worker_that_is_killed_loses_its_attempts(handing: Handing) -> None:
    """R5: at_least_once is tried again by another worker; at_most_once never, also not by the broker."""
    world, engine = handing.world, handing.cron.engines["celery"]
    handing.hold()
    process = handing.process(1)
    handing.ask(process, "once", "first")
    handing.ask(process, "again", "first")
    sent = claimed_by(process)
    with handing.worker(*WORKER, "2"):
        until(lambda: len(handing.begun()) == 2)
        begun = handing.begun()
        for pid in (begun[0].parent, *(one.pid for one in begun)):
            os.kill(pid, signal.SIGKILL)
        until(lambda: not any(is_alive(one.pid) for one in begun))
    handing.let_go()
    for claimed in sent:
        send(process, engine, claimed)  # the broker brings it again, as with acks_late
    silent_too_long(world)
    process.turn()
    world.clock.turn(MINUTE)
    handing.ask(process, "once", "last")
    with handing.worker(*WORKER, "2"):
        handing.until_ended(3)
    tries = sorted((one.job, one.attempt) for one in handing.begun())
    assert tries == [("again", 1), ("again", 2), ("once", 1), ("once", 1)]
    assert sorted(world.states()) == ["lost", "succeeded", "succeeded"]
    assert next(row for row in world.runs() if row.id == sent[0].run_id).state == "lost"
