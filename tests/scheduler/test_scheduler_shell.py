"""Command lines: what they are told, what is kept of them, and that nothing of them is left (SAFETY R5)."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from lockd_scheduler import BadSchedule, SchedulerError
from lockd_scheduler.asking import Asking
from lockd_scheduler.declared import runner_from_words
from lockd_scheduler.runners import children
from tests.scheduler.harness import SECOND, World
from tests.scheduler.running import is_alive, pid_in, ran, said, underway, until


@pytest.fixture
def db_url(tmp_path: Path) -> str:
    """What is shown here is between a worker and its processes: one kind of ledger will do."""
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(children, "LINGER_SECONDS", 1.0)


def test_a_command_knows_which_attempt_it_is(world: World) -> None:
    line = """
        echo "$LOCKD_RUN_ID|$LOCKD_JOB|$LOCKD_FIRE_TIME|$LOCKD_ATTEMPT|$LOCKD_TOKEN|$LOCKD_IDEMPOTENCY_KEY"
        echo "$KEEP $LOCKD_ARGS"
    """
    world.cron.shell("0 * * * *", line, name="tell", env={"KEEP": "90 days"})
    ran(world)
    assert said(world, "stdout").splitlines() == [
        "1|tell|2026-06-01T12:00:00Z|1|1.1|ops/tell/scheduled/2026-06-01T12:00:00Z",
        "90 days {}",
    ]
    assert world.states() == ["succeeded"]


def test_a_jobs_environment_has_none_of_the_services_own_settings(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCKD_SCHEDULER_WEBHOOK", "https://x/secret")
    monkeypatch.setenv("PGPASSWORD", "of the service")
    world.cron.shell("0 * * * *", "env", name="env")
    ran(world)
    assert "secret" not in said(world, "stdout")
    assert "PGPASSWORD=of the service" in said(world, "stdout")


@pytest.mark.parametrize(
    ("line", "status", "error"),
    [
        ("exit 3", 3, "exit status 3"),
        ("echo no room >&2; exit 1", 1, "exit status 1: no room"),
        ("kill -SEGV $$", 139, "ended by SIGSEGV"),
        ("lockd-no-such-command", 127, "exit status 127: /bin/sh: 1: lockd-no-such-command: not found"),
    ],
)
def test_a_command_that_fails_is_a_known_failure(world: World, line: str, status: int, error: str) -> None:
    world.cron.shell("0 * * * *", line, name="fails", retries=1)
    ran(world)
    assert world.states() == ["claimed"], "a known failure is tried again"
    [attempt] = world.attempts()
    assert (attempt.state, attempt.exit_status) == ("failed", status)
    assert attempt.error.startswith(error.partition(":")[0])
    if "/bin/sh" not in error:
        assert attempt.error == error


def test_a_directory_that_is_not_there_is_told(world: World, tmp_path: Path) -> None:
    world.cron.shell("0 * * * *", "pwd", name="there", cwd=str(tmp_path))
    world.cron.shell("0 * * * *", "pwd", name="nowhere", cwd=str(tmp_path / "nowhere"))
    ran(world)
    assert world.states() == ["succeeded", "failed"]
    assert said(world, "stdout") == f"{tmp_path}\n"
    assert "it can't be started" in world.attempts()[1].error
    assert "nowhere" in world.attempts()[1].error


def test_r5_a_timed_out_command_is_gone_with_its_children_before_its_attempt_ends(
    world: World, tmp_path: Path
) -> None:
    """R5: also what ignores TERM, is stopped, or has left the process group."""
    pids = [tmp_path / name for name in ("own", "deaf", "stopped", "away", "orphan")]
    line = f"""
        sh -c 'trap "" TERM; echo $$ > {pids[1]}; while :; do sleep 0.1; done' &
        sh -c 'echo $$ > {pids[2]}; kill -STOP $$' &
        setsid sh -c 'echo $$ > {pids[3]}; sleep 600' &
        sh -c 'setsid sh -c "trap \\"\\" TERM; echo \\$\\$ > {pids[4]}; while :; do sleep 0.1; done" &' &
        echo $$ > {pids[0]}
        exec sleep 600
    """
    world.cron.shell("0 * * * *", line, name="slow", timeout="30s", retries=1)
    process = world.process().elected(1)
    process.turn()
    with underway(process):
        living = [pid_in(file) for file in pids]
        world.clock.turn(SECOND * 30)
        process.worker.enforce()
        until(lambda: world.attempts()[0].state == "timed_out")
        assert [is_alive(pid) for pid in living] == [False] * 5
    assert world.states() == ["claimed"], "it has provably ended: it may be tried again"


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_cancelled_command_may_clean_up(world: World, tmp_path: Path, is_stopped: bool) -> None:
    """Also one that was stopped: it is continued, so that it hears of its end."""
    line = f"""
        trap 'echo cleaned; exit 0' TERM
        echo $$ > {tmp_path}/pid
        sleep 600 & wait
    """
    world.cron.shell("0 * * * *", line, name="slow", retries=3)
    process = world.process().elected(1)
    process.turn()
    with underway(process):
        pid = pid_in(tmp_path / "pid")
        if is_stopped:
            os.kill(pid, signal.SIGSTOP)
        Asking(world.engine, "ops").cancel(1, reason="wrong day", now=world.clock.now())
        process.worker.enforce()
    assert world.states() == ["cancelled"], "exit status 0 after TERM does not say that the work was done"
    assert said(world, "stdout") == "cleaned\n"


def test_a_command_that_ends_before_it_is_told_to_has_succeeded(world: World, tmp_path: Path) -> None:
    """Its own end counts, though a process it left behind is still being ended."""
    line = (
        f"(trap '' TERM; echo x > {tmp_path}/child; while :; do sleep 0.1; done) & echo $$ > {tmp_path}/pid"
    )
    world.cron.shell("0 * * * *", line, name="quick", timeout="30s")
    process = world.process().elected(1)
    process.turn()
    with underway(process):
        pid = pid_in(tmp_path / "pid")
        until(lambda: not is_alive(pid))
        world.clock.turn(SECOND * 30)
        process.worker.enforce()
    assert world.states() == ["succeeded"]


def test_r5_what_a_command_leaves_behind_is_ended_and_told(world: World, tmp_path: Path) -> None:
    """R5: a grandchild that holds on, also to the output, outlives neither the attempt nor its row."""
    file = tmp_path / "pid"
    line = f"sh -c 'echo $$ > {file}; exec sleep 600' & until [ -s {file} ]; do sleep 0.01; done"
    world.cron.shell("0 * * * *", line, name="daemon")
    ran(world)
    assert not is_alive(pid_in(tmp_path / "pid"))
    assert world.states() == ["succeeded"]
    assert said(world, "lockd") == (
        "\n[the command has ended and left 1 processes behind: they are ended now]\n"
    )


def test_a_child_that_ends_soon_after_the_command_is_waited_for(world: World) -> None:
    world.cron.shell("0 * * * *", "(sleep 0.2; echo flushed) &", name="tee")
    ran(world)
    assert said(world, "stdout") == "flushed\n"
    assert said(world, "lockd") == ""


def test_r5_a_command_whose_guardian_was_killed_is_lost(world: World, tmp_path: Path) -> None:
    """R5: nobody can say what became of it; its group is ended all the same."""
    line = f"sleep 600 & echo $! > {tmp_path}/child; echo $PPID > {tmp_path}/guardian; sleep 600"
    world.cron.shell("0 * * * *", line, name="orphan", retries=3)
    process = world.process().elected(1)
    process.turn()
    with underway(process):
        guardian, child = pid_in(tmp_path / "guardian"), pid_in(tmp_path / "child")
        os.kill(guardian, signal.SIGKILL)
    until(lambda: not is_alive(child))
    assert world.states() == ["lost"]


@contextmanager
def serving(tmp_path: Path, line: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A service in a process of its own, with one job."""
    (tmp_path / "jobs.py").write_text(
        textwrap.dedent(f"""
            from lockd_scheduler import Cron
            cron = Cron("ops")
            cron.shell("* * * * * *", {line!r}, name="long")
        """)
    )
    command = [sys.executable, "-c", "import jobs; jobs.cron.serve(drain='1ms')"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as service:
        try:
            yield service
        finally:
            service.kill()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_r5_commands_end_with_their_service_even_by_kill_9(tmp_path: Path, how: signal.Signals) -> None:
    """R5: a service that is gone leaves no process of its jobs behind, running unnoticed."""
    line = f"setsid sleep 600 & echo $! > {tmp_path}/away; echo $$ > {tmp_path}/own; sleep 600"
    with serving(tmp_path, line) as service:
        pids = [pid_in(tmp_path / name) for name in ("own", "away")]
        assert all(is_alive(pid) for pid in pids)
        service.send_signal(how)
        until(lambda: not any(is_alive(pid) for pid in pids), "the end of the job's processes")


def test_r5_a_command_ends_with_its_guardian_though_the_service_is_gone_too(tmp_path: Path) -> None:
    """R5: whoever kills both, as an operator in a hurry does, has ended the command as well."""
    line = f"echo $PPID > {tmp_path}/guardian; echo $$ > {tmp_path}/own; exec sleep 600"
    with serving(tmp_path, line) as service:
        guardian, own = pid_in(tmp_path / "guardian"), pid_in(tmp_path / "own")
        service.send_signal(signal.SIGSTOP)
        os.kill(guardian, signal.SIGKILL)
        service.kill()
        until(lambda: not is_alive(own), "the end of the command")


def test_r5_what_a_stopped_service_leaves_behind_does_not_run_on(world: World, tmp_path: Path) -> None:
    """A service inside of a process that lives on: after its drain nobody would send heartbeats."""
    world.cron.shell("0 * * * *", f"echo $$ > {tmp_path}/pid; sleep 600", name="long")
    process = world.process().elected(1)
    process.turn()
    with underway(process):
        pid = pid_in(tmp_path / "pid")
        process.worker.abandoned.set()
    assert not is_alive(pid)
    assert world.states() == ["running"], "it will be found lost"


def test_a_fenced_command_is_ended(world: World, tmp_path: Path) -> None:
    world.cron.shell("0 * * * *", f"echo $$ > {tmp_path}/pid; sleep 600", name="long")
    process = world.process().elected(1)
    process.turn()
    with underway(process):
        pid = pid_in(tmp_path / "pid")
        world.clock.turn(timedelta(minutes=1))
        process.turn()  # no heartbeat came
        process.worker.heartbeat()
    assert not is_alive(pid)
    assert world.states()[0] == "lost"


def test_a_job_that_only_the_ledger_knows_is_run_by_its_definition(world: World) -> None:
    """A file's jobs have no function in the code: a worker reads what they are with the claim."""
    world.cron.shell("0 * * * *", "echo first", name="filed")
    process = world.process().elected(1)
    process.turn()
    process.worker.jobs.clear()  # type: ignore[attr-defined]
    process.run_all()
    assert world.states() == ["succeeded"]
    assert said(world, "stdout") == "first\n"


def test_a_shell_job_can_not_be_called_and_says_so(world: World) -> None:
    job = world.cron.shell("@hourly", "true", name="line")
    with pytest.raises(SchedulerError, match="'line' is no function"):
        job()


def test_the_definition_is_json_and_left_out_for_functions(world: World) -> None:
    job = world.cron.shell("@hourly", "true", name="line", env={"A": "1"}, cwd="/")
    runner = {"kind": "shell", "command": "true", "env": {"A": "1"}, "cwd": "/"}
    assert json.loads(json.dumps(job.spec.to_json()))["runner"] == runner
    assert type(job.spec).from_json("line", job.spec.to_json()).runner == runner
    plain = world.cron.job("@hourly", name="plain")(lambda: None)
    assert "runner" not in plain.spec.to_json()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ({}, "run: it says one of shell, http, python, and this says none"),
        ({"shell": "a", "http": "b"}, "run: it says one of shell, http, python, and this says shell, http"),
        ({"shell": " "}, "run.shell: it is a command line, like vacuumdb -a"),
        ({"shell": ["a"]}, "run.shell: it is a command line"),
        ({"shell": "a\0b"}, "run.shell: it has a character that can't be there"),
        ({"shell": "a", "dir": "/"}, "run: it knows shell, env and cwd, not dir"),
        ({"shell": "a", "env": ["A"]}, "run.env: ['A'] is not a mapping"),
        ({"shell": "a", "env": {"A=B": "1"}}, "run.env: 'A=B' can't be a name there"),
        ({"shell": "a", "env": {"A": None}}, "run.env.A: None is not a text"),
        ({"shell": "a", "cwd": 3}, "run.cwd: 3 is not a directory's path"),
        ({"http": 3}, "run.http: 3 is neither a URL nor a mapping with url"),
        ({"http": "ftp://x"}, "run.http.url: 'ftp://x' is not an http:// or https:// URL"),
        ({"http": {"url": "http://x:99999/"}}, "run.http.url: 'http://x:99999/' is not an http://"),
        ({"http": {"url": "http://x", "method": "get it"}}, "run.http.method: 'get it' is not a method"),
        ({"http": {"url": "http://x", "expect": "ok"}}, "run.http.expect: 'ok': write it like"),
        ({"http": {"url": "http://x", "headers": {"A": "1\r\nB: 2"}}}, "run.http.headers.A: it has a char"),
        ({"http": {"url": "http://x", "body": {1, 2}}}, "run.http.body: it is a text, or JSON"),
        ({"http": {"url": "http://x", "verb": "GET"}}, "run.http: it knows url, method, headers, body"),
        ({"python": "jobs.nightly"}, "run.python: 'jobs.nightly' is not a function; write it like"),
        ("true", "run: 'true' is not a mapping"),
    ],
)
def test_what_a_file_says_wrong_is_refused_with_its_place(words: object, error: str) -> None:
    with pytest.raises(BadSchedule) as refused:
        runner_from_words(words)  # type: ignore[arg-type]
    assert str(refused.value).startswith(error)


def test_what_a_call_says_wrong_names_the_job(world: World) -> None:
    with pytest.raises(BadSchedule, match=r"job 'ping'\.http\.expect: 'fine'"):
        world.cron.http("@hourly", "http://x", name="ping", expect="fine")
    with pytest.raises(BadSchedule, match="runner='rocket' is not available; choose from: function, process"):
        world.cron.job("@hourly", runner="rocket")
