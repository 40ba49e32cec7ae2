"""Puts a service together: which database, which office, which threads."""

import asyncio
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Unpack

from sqlalchemy.exc import DBAPIError

import lockd
from lockd_scheduler.attempts import Attempts
from lockd_scheduler.clocks import LedgerClock
from lockd_scheduler.declared import ENGINES
from lockd_scheduler.durations import format_duration, parse_duration
from lockd_scheduler.engines import open_engine
from lockd_scheduler.errors import BadSchedule, OfficeTaken, SchedulerError
from lockd_scheduler.figures import Figures
from lockd_scheduler.finding import refuse_while_finding
from lockd_scheduler.handover import JobEngine
from lockd_scheduler.handover.sending import HandingOver
from lockd_scheduler.jobs import Job
from lockd_scheduler.ledger import Ledger
from lockd_scheduler.officer import Officer
from lockd_scheduler.offices import FileOffice, LockdOffice, RowOffice
from lockd_scheduler.outside import Outside, OutsideSettings, OutsideWords
from lockd_scheduler.ports import Office, Seat
from lockd_scheduler.service import Service
from lockd_scheduler.threads import ThreadRunner
from lockd_scheduler.triggers import AfterTrigger
from lockd_scheduler.worker import Worker, first_line
from lockd_storage.schema import upgrade

logger = logging.getLogger("lockd_scheduler")

LOCK_TTL_SECONDS = 10.0
LEASE_TTL_MIN = timedelta(milliseconds=100)
"""Below it the office would be lost to pauses that every process has."""
NO_ENGINES: Mapping[str, JobEngine] = MappingProxyType({})
DEFAULT_DB = "sqlite:///lockd-scheduler.db"


@dataclass(frozen=True)
class Settings:
    """How to serve, checked. Durations are positive."""

    db: str
    lockd: str | None
    drain: timedelta
    lease_ttl: timedelta
    lost_after: timedelta
    threads: int
    outside: OutsideSettings

    @classmethod
    def from_words(
        cls,
        *,
        db: str = DEFAULT_DB,
        lockd: str | None = None,
        drain: str = "5m",
        lease_ttl: str = "2s",
        lost_after: str = "30s",
        threads: int = 100,
        **outside: Unpack[OutsideWords],
    ) -> "Settings":
        """Check what a user wrote. Raises BadSchedule."""
        settings = cls(
            db=db,
            lockd=lockd,
            drain=parse_duration(drain),
            lease_ttl=parse_duration(lease_ttl),
            lost_after=parse_duration(lost_after),
            threads=threads,
            outside=OutsideSettings.from_words(**outside),
        )
        if settings.lost_after < timedelta(seconds=1):
            raise BadSchedule(f"lost_after {lost_after!r}: at least 1s, heartbeats come five times as often")
        if settings.lease_ttl < LEASE_TTL_MIN:
            raise BadSchedule(f"lease_ttl {lease_ttl!r}: at least {format_duration(LEASE_TTL_MIN)}")
        if threads < 1:
            raise BadSchedule(f"threads {threads}: at least 1")
        return settings


def start_service(
    scope: str,
    jobs: Mapping[str, Job[..., Any]],
    settings: Settings,
    loop: asyncio.AbstractEventLoop | None,
    *,
    engines: Mapping[str, JobEngine] = NO_ENGINES,
) -> Service:
    """Make the tables, start the threads, and return at once: standing by, or with the office.

    Raises BadSchedule, also for an HTTP address that is taken, OfficeTaken (alone on a database that
    another process serves), and SchedulerError if the database can't be opened.
    """
    refuse_while_finding()
    seats: list[Seat] = []

    def open_office(ledger: Ledger, holder: str) -> Office:
        if settings.lockd is not None:
            return _lockd_office(settings.lockd, settings, ledger, holder)
        if ledger.engine.dialect.name != "sqlite":
            return RowOffice(ledger.engine, scope, lease_ttl=settings.lease_ttl, holder=holder)
        office = _file_office(ledger)
        seats.append(_win_alone(office))
        return office

    outside = Outside(settings.outside)
    try:
        service = make_service(scope, jobs, settings, loop=loop, engines=engines, open_office=open_office)
    except BaseException:
        outside.stop()
        raise
    service.start(seats[0] if seats else None)
    outside.start(settings.db, scope, standing=lambda: service.standing, figures=service.figures)
    service.on_stopped = outside.stop
    return service


def make_service(
    scope: str,
    jobs: Mapping[str, Job[..., Any]],
    settings: Settings,
    *,
    loop: asyncio.AbstractEventLoop | None,
    engines: Mapping[str, JobEngine] = NO_ENGINES,
    open_office: Callable[[Ledger, str], Office],
) -> Service:
    """Put a service together, not started, with the office that `open_office(ledger, holder)` gives."""
    for name, job in jobs.items():
        if job.spec.kind in ENGINES and job.spec.kind not in engines:
            raise BadSchedule(f"job {name!r} runs on {job.spec.kind}, and no cron.hand_over(...) says where")
    for name, job in jobs.items():
        trigger = job.spec.trigger
        if isinstance(trigger, AfterTrigger) and trigger.job not in jobs:
            logger.warning(
                "job %r runs after %r, which only a file may declare: it is not here", name, trigger.job
            )
    need_locks = sorted(name for name, job in jobs.items() if job.spec.policy.lock is not None)
    if need_locks and settings.lockd is None:
        raise BadSchedule(f"job {need_locks[0]!r} takes a lock, which needs --lockd ENDPOINTS")
    engine = open_engine(settings.db)
    holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    ledger = Ledger(engine, scope)
    try:
        upgrade(engine, branch="scheduler")
        office = open_office(ledger, holder)
    except DBAPIError as error:
        engine.dispose()
        where = engine.url.render_as_string(hide_password=True)
        cause = first_line(error if error.orig is None else error.orig)
        raise SchedulerError(f"can't open the ledger's database {where}: {cause}") from error
    except BaseException:
        engine.dispose()
        raise
    clock = LedgerClock(ledger.read_time)
    locks = None if settings.lockd is None else lockd.Client(settings.lockd, ttl=LOCK_TTL_SECONDS)
    figures = Figures()
    worker = Worker(
        scope=scope,
        name=holder,
        jobs=jobs,
        attempts=Attempts(engine),
        clock=clock,
        loop=loop,
        abandoned=threading.Event(),
        locks=locks,
        figures=figures,
    )
    runner = ThreadRunner(worker, limit=settings.threads)
    handing = HandingOver(
        runner,
        scope=scope,
        jobs=jobs,
        engines=engines,
        attempts=worker.attempts,
        lost_after=settings.lost_after,
    )
    officer = Officer(
        ledger=ledger,
        office=office,
        specs={name: job.spec for name, job in jobs.items()},
        clock=clock,
        runner=handing,
        holder=holder,
        lost_after=settings.lost_after,
        figures=figures,
    )

    def close() -> None:
        office.close()
        handing.close()
        if locks is not None:
            locks.close()
        engine.dispose()

    where = engine.url.render_as_string(hide_password=True)
    logger.info("serving scope=%s jobs=%d db=%s lockd=%s", scope, len(jobs), where, settings.lockd or "-")
    return Service(
        officer=officer,
        worker=worker,
        runner=runner,
        close=close,
        lost_after=settings.lost_after,
        figures=figures,
    )


def _lockd_office(endpoints: str, settings: Settings, ledger: Ledger, holder: str) -> LockdOffice:
    ttl = settings.lease_ttl.total_seconds()
    try:
        return LockdOffice(endpoints, name=ledger.scope, lease_ttl=ttl, holder=holder)
    except ValueError as error:
        raise BadSchedule(str(error)) from None


def _file_office(ledger: Ledger) -> FileOffice:
    # One file has one lock, also for whoever comes by a symbolic link.
    database = Path(ledger.engine.url.database or "").resolve()
    return FileOffice(database.with_name(database.name + ".lock"), last_token=ledger.last_token)


def _win_alone(office: FileOffice) -> Seat:
    seat = office.campaign(0.0)
    if seat is None:
        raise OfficeTaken(
            f"{office.path.with_suffix('')} is served by process {office.occupant() or 'unknown'};"
            " with --lockd ENDPOINTS one is active and the others stand by"
        )
    return seat
