"""One simulation: what the processes do, drawn from a seed, and how it is brought to an end."""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Any, Self

from sqlalchemy import Engine, event, func, select, text

from lockd_scheduler.asking import Asking
from lockd_scheduler.attempts import Result, Started
from lockd_scheduler.bounds import AbandonedError
from lockd_scheduler.clocks import SettableClock
from lockd_scheduler.engines import open_engine
from lockd_scheduler.errors import SchedulerError
from lockd_scheduler.ledger import Ledger
from lockd_scheduler.runs import LIVE
from lockd_scheduler.tables import run
from lockd_scheduler.testing.hands import Process
from tests.scheduler.chaos.faults import Fault, Killed, Steps, Where, watch
from tests.scheduler.chaos.workload import NAMES, Witness, make_cron
from tests.scheduler.harness import NOON

ACTIONS_MIN, ACTIONS_MAX = 50, 90
JOBS_AT_ONCE = 4
STEPS_MAX = 260
"""About as many steps as a process takes before the next one would have its turn."""
AIMED = 0.6
"""How many of the faults are aimed at a transaction; the others come anywhere."""
AIMED_STEPS_MAX = 24
TRANSACTIONS = [
    "take_office", "keep_schedules", "claim_due", "take_over", "mark_lost", "prune",
    "start", "finish", "fenced session", "heartbeat",
]  # fmt: skip
TRIES_MAX = 12
"""So often a process asks again where in production it asks until it is told to end."""
HEALING_ROUNDS_MAX = 80
HEALING_STEP = timedelta(seconds=15)


class _Patience(threading.Event):
    """`abandoned` of a worker that need not wait between its tries, and gives up in the end."""

    def __init__(self) -> None:
        super().__init__()
        self._tries = 0

    def wait(self, timeout: float | None = None) -> bool:  # noqa: ARG002
        self._tries += 1
        return self._tries > TRIES_MAX or self.is_set()


@dataclass
class Actor:
    """One process: what it has in hand, and the steps that it takes."""

    name: str
    steps: Steps
    engine: Engine
    process: Process = field(init=False)
    is_dead: bool = False
    is_asleep: bool = False
    started: list[Started] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)

    def job_step(self, what: str) -> None:
        """A step inside of a job."""
        self.steps.step(Where.JOB, what)

    def attempt(self, action: Callable[[], object], doing: str) -> None:
        """Do something, and survive what a process survives."""
        if self.is_dead:
            return
        before, self.steps.doing = self.steps.doing, doing
        try:
            action()
        except Killed:
            self.is_dead = True
        except AbandonedError:
            pass
        finally:
            self.steps.doing = before

    def turn(self) -> None:
        self.attempt(self.process.turn, "officer")

    def start(self, most: int) -> None:
        queue = self.process.runner.attempts
        batch, queue[:] = queue[:most], queue[most:]
        if batch:
            self.attempt(lambda: self.started.extend(self.process.worker.start(batch)), "start")

    def carry(self, index: int) -> None:
        started = self.started.pop(index)
        self.attempt(lambda: self.results.append(self.process.worker.carry(started)), "fenced session")

    def finish(self) -> None:
        batch, self.results[:] = self.results[:], []
        if batch:
            self.attempt(lambda: self.process.worker.finish(batch), "finish")

    def beat(self) -> None:
        self.attempt(self._beat, "heartbeat")

    def _beat(self) -> None:
        try:
            self.process.worker.heartbeat()
            self.process.worker.enforce()
        except SchedulerError:
            raise
        except Exception as error:  # as the service's heart does: it tries again
            if type(error).__name__ != "OperationalError":
                raise


class Simulation:
    """A ledger, a clock, and processes; everything that is drawn comes from the seed."""

    def __init__(self, seed: int, engine: Engine) -> None:
        self.random = Random(seed)
        self.engine = engine
        self.clock = SettableClock(NOON)
        self.ledger = Ledger(engine, "ops")
        self.witness = Witness()
        self.places: Counter[str] = Counter()
        self.holders: dict[int, str] = {}
        """Whose each office token was."""
        self.names = self.random.sample(NAMES, JOBS_AT_ONCE)
        self.manual: list[int] = []
        self.backfills: list[int] = []
        self._actors: list[Actor] = []
        self._asking = Asking(engine, "ops")

    def run(self) -> Self:
        """Play it to its end; the ledger is at rest on return."""
        with self.engine.begin() as connection:
            connection.execute(text("CREATE TABLE effects (fire TEXT)"))
        try:
            active = self._new_actor()
            for _ in range(self.random.randint(ACTIONS_MIN, ACTIONS_MAX)):
                active = self._act(active)
            self._heal()
            self._wake_all()
        finally:
            for actor in self._actors:
                actor.engine.dispose()
        return self

    @property
    def kills(self) -> int:
        """How many processes died."""
        return sum(actor.is_dead for actor in self._actors)

    def _new_actor(self, *, is_well: bool = False) -> Actor:
        token = len(self._actors) + 1
        engine = open_engine(self.engine.url.render_as_string(hide_password=False))
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _without_sync)
        fault = self.random.choice([Fault.KILL] * 3 + [Fault.SLEEP, Fault.BREAK])
        aim = self.random.choice(TRANSACTIONS) if self.random.random() < AIMED else None
        left = -1 if is_well else self.random.randint(1, STEPS_MAX if aim is None else AIMED_STEPS_MAX)
        steps = Steps(left, fault, self._met, aim=aim)
        actor = Actor(f"process-{token}", steps, engine)
        steps.sleep = lambda: self._meanwhile(actor)
        cron = make_cron(self.names, actor, self.witness, version=token)
        actor.process = Process.make(
            ledger=_named(Ledger(engine, "ops"), steps),
            jobs=cron.jobs,
            clock=self.clock,
            name=actor.name,
            abandoned=_Patience(),
        )
        watch(engine, steps)
        self._actors.append(actor)
        self.holders[token] = actor.name
        actor.process.elect(token)
        actor.turn()
        return actor

    def _met(self, place: str) -> None:
        self.places[place] += 1

    def _meanwhile(self, sleeper: Actor) -> None:
        """While one process sleeps: the next is elected, and goes on for a while. One sleeps at a time."""
        sleeper.is_asleep = True
        if sum(actor.is_asleep for actor in self._actors) == 1:
            self.clock.turn(timedelta(seconds=self.random.choice([1, 5, 12, 40])))
            active = self._new_actor()
            for _ in range(self.random.randint(3, 20)):
                active = self._act(active)
        sleeper.is_asleep = False

    def _act(self, active: Actor) -> Actor:
        """One action of the active process, or of one that was; returns who is active then."""
        newest = self._actors[-1]
        if newest is not active and not newest.is_dead:
            active = newest  # it was elected while this one slept
        if active.is_dead or active.is_asleep or self.random.random() < 0.01:
            self.clock.turn(timedelta(seconds=self.random.choice([0, 3, 11, 45])))
            active = self._new_actor()
        others = [one for one in self._actors if not (one.is_dead or one.is_asleep or one is active)]
        if others and self.random.random() < 0.2:
            self._act_as(self.random.choice(others))
        else:
            self._act_as(active)
        return active

    def _act_as(self, actor: Actor) -> None:
        match self.random.randrange(12):
            case 0 | 1 | 2:
                self.clock.turn(timedelta(seconds=self.random.randint(1, 40)))
                actor.turn()
            case 3:
                actor.turn()
            case 4 | 5:
                actor.start(self.random.randint(1, 8))
            case 6 | 7:
                for _ in range(min(len(actor.started), self.random.randint(1, 4))):
                    if not actor.is_dead:
                        actor.carry(self.random.randrange(len(actor.started)))
            case 8 | 9:
                actor.finish()
            case 10:
                actor.beat()
            case 11:
                self._ask()

    def _ask(self) -> None:
        """What somebody asks on the command line, which reaches the ledger by itself."""
        now, name = self.clock.now(), self.random.choice(self.names)
        try:
            match self.random.randrange(5):
                case 0:
                    key = f"ticket-{len(self.manual)}"
                    self.manual.append(self._asking.start(name, key=key, now=now))
                case 1 | 2:
                    if live := self._live():
                        self._asking.cancel(self.random.choice(live), now=now)
                case 3:
                    start = now - timedelta(minutes=10)
                    parallel = self.random.randint(1, 3)
                    self.backfills.append(
                        self._asking.backfill(
                            name, start=start, end=start + timedelta(minutes=3), parallel=parallel, now=now
                        )
                    )
                case 4:
                    if not self._asking.pause(name, until=now + timedelta(seconds=90), now=now):
                        self._asking.resume(name, now=now)
        except SchedulerError:
            assert not self._schedule_names() >= set(self.names), "it is refused for want of a schedule alone"

    def _schedule_names(self) -> set[str]:
        with self.engine.connect() as connection:
            return set(connection.scalars(text("SELECT name FROM lockd_schedule")))

    def _live(self) -> list[int]:
        with self.engine.connect() as connection:
            query = select(run.c.id).where(run.c.state.in_(LIVE)).order_by(run.c.id)
            return list(connection.scalars(query))

    def _heal(self) -> None:
        """A healthy process goes on until nothing is left to do."""
        for actor in self._actors:
            actor.steps.heal()
        self.clock.turn(timedelta(minutes=2))  # whoever was paused "until" is not any more
        well = self._new_actor(is_well=True)
        for _ in range(HEALING_ROUNDS_MAX):
            self._do_all(well)
            if not self._live() and not self._open_backfills():
                return
            self.clock.turn(HEALING_STEP)
        # What has not ended by now the invariants name.

    def _do_all(self, actor: Actor) -> None:
        while True:
            actor.beat()
            actor.turn()
            if not actor.process.runner.attempts:
                return
            actor.start(500)
            actor.beat()
            while actor.started:
                actor.carry(0)
            actor.finish()

    def _open_backfills(self) -> int:
        with self.engine.connect() as connection:
            query = "SELECT count(*) FROM lockd_backfill WHERE ended_at IS NULL"
            return int(connection.execute(text(query)).scalar_one())

    def _wake_all(self) -> None:
        """Whoever slept all the time wakes, and hands in what it has: it moves nothing."""
        before = self._picture()
        for actor in self._actors[:-1]:
            if actor.is_dead:
                continue
            while actor.started:
                actor.carry(0)
            actor.finish()
            actor.start(500)
            actor.turn()
        if self._picture() != before:
            self.witness.breaches.append("a stale process changed the ledger after all had ended")

    def _picture(self) -> list[Any]:
        with self.engine.connect() as connection:
            runs = connection.execute(select(run).order_by(run.c.id)).all()
            effects = connection.execute(select(func.count()).select_from(text("effects"))).scalar_one()
            return [*runs, effects]


def _named(ledger: Ledger, steps: Steps) -> Ledger:
    """Tell the steps which transaction they are in."""

    def told(name: str) -> Callable[..., Any]:
        method = getattr(ledger, name)

        def call(*args: Any, **words: Any) -> Any:
            steps.doing = name
            return method(*args, **words)

        return call

    for name in TRANSACTIONS[:6]:
        setattr(ledger, name, told(name))
    return ledger


def _without_sync(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA synchronous = OFF")
