"""What people type: requests, reading, files; each with its exit status, on every database."""

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, delete, insert

from lockd_scheduler import Run, cli
from lockd_scheduler.engines import open_engine
from lockd_scheduler.tables import attempt, output, run
from tests.scheduler.harness import MINUTE, Process, World

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], db_url: str) -> Command:
    """Run the command in this process on the test's database: its exit status, output and errors."""
    monkeypatch.setenv("LOCKD_SCHEDULER_DB", db_url)

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lockd-scheduler", *words])
        try:
            cli.main()
            status = 0
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        told = capsys.readouterr()
        return status, told.out, told.err

    return command


@pytest.fixture
def process(world: World) -> Process:
    """In office at the real time, which is the databases', with an hourly job."""
    world.clock.set(datetime.now(UTC))

    @world.cron.every("1h", name="tick", overlap="allow", args={"region": "eu"})
    def tick(_: Run, *, region: str, **_more: object) -> None:
        if region == "bad":
            raise ValueError("the disk is full")

    return world.process().elected(1)


def test_a_run_is_asked_for_with_arguments_and_a_key(typed: Command, world: World, process: Process) -> None:
    words = ("start", "tick", "--arg", "region=us", "--args", '{"n": 7}', "--key", "k", "--json")
    status, out, _ = typed(*words)
    asked = json.loads(out)
    assert (status, asked["state"], asked["kind"]) == (0, "claimed", "manual")
    assert json.loads(typed(*words)[1])["id"] == asked["id"]
    [row] = world.runs()
    assert row.args == {"region": "us", "n": 7}
    assert "@" in row.asked_by
    world.clock.turn(MINUTE)
    process.turn()
    process.run_all()
    status, out, _ = typed("start", "tick", "--key", "k", "--wait")
    assert (status, out) == (0, f"run {asked['id']} of 'tick' is succeeded\n")


def test_waiting_for_a_run_that_fails_is_exit_1_and_its_error_is_in_the_logs(
    typed: Command, world: World, process: Process, engine: Engine
) -> None:
    typed("start", "tick", "--arg", "region=bad", "--key", "k")
    world.clock.turn(MINUTE)
    process.turn()
    process.run_all()
    status, out, _ = typed("start", "tick", "--key", "k", "--wait")
    assert status == 1
    assert out.endswith("is failed: ValueError: the disk is full\n")
    [tried] = world.attempts()
    row = {"attempt_id": tried.id, "written_at": world.clock.now()}
    with engine.begin() as connection:
        connection.execute(
            insert(output),
            [
                {**row, "number": 1, "stream": "stdout", "text": "one\ntw"},
                {**row, "number": 2, "stream": "stderr", "text": "oops\n"},
                {**row, "number": 3, "stream": "stdout", "text": "o\n"},
            ],
        )
    status, out, errors = typed("logs", "-f", str(tried.run_id))
    assert (status, out) == (0, "one\ntwo\n")
    assert errors.startswith("oops\nattempt 1 failed: Traceback")
    assert errors.endswith("ValueError: the disk is full\n")
    assert "has no attempt 9" in typed("logs", str(tried.run_id), "--attempt", "9")[2]


def test_runs_are_cancelled_once(typed: Command, process: Process) -> None:
    asked = json.loads(typed("start", "tick", "--at", "2099-01-01", "--json")[1])["id"]
    assert typed("cancel", str(asked), "--reason", "wrong day")[:2] == (
        0,
        f"run {asked} is claimed and is asked to end\n",
    )
    process.turn()
    status, out, _ = typed("cancel", str(asked), "--json")
    assert (status, json.loads(out)) == (1, {"run": asked, "was": "cancelled", "asked": False})
    status, out, errors = typed("logs", str(asked))
    assert (status, out, errors) == (0, "", f"run {asked} is cancelled and has said nothing\n")


def test_pause_resume_and_backfill(typed: Command, world: World, process: Process) -> None:
    assert typed("pause", "tick", "--until", "2099-01-01", "--note", "move")[:2] == (
        0,
        "'tick' is paused until 2099-01-01T00:00:00Z\n",
    )
    assert "it was before" in typed("pause", "tick")[1]
    assert typed("resume", "tick")[1] == "'tick' fires again\n"
    assert typed("resume", "tick")[1] == "'tick' was not paused\n"
    status, out, _ = typed("backfill", "tick", "2026-01-01..2026-01-01T03:00", "--parallel", "2", "--json")
    asked = json.loads(out)
    assert (status, asked["from"], asked["to"]) == (0, "2026-01-01T00:00:00Z", "2026-01-01T03:00:00Z")
    process.turn()
    assert len(process.runner.attempts) == 2
    assert typed("backfill", "--cancel", str(asked["backfill"]))[0] == 0
    assert typed("backfill", "--cancel", str(asked["backfill"]))[0] == 2
    out = typed("runs", "--kind", "backfill", "--since", "2026-01-01T01:00", "--json")[1]
    assert [one["fire_time"] for one in json.loads(out)] == ["2026-01-01T01:00:00+00:00"]
    assert len(world.runs()) == 2


def test_p5_an_audit_finds_a_deleted_row_and_exits_1(typed: Command, world: World, engine: Engine) -> None:
    world.clock.set(datetime.now(UTC).replace(minute=0, second=0, microsecond=0))
    world.clock.turn(-MINUTE * 60 * 24)
    world.cron.every("1h", name="older")(lambda: None)
    elder = world.process().elected(1)
    for _ in range(25):
        elder.turn()
        elder.run_all()
        world.clock.turn(MINUTE * 60)
    assert typed("audit", "older", "--since", "2d")[0] == 0
    gone = next(row for row in world.runs() if row.state == "succeeded")
    with engine.begin() as connection:
        connection.execute(delete(attempt).where(attempt.c.run_id == gone.id))
        connection.execute(delete(run).where(run.c.id == gone.id))
    status, out, _ = typed("audit", "--since", "2d")
    assert status == 1
    assert "MISSED ops/" in out
    status, out, _ = typed("audit", "--since", "2d", "--json")
    assert (status, json.loads(out)["total"]["real_miss"]) == (1, 1)


def test_one_of_several_schedulers_is_chosen(typed: Command, world: World) -> None:
    assert "no schedules yet" in typed("start", "tick")[2]
    specs = "jobs: {one: {every: 1h, run: {shell: x}}}"
    Path("one.yaml").write_text(specs)
    assert typed("apply", "one.yaml", "--scope", "ops")[0] == 0
    assert typed("start", "one")[0] == 0
    assert typed("apply", "one.yaml", "--scope", "web")[0] == 0
    for words in (("start", "one"), ("apply", "one.yaml"), ("next", "one")):
        status, _, errors = typed(*words)
        assert status == 2
        assert "'ops', 'web'" in errors
    assert typed("start", "one", "--scope", "web")[0] == 0
    assert "has no scheduler 'x'" in typed("start", "one", "--scope", "x")[2]
    assert [row.state for row in world.runs()] == ["claimed", "claimed"]


@pytest.mark.usefixtures("engine")
def test_plan_shows_what_apply_does(typed: Command) -> None:
    Path("jobs.yaml").write_text('jobs: {a: {schedule: "30 2 * * *", tz: Europe/Berlin, run: {shell: x}}}')
    status, out, _ = typed("plan", "jobs.yaml")
    assert (status, out.splitlines()[0], len(out.splitlines())) == (0, "+ a  created", 7)
    assert out.endswith("default: 1 created; `apply` does it\n")
    assert typed("apply", "jobs.yaml")[1].endswith("default: 1 created\n")
    Path("jobs.yaml").write_text("jobs: {a: {every: 1h, retries: 2, run: {shell: x}}}")
    out = typed("plan", "jobs.yaml")[1]
    assert "    policy.retries: 0 -> 2\n" in out
    assert '    trigger.period: (none) -> "1h"\n' in out
    document = json.loads(typed("apply", "jobs.yaml", "--json")[1])
    assert (document["applied"], document["summary"]) == (True, {"changed": 1})
    assert typed("plan", "jobs.yaml")[1] == "default: 1 unchanged; `apply` does it\n"
    assert typed("next", "a", "--from", "2026-06-01T00:30", "--count", "1")[1] == "2026-06-01T01:00:00Z\n"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["start", "nobody"], "no job 'nobody'"),
        (["start", "tick", "--args", "{"], "--args is not JSON"),
        (["start", "tick", "--args", "[1]"], "--args is not an object"),
        (["start", "tick", "--arg", "region"], "write it like region=eu"),
        (["start", "tick", "--arg", "a=1", "--arg", "a=2"], "given twice"),
        (["start", "tick", "--at", "soon"], "--at 'soon' is not a time"),
        (["start", "tick", "--key", ""], "key"),
        (["cancel", "4711"], "no run 4711"),
        (["cancel", "x"], "Invalid value for 'RUN'"),
        (["logs", "4711"], "no run 4711"),
        (["pause", "tick", "--until", "2020-01-01"], "has passed"),
        (["backfill", "tick"], "name a job and a range"),
        (["backfill", "tick", "2026-01-01"], "is not a range"),
        (["backfill", "tick", "2026-01-02..2026-01-01"], "start before its end"),
        (["backfill", "tick", "2026-01-01..2026-01-02", "--parallel", "0"], "parallel 0"),
        (["runs", "--since", "yesterday"], "neither a duration like 7d nor a time"),
        (["audit", "nobody"], "no job 'nobody'"),
        (["audit", "--since", "2099-01-01"], "is not in the past"),
        (["apply", "none.yaml"], "none.yaml: No such file"),
        (["import", "crontab", "none"], "none"),
        (["import", "apscheduler", "sqlite:///none.db"], "there is no file none.db"),
        (["import", "celery", "none.py"], "there is no such file"),
    ],
)
@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("db_url", ["sqlite"], indirect=True)
def test_p6_a_mistake_is_one_line(typed: Command, words: list[str], told: str) -> None:
    status, _, errors = typed(*words)
    assert status == 2
    assert told in errors
    assert "Traceback" not in errors
    assert len([line for line in errors.splitlines() if line.startswith("Error:")]) == 1


@pytest.fixture
def db_url_of_nobody() -> str:
    return "postgresql://127.0.0.1:1/x"


@pytest.mark.parametrize("db_url", ["sqlite"], indirect=True)
def test_a_database_that_does_not_answer_is_exit_3(typed: Command, db_url_of_nobody: str) -> None:
    status, _, errors = typed("runs", "--db", db_url_of_nobody)
    assert status == 3
    assert errors.startswith("Error: the ledger's database does not answer")


@pytest.mark.parametrize("db_url", ["sqlite"], indirect=True)
def test_tables_are_made_without_serving(typed: Command, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    for _ in range(2):
        assert typed("db", "upgrade", "--db", url)[0] == 0
    assert typed("runs", "--db", url, "--json")[1] == "[]\n"
    open_engine(url).dispose()


@pytest.mark.parametrize("db_url", ["sqlite"], indirect=True)
def test_a_crontab_is_imported_into_a_file_that_can_be_applied(typed: Command) -> None:
    Path("crontab").write_text("5 4 * * * backup --all\n@reboot x\n")
    status, _, errors = typed("import", "crontab", "crontab", "--tz", "Europe/Berlin", "-o", "jobs.yaml")
    assert status == 1
    assert "x (line 2): NOT IMPORTED" in errors
    assert errors.endswith("1 of 2 are imported\n")
    assert "is there already" in typed("import", "crontab", "crontab", "--tz", "UTC", "-o", "jobs.yaml")[2]
    assert typed("apply", "jobs.yaml")[1].endswith("default: 1 created\n")
