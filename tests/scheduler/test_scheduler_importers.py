"""Coming from a crontab, an APScheduler 3 store, a Celery beat schedule: what is taken, what is told."""

import os
import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from apscheduler.job import Job as StockJob
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.calendarinterval import CalendarIntervalTrigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger
from sqlalchemy.exc import OperationalError

from lockd.testing.ports import free_port
from lockd_scheduler import BadSchedule
from lockd_scheduler.files import job_specs, read_files
from lockd_scheduler.importers.apscheduler3 import read_job, read_store
from lockd_scheduler.importers.celery_beat import read_beat
from lockd_scheduler.importers.crontab import read_crontab
from lockd_scheduler.importers.imported import Imported, finish_import, to_yaml
from lockd_scheduler.importers.inert import NotInertError, read_inert

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)

CRONTAB = r"""
# m h dom mon dow command
SHELL=/bin/sh
MAILTO="ops@example.org"
GREETING = "good day"
17 *	* * *	cd / && run-parts --report /etc/cron.hourly
@daily mail -s "100\%" joe%hello%there
@reboot echo x
61 * * * * echo never
not a line
CRON_TZ=Asia/Tokyo
0 9-17/2 1,15 * mon date
"""


def test_a_crontab_is_read_as_cron_reads_it(tmp_path: Path) -> None:
    found = read_crontab(CRONTAB, tz="Europe/Berlin", is_system=False)
    finish_import(found, "ops", now=NOW)
    assert {one.name: one.words is not None for one in found} == {
        "run-parts": True,
        "mail": True,
        "echo": False,
        "echo-2": False,
        "line 10": False,
        "date": True,
    }
    hourly, mail, reboot, never, _, date = found
    env = {"GREETING": "good day"}
    assert hourly.words == {
        "schedule": "17 * * * *",
        "tz": "Europe/Berlin",
        "run": {"shell": "cd / && run-parts --report /etc/cron.hourly", "env": env},
        "overlap": "allow",
    }
    assert mail.words is not None
    assert mail.words["run"]["shell"] == "printf %s 'hello\nthere\n' | { mail -s \"100%\" joe\n}"
    assert any("no mail goes to 'ops@example.org'" in note for note in hourly.notes)
    assert "'@reboot' names no time" in reboot.notes[-1]
    assert "Bad minute" in never.notes[-1]
    assert date.words is not None
    assert (date.words["tz"], date.words["schedule"]) == ("Asia/Tokyo", "0 9-17/2 1,15 * mon")
    path = tmp_path / "jobs.yaml"
    path.write_text(to_yaml(found, "ops"))
    scope, jobs = read_files([path])
    assert (scope, sorted(job_specs(jobs, "ops"))) == ("ops", ["date", "mail", "run-parts"])


def test_what_follows_a_percent_sign_reaches_the_command(tmp_path: Path) -> None:
    [one] = read_crontab("* * * * * cat > out; echo 50\\% >> out%first%it's\n", tz="UTC", is_system=False)
    assert one.words is not None
    assert os.system(f"cd {tmp_path} && {one.words['run']['shell']}") == 0
    assert (tmp_path / "out").read_text() == "first\nit's\n50%\n"


def test_a_system_crontab_has_users_and_another_shell_is_kept() -> None:
    text = "SHELL=/bin/bash\nHOME=/srv\n5 4 * * * bob echo 'a b'\n1 2 3 4 5 bob\n"
    [one, short] = read_crontab(text, tz="UTC", is_system=True)
    assert one.words == {
        "schedule": "5 4 * * *",
        "run": {
            "shell": "exec /bin/bash -c 'echo '\"'\"'a b'\"'\"''",
            "env": {"HOME": "/srv"},
            "cwd": "/srv",
        },
        "overlap": "allow",
    }
    assert one.notes == ["cron ran it as 'bob'; here it runs as whoever the service runs as"]
    assert short.words is None


def target(**_: Any) -> None:
    """What stock jobs call."""


def pickled(trigger: BaseTrigger, *, protocol: int = pickle.HIGHEST_PROTOCOL, **changes: Any) -> bytes:
    """A job as a stock store writes it."""
    job = StockJob(
        BackgroundScheduler(timezone="UTC"),
        **{
            "id": "a",
            "func": target,
            "trigger": trigger,
            "args": (),
            "kwargs": {},
            "name": "a",
            "executor": "default",
            "misfire_grace_time": 1,
            "coalesce": True,
            "max_instances": 1,
            "next_run_time": NOW,
            **changes,
        },
    )
    return pickle.dumps(job.__getstate__(), protocol)


def taken(trigger: BaseTrigger, **changes: Any) -> Imported:
    one = read_job("a", pickled(trigger, **changes), set())
    finish_import([one], "ops", now=NOW)
    return one


BERLIN = "Europe/Berlin"


@pytest.mark.parametrize(
    ("trigger", "words"),
    [
        (CronTrigger(hour="*/6", day_of_week="mon-fri", timezone="UTC"),
         {"schedule": "0 */6 * * mon,tue,wed,thu,fri"}),
        (CronTrigger(day_of_week="0,6", hour=5, timezone="UTC"), {"schedule": "0 5 * * mon,sun"}),
        (CronTrigger(second="5-50/5", timezone=BERLIN), {"schedule": "5-50/5 * * * * *", "tz": BERLIN}),
        (CronTrigger(day="2nd fri,last sun", timezone="UTC"), {"schedule": "0 0 * * 5#2,0L"}),
        (CronTrigger(day="last", month="jan-mar", timezone="UTC"), {"schedule": "0 0 L 1-3 *"}),
        (IntervalTrigger(seconds=90, start_date="2026-01-01 00:00:31", timezone="UTC"),
         {"every": "1m30s", "offset": "31s"}),
        (DateTrigger("2027-03-28 02:30:00", timezone="Asia/Tokyo"), {"at": "2027-03-27T17:30:00+00:00"}),
        (CalendarIntervalTrigger(months=1, hour=9, start_date="2026-01-28", timezone="UTC"),
         {"calendar": {"months": 1, "at": "09:00:00", "start": "2026-01-28"}}),
    ],
)  # fmt: skip
def test_stock_triggers_keep_their_meaning(trigger: BaseTrigger, words: dict[str, Any]) -> None:
    one = taken(trigger)
    assert one.words is not None, one.notes
    run = {"python": "tests.scheduler.test_scheduler_importers:target"}
    assert one.words == {**words, "run": run, "overlap": "skip"}
    if isinstance(trigger, CronTrigger | CalendarIntervalTrigger) and "UTC" in str(trigger.timezone):
        assert one.notes == [], "a year of fires is the same on both sides"


def test_r6_the_fires_that_a_stock_trigger_loses_after_spring_forward_are_told() -> None:
    one = taken(CronTrigger(day=1, hour=0, minute=0, timezone=BERLIN))
    assert one.notes == ["fires here alone: Wed 2026-04-01 00:00:00 CEST"]


def test_choices_and_arguments_are_kept_or_told() -> None:
    one = taken(
        IntervalTrigger(hours=1, start_date=NOW, end_date=NOW + timedelta(days=9), timezone="UTC", jitter=7),
        kwargs={"region": "eu", "n": [1, None]},
        misfire_grace_time=3600,
        max_instances=3,
        next_run_time=None,
    )
    assert one.words is not None, one.notes
    assert one.words["args"] == {"region": "eu", "n": [1, None]}
    assert (one.words["overlap"], one.words["catch_up"], one.words["within"]) == ("allow", "latest", "1h")
    assert one.words["jitter"] == "7s"
    told = "\n".join(one.notes)
    for hint in ("end_date 2026-01-10", "jitter", "max_instances was 3", "paused there"):
        assert hint in told


@pytest.mark.parametrize(
    ("trigger", "changes", "told"),
    [
        (CronTrigger(week=3, timezone="UTC"), {}, "its week '3' has no place"),
        (CronTrigger(day=1, day_of_week="mon", timezone="UTC"), {}, "at once, and cron takes either"),
        (OrTrigger([CronTrigger(hour=1, timezone="UTC")]), {}, "OrTrigger has no counterpart"),
        (CronTrigger(hour=1, timezone="UTC"), {"func": os.getcwd, "args": ()}, None),
        (CronTrigger(hour=1, timezone="UTC"), {"kwargs": {"when": NOW}}, "arguments that are not JSON"),
        (IntervalTrigger(seconds=1, timezone="UTC"), {"func": "operator:add", "args": (1, 2)}, "by position"),
    ],
)
def test_what_can_not_be_said_is_told_and_left_out(
    trigger: BaseTrigger, changes: dict[str, Any], told: str | None
) -> None:
    one = taken(trigger, **changes)
    if told is None:
        assert one.words is not None
        return
    assert one.words is None
    assert told in one.notes[-1]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_that_a_store_may_have_used_is_read(protocol: int) -> None:
    one = read_job("a", pickled(CronTrigger(hour=1, timezone=BERLIN), protocol=protocol), set())
    assert one.words is not None, one.notes
    assert (one.words["schedule"], one.words["tz"]) == ("0 1 * * *", BERLIN)
    one = read_job("a", pickled(DateTrigger(NOW), protocol=protocol), set())
    assert one.words is not None, one.notes
    assert one.words["at"] == NOW.isoformat()


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


def test_p6_a_pickle_is_never_executed(tmp_path: Path) -> None:
    path = tmp_path / "executed"
    state = {"trigger": Bomb(path), "func": "a:b", "kwargs": {"x": Bomb(path)}}
    one = read_job("a", pickle.dumps(state), set())
    assert one.words is None
    assert not path.exists()
    pickle.loads(pickle.dumps(Bomb(path)))
    assert path.exists(), "so that the test would notice"


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\x80\x05.", b"\x80\x05]", b"(i__main__\nX\n.", b"0."])
def test_p6_damaged_pickles_are_refused(data: bytes) -> None:
    with pytest.raises(NotInertError):
        read_inert(data)


def test_cut_and_bent_pickles_cost_one_row_each() -> None:
    data = pickled(CronTrigger(hour=1, timezone=BERLIN))
    for cut in range(0, len(data), 7):
        read_job("a", data[:cut], set())
        read_job("a", data[:cut] + bytes([data[cut] ^ 0x11]) + data[cut + 1 :], set())


def test_a_store_is_read_row_by_row(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    store = SQLAlchemyJobStore(url=url)
    scheduler = BackgroundScheduler(jobstores={"default": store}, timezone=BERLIN)
    scheduler.start(paused=True)
    scheduler.add_job(target, "cron", hour=2, minute=30, id="gap")
    scheduler.add_job(target, "interval", minutes=5, id="often")
    scheduler.shutdown()
    found = read_store(url)
    finish_import(found, "ops", now=NOW)
    gap, often = found
    assert gap.notes[:2] == [
        "fires by the old scheduler alone: Sun 2026-03-29 03:30:00 CEST, Sun 2026-10-25 02:30:00 CET",
        "fires here alone: Sun 2026-03-29 03:00:00 CEST",
    ]
    assert often.words is not None
    with pytest.raises(BadSchedule, match="there is no file"):
        read_store(f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(BadSchedule, match="not the URL of a job store"):
        read_store("redis://localhost")


@pytest.mark.parametrize("backend", ["postgresql", "mariadb", "mysql"])
def test_a_store_on_a_server_is_read_with_the_driver_of_the_ledger(backend: str) -> None:
    with pytest.raises(OperationalError):  # nobody is there: it has looked
        read_store(f"{backend}://root@127.0.0.1:{free_port()}/jobs")


CELERY = """
from datetime import timedelta
from celery import Celery
from celery.schedules import crontab
app = Celery("x", broker="memory://")
app.conf.timezone = "Europe/Berlin"
app.conf.beat_schedule = {
    "often": {"task": "tasks.add", "schedule": 30.0, "args": (16, 16)},
    "monday": {"task": "tasks.add", "schedule": crontab(hour=7, minute=30, day_of_week=1),
               "kwargs": {"x": "y z"}, "options": {"queue": "q", "headers": {}}},
    "both": {"task": "t", "schedule": crontab(0, 0, day_of_month="1-7", day_of_week="mon")},
    "fast": {"task": "t", "schedule": timedelta(milliseconds=300)},
    "odd": {"task": "t", "schedule": object()},
}
"""


def test_a_celery_schedule_goes_on_with_its_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "importers_beat.py").write_text(CELERY)
    found = read_beat("importers_beat.py", tz=None)
    finish_import(found, "ops", now=NOW)
    often, monday, both, fast, odd = found
    call = "celery -A importers_beat call"
    assert often.words == {
        "every": "30s",
        "run": {"shell": f"{call} tasks.add '--args=[16, 16]'"},
        "overlap": "allow",
    }
    assert monday.words == {
        "schedule": "30 7 * * 1",
        "tz": "Europe/Berlin",
        "run": {"shell": f'{call} tasks.add \'--kwargs={{"x": "y z"}}\' --queue=q'},
        "overlap": "allow",
    }
    assert any("'headers'" in note for note in monday.notes)
    assert [both.words, fast.words, odd.words] == [None, None, None]
    assert "and cron takes either" in both.notes[-1]
    assert "the shortest interval is 1s" in fast.notes[-1]
    assert "of the kind object" in odd.notes[-1]
    with pytest.raises(BadSchedule, match="no Celery app or beat_schedule"):
        read_beat("importers_beat.py:crontab", tz=None)
