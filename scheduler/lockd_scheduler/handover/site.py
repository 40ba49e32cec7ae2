"""The scheduler's part in an engine's worker: it starts attempts, keeps them alive, and ends them."""

import asyncio
import os
import secrets
import socket
import threading
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import lockd
from lockd_scheduler.attempts import Attempts
from lockd_scheduler.beating import beat_on
from lockd_scheduler.clocks import LedgerClock
from lockd_scheduler.engines import open_engine
from lockd_scheduler.errors import BadSchedule, SchedulerError
from lockd_scheduler.handover import Message
from lockd_scheduler.jobs import Job
from lockd_scheduler.ledger import Ledger
from lockd_scheduler.mandates import Claimed
from lockd_scheduler.worker import Worker

DB_VARIABLE = "LOCKD_SCHEDULER_DB"
LOCK_TTL_SECONDS = 10.0


class Sites:
    """The sites of this process, one for each scheduler; a fork of it has its own."""

    def __init__(self, db: str | None) -> None:
        self._db = db
        self._jobs: dict[str, Mapping[str, Job[..., Any]]] = {}
        self._sites: dict[tuple[int, str], Site] = {}
        self._making = threading.Lock()

    def attach(self, scope: str, jobs: Mapping[str, Job[..., Any]]) -> None:
        """These are the jobs of that scheduler."""
        self._jobs[scope] = jobs

    def carry(self, message: Message) -> str:
        """Carry the attempt of a message to its end; in one word, whether it was started.

        Raises BadSchedule if this process does not know the scheduler's jobs, or no ledger's URL.
        """
        scope = message["scope"]
        with self._making:
            site = self._sites.get((os.getpid(), scope))
            if site is None:
                site = self._site(scope, message["lost_after"])
                self._sites[os.getpid(), scope] = site
        return site.carry(Claimed.from_json(message["claimed"]))

    def _site(self, scope: str, lost_after_seconds: float) -> "Site":
        db = self._db or os.environ.get(DB_VARIABLE)
        if db is None:
            raise BadSchedule(f"the engine's worker needs the ledger's URL: db=, or {DB_VARIABLE}")
        if scope not in self._jobs:
            raise BadSchedule(f"the engine's worker has no jobs of {scope!r}: its job file is not imported")
        return Site(scope, self._jobs[scope], db=db, lost_after_seconds=lost_after_seconds)


class Site:
    """One scheduler's attempts in this process."""

    def __init__(
        self, scope: str, jobs: Mapping[str, Job[..., Any]], *, db: str, lost_after_seconds: float
    ) -> None:
        engine = open_engine(db)
        self._clock = LedgerClock(Ledger(engine, scope).read_time)
        needs_locks = any(job.spec.policy.lock is not None for job in jobs.values())
        self._worker = Worker(
            scope=scope,
            name=f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}",
            jobs=jobs,
            attempts=Attempts(engine),
            clock=self._clock,
            loop=self._loop if any(job.is_async for job in jobs.values()) else None,
            abandoned=threading.Event(),
            locks=lockd.Client(ttl=LOCK_TTL_SECONDS) if needs_locks else None,
        )
        self._heart = threading.Thread(
            target=beat_on,
            args=(self._worker, threading.Event()),
            kwargs={"lost_after_seconds": lost_after_seconds},
            name="lockd-scheduler-heart",
            daemon=True,
        )
        self._heart.start()

    def carry(self, claimed: Claimed) -> str:
        """Start the attempt if it is still to be started, and carry it to its end. Raises SchedulerError."""
        if not self._heart.is_alive():
            raise SchedulerError("heartbeats have ended by a fault: attempts here would be found lost")
        self._worker.until_answered(self._clock.sync)
        begun = self._worker.start([claimed])
        for started in begun:
            self._worker.finish([self._worker.carry(started)])
        return "carried" if begun else "not started: it was started before, or taken over"

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, name="lockd-scheduler-loop", daemon=True).start()
        return loop
