"""The scheduler beside stock APScheduler 3 with its SQLAlchemy store, on one PostgreSQL, in one run.

    python -m benchmarks.fires [--fires 5000] [--schedules 100000] [--rounds 3]

ledgered   fires a second that are claimed, each with its run, its attempt and its schedule moved on;
           and fires a second from claim to finish, with functions that do nothing. Theirs: jobs a second
           that its loop hands to an executor that does nothing, each with its row updated.
lateness   of so many one-shots due in the same second: from that second to the function's first line.
schedules  a process that is given so many: until it is active, memory, and CPU while nothing is due.

The server syncs each commit to disk. Rounds of ours and theirs alternate.
"""

import argparse
import logging
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import Any

from apscheduler.executors.base import BaseExecutor
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler

from benchmarks import machine
from lockd_scheduler import Cron
from lockd_scheduler.app import Settings, start_service
from lockd_scheduler.attempts import Attempts
from lockd_scheduler.clocks import SettableClock
from lockd_scheduler.engines import open_engine
from lockd_scheduler.ledger import Ledger
from lockd_scheduler.mandates import Claimed, Mandate
from lockd_scheduler.worker import Worker
from lockd_storage.schema import upgrade
from tests.servers.postgres import DURABLE, PostgresServer, running_postgres

DUE = datetime(2026, 6, 1, 12, tzinfo=UTC)
TOGETHER = 500
IDLE_SECONDS = 15.0


def nothing() -> None:
    """What every job does."""


class NullExecutor(BaseExecutor):  # type: ignore[misc]  # APScheduler has no types
    """Ends each job at once, so that the loop and its store are measured and no thread pool."""

    def __init__(self, expected: int) -> None:
        super().__init__()
        self.left = expected
        self.done = threading.Event()

    def _do_submit_job(self, job: Any, run_times: list[datetime]) -> None:  # noqa: ARG002
        self._run_job_success(job.id, [])
        self.left -= 1
        if self.left == 0:
            self.done.set()


def our_fires(server: PostgresServer, fires: int) -> tuple[float, float]:
    """Fires a second: claimed, and from claim to finish."""
    with server.fresh_database() as url:
        engine = open_engine(url)
        upgrade(engine, branch="scheduler")
        cron = Cron("bench")
        for number in range(fires):
            cron.every("1h", name=f"job-{number}")(nothing)
        clock = SettableClock(DUE - timedelta(seconds=5))
        ledger, mandate = Ledger(engine, "bench"), Mandate("bench", "local", 1, "bench")
        ledger.take_office(mandate, now=clock.now())
        specs = {name: job.spec for name, job in cron.jobs.items()}
        ledger.keep_schedules(mandate, specs, now=clock.now())
        clock.set(DUE)
        worker = Worker(
            scope="bench",
            name="bench",
            jobs=cron.jobs,
            attempts=Attempts(engine),
            clock=clock,
            loop=None,
            abandoned=threading.Event(),
        )
        began = time.perf_counter()
        claimed: list[Claimed] = []
        while batch := ledger.claim_due(mandate, now=clock.now()).claimed:
            claimed += batch
        claims_took = time.perf_counter() - began
        assert len(claimed) == fires
        for first in range(0, fires, TOGETHER):
            started = worker.start(claimed[first : first + TOGETHER])
            worker.finish([worker.carry(one) for one in started])
        took = time.perf_counter() - began
        engine.dispose()
    return fires / claims_took, fires / took


def their_fires(server: PostgresServer, fires: int) -> float:
    """Jobs a second through APScheduler's loop and store."""
    with server.fresh_database() as url:
        executor = NullExecutor(fires)
        store = SQLAlchemyJobStore(url=url)
        scheduler = BackgroundScheduler(
            jobstores={"default": store},
            executors={"default": executor},
            job_defaults={"misfire_grace_time": None},
            timezone="UTC",
        )
        scheduler.start(paused=True)
        for number in range(fires):
            scheduler.add_job(
                nothing, "interval", hours=1, id=f"job-{number}", next_run_time=datetime.now(UTC)
            )
        began = time.perf_counter()
        scheduler.resume()
        executor.done.wait()
        took = time.perf_counter() - began
        scheduler.shutdown()
        store.engine.dispose()
    return fires / took


def our_lateness(server: PostgresServer, jobs: int) -> list[float]:
    """Milliseconds from the second in which all are due to each function's first line."""
    with server.fresh_database() as url:
        cron = Cron("bench")
        late, done = _collector(jobs)
        at = _soon(jobs)
        for number in range(jobs):
            cron.at(at, name=f"job-{number}")(lambda: late((datetime.now(UTC) - at).total_seconds()))
        service = start_service("bench", cron.jobs, Settings.from_words(db=url), None)
        milliseconds = done()
        service.stop(drain=30)
    return milliseconds


def their_lateness(server: PostgresServer, jobs: int) -> list[float]:
    """The same with APScheduler, its grace set so that it drops none."""
    with server.fresh_database() as url:
        global _their_late  # noqa: PLW0603  its store pickles a reference to the function
        late, done = _collector(jobs)
        at = _soon(jobs)
        _their_late = lambda: late((datetime.now(UTC) - at).total_seconds())  # noqa: E731
        store = SQLAlchemyJobStore(url=url)
        scheduler = BackgroundScheduler(
            jobstores={"default": store},
            job_defaults={"misfire_grace_time": None},
            timezone="UTC",
        )
        for number in range(jobs):
            scheduler.add_job(their_job, "date", run_date=at, id=f"job-{number}")
        scheduler.start()
        milliseconds = done()
        scheduler.shutdown()
        store.engine.dispose()
    return milliseconds


_their_late: Callable[[], None] = nothing


def their_job() -> None:
    """Found again by its name, as their store wants it."""
    _their_late()


def many_schedules(server: PostgresServer, schedules: int) -> dict[str, float]:
    """A process with that many: seconds to make them, seconds to its first turn, MiB, % CPU when idle."""
    with server.fresh_database() as url:
        words = [sys.executable, "-m", "benchmarks.fires", "--child", url, str(schedules)]
        first = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
        again = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    return {
        "made": float(first[0]),
        "started": float(again[0]),
        "memory": float(again[1]),
        "idle": float(again[2]),
    }


def child(url: str, schedules: int) -> None:
    """One process of `many_schedules`: prints seconds until it is active, MiB and % CPU."""
    cron = Cron("bench")
    for number in range(schedules):
        cron.job("H H 1 1 *", name=f"job-{number}")(nothing)
    began = time.perf_counter()
    service = start_service("bench", cron.jobs, Settings.from_words(db=url), None)
    while not service.is_active:
        time.sleep(0.01)
    took = time.perf_counter() - began
    time.sleep(2.0)
    cpu, wall = time.process_time(), time.perf_counter()
    time.sleep(IDLE_SECONDS)
    idle = (time.process_time() - cpu) / (time.perf_counter() - wall) * 100
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{took:.2f} {memory:.0f} {idle:.2f}", flush=True)
    service.stop(drain=0)
    os._exit(0)


def _soon(jobs: int) -> datetime:
    """A whole second far enough off for that many jobs to be made."""
    return (datetime.now(UTC) + timedelta(seconds=4 + jobs / 250)).replace(microsecond=0)


def _collector(expected: int) -> tuple[Callable[[float], None], Callable[[], list[float]]]:
    seconds: list[float] = []
    enough: Future[None] = Future()

    def late(by: float) -> None:
        seconds.append(by)
        if len(seconds) == expected:
            enough.set_result(None)

    def done() -> list[float]:
        enough.result(120)
        return sorted(by * 1000 for by in seconds)

    return late, done


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--fires", type=int, default=5_000)
    parser.add_argument("--jobs", type=int, default=1_000, help="due in the same second")
    parser.add_argument("--schedules", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("URL", "SCHEDULES"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if given.child:
        child(given.child[0], int(given.child[1]))
    print(machine.describe())
    with running_postgres(DURABLE) as server:
        ours, theirs = [], []
        for _ in range(given.rounds):
            ours.append(our_fires(server, given.fires))
            theirs.append(their_fires(server, given.fires // 5))
        claimed = statistics.median(one[0] for one in ours)
        whole = statistics.median(one[1] for one in ours)
        stock = statistics.median(theirs)
        print(f"ledgered: {claimed:,.0f} fires/s claimed, {whole:,.0f} from claim to finish;", end=" ")
        print(f"APScheduler {stock:,.0f}: {claimed / stock:.1f} and {whole / stock:.1f} times as many")
        lates = [
            (our_lateness(server, given.jobs), their_lateness(server, given.jobs))
            for _ in range(given.rounds)
        ]
        for name, rounds in zip(("ours", "APScheduler"), zip(*lates, strict=True), strict=True):
            p50, p99, worst = (
                statistics.median(_percentile(late, share) for late in rounds) for share in (0.5, 0.99, 1.0)
            )
            print(
                f"lateness of {given.jobs} in one second, {name}: p50 {p50:.0f} ms, p99 {p99:.0f} ms,"
                f" worst {worst:.0f} ms, medians of {given.rounds} rounds"
            )
        if given.schedules:
            found = many_schedules(server, given.schedules)
            print(
                f"{given.schedules:,} schedules: made in {found['made']:.1f} s, a restart is active after"
                f" {found['started']:.1f} s, {found['memory']:.0f} MiB, idle {found['idle']:.1f} % of one CPU"
            )


if __name__ == "__main__":
    main()
