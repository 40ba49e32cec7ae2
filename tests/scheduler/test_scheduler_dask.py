"""Attempts that Dask carries: a real scheduler and real workers, one of them killed, its tasks run again."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lockd.testing.ports import free_port
from lockd_scheduler.loading import load_cron
from tests.scheduler.handing import JOBS, Handing, at_the_ledgers_time, claimed_by, send, silent_too_long
from tests.scheduler.harness import MINUTE, World
from tests.scheduler.running import is_alive, until

ENGINE = """
from lockd_scheduler.handover.dask import DaskEngine

engine = DaskEngine(os.environ["DASK"], jobs="far_jobs:cron")
"""


@pytest.fixture
def db_url(tmp_path: Path) -> str:
    """What is shown here is between the scheduler, Dask and its workers: one kind of ledger will do."""
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def handing(world: World, db_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Handing]:
    env = {
        "DASK": f"tcp://127.0.0.1:{free_port()}",
        "DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING": "False",
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "far_jobs.py").write_text(JOBS.format(engine=ENGINE))
    cron = load_cron(str(tmp_path / "far_jobs.py"))
    at_the_ledgers_time(world)
    handing = Handing(world, cron, tmp_path, db_url, env)
    port = env["DASK"].rpartition(":")[2]
    command = ("--host", "127.0.0.1", "--port", port, "--no-dashboard")
    with handing.worker("from distributed.cli.dask_scheduler import main; main()", *command):
        yield handing
        handing.close()


def dask_worker(handing: Handing) -> ExitStack:
    """One worker process with two threads, so that what comes twice can run beside the first."""
    words = (handing.env["DASK"], "--host", "127.0.0.1", "--nthreads", "2", "--no-nanny", "--no-dashboard")
    started = ExitStack()
    started.enter_context(handing.worker("from distributed.cli.dask_worker import main; main()", *words))
    return started


def test_r5_a_task_that_dask_runs_again_starts_nothing(handing: Handing) -> None:
    """R3, R5: Dask itself runs the tasks of a dead worker on another; the ledger refuses them there."""
    world, engine = handing.world, handing.cron.engines["dask"]
    handing.hold()
    process = handing.process(1)
    handing.ask(process, "once", "first")
    handing.ask(process, "again", "first")
    sent = claimed_by(process)
    with dask_worker(handing):
        until(lambda: len(handing.begun()) == 2)
        pid = handing.begun()[0].pid
        assert pid != os.getpid()
        assert process.runner.attempts == [], "they are only sent"
        with dask_worker(handing):
            os.kill(pid, signal.SIGKILL)
            until(lambda: not is_alive(pid))
            for claimed in sent:
                send(process, engine, claimed)
            handing.let_go()
            silent_too_long(world)
            process.turn()
            assert sorted(world.states()) == ["claimed", "lost"]
            world.clock.turn(MINUTE)
            handing.ask(process, "once", "last")
            handing.until_ended(3)
    tries = sorted((one.job, one.attempt) for one in handing.begun())
    assert tries == [("again", 1), ("again", 2), ("once", 1), ("once", 1)]
    assert sorted(world.states()) == ["lost", "succeeded", "succeeded"]
