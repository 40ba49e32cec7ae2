"""Functions in a process of their own, on every ledger where they write; and how they end (SAFETY R5)."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from lockd_scheduler import BadSchedule
from lockd_scheduler.asking import Asking
from lockd_scheduler.declared import runner_from_words
from lockd_scheduler.jobs import Job, JobSpec
from lockd_scheduler.loading import load_cron
from lockd_scheduler.parking import look_for_gone
from lockd_scheduler.runners import children
from tests.scheduler import isolated_jobs
from tests.scheduler.harness import SECOND, Process, World
from tests.scheduler.running import is_alive, pid_in, ran, said, underway


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "GRACE_SECONDS", 1.0)


def declare(world: World, function: Callable[..., Any], **choices: Any) -> None:
    world.cron.job("0 * * * *", name="alone", runner="process", **choices)(function)


def begun(world: World) -> Process:
    process = world.process().elected(1)
    process.turn()
    return process


def test_a_function_runs_in_an_interpreter_of_its_own(world: World, tmp_path: Path) -> None:
    declare(world, isolated_jobs.tell, args={"region": "eu", "file": str(tmp_path / "pid")})
    ran(world)
    assert world.states() == ["succeeded"]
    assert pid_in(tmp_path / "pid") != os.getpid()
    assert said(world, "stdout") == (
        f"alone 1 (1, 1) ops/alone/scheduled/2026-06-01T12:00:00Z eu\nlogged by {world.runs()[0].id}\n"
    )
    assert said(world, "stderr") == "said on stderr\n"


def test_what_it_writes_in_a_fenced_session_commits_with_its_success(world: World) -> None:
    """R1: the session there is guarded by the same row; its commit is the success, whatever comes after."""
    declare(world, isolated_jobs.write_and_crash, retries=3)
    ran(world)
    assert world.states() == ["succeeded"]
    with world.engine.connect() as connection:
        effects = connection.scalars(text("SELECT fire FROM effects")).all()
    assert effects == ["ops/alone/scheduled/2026-06-01T12:00:00Z"]


def test_r1_a_fenced_attempt_writes_nothing_from_its_process(world: World) -> None:
    declare(world, isolated_jobs.write)
    process = begun(world)
    [started] = process.worker.start([process.pop()])
    world.clock.turn(SECOND * 60)
    process.turn()  # no heartbeat came: the office ends it
    result = process.worker.carry(started)
    assert result.error == f"attempt 1 of run {started.claimed.run_id} (alone) was ended by the office"
    with world.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM effects")) == 0


class TestOnOneLedger:
    """What is between a worker and its processes alone."""

    @pytest.fixture
    def db_url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/ledger.db"

    def test_an_async_function_gets_a_loop(self, world: World) -> None:
        declare(world, isolated_jobs.wait_a_little)
        ran(world)
        assert said(world, "stdout") == "awaited\n"

    def test_an_error_comes_back_with_its_traceback(self, world: World) -> None:
        declare(world, isolated_jobs.fail, retries=1)
        ran(world)
        assert world.states() == ["claimed"]
        [attempt] = world.attempts()
        assert attempt.error.endswith("ValueError: no such region\n")
        assert "in fail" in attempt.error
        assert (attempt.state, attempt.exit_status) == ("failed", 1)

    @pytest.mark.parametrize(
        ("function", "status", "error"),
        [
            (isolated_jobs.leave, 7, "exit status 7, without a result"),
            (isolated_jobs.crash, 139, "ended by SIGSEGV, without a result"),
        ],
    )
    def test_a_crash_takes_nothing_of_the_service_with_it(
        self, world: World, function: Callable[[], None], status: int, error: str
    ) -> None:
        declare(world, function)
        ran(world)
        assert world.states() == ["failed"]
        assert (world.attempts()[0].exit_status, world.attempts()[0].error) == (status, error)

    def test_r5_a_function_that_hangs_is_told_why_and_ends(self, world: World, tmp_path: Path) -> None:
        """Also inside of one long call; a known failure, since it has provably ended."""
        declare(world, isolated_jobs.sleep_on, args={"file": str(tmp_path / "pid")}, timeout="30s", retries=1)
        process = begun(world)
        with underway(process):
            pid = pid_in(tmp_path / "pid")
            world.clock.turn(SECOND * 30)
            process.worker.enforce()
        assert not is_alive(pid)
        assert world.attempts()[0].state == "timed_out"
        assert world.states() == ["claimed"]
        assert said(world, "stdout").startswith("cleaned up: <run 1 of 'alone'")

    def test_a_function_that_returns_though_it_was_told_to_stop_has_succeeded(
        self, world: World, tmp_path: Path
    ) -> None:
        declare(world, isolated_jobs.finish_all_the_same, args={"file": str(tmp_path / "pid")}, timeout="30s")
        process = begun(world)
        with underway(process):
            pid_in(tmp_path / "pid")
            world.clock.turn(SECOND * 30)
            process.worker.enforce()
        assert world.states() == ["succeeded"]

    @pytest.mark.parametrize("is_stopped", [False, True])
    def test_r5_a_deaf_or_stopped_function_is_killed(
        self, world: World, tmp_path: Path, is_stopped: bool
    ) -> None:
        declare(world, isolated_jobs.busy_and_deaf, args={"file": str(tmp_path / "pid")}, retries=2)
        process = begun(world)
        with underway(process):
            pid = pid_in(tmp_path / "pid")
            if is_stopped:
                os.kill(pid, signal.SIGSTOP)
            Asking(world.engine, "ops").cancel(1, reason=None, now=world.clock.now())
            process.worker.enforce()
        assert not is_alive(pid)
        assert world.states() == ["cancelled"]
        assert world.attempts()[0].exit_status == 137

    def test_a_named_function_needs_no_decorator(self, world: World) -> None:
        add_named(world, "tests.scheduler.isolated_jobs:wait_a_little")
        ran(world)
        assert world.states() == ["succeeded"]
        assert said(world, "stdout") == "awaited\n"

    def test_a_function_that_has_gone_parks_its_job_until_it_is_there_again(
        self, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def look() -> datetime | None:
            look_for_gone(world.engine, "ops", threading.Event(), world.clock.now)
            parked_at: datetime | None = world.schedules()[0].parked_at
            return parked_at

        monkeypatch.syspath_prepend(tmp_path)
        file = tmp_path / "written_later.py"
        add_named(world, "written_later:job")
        process = ran(world)
        assert world.attempts()[0].error == "there is no module 'written_later'"
        world.clock.turn(timedelta(hours=1))
        process.turn()
        assert world.states() == ["failed"], "a parked job fires nothing"
        file.write_text("def other(): ...\n")
        assert look() is not None
        file.write_text("def the_job_itself(): ...\njob = the_job_itself\n")
        assert look() is None
        process.turn()
        process.run_all()
        assert world.states() == ["failed", "succeeded"], "it goes on where it was parked"

    def test_a_named_function_that_is_not_in_its_module_is_one_that_has_gone(self, world: World) -> None:
        add_named(world, "tests.scheduler.isolated_jobs:gone")
        ran(world)
        assert world.schedules()[0].parked_at is not None
        assert world.attempts()[0].error == "tests.scheduler.isolated_jobs has no function 'gone'"

    def test_a_module_that_raises_is_a_failure_like_others(
        self, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "raises_at_once.py").write_text("import not_installed_at_all\n")
        add_named(world, "raises_at_once:job")
        ran(world)
        assert world.states() == ["failed"]
        assert "No module named 'not_installed_at_all'" in world.attempts()[0].error
        assert world.schedules()[0].parked_at is None

    def test_the_functions_of_a_script_are_found_too(self, tmp_path: Path) -> None:
        """`python jobs.py`, whose module is called __main__."""
        script = tmp_path / "jobs.py"
        script.write_text(SCRIPT)
        subprocess.run([sys.executable, script], cwd=tmp_path, check=True, capture_output=True)
        assert (tmp_path / "done").read_text() == "jobs"

    def test_a_script_that_serves_whenever_it_is_imported_starts_no_scheduler_in_an_attempt(
        self, tmp_path: Path
    ) -> None:
        script = tmp_path / "jobs.py"
        script.write_text(UNGUARDED)
        with subprocess.Popen(
            [sys.executable, script], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        ) as serving:
            assert serving.stderr is not None
            told = next(line for line in serving.stderr if "attempt ended" in line)
            serving.terminate()
        assert "jobs are served while" in told
        assert "serve under if __name__" in told
        with pytest.raises(BadSchedule, match=r"line \d+: jobs are served while"):
            load_cron(str(script))


UNGUARDED = """
from lockd_scheduler import Cron

cron = Cron("ops")

@cron.job("* * * * * *", runner="process")
def touch(): ...

cron.serve()
"""
SCRIPT = """
from pathlib import Path
from lockd_scheduler import Cron

cron = Cron("ops")

@cron.job("* * * * * *", runner="process")
def touch():
    Path("done").write_text(__name__)

if __name__ == "__main__":
    import os, signal, threading, time
    def watch():
        give_up = time.monotonic() + 20
        while not Path("done").exists() and time.monotonic() < give_up:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=watch).start()
    cron.serve()
"""


def add_named(world: World, reference: str) -> None:
    trigger = world.cron.job("0 * * * *", name="other")(lambda: None).spec.trigger
    world.cron.jobs.clear()
    policy = world.cron.shell("0 * * * *", "true", name="policy").spec.policy
    world.cron.jobs.clear()
    spec = JobSpec("alone", trigger, policy, {}, runner_from_words({"python": reference}))
    world.cron.jobs["alone"] = Job(None, spec)


def test_a_function_inside_of_another_is_refused(world: World) -> None:
    def local() -> None: ...

    with pytest.raises(BadSchedule, match="must stand at the top of its module"):
        declare(world, local)


def test_importing_the_scheduler_imports_no_engine() -> None:
    engines = "{'celery', 'kombu', 'distributed', 'dask'}"
    code = f"import sys, lockd_scheduler.cron; print(*{engines} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
