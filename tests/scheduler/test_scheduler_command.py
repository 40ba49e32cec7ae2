"""The command lockd-scheduler, and what a wrong file, option or database is answered with."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine

from lockd_scheduler import BadSchedule, Cron, Run, cli
from lockd_scheduler.app import Settings, start_service
from lockd_scheduler.jobs import Job
from tests.scheduler.harness import MINUTE, World


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    """Run the command in this process; its exit status, output and errors."""
    monkeypatch.setattr(sys, "argv", ["lockd-scheduler", *words])
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        cli.main()
        status = 0
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    told = capsys.readouterr()
    return status, told.out, told.err


GOOD = 'from lockd_scheduler import Cron\ncron = Cron()\n@cron.every("1h")\ndef job(): ...\n'


@pytest.mark.parametrize(
    ("source", "words", "hint"),
    [
        (None, ["serve", "jobs.py"], "jobs.py: there is no such file"),
        (None, ["serve", "no_such_module_here"], "there is no module 'no_such_module_here'"),
        ("x = 1", ["serve", "jobs.py"], "jobs.py has no Cron"),
        ("def f(:", ["serve", "jobs.py"], "jobs.py, line 1: SyntaxError"),
        ("\n1 / 0", ["serve", "jobs.py"], "jobs.py, line 2: ZeroDivisionError: division by zero"),
        ("import nothing_of_that_name", ["serve", "jobs.py"], "line 1: ModuleNotFoundError"),
        (GOOD, ["serve", "jobs.py:other"], "'other' is not a Cron"),
        ("from lockd_scheduler import Cron\ncron = Cron()", ["serve", "jobs.py"], "has no jobs"),
        (GOOD.replace("1h", "soon"), ["serve", "jobs.py"], "jobs.py, line 3: 'soon' is not a duration"),
        (GOOD.replace('"1h"', "30"), ["serve", "jobs.py"], "jobs.py, line 3: 30 is not a duration"),
        # A file of ours is called jobs.py too: the line is that of theirs.
        (
            GOOD.replace('"1h"', '"1h", args={"x": 1}'),
            ["serve", "jobs.py"],
            "jobs.py, line 3: job 'jobs:job' can't",
        ),
        (
            GOOD.replace('"1h"', '"1h", retry=3'),
            ["serve", "jobs.py"],
            "line 3: retry= is not a choice of this job",
        ),
        (GOOD.replace('"1h"', '"1h", retry=3'), ["serve", "jobs.py"], "did you mean retries=?"),
        (GOOD.replace('"1h"', '"1h", colour=3'), ["serve", "jobs.py"], "there are alert_if_late, backoff"),
        (f'{GOOD}cron.every("1h")(42)', ["serve", "jobs.py"], "line 5: 42 can't be called"),
        (GOOD, ["serve", "."], "is a folder; name a file of it"),
        (GOOD, ["serve", "jobs.yaml"], "is not served but applied: apply jobs.yaml"),
        (GOOD, ["serve", "jobs.py", "--lease-ttl", "0s"], "lease_ttl '0s': at least 100ms"),
        (GOOD, ["serve", "jobs.py", "--db", "postgres://x/y"], "write postgresql://"),
        (
            GOOD,
            ["serve", "jobs.py", "--db", "sqlite:///none/x.db"],
            "none/x.db: unable to open database file",
        ),
        (GOOD, ["serve", "jobs.py", "--db", "nonsense"], "--db is not a database URL"),
        (GOOD, ["serve", "jobs.py", "--db", "oracle://x/y"], "choose sqlite, postgresql"),
        (GOOD, ["serve", "jobs.py", "--db", "sqlite://"], "needs a file"),
        (
            GOOD,
            ["serve", "jobs.py", "--db", "postgresql://127.0.0.1:1/x"],
            "can't open the ledger's database",
        ),
        (GOOD, ["serve", "jobs.py", "--lockd", "host:port"], "'port' is not a port"),
        (GOOD, ["serve", "jobs.py", "--drain", "5"], "'5' is not a duration"),
        (GOOD, ["serve", "jobs.py", "--lost-after", "1ms"], "at least 1s"),
        (None, ["runs"], "there is no ledger at lockd-scheduler.db"),
        (None, ["runs"], "or make it: lockd-scheduler db upgrade"),
        (None, ["next", "0 25 * * *"], "is not a cron line: Bad hour"),
        (None, ["next", "0 2 * * *", "--tz", "Mars/Base"], "unknown time zone 'Mars/Base'"),
        (None, ["next", "0 2 * * *", "--from", "tomorrow"], "is not a time in ISO 8601"),
        (None, ["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_p6_a_mistake_is_one_line_and_exit_2(
    source: str | None,
    words: list[str],
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """P6: bad input costs its sender an error, and shows no traceback."""
    monkeypatch.chdir(tmp_path)
    if source is not None:
        Path("jobs.py").write_text(source)
    status, _, errors = command(monkeypatch, capsys, *words)
    assert status == 2
    assert hint in errors
    assert "Traceback" not in errors
    told = [line for line in errors.splitlines() if line.startswith("Error:")]
    assert len(told) == 1


def test_a_job_after_one_that_is_not_there_is_told_of_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cron = Cron("ops")

    @cron.after("nightli", name="publish")
    def publish() -> None: ...

    settings = Settings.from_words(db=f"sqlite:///{tmp_path}/ledger.db", listen_http="off")
    start_service("ops", cron.jobs, settings, None).stop(drain=0.0)
    assert "job 'publish' runs after 'nightli'" in caplog.text


def test_a_missing_extra_is_one_line_and_exit_2() -> None:
    program = "import sys; sys.modules['sqlalchemy'] = None; import lockd_scheduler.cli"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "lockd-scheduler needs its extra: pip install 'lockd[scheduler]' (missing: sqlalchemy)\n"
    )


def test_next_prints_utc_times(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["next", "30 2 * * *", "--tz", "Europe/Berlin", "--from", "2026-03-28", "--count", "3"]
    _, out, _ = command(monkeypatch, capsys, *words, "--json")
    assert json.loads(out) == ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]
    _, out, _ = command(monkeypatch, capsys, *words)
    assert out.splitlines()[1] == "2026-03-29T01:00:00Z"


def test_next_prints_the_fires_of_a_line_with_h(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["next", "H 3 * * sun", "--from", "2026-06-01", "--count", "2", "--json"]
    status, out, errors = command(monkeypatch, capsys, *words)
    first, second = json.loads(out)
    assert (status, first[:14], second[:14]) == (0, "2026-06-07T03:", "2026-06-14T03:")
    assert "a job's own name decides what H stands for" in errors


def test_a_plan_before_the_first_apply_shows_all_as_new_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("jobs.yaml").write_text("jobs: {a: {every: 1h, run: {shell: x}}}")
    status, out, _ = command(monkeypatch, capsys, "plan", "jobs.yaml", "--json")
    assert (status, json.loads(out)["summary"], json.loads(out)["applied"]) == (0, {"created": 1}, False)
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.yaml"]


@pytest.mark.parametrize("db_url", ["sqlite"], indirect=True)
def test_a_job_is_named_by_its_function_where_that_is_clear(
    world: World,
    engine: Engine,
    db_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("jobs:nightly", "jobs:weekly", "more:weekly", "poll"):
        world.cron.every("1m", name=name)(lambda: None)
    process = world.process().elected(4)
    process.turn()
    process.run_all()
    engine.dispose()

    def typed(*words: str) -> tuple[int, str, str]:
        return command(monkeypatch, capsys, *words, "--db", db_url)

    for words in (("runs",), ("start",), ("audit",), ("pause",), ("resume",), ("next",)):
        assert typed(*words, "poll")[0] == typed(*words, "nightly")[0], words
        assert typed(*words, "nobody")[0] == 2
        status, _, errors = typed(*words, "weekly")
        assert (status, "jobs:weekly, more:weekly" in errors) == (2, True)
    assert {one["job"] for one in json.loads(typed("runs", "nightly", "--json")[1])} == {"jobs:nightly"}
    assert "backfill 1 of 'jobs:nightly'" in typed("backfill", "nightly", "2026-01-01..2026-01-02")[1]


def test_runs_and_next_tell_what_the_ledger_has(
    world: World,
    engine: Engine,
    db_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @world.cron.every("1m", name="good")
    def good() -> None: ...

    @world.cron.every("1m", name="bad")
    def bad() -> None:
        raise ValueError("the disk is full")

    process = world.process().elected(4)
    process.turn()
    process.run_all()
    world.clock.turn(MINUTE * 10)
    process.turn()
    engine.dispose()
    _, out, _ = command(monkeypatch, capsys, "runs", "--db", db_url)
    lines = out.splitlines()
    assert lines[0].split() == ["ID", "JOB", "FIRE", "TIME", "(UTC)", "STATE", "TRIES", "LASTED", "WHY"]
    assert any(
        "bad" in line and "failed" in line and "ValueError: the disk is full" in line for line in lines
    )
    assert any("missed until 2026-06-01 12:09:00" in line for line in lines)
    _, out, _ = command(monkeypatch, capsys, "runs", "good", "--state", "succeeded", "--json", "--db", db_url)
    [run] = json.loads(out)
    assert (run["job"], run["fire_time"], run["attempts"]) == ("good", "2026-06-01T12:00:00+00:00", 1)
    status, out, _ = command(
        monkeypatch, capsys, "next", "good", "--from", "2026-06-01T12:00:30", "--count", "1", "--db", db_url
    )
    assert (status, out) == (0, "2026-06-01T12:01:00Z\n")


def test_a_job_is_still_the_function_it_was() -> None:
    cron = Cron()

    @cron.job("0 2 * * *", args={"region": "eu"})
    def nightly(run: Run | None, *, region: str = "us") -> str:
        """What it does."""
        return f"{run} {region}"

    assert isinstance(nightly, Job)
    assert nightly(None, region="x") == "None x"
    assert nightly.__doc__ == "What it does."
    assert nightly.spec.name.endswith(":test_a_job_is_still_the_function_it_was.<locals>.nightly")
    assert nightly.spec.args == {"region": "eu"}


def takes_region(run: Run, *, region: str) -> None:
    """A job that needs an argument."""


@pytest.mark.parametrize(
    ("declare", "hint"),
    [
        (lambda cron: cron.job("0 2 * * *")(takes_region), r"missing a required .*: 'region'"),
        (lambda cron: cron.job("0 2 * * *", args={"zone": 1})(takes_region), "can't be called"),
        (lambda cron: cron.job("0 2 * * *", args={"region": {1, 2}})(takes_region), "must be JSON"),
        (lambda cron: cron.job("0 2 * * *", args={"region": (1, 2)})(takes_region), "must be JSON"),
        (
            lambda cron: cron.job("0 2 * * *", dst="summer"),
            "dst='summer' is not available; choose from: once, wall, elapsed",
        ),
        (lambda cron: cron.every("1h", offset="2h")(takes_region), "is not shorter"),
        (lambda cron: cron.every("500ms", args={"region": "eu"})(takes_region), "shortest interval is 1s"),
        (lambda _: Cron("a\nb"), "can't be a name"),
    ],
)
def test_a_wrong_declaration_is_refused_where_it_stands(declare: Callable[[Cron], object], hint: str) -> None:
    with pytest.raises(BadSchedule, match=hint):
        declare(Cron())


def test_a_name_is_given_once() -> None:
    cron = Cron()
    decorate = cron.every("1h", name="twice", args={"region": "eu"})
    decorate(takes_region)
    with pytest.raises(BadSchedule, match="two jobs are called 'twice'"):
        decorate(takes_region)
