"""Whole services with their threads: two on one database, drains, async jobs, faults."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine, text, update
from sqlalchemy.exc import OperationalError

from lockd_scheduler import Cron, OfficeTaken, Run
from lockd_scheduler.app import Settings, make_service, start_service
from lockd_scheduler.declared import runner_from_words
from lockd_scheduler.engines import open_engine
from lockd_scheduler.jobs import JobSpec
from lockd_scheduler.offices import FileOffice
from lockd_scheduler.parking import park_gone
from lockd_scheduler.plans import apply_plan
from lockd_scheduler.policies import Policy
from lockd_scheduler.service import Service
from lockd_scheduler.tables import schedule
from lockd_scheduler.triggers import read_schedule
from tests.scheduler.harness import World

PATIENCE = 20.0


@dataclass
class Pair:
    """Services that campaign for one lock file, as processes without a lock service would."""

    engine: Engine
    db_url: str
    office_path: Path
    cron: Cron

    def start(self) -> Service:
        settings = Settings.from_words(db=self.db_url, lost_after="3s")
        service = make_service(
            "ops",
            self.cron.jobs,
            settings,
            loop=None,
            open_office=lambda ledger, _: FileOffice(self.office_path, last_token=ledger.last_token),
        )
        service.start()
        return service


@pytest.fixture
def pair(engine: Engine, db_url: str, tmp_path: Path) -> Pair:
    return Pair(engine, db_url, tmp_path / "office.lock", Cron("ops"))


@pytest.fixture
def stopping() -> Iterator[list[Service]]:
    services: list[Service] = []
    yield services
    for service in services:
        service.stop(drain=PATIENCE)
        assert service.failure is None


def test_two_services_never_run_a_fire_twice(pair: Pair, stopping: list[Service]) -> None:
    """P5, R1: the active one leaves in the middle; every second has one row, run once by one of them."""
    fires: Counter[str] = Counter()
    enough = threading.Event()

    @pair.cron.every("1s", name="tick", overlap="allow", catch_up="all")
    def tick(run: Run) -> None:
        fires[run.key] += 1
        if len(fires) >= 3:
            enough.set()

    first = pair.start()
    second = pair.start()
    stopping += [first, second]
    assert enough.wait(PATIENCE)
    first.stop(drain=PATIENCE)
    enough.clear()
    before = len(fires)
    _until(lambda: len(fires) >= before + 2)
    second.stop(drain=PATIENCE)
    assert set(fires.values()) == {1}
    with pair.engine.connect() as connection:
        rows = connection.execute(text("SELECT fire_time, state FROM lockd_run")).all()
        tokens = set(connection.scalars(text("SELECT office_token FROM lockd_attempt")))
    assert len(tokens) == 2
    moments = sorted(str(row[0]) for row in rows)
    assert len(moments) == len(set(moments))
    assert {row[1] for row in rows} <= {"succeeded", "claimed"}


def test_a_symbolic_link_to_the_database_is_the_same_database(
    tmp_path: Path, stopping: list[Service]
) -> None:
    cron = Cron("ops")
    cron.every("1h", name="idle")(lambda: None)
    (tmp_path / "link.db").symlink_to(tmp_path / "real.db")
    real = Settings.from_words(db=f"sqlite:///{tmp_path}/real.db")
    stopping.append(start_service("ops", cron.jobs, real, None))
    link = Settings.from_words(db=f"sqlite:///{tmp_path}/link.db")
    with pytest.raises(OfficeTaken):
        start_service("ops", cron.jobs, link, None)


def test_a_stopped_service_lets_its_attempts_finish(pair: Pair, stopping: list[Service]) -> None:
    """R1: the next one is in office before the old one's attempt has ended, and the attempt counts."""
    started, go_on = threading.Event(), threading.Event()

    @pair.cron.every("1h", name="long")
    def long() -> None:
        started.set()
        assert go_on.wait(PATIENCE)

    _make_due(pair)
    first = pair.start()
    stopping.append(first)
    assert started.wait(PATIENCE)
    stopper = threading.Thread(target=first.stop, kwargs={"drain": PATIENCE})
    stopper.start()
    assert first.ended.wait(PATIENCE)
    second = pair.start()
    stopping.append(second)
    _until(lambda: _scalar(pair.engine, "SELECT token FROM lockd_office") == 3)
    go_on.set()
    stopper.join(PATIENCE)
    assert _scalar(pair.engine, "SELECT state FROM lockd_run") == "succeeded"
    assert _scalar(pair.engine, "SELECT office_token FROM lockd_attempt") == 2


def test_a_long_attempt_is_kept_alive_by_heartbeats(pair: Pair, stopping: list[Service]) -> None:
    """R1: an attempt longer than the silence that makes it lost is not lost while its process lives."""

    @pair.cron.every("1h", name="long")
    def long() -> None:
        time.sleep(4.5)  # the subject of the test: longer than lost_after

    _make_due(pair)
    stopping.append(pair.start())
    _until(lambda: _scalar(pair.engine, "SELECT state FROM lockd_run") in ("succeeded", "lost"))
    assert _scalar(pair.engine, "SELECT state FROM lockd_run") == "succeeded"


def test_a_failing_database_neither_stops_nor_doubles(
    pair: Pair, stopping: list[Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R6: errors at every third transaction, before it or after its commit: all is asked again."""
    fires: Counter[str] = Counter()
    count = 0
    real_begin = pair.engine.__class__.begin

    def begin(engine: Engine) -> object:
        nonlocal count
        count += 1
        if count % 3 == 0:
            raise OperationalError("BEGIN", {}, Exception("the server went away"))
        return real_begin(engine)

    @pair.cron.every("1s", name="tick", overlap="allow", catch_up="all")
    def tick(run: Run) -> None:
        fires[run.key] += 1

    service = pair.start()
    stopping.append(service)
    monkeypatch.setattr("sqlalchemy.Engine.begin", begin)
    _until(lambda: len(fires) >= 4)
    monkeypatch.undo()
    service.stop(drain=PATIENCE)
    assert set(fires.values()) == {1}
    assert not service.failure


def test_a_fault_of_ours_stops_the_service_and_is_told(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    @pair.cron.every("1s", name="tick")
    def tick() -> None: ...

    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr("lockd_scheduler.ledger.Ledger.claim_due", fails)
    service = pair.start()
    assert service.ended.wait(PATIENCE)
    service.stop(drain=0)
    assert isinstance(service.failure, ZeroDivisionError)


def test_alone_a_second_service_on_the_same_file_is_refused(tmp_path: Path) -> None:
    cron = Cron("ops")
    settings = Settings.from_words(db=f"sqlite:///{tmp_path}/ledger.db")
    service = start_service("ops", cron.jobs, settings, None)
    try:
        with pytest.raises(OfficeTaken, match="is served by process"):
            start_service("ops", cron.jobs, settings, None)
    finally:
        service.stop(drain=0)
    start_service("ops", cron.jobs, settings, None).stop(drain=0)


def test_async_jobs_run_on_the_users_loop(tmp_path: Path) -> None:
    cron = Cron("ops")
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> asyncio.AbstractEventLoop:
        came = asyncio.Event()

        @cron.every("1s", name="poll")
        async def poll(run: Run) -> None:
            assert run.job == "poll"
            loops.append(asyncio.get_running_loop())
            came.set()

        async with cron.running(db=f"sqlite:///{tmp_path}/ledger.db"), asyncio.timeout(PATIENCE):
            await came.wait()
        return asyncio.get_running_loop()

    loop = asyncio.run(serve())
    assert set(loops) == {loop}


def test_a_job_whose_function_is_there_again_is_brought_back_by_the_service(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    runner = runner_from_words({"python": "json:dumps"})
    spec = JobSpec("yearly", read_schedule("0 0 1 1 *"), Policy(), {}, runner)
    service = start_service("ops", {}, Settings.from_words(db=url, listen_http="off"), None)
    engine = open_engine(url)
    try:
        now = World(engine).ledger.read_time()
        apply_plan(engine, "ops", {"yearly": spec}, now=now, by="ann")
        park_gone(engine, "ops", spec, "there is no module 'json'", now=now)
        _until(lambda: _scalar(engine, "SELECT parked_at FROM lockd_schedule") is None)
    finally:
        service.stop(drain=0)
        engine.dispose()


def _make_due(pair: Pair) -> None:
    """Let the service of another moment have made the schedules, and have them due now."""
    service = pair.start()
    _until(lambda: _scalar(pair.engine, "SELECT count(*) FROM lockd_schedule") == 1)
    service.stop(drain=0)
    now = World(pair.engine).ledger.read_time()
    with pair.engine.begin() as connection:
        connection.execute(update(schedule).values(next_fire_at=now))


def _scalar(engine: Engine, query: str) -> object:
    with engine.connect() as connection:
        return connection.scalar(text(query))


def _until(condition: object) -> None:
    assert callable(condition)
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.02)
