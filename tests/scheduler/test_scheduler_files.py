"""Schedules from YAML and TOML: what is refused and where, what a plan shows, what applying changes."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from lockd_scheduler import BadSchedule
from lockd_scheduler.files import job_specs, read_files
from lockd_scheduler.jobs import JobSpec
from lockd_scheduler.plans import Change, Difference, Step, apply_plan, is_change_day, make_plan, next_fires
from lockd_scheduler.tables import schedule, schedule_revision
from lockd_scheduler.triggers import CronTrigger, zone_named
from lockd_scheduler.written import BadFile
from tests.scheduler.harness import MINUTE, NOON, World

HOUR = timedelta(hours=1)


def read(folder: Path, text: str, name: str = "jobs.yaml") -> dict[str, JobSpec]:
    path = folder / name
    path.write_text(text)
    return job_specs(read_files([path])[1], "ops")


def told(folder: Path, text: str, name: str = "jobs.yaml") -> list[str]:
    """The mistakes, without the folder."""
    with pytest.raises(BadFile) as caught:
        read(folder, text, name)
    return [line.replace(f"{folder}/", "") for line in str(caught.value).splitlines()]


EVERYTHING = """
scheduler: ops
jobs:
  nightly: {schedule: "H 3 * * sun", tz: Europe/Berlin, dst: wall, run: {shell: "vacuumdb -a"},
            args: {a: [1]}, overlap: replace, catch_up: latest,
            within: 6h, delivery: at_least_once, retries: 3,
            backoff: 1m..1h, timeout: 30m, jitter: 5s, lock: vacuum, keep: {runs: 500, days: 90},
            alert_if_late: 15m, notify: [failed, late]}
  often: {every: 30s, offset: H, run: {http: {url: "https://x/y", expect: 2xx}}}
  plain: {schedule: "@every 5m", run: {python: "package.module:function"}}
  then: {after: {job: nightly, on: failed}, run: {shell: "true"}}
  once: {at: 2027-03-28T02:00+01:00, run: {shell: "true"}}
  monthly: {calendar: {months: 1, at: 12:30, start: 2026-01-31}, tz: Asia/Tokyo, run: {shell: "true"}}
"""


def test_a_file_says_all_that_the_code_can_say(tmp_path: Path) -> None:
    specs = read(tmp_path, EVERYTHING)
    nightly = specs["nightly"].to_json()
    minute = nightly["trigger"].pop("expression").split()[0]
    assert 0 <= int(minute) <= 59
    assert nightly["trigger"] == {"type": "cron", "tz": "Europe/Berlin", "dst": "wall"}
    assert nightly["policy"] == {
        "overlap": "replace",
        "catch_up": "latest",
        "within": "6h",
        "delivery": "at_least_once",
        "retries": 3,
        "backoff": "1m..1h",
        "timeout": "30m",
        "jitter": "5s",
        "lock": "vacuum",
        "keep": {"runs": 500, "days": 90},
        "alert_if_late": "15m",
        "notify": ["failed", "late"],
    }
    assert nightly["args"] == {"a": [1]}
    assert nightly["runner"] == {"kind": "shell", "command": "vacuumdb -a"}
    assert specs["then"].trigger.to_json() == {"type": "after", "job": "nightly", "on": "failed"}
    assert specs["once"].trigger.first(NOON) == datetime(2027, 3, 28, 1, tzinfo=UTC)
    assert specs["monthly"].trigger.next_after(NOON) == datetime(2026, 7, 31, 3, 30, tzinfo=UTC)
    assert specs["often"].to_json()["runner"]["expect"] == "2xx"
    assert read(tmp_path, EVERYTHING)["often"].to_json() == specs["often"].to_json()


def test_toml_says_the_same(tmp_path: Path) -> None:
    text = '[jobs.a]\nschedule = "5 4 * * *"\nrun = {shell = "x"}\n[jobs.a.keep]\nruns = 3\n'
    yaml = 'jobs: {a: {schedule: "5 4 * * *", run: {shell: x}, keep: {runs: 3}}}'
    assert read(tmp_path, text, "jobs.toml")["a"].to_json() == read(tmp_path, yaml)["a"].to_json()


RUN = "run: {shell: x}"


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("", "jobs.yaml: it is empty"),
        ("jobs: [", "jobs.yaml, line 1: it is not YAML: expected the node content, but found '<stream end>'"),
        ("jobs: {a: !!python/object:os.system {}}", "could not determine a constructor for the tag"),
        ("jobs: {}\nother: 1", "jobs.yaml, line 2: other: there is no such field"),
        ("scheduler: ops", "jobs.yaml: jobs: it must be there"),
        ("- a", "jobs.yaml: ['a'] is not a table of names and values"),
        ("jobs: {a: {every: 1m, run: ls}}", "jobs.a.run: 'ls' is not a table of names and values"),
        ("jobs:\n  a: {every: 1m}", "jobs.yaml, line 2: jobs.a.run: it must be there"),
        (
            f"jobs:\n  a: {{every: 1m, {RUN}}}\n  a: {{every: 2m, {RUN}}}",
            "line 3: jobs.a: it stands there twice",
        ),
        (f"jobs:\n  a: {{{RUN}}}", "line 2: jobs.a: it has one of schedule, every, at, calendar, after"),
        (f"jobs:\n  a: {{every: 1m, at: x, {RUN}}}", "and this has every and at"),
        (f"jobs:\n  a:\n    {RUN}\n    every: soon", "line 4: jobs.a.every: 'soon' is not a duration"),
        (f"jobs: {{a: {{every: 5, {RUN}}}}}", "jobs.a.every: 5 is not a text; write it in quotes"),
        (
            f'jobs: {{a: {{schedule: "61 * * * *", {RUN}}}}}',
            "jobs.a.schedule: '61 * * * *' is not",
        ),
        (f'jobs: {{a: {{schedule: "1 * * * *", tz: Mars/X, {RUN}}}}}', "unknown time zone 'Mars/X'"),
        (f"jobs: {{a: {{every: 1m, tz: UTC, {RUN}}}}}", "jobs.a.tz: only a cron line and a calendar"),
        (f"jobs: {{a: {{at: tomorrow, {RUN}}}}}", "jobs.a.at: 'tomorrow' is not a time in ISO 8601"),
        (f"jobs: {{a: {{at: 2027-01-01, {RUN}}}}}", "has no time zone"),
        (f"jobs: {{a: {{every: 1m, overlap: maybe, {RUN}}}}}", "jobs.a.overlap: overlap='maybe'"),
        (f"jobs: {{a: {{every: 1m, timeout: long, {RUN}}}}}", "jobs.a.timeout: 'long' is not a duration"),
        (f"jobs: {{a: {{every: 1m, within: 1h, {RUN}}}}}", "jobs.a.within: within= bounds what is caught up"),
        (f"jobs: {{a: {{every: 1m, keep: {{weeks: 3}}, {RUN}}}}}", "jobs.a.keep: keep="),
        ("jobs: {a: {every: 1m, run: {http: {url: ftp://x}}}}", "jobs.a.run.http.url: 'ftp://x' is not"),
        ("jobs: {a: {every: 1m, run: {}}}", "jobs.a.run: it says one of shell, http, python"),
        (f'jobs: {{" ": {{every: 1m, {RUN}}}}}', "can't be a name"),
        ("jobs: &a\n  b: *a", "its references (`*name`) make it too large"),
        ("\x00", "it is not YAML"),
    ],
)
def test_p6_a_mistake_is_told_with_its_place(text: str, mistake: str, tmp_path: Path) -> None:
    [line] = told(tmp_path, text)
    assert mistake in line


def test_p6_a_small_file_can_not_grow(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    [line] = told(tmp_path, "\n".join(levels))
    assert "make it too large" in line


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    text = "jobs:\n  a: {every: soon, overlap: maybe, run: {}}\n  b: {every: 1m, timeout: x, run: {shell: x}}"
    assert [line.split(": ")[:2] for line in told(tmp_path, text)] == [
        ["jobs.yaml, line 2", "jobs.a.every"],
        ["jobs.yaml, line 2", "jobs.a.overlap"],
        ["jobs.yaml, line 2", "jobs.a.run"],
        ["jobs.yaml, line 3", "jobs.b.timeout"],
    ]


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    assert told(tmp_path, "\nx = [,]", "jobs.toml")[0].startswith("jobs.toml, line 2: it is not TOML")
    assert told(tmp_path, "x", "jobs.txt") == ["jobs.txt: its name must end in .yaml, .yml or .toml"]
    (tmp_path / "latin.yaml").write_bytes(b"jobs:\n  \xff")
    with pytest.raises(BadFile, match=r"latin.yaml, line 2: it is not a text in UTF-8"):
        read_files([tmp_path / "latin.yaml"])
    with pytest.raises(BadFile, match="No such file"):
        read_files([tmp_path / "none.yaml"])


def test_files_that_are_read_together_share_names_and_a_scheduler(tmp_path: Path) -> None:
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_text(f"scheduler: ops\njobs: {{a: {{every: 1m, {RUN}}}}}")
    other.write_text(f"jobs: {{b: {{every: 1m, {RUN}}}}}")
    scope, jobs = read_files([one, other])
    assert (scope, sorted(jobs)) == ("ops", ["a", "b"])
    other.write_text(f"scheduler: web\njobs: {{a: {{every: 1m, {RUN}}}}}")
    with pytest.raises(BadFile) as caught:
        read_files([one, other])
    assert [mistake.reason for mistake in caught.value.mistakes] == [
        "another file says 'ops'",
        f"it is in {one} too",
    ]


def applied(world: World, specs: dict[str, JobSpec]) -> list[tuple[str, Step]]:
    planned = make_plan(world.engine, "ops", specs, now=world.clock.now())
    done = apply_plan(world.engine, "ops", specs, now=world.clock.now(), by="ann")
    assert planned == done, "what is shown is what is done"
    return [(change.job, change.step) for change in done]


def test_applying_creates_changes_parks_and_resumes(world: World, tmp_path: Path) -> None:
    first = read(tmp_path, f"jobs: {{a: {{every: 1h, {RUN}}}, b: {{every: 1h, {RUN}}}}}")
    assert applied(world, first) == [("a", Step.CREATED), ("b", Step.CREATED)]
    assert applied(world, first) == [("a", Step.UNCHANGED), ("b", Step.UNCHANGED)]
    second = read(tmp_path, f"jobs: {{a: {{every: 2h, retries: 1, {RUN}}}}}")
    changes = make_plan(world.engine, "ops", second, now=NOON)
    assert changes[0].differences == (
        Difference("policy.retries", 0, 1),
        Difference("trigger.period", "1h", "2h"),
    )
    assert changes[1] == Change("b", Step.PARKED)
    assert applied(world, second) == [("a", Step.CHANGED), ("b", Step.PARKED)]
    assert applied(world, first) == [("a", Step.CHANGED), ("b", Step.RESUMED)]
    with world.engine.connect() as connection:
        rows = connection.execute(
            select(schedule_revision.c.change, schedule_revision.c.changed_by, schedule.c.name)
            .join(schedule, schedule.c.id == schedule_revision.c.schedule_id)
            .order_by(schedule.c.name, schedule_revision.c.revision)
        ).all()
    assert [tuple(row) for row in rows] == [
        ("created", "ann", "a"),
        ("changed", "ann", "a"),
        ("changed", "ann", "a"),
        ("created", "ann", "b"),
        ("parked", "ann", "b"),
        ("resumed", "ann", "b"),
    ]


def test_a_name_that_the_code_keeps_is_refused_and_nothing_is_changed(world: World, tmp_path: Path) -> None:
    @world.cron.every("1h", name="a")
    def a() -> None: ...

    world.process().elected(1)
    specs = read(tmp_path, f"jobs: {{a: {{every: 1h, {RUN}}}, b: {{every: 1h, {RUN}}}}}")
    with pytest.raises(BadSchedule, match="the code keeps 'a'"):
        applied(world, specs)
    with pytest.raises(BadSchedule, match="the code keeps 'a'"):
        apply_plan(world.engine, "ops", specs, now=NOON, by="ann")
    assert [row.name for row in world.schedules()] == ["a"]


def test_p5_what_was_due_by_the_old_trigger_is_run_by_the_office(world: World, tmp_path: Path) -> None:
    """Applying makes rows and no attempts: without the office's token nobody could start them."""
    applied(world, read(tmp_path, f"jobs: {{a: {{every: 1h, overlap: allow, catch_up: all, {RUN}}}}}"))
    process = world.process().elected(1)
    world.clock.turn(HOUR + MINUTE)
    applied(world, read(tmp_path, f"jobs: {{a: {{every: 1d, overlap: allow, catch_up: all, {RUN}}}}}"))
    assert world.states() == ["claimed", "claimed"]
    assert world.attempts() == []
    process.turn()
    assert [claimed.fire_time for claimed in process.runner.attempts] == [NOON, NOON + HOUR]
    process.run_all()
    assert {row.state for row in world.runs()} <= {"succeeded", "failed"}


def test_the_office_leaves_the_schedules_of_files_alone(world: World, tmp_path: Path) -> None:
    applied(world, read(tmp_path, f"jobs: {{a: {{every: 1h, {RUN}}}}}"))
    world.process().elected(1)
    [row] = world.schedules()
    assert (row.kept_by, row.parked_at, row.revision) == ("file", None, 1)


def test_days_on_which_clocks_change_are_marked() -> None:
    trigger = CronTrigger("30 2 * * *", "Europe/Berlin")
    fires = next_fires(trigger, datetime(2026, 3, 28, tzinfo=UTC), 3)
    assert [fire.is_change_day for fire in fires] == [False, True, False]
    assert [f"{fire.local:%H:%M %Z}" for fire in fires] == ["02:30 CET", "03:00 CEST", "02:30 CEST"]
    cairo = zone_named("Africa/Cairo")  # its clocks change at midnight
    days = [datetime(2026, 4, day, tzinfo=UTC).date() for day in (23, 24, 25)]
    assert [is_change_day(day, cairo) for day in days] == [False, True, False]
