"""For tests of hand-over: a job file that an engine's worker imports too, and a scheduler turned by hand."""

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lockd_scheduler import Cron
from lockd_scheduler.asking import Asking
from lockd_scheduler.handover import JobEngine
from lockd_scheduler.handover.sending import HandingOver
from lockd_scheduler.mandates import Claimed
from tests.scheduler.harness import LOST_AFTER, SECOND, Process, World
from tests.scheduler.running import until
from tests.servers.process import start_guarded, stop

JOBS = '''
"""Runs in the scheduler's process and in the engine's workers."""

import os
import time
from pathlib import Path

from lockd_scheduler import Cron, Run

{engine}

cron = Cron("ops")
cron.hand_over(engine)


@cron.job("0 0 1 1 *", name="once", runner=engine.name, overlap="allow")
def once(run: Run):
    """Say that it has begun and where; hold on while there is a file called hold."""
    run.log(f"attempt {{run.attempt}} has token {{run.token}}")
    with Path("begun").open("a") as begun:
        begun.write(f"{{run.job}} {{run.id}} {{run.attempt}} {{os.getpid()}} {{os.getppid()}}\\n")
    while Path("hold").exists():
        run.wait(0.05)


again = cron.job(
    "0 0 1 1 *", name="again", runner=engine.name, overlap="allow", delivery="at_least_once"
)(once.function)
'''


@dataclass(frozen=True)
class Begun:
    """An attempt that a worker has begun: what it wrote down."""

    job: str
    run_id: int
    attempt: int
    pid: int
    parent: int


@dataclass
class Handing:
    """A World whose jobs, `once` (at_most_once) and `again`, are run by an engine.

    `place` is where the job file is, and the workers are.
    """

    world: World
    cron: Cron
    place: Path
    db: str
    env: Mapping[str, str]
    opened: list[HandingOver] = field(default_factory=list)

    def process(self, token: int) -> Process:
        """A scheduler process in office, which hands over."""
        process = self.world.process(self.cron)
        handing = HandingOver(
            process.runner,
            scope="ops",
            jobs=self.cron.jobs,
            engines=self.cron.engines,
            attempts=process.worker.attempts,
            lost_after=LOST_AFTER,
        )
        self.opened.append(handing)
        process.officer.runner = handing
        return process.elected(token)

    def close(self) -> None:
        """Send nothing any more."""
        for handing in self.opened:
            handing.close()

    def ask(self, process: Process, job: str, key: str) -> None:
        """Have this process hand over one more run."""
        Asking(self.world.engine, "ops").start(job, key=key, now=self.world.clock.now())
        process.turn()

    def begun(self) -> list[Begun]:
        """What workers have begun, in order."""
        file = self.place / "begun"
        lines = file.read_text().splitlines() if file.exists() else []
        return [Begun(job, *map(int, numbers)) for job, *numbers in map(str.split, lines)]

    def hold(self) -> None:
        """Let jobs that begin now hold on."""
        (self.place / "hold").touch()

    def let_go(self) -> None:
        (self.place / "hold").unlink()

    def until_ended(self, runs: int) -> None:
        """Wait until so many runs have ended."""
        until(lambda: sum(state in ("succeeded", "lost") for state in self.world.states()) >= runs)

    @contextmanager
    def worker(self, *command: str) -> Iterator[None]:
        """A worker of the engine, beside the job file."""
        home = Path(tempfile.mkdtemp(prefix="lockd-engine-"))
        words = [sys.executable, "-c", f"import os, sys; os.chdir({str(self.place)!r}); {command[0]}"]
        guardian = start_guarded(
            [*words, *command[1:]],
            home=home,
            stop_signal="SIGQUIT",  # Celery waits for nothing then; Dask ends by it like any process
            user=None,
            env={**os.environ, **self.env, "LOCKD_SCHEDULER_DB": self.db, "PYTHONPATH": str(self.place)},
        )
        try:
            yield
        except BaseException:
            if (home / "log").exists():
                print((home / "log").read_text())
            raise
        finally:
            stop(guardian)


def claimed_by(process: Process) -> list[Claimed]:
    """What this process hands over and has not seen begun."""
    runner = process.officer.runner
    assert isinstance(runner, HandingOver)
    return [sending.claimed for sending in runner._sendings.values()]


def send(process: Process, engine: JobEngine, claimed: Claimed) -> None:
    """Once more, as an engine would that brings a message again."""
    message = {"scope": "ops", "claimed": claimed.to_json(), "lost_after": LOST_AFTER.total_seconds()}
    assert process.is_active
    engine.send(message, task_id=f"ops/{claimed.attempt_id}", expires_seconds=60)


def at_the_ledgers_time(world: World) -> None:
    """Let the world's clock show what the workers' clocks show."""
    world.clock.set(world.ledger.read_time())


def silent_too_long(world: World) -> None:
    """Let all heartbeats there were be so old that their attempts count as lost."""
    world.clock.set(world.ledger.read_time() + LOST_AFTER + SECOND)
