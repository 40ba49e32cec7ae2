"""What several commands are told in the same words: the ledger, the scheduler's name, moments."""

import getpass
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
from sqlalchemy import Engine

from lockd_scheduler.app import DEFAULT_DB
from lockd_scheduler.asking import Asking
from lockd_scheduler.durations import parse_duration
from lockd_scheduler.engines import open_engine
from lockd_scheduler.errors import BadSchedule, NoLedger, SchedulerError
from lockd_scheduler.ledger import Ledger
from lockd_scheduler.reports import check_is_ledger, job_meant, list_scopes

F = TypeVar("F", bound=Callable[..., Any])

DB_HELP = "The ledger's database: a sqlite:/// file, postgresql:// or mariadb:// URL."

as_json = click.option("--json", "as_json", is_flag=True, help="Answer with JSON.")


def with_db(function: F) -> F:
    """Add --db, which LOCKD_SCHEDULER_DB stands in for."""
    return click.option(
        "--db",
        metavar="URL",
        envvar="LOCKD_SCHEDULER_DB",
        show_envvar=True,
        default=DEFAULT_DB,
        show_default=True,
        help=DB_HELP,
    )(function)


def with_scope(function: F) -> F:
    """Add --scope, the scheduler's name."""
    text = "The scheduler's name, where a database has several."
    return click.option("--scope", metavar="NAME", help=text)(function)


@dataclass(frozen=True)
class Desk:
    """An open ledger, and the scheduler in it that is meant."""

    engine: Engine
    scope: str
    asking: Asking
    now: datetime
    """By the database's clock, which also says what is due."""

    def job(self, word: str) -> str:
        """The name of the job that is meant; the word itself if there is none."""
        return job_meant(self.engine, word, self.scope) or word


@contextmanager
def open_ledger(db: str) -> Iterator[Engine]:
    """The engine of a database that has a ledger. Raises NoLedger if it has none."""
    engine = open_engine(db)
    try:
        path = engine.url.database
        if engine.dialect.name == "sqlite" and not Path(path or "").exists():
            raise NoLedger(
                f"there is no ledger at {path}; name it with --db, or make it: lockd-scheduler db upgrade"
            )
        check_is_ledger(engine)
        yield engine
    finally:
        engine.dispose()


@contextmanager
def open_desk(db: str, scope: str | None) -> Iterator[Desk]:
    """The ledger of one scheduler: the one named, or the only one. Raises SchedulerError."""
    with open_ledger(db) as engine:
        chosen = chosen_scope(engine, scope)
        yield Desk(engine, chosen, Asking(engine, chosen), Ledger(engine, chosen).read_time())


def chosen_scope(engine: Engine, scope: str | None) -> str:
    """The scheduler that is meant. Raises SchedulerError if that is not clear, or it is not there."""
    scopes = list_scopes(engine)
    if scope is None and len(scopes) == 1:
        return scopes[0]
    if not scopes:
        raise SchedulerError("the ledger has no schedules yet")
    names = ", ".join(repr(name) for name in scopes[:10])
    if scope is None:
        raise SchedulerError(f"the ledger has the schedulers {names}: choose one with --scope")
    if scope not in scopes:
        raise SchedulerError(f"the ledger has no scheduler {scope!r}; it has {names}")
    return scope


def whoever_asks() -> str:
    """Who types this, for the ledger: `ann@host`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = "somebody"  # a container's user may have no name
    return f"{user}@{socket.gethostname()}"[:255]


def read_moment(text: str, option: str) -> datetime:
    """A time in ISO 8601, UTC if it has no offset. Raises BadSchedule."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise BadSchedule(
            f"{option} {text[:60]!r} is not a time in ISO 8601, like 2027-03-28T02:00"
        ) from None
    try:
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError:
        raise BadSchedule(f"{option} {text[:60]!r} is outside the years 1 to 9999") from None


def read_past(text: str, option: str, now: datetime) -> datetime:
    """A time in ISO 8601, or how long ago, like `7d`. Raises BadSchedule."""
    try:
        return now - parse_duration(text)
    except BadSchedule:
        pass
    try:
        return read_moment(text, option)
    except BadSchedule:
        raise BadSchedule(
            f"{option} {text[:60]!r} is neither a duration like 7d nor a time like 2027-03-28T02:00"
        ) from None


def read_range(text: str, what: str) -> tuple[datetime, datetime]:
    """`FROM..TO`, both in ISO 8601. Raises BadSchedule."""
    start, dots, end = text.partition("..")
    if not dots:
        raise BadSchedule(f"{what} {text[:60]!r} is not a range: write it like 2027-03-01..2027-03-08")
    return read_moment(start, what), read_moment(end, what)
