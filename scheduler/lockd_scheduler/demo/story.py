"""The demo's acts, in order. What they saw goes into `Evidence`; `verdicts` judges it."""

import contextlib
import functools
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

import lockd
from lockd_scheduler.demo import jobs, worker
from lockd_scheduler.demo.screen import Screen
from lockd_scheduler.demo.stage import NODES, Stage, StageError, await_that
from lockd_scheduler.demo.verdicts import Evidence, StaleWrite, judge, show_runs
from lockd_scheduler.engines import open_engine
from lockd_scheduler.tables import office, run
from lockd_storage.schema import upgrade
from lockd_storage.sqlalchemy import SqlFence

SCHEDULERS = ("A", "B")
FIRES_PER_ACT = 2
"""How many more fires each act waits for, so that every fault has fires around it."""


def play(*, keep: bool = False, db: str | None = None) -> int:
    """Run the demo. Returns 0 when every promise held, else 1.

    `keep`: leave everything running, and its directory in place, until Ctrl-C. `db`: a PostgreSQL
    URL instead of a SQLite file of the demo's own.
    """
    screen = Screen()
    directory = Path(tempfile.mkdtemp(prefix="lockd-demo-"))
    stage = Stage(directory, db or f"sqlite:///{directory / 'demo.db'}")
    with stage.curtain():
        try:
            evidence = _Story(stage, screen).tell()
        except (StageError, lockd.LockdError) as error:
            screen.end(f"The demo could not go on: {error}", well=False)
            screen.say(f"the processes' logs are in {directory}")
            return 1
        screen.act("The runs, as the ledger has them")
        show_runs(evidence, screen)
        screen.act("What was promised, read from the real tables and the real cluster")
        well = judge(evidence, screen)
        if keep:
            _keep(stage, screen)
    if well and not keep:
        _remove(directory)
    elif not well:
        screen.say(f"the data and the logs are in {directory}")
    screen.end("Every promise held." if well else "A promise was broken.", well=well)
    return 0 if well else 1


class _Story:
    def __init__(self, stage: Stage, screen: Screen) -> None:
        self._stage = stage
        self._screen = screen
        self._engine: Engine = open_engine(stage.database)
        self._evidence = Evidence(stage, self._engine)

    def tell(self) -> Evidence:
        self._open()
        with contextlib.closing(lockd.Client(self._stage.endpoints, ttl=10, name="demo")) as client:
            self._grow_tokens(client)
            self._schedulers_start()
            anchor = client.acquire("anchor", wait=10)
            self._evidence.anchor = ("anchor", anchor.token)
            self._pause_the_worker(client)
            self._kill_the_leader(client)
            self._kill_the_active_scheduler()
            self._bring_the_node_back()
            self._evidence.anchor_found = client.inspect("anchor").holders[0].token
            self._settle()
        return self._evidence

    def _open(self) -> None:
        screen, stage = self._screen, self._stage
        screen.act("Three lockd nodes, each a process with its own data on disk")
        screen.say(f"everything lives in {stage.directory}")
        for branch in ("fence", "scheduler"):
            upgrade(self._engine, branch=branch)
        jobs.metadata.create_all(self._engine)
        for node in NODES:
            stage.start_node(node)
        leader = await_that(stage.leader, "a node leads")
        status = await_that(lambda: stage.status(leader), "the leader answers")
        screen.fact(f"node {leader} leads term {status['term']} of cluster {status['cluster']}")

    def _grow_tokens(self, client: lockd.Client) -> None:
        self._screen.act("Every grant has a token, and tokens only grow")
        for name in ("invoice:1", "invoice:2", "invoice:1"):
            with client.lock(name, wait=10) as lease:
                self._granted(lease.token)
                self._screen.fact(f"{name} granted with token {lease.token}")

    def _schedulers_start(self) -> None:
        self._screen.act("Two schedulers on one database, one job every second")
        for name in SCHEDULERS:
            self._stage.start_scheduler(name)
        name, token = await_that(self._active, "a scheduler is active")
        self._screen.fact(f"scheduler {name} is active under token {token}, the other stands by")
        self._more_fires()

    def _pause_the_worker(self, client: lockd.Client) -> None:
        screen = self._screen
        screen.act(f"A worker is paused past its lease of {worker.TTL_SECONDS:.0f} s")
        paused = self._stage.start_worker()
        token = int(paused.hear("holding")["token"])
        self._granted(token)
        screen.fact(f"the worker holds {worker.LOCK!r} with token {token} and has written")
        paused.pause()
        screen.say("SIGSTOP: the worker stands still, and its lease runs out")
        fence = SqlFence(self._engine)
        with client.lock(worker.LOCK, wait=15) as lease:
            self._granted(lease.token)
            fence.install(lease)
            with contextlib.closing(self._session()) as session:
                worker.write(session, fence, lease, writer="the successor")
            screen.fact(f"a successor holds {worker.LOCK!r} with token {lease.token} and has written")
            paused.wake()
            screen.say("SIGCONT: the worker wakes and goes on writing")
            knows = bool(paused.hear("awake")["lost"])
            refused = paused.hear("refused")
        by_lease, by_token = refused["by_lease"], refused["by_token"]
        screen.refusal(f"its lease {'says that it is lost' if knows else 'says nothing'}")
        screen.refusal(f"its write is refused, {by_lease['error']}: {by_lease['text']}")
        screen.refusal(f"and so is one that shows the token alone, {by_token['error']}: {by_token['text']}")
        self._evidence.stale_write = StaleWrite(token, lease.token, knows, by_lease, by_token)

    def _kill_the_leader(self, client: lockd.Client) -> None:
        screen, stage = self._screen, self._stage
        screen.act("The Raft leader is killed")
        leader = await_that(stage.leader, "a node leads")
        with _prober(client) as last_grant:
            killed = stage.kill(f"node {leader}")
            screen.say(f"kill -9 of node {leader}")
            granted = await_that(lambda: last_grant.after(killed), "a lock is granted again")
        self._granted(granted.token)
        self._evidence.failover_seconds = granted.moment - killed
        self._evidence.killed_node = leader
        successor = await_that(stage.leader, "another node leads")
        screen.fact(
            f"failover took {granted.moment - killed:.2f} s from the kill to the next grant "
            f"(token {granted.token}); node {successor} leads"
        )
        self._more_fires()

    def _kill_the_active_scheduler(self) -> None:
        screen, stage = self._screen, self._stage
        screen.act("The active scheduler is killed")
        name, token = await_that(self._active, "a scheduler is active")
        killed = stage.kill(f"scheduler {name}")
        screen.say(f"kill -9 of scheduler {name}")

        def taken_over() -> tuple[str, int] | None:
            active = self._active()
            return active if active is not None and active[1] > token else None

        other, newer = await_that(taken_over, "the other scheduler takes over")
        seconds = time.monotonic() - killed
        self._evidence.offices = (token, newer)
        screen.fact(
            f"scheduler {other} took over after {seconds:.2f} s, under token {newer} instead of {token}"
        )
        self._more_fires()

    def _bring_the_node_back(self) -> None:
        screen, stage = self._screen, self._stage
        node = self._evidence.killed_node
        screen.act("The killed node comes back with its disk")
        stage.start_node(node)

        def caught_up() -> bool:
            statuses = [stage.status(other) for other in NODES]
            if any(status is None or not status["leader"] for status in statuses):
                return False
            applied = [int(status["last_applied"]) for status in statuses if status is not None]
            return max(applied) - min(applied) <= 3

        await_that(caught_up, f"node {node} has caught up")
        screen.fact(f"node {node} has recovered its log and follows")

    def _settle(self) -> None:
        """Stop the scheduler that is left, so that every run which was claimed has its end."""
        for name in [name for name in self._stage.what_runs() if name.startswith("scheduler")]:
            self._stage.stop(name)
        self._evidence.statuses = {
            node: await_that(functools.partial(self._stage.status, node), f"node {node} answers")
            for node in NODES
        }

    def _granted(self, token: int) -> None:
        self._evidence.tokens.append(token)

    def _active(self) -> tuple[str, int] | None:
        """Which scheduler holds the office, and under what token, by the ledger."""
        with self._engine.connect() as connection:
            row = connection.execute(select(office.c.holder, office.c.token)).first()
        if row is None:
            return None
        pids = {str(self._stage.pid(f"scheduler {name}")): name for name in self._schedulers()}
        _, pid, _ = row.holder.rsplit(":", 2)  # host, process, a number of its own
        name = pids.get(pid)
        return None if name is None else (name, int(row.token))

    def _schedulers(self) -> list[str]:
        running = self._stage.what_runs()
        return [name for name in SCHEDULERS if f"scheduler {name}" in running]

    def _more_fires(self) -> None:
        before = self._fires()
        await_that(lambda: self._fires() >= before + FIRES_PER_ACT, "the job goes on firing")
        self._screen.fact(f"{self._fires()} fires have succeeded so far")

    def _fires(self) -> int:
        with self._engine.connect() as connection:
            succeeded = select(func.count()).select_from(run).where(run.c.state == "succeeded")
            return int(connection.execute(succeeded).scalar_one())

    def _session(self) -> Session:
        return Session(self._engine)


@dataclass(frozen=True)
class _Grant:
    moment: float
    token: int


class _LastGrant:
    """The newest grant of a lock that is taken and released all the time."""

    def __init__(self) -> None:
        self._grant: _Grant | None = None

    def set(self, grant: _Grant) -> None:
        self._grant = grant

    def after(self, moment: float) -> _Grant | None:
        grant = self._grant
        return grant if grant is not None and grant.moment > moment else None


@contextlib.contextmanager
def _prober(client: lockd.Client) -> Iterator[_LastGrant]:
    """Lock and release without end in a thread, so that an outage shows to the millisecond."""
    newest, stop = _LastGrant(), threading.Event()

    def probe() -> None:
        while not stop.is_set():
            try:
                # Asked for after the last one was back: a grant after the kill was asked for, or
                # resent, after it.
                with client.lock("probe", wait=10) as lease:
                    newest.set(_Grant(time.monotonic(), lease.token))
            except lockd.LockdError:
                continue

    thread = threading.Thread(target=probe, name="probe")
    thread.start()
    try:
        yield newest
    finally:
        stop.set()
        thread.join()


def _keep(stage: Stage, screen: Screen) -> None:
    screen.act("Left running, until Ctrl-C")
    screen.say(f"LOCKD_ENDPOINTS={stage.endpoints}")
    screen.say(f"the ledger is {stage.database}; the data and the logs are in {stage.directory}")
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
