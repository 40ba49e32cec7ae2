"""`serve`, and `db upgrade`, which makes the tables without serving."""

import logging
import sys
from typing import Any

import click

from lockd_scheduler.cli.options import open_ledger, with_db
from lockd_scheduler.engines import open_engine
from lockd_scheduler.errors import BadSchedule, SchedulerError
from lockd_scheduler.loading import load_cron
from lockd_scheduler.outside import DEFAULT_LISTEN, WEBHOOK_VARIABLE
from lockd_scheduler.reports import list_scopes
from lockd_storage.schema import upgrade

LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


@click.command()
@click.argument("jobs", metavar="FILE|MODULE[:CRON]")
@with_db
@click.option("--lockd", "endpoints", metavar="ENDPOINTS", help="lockd nodes: one active, others stand by.")
@click.option("--drain", default="5m", show_default=True, help="How long attempts may go on after SIGTERM.")
@click.option("--lease-ttl", default="2s", show_default=True, help="After it a dead active one is replaced.")
@click.option("--lost-after", default="30s", show_default=True, help="An attempt silent so long is lost.")
@click.option("--threads", default=100, show_default=True, help="Attempts at a time.")
@click.option(
    "--listen-http",
    metavar="HOST:PORT|off",
    help=f"API and page. [default: {DEFAULT_LISTEN}, if that is free]",
)
@click.option("--auth-file", metavar="FILE", help="Users of the API and the page, in TOML.")
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without users.")
@click.option("--webhook", metavar="URL", help=f"Where notices go. Or ${WEBHOOK_VARIABLE}.")
def serve(jobs: str, db: str, endpoints: str | None, **settings: Any) -> None:
    """Serve the jobs of a file (jobs.py) or module until SIGTERM."""
    logging.basicConfig(format=LOG_FORMAT, level=logging.INFO, stream=sys.stderr)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    cron = load_cron(jobs)
    if not cron.jobs and not _is_known(db, cron.name):
        raise BadSchedule(f"{jobs}: the scheduler {cron.name!r} has no jobs")
    is_idle = cron.serve(db=db, lockd=endpoints, **settings)
    sys.exit(0 if is_idle else 1)


def _is_known(db: str, scope: str) -> bool:
    """Whether the ledger has schedules of that scheduler: from files, then."""
    try:
        with open_ledger(db) as engine:
            return scope in list_scopes(engine)
    except SchedulerError:
        return False


@click.group("db")
def database() -> None:
    """Look after the ledger's tables."""


@database.command("upgrade")
@with_db
def upgrade_tables(db: str) -> None:
    """Make the ledger's tables, or bring them up to date. Others may serve meanwhile."""
    engine = open_engine(db)
    try:
        upgrade(engine, branch="scheduler")
    finally:
        engine.dispose()
    click.echo(f"the ledger's tables are up to date in {engine.url.render_as_string(hide_password=True)}")


COMMANDS: tuple[click.Command, ...] = (serve, database)
