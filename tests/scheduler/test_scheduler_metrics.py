"""Health and metrics of a real service, and of a ledger that does not answer."""

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from lockd_scheduler import Cron, Run
from lockd_scheduler.app import Settings, start_service
from lockd_scheduler.figures import JOBS_MAX, OTHER, Figures
from lockd_scheduler.outside import Outside
from lockd_scheduler.service import Service
from lockd_scheduler.web import Standing
from tests.scheduler.harness import NOON, World
from tests.scheduler.sites import served

PATIENCE = 20.0


def figures_of(text: str) -> dict[tuple[str, ...], float]:
    """(name, label values...) to value, as Prometheus itself would read it."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where services of this test answer; they are told port 0."""
    found: list[int] = []
    start = Outside.start

    def noted(self: Outside, *args: object, **words: object) -> None:
        start(self, *args, **words)  # type: ignore[arg-type]
        assert self.port is not None
        found.append(self.port)

    monkeypatch.setattr(Outside, "start", noted)
    return found


@pytest.fixture
def running(db_url: str, ports: list[int]) -> Iterator[tuple[Service, httpx.Client]]:
    """A service with a job each second, every other of which fails, and its HTTP side."""
    cron = Cron("ops")
    ended = threading.Event()
    seen: list[int] = []

    @cron.every("1s", name="tick", overlap="allow")
    def tick(run: Run) -> None:
        seen.append(run.id)
        if len(seen) > 2:
            ended.set()
        if len(seen) % 2:
            raise RuntimeError("odd")

    settings = Settings.from_words(db=db_url, listen_http="127.0.0.1:0")
    service = start_service("ops", cron.jobs, settings, None)
    try:
        assert ended.wait(PATIENCE)
        with httpx.Client(base_url=f"http://127.0.0.1:{ports[0]}") as http:
            yield service, http
    finally:
        service.stop(drain=PATIENCE)


def test_a_service_tells_what_it_has_done_and_where_it_stands(
    running: tuple[Service, httpx.Client],
) -> None:
    service, http = running
    assert http.get("/readyz").text == "ready\n"
    figures = figures_of(http.get("/metrics").text)
    assert figures["lockd_scheduler_office", "active"] == 1
    assert figures["lockd_scheduler_office", "standby"] == 0
    assert figures[("lockd_scheduler_ledger_up",)] == 1
    assert figures[("lockd_scheduler_attempts_claimed_total",)] >= 3
    assert figures["lockd_scheduler_attempts_ended_total", "tick", "failed"] >= 1
    assert figures["lockd_scheduler_attempts_ended_total", "tick", "succeeded"] >= 1
    assert figures[("lockd_scheduler_start_lateness_seconds_count",)] >= 3
    assert figures["lockd_scheduler_start_lateness_seconds_bucket", "3600.0"] >= 3
    assert figures["lockd_scheduler_runs_live", "running"] >= 0
    assert figures[("lockd_scheduler_notices_pending",)] == 0
    assert http.get("/api/v1/status").json()["here"] == "active"
    service.stop(drain=PATIENCE)
    with pytest.raises(httpx.TransportError):
        http.get("/healthz")


def test_a_process_that_stops_is_not_ready_and_one_that_stands_by_is(world: World) -> None:
    stopping = Standing(phase="active", queued=3, underway=2, is_stopping=True)
    with served(world, standing=stopping) as site:
        assert site.http.get("/readyz").status_code == 503
        assert site.http.get("/healthz").status_code == 200
        figures = figures_of(site.http.get("/metrics").text)
        assert figures[("lockd_scheduler_attempts_queued",)] == 3
        assert figures[("lockd_scheduler_attempts_underway",)] == 2


def test_what_is_overdue_shows_when_nobody_claims(world: World) -> None:
    """The job's first fire was at the test's noon; the database's clock is elsewhere."""
    world.cron.every("1h", name="tick")(lambda: None)
    with served(world) as site:
        overdue = figures_of(site.http.get("/metrics").text)[("lockd_scheduler_overdue_seconds",)]
        now = site.http.get("/api/v1/status").json()["now"]
        expected = (NOON.fromisoformat(now) - NOON).total_seconds()
        assert overdue == pytest.approx(max(expected, 0.0), abs=60)


def test_a_ledger_that_is_gone_fails_no_scrape(world: World, tmp_path: Path) -> None:
    if world.engine.dialect.name != "sqlite":
        pytest.skip("a file can be taken away, a shared server can't")
    with served(world) as site:
        assert site.http.get("/readyz").status_code == 200
        world.engine.dispose()
        (tmp_path / "ledger.db").write_bytes(b"this is not a database, and never was one" * 100)
        for rest in tmp_path.glob("ledger.db-*"):
            rest.unlink()
        assert figures_of(site.http.get("/metrics").text)[("lockd_scheduler_ledger_up",)] == 0
        assert site.http.get("/readyz").status_code == 503
        assert site.http.get("/healthz").status_code == 200
        assert site.http.get("/api/v1/jobs").status_code == 503
        assert site.http.get("/").status_code == 503


def test_series_are_bounded_however_many_jobs_there_are() -> None:
    figures = Figures()
    for number in range(3 * JOBS_MAX):
        figures.ended(f"job-{number}", "succeeded")
    [family] = [one for one in figures.registry.collect() if one.name == "lockd_scheduler_attempts_ended"]
    jobs = {sample.labels["job"] for sample in family.samples}
    assert len(jobs) == JOBS_MAX + 1
    others = {"job": OTHER, "state": "succeeded"}
    assert figures.registry.get_sample_value("lockd_scheduler_attempts_ended_total", others) == 2 * JOBS_MAX
