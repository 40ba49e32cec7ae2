"""Attempts that Dask carries: a real scheduler and real workers, one of them killed, its tasks run again."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lockd_scheduler.loading import load_cron
from tests.scheduler.handing import JOBS, Handing, at_the_ledgers_time, claimed_by, send, silent_too_long
from tests.scheduler.harness import MINUTE, World
from tests.scheduler.running import is_alive, until
from tests.servers.process import free_port

ENGINE = """
from lockd_scheduler.handover.dask import DaskEngine

engine = DaskEngine(os.environ["DASK"], jobs="far_jobs:cron")
"""


@pytest.fixture
def db_url(tmp_path: Path) -> str:
    """What is shown here is between the scheduler, Dask and its workers: one kind of ledger will do."""
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def handing(
    world: World, db_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Handing]:
    env = {
        "DASK": f"tcp://127.0.0.1:{free_port()}",
        "DELIVERY": getattr(request, "param", "at_most_once"),
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


@pytest.mark.parametrize("handing", ["at_most_once", "at_least_once"], indirect=True)
def test_r5_a_task_that_dask_runs_again_starts_nothing(handing: Handing) -> None:
    """R3, R5: Dask itself runs the tasks of a dead worker on another; the ledger refuses them there."""
    is_again = handing.env["DELIVERY"] == "at_least_once"
    world, engine = handing.world, handing.cron.engines["dask"]
    handing.hold()
    process = handing.process(1)
    handing.ask(process, "first")
    [first] = claimed_by(process)
    with dask_worker(handing):
        until(handing.begun)
        [begun] = handing.begun()
        assert begun.pid != os.getpid()
        assert process.runner.attempts == [], "it is only sent"
        with dask_worker(handing):
            os.kill(begun.pid, signal.SIGKILL)
            until(lambda: not is_alive(begun.pid))
            send(process, engine, first)
            handing.let_go()
            silent_too_long(world)
            process.turn()
            assert world.states() == ["claimed" if is_again else "lost"]
            world.clock.turn(MINUTE)
            handing.ask(process, "last")
            handing.until_ended(2)
    tries = [begun.attempt for begun in handing.begun() if begun.run_id == first.run_id]
    assert tries == ([1, 2] if is_again else [1])
    assert world.states() == ["succeeded" if is_again else "lost", "succeeded"]
