"""Real `lockd-scheduler serve` processes on one PostgreSQL, with a lockd cluster or without.

Their jobs tell each call in a table `calls` of its own connection, and leave effects in fenced sessions;
`broken_promises` reads both beside the ledger.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from lockd.testing import tied
from lockd_scheduler.engines import open_engine
from lockd_scheduler.policies import Delivery
from lockd_scheduler.runs import LIVE, State
from lockd_storage.schema import upgrade
from tests.processes import clean_environment, eventually, process_state
from tests.scheduler.chaos.invariants import Facts, breaches

PATIENCE_S = 120.0
LEASE = "3s"
LOST_AFTER_S = 5
POSTGRES = {"max_connections": "300"}
"""For the server: replicas that come and go leave connections behind for a moment."""
EFFECT_JOBS = {"effect-least", "effect-most"}
JOBS = """
import os
from sqlalchemy import create_engine, text
from lockd_scheduler import Cron, Run

cron = Cron("ops")
calls = create_engine(os.environ["CALLS_DB"], isolation_level="AUTOCOMMIT", pool_size=4, max_overflow=0)

def tell(run: Run, phase: str) -> None:
    with calls.connect() as connection:
        connection.execute(
            text("INSERT INTO calls VALUES (:run, :attempt, :phase, :pid)"),
            {"run": run.id, "attempt": run.attempt, "phase": phase, "pid": os.getpid()},
        )

def work(run: Run) -> None:
    tell(run, "begin")
    run.wait(0.3)
    tell(run, "end")

def effect(run: Run) -> None:
    tell(run, "begin")
    with run.fenced_session() as session:
        session.execute(text("INSERT INTO effects VALUES (:run)"), {"run": str(run.id)})
        run.wait(0.2)
    tell(run, "end")

SURE = {"delivery": "at_least_once", "overlap": "allow", "catch_up": "all", "backoff": "1s"}
ONCE = {"delivery": "at_most_once", "overlap": "allow", "catch_up": "all"}
for number in range(int(os.environ["COPIES"])):
    cron.every("1s", name=f"most-{number}", **ONCE)(work)
    cron.every("1s", name=f"least-{number}", **SURE)(work)
cron.every("1s", name="effect-least", **SURE)(effect)
cron.every("2s", name="effect-most", notify=["lost", "failed"], **ONCE)(effect)
cron.every("1s", name="queue", **{**SURE, "overlap": "queue_all"})(lambda run: tell(run, "begin"))
cron.after("least-0", name="child", delivery="at_least_once", overlap="queue_all")(work)
"""


class Fleet:
    """Replicas of one scheduler, and the database that they share."""

    def __init__(self, folder: Path, url: str, *, lockd: str | None, copies: int, lease: str | None) -> None:
        """`lockd`: endpoints; None: the office is a row. `copies`: two jobs each. `lease`: of the office."""
        self.engine = open_engine(url)
        self._folder, self._url, self._lockd, self._copies, self._lease = folder, url, lockd, copies, lease
        self.replicas: list[subprocess.Popen[bytes]] = []
        self._all: list[subprocess.Popen[bytes]] = []
        (folder / "jobs.py").write_text(JOBS)
        upgrade(self.engine, branch="scheduler")
        with self.engine.begin() as connection:
            connection.execute(text("CREATE TABLE calls (run_id BIGINT, attempt INT, phase TEXT, pid INT)"))
            connection.execute(text("CREATE TABLE effects (fire TEXT)"))

    def start(self) -> subprocess.Popen[bytes]:
        """One more replica; it is not waited for."""
        words = [
            "serve", "jobs.py", "--db", self._url, "--drain", "20s", "--lost-after", f"{LOST_AFTER_S}s",
            "--listen-http", "off",
        ]  # fmt: skip
        if self._lease is not None:
            words += ["--lease-ttl", self._lease]
        if self._lockd is not None:
            words += ["--lockd", self._lockd]
        command = [str(Path(sys.executable).parent / "lockd-scheduler"), *words]
        with (self._folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-S", "-E", str(tied.__file__), str(os.getpid()), *command],
                cwd=self._folder,
                env=clean_environment({"CALLS_DB": self._url, "COPIES": str(self._copies)}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.replicas.append(process)
        self._all.append(process)
        return process

    def await_serving(self) -> None:
        """Wait until every replica that was started serves: before that SIGTERM just ends it."""
        eventually(
            lambda: self.log().count("INFO serving scope") >= len(self._all),
            "all replicas serve",
            patience=PATIENCE_S,
        )

    def office(self) -> tuple[int, int]:
        """The office's token and its holder's process id; (0, 0) while nobody has held it."""
        with self.engine.connect() as connection:
            row = connection.execute(text("SELECT token, holder FROM lockd_office")).one_or_none()
        return (0, 0) if row is None else (row.token, int(row.holder.split(":")[-2]))

    def active(self) -> subprocess.Popen[bytes]:
        """The replica that holds the office, waited for."""
        return eventually(self._active, "a running replica is in office", patience=PATIENCE_S)

    def await_successor(self, token: int) -> None:
        """Wait until a later token than that is in office, and runs succeed under it."""
        eventually(
            lambda: self.office()[0] > token and self.succeeds(),
            f"somebody has taken over after token {token}; the log:\n{self.log()[-3000:]}",
            patience=PATIENCE_S,
        )

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """kill -9."""
        process.kill()
        process.wait()
        self.replicas.remove(process)

    def freeze(self, process: subprocess.Popen[bytes]) -> None:
        """SIGSTOP; it stands still on return."""
        process.send_signal(signal.SIGSTOP)
        eventually(lambda: process_state(process.pid) == "T", "it stands still")

    def leave(self, process: subprocess.Popen[bytes]) -> int:
        """SIGTERM, waited for. Returns the exit status."""
        process.terminate()
        self.replicas.remove(process)
        return process.wait(PATIENCE_S)

    def settle(self) -> datetime:
        """Wait until all that has fired up to now has ended; then all replicas leave. Returns that now."""
        with self.engine.connect() as connection:
            now: datetime = connection.execute(text("SELECT date_trunc('second', now())")).scalar_one()
        eventually(lambda: not self.live_before(now), "all has ended", patience=PATIENCE_S)
        for process in list(self.replicas):
            self.leave(process)
        return now

    def live_before(self, moment: datetime) -> int:
        """How many runs of fires before that moment have not ended."""
        states = ", ".join(f"'{state.value}'" for state in sorted(LIVE))
        query = text(f"SELECT count(*) FROM lockd_run WHERE fire_time < :moment AND state IN ({states})")
        with self.engine.connect() as connection:
            return int(connection.execute(query, {"moment": moment}).scalar_one())

    def calls(self) -> Counter[tuple[int, int]]:
        """How often each attempt's function was begun, by (run id, attempt number)."""
        with self.engine.connect() as connection:
            rows = connection.execute(text("SELECT run_id, attempt FROM calls WHERE phase = 'begin'"))
            return Counter((row.run_id, row.attempt) for row in rows)

    def log(self) -> str:
        """What all of them have said."""
        return (self._folder / "log").read_text(errors="replace")

    def stop(self) -> None:
        """Make sure that none runs."""
        for process in self._all:
            if process.poll() is None:
                process.kill()
                process.wait()
        self.engine.dispose()

    def _active(self) -> subprocess.Popen[bytes] | None:
        _, pid = self.office()
        return next((one for one in self.replicas if one.pid == pid and one.poll() is None), None)

    def succeeds(self) -> bool:
        """Whether a run has succeeded under who is in office now."""
        query = text(
            "SELECT count(*) FROM lockd_attempt WHERE state = 'succeeded'"
            " AND office_token = (SELECT token FROM lockd_office)"
        )
        with self.engine.connect() as connection:
            return bool(connection.execute(query).scalar_one())


@contextmanager
def running_fleet(
    folder: Path,
    url: str,
    *,
    lockd: str | None = None,
    copies: int = 2,
    replicas: int = 3,
    lease: str | None = LEASE,
) -> Iterator[Fleet]:
    """Replicas of which one is in office."""
    fleet = Fleet(folder, url, lockd=lockd, copies=copies, lease=lease)
    try:
        for _ in range(replicas):
            fleet.start()
        fleet.await_serving()
        fleet.await_successor(0)
        yield fleet
    finally:
        fleet.stop()


def broken_promises(fleet: Fleet, until: datetime) -> list[str]:
    """What does not hold of all that fired before `until`, as sentences."""
    facts = Facts(fleet.engine)
    facts.forget_from(until)
    found = breaches(facts, effect_jobs=EFFECT_JOBS)
    specs = {one.id: facts.specs[one.schedule_id] for one in facts.runs}
    calls = fleet.calls()
    runs: Counter[int] = Counter()
    for (run_id, number), times in calls.items():
        runs[run_id] += times
        if times > 1:
            found.append(f"attempt {number} of run {run_id} was begun {times} times")
    for run_id, spec in specs.items():
        if spec.policy.delivery is Delivery.AT_MOST_ONCE and runs[run_id] > 1:
            found.append(f"at_most_once: run {run_id} of {spec.name} was begun {runs[run_id]} times")
    found += [
        f"attempt {one.number} of run {one.run_id} failed: {(one.error or '').splitlines()[-1:]}"
        for one in facts.attempts
        if one.state == State.FAILED
    ]
    if "Traceback" in fleet.log():
        found.append("a replica has told a traceback")
    return found


def summary(engine: Engine) -> str:
    """Runs and attempts by their ends."""
    with engine.connect() as connection:

        def counted(table: str) -> dict[str, Any]:
            rows = connection.execute(text(f"SELECT state, count(*) FROM {table} GROUP BY 1 ORDER BY 1"))
            return dict(rows.tuples().all())

        late = connection.execute(text("SELECT count(*) FROM lockd_attempt WHERE late_state IS NOT NULL"))
        return f"runs {counted('lockd_run')}, attempts {counted('lockd_attempt')}, late {late.scalar_one()}"


def elapsed_since(start: float) -> str:
    """For a line of progress."""
    return f"{time.monotonic() - start:5.0f} s"
