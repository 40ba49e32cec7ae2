"""The command `lockd-scheduler`. Exit status: 0 done, 1 not all of it, 2 wrong usage or configuration."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

EXTRA_MISSING = "lockd-scheduler needs its extra: pip install 'lockd[scheduler]' (missing: {})"

try:
    import click
    from sqlalchemy import Engine
    from sqlalchemy.exc import SQLAlchemyError

    from lockd.errors import LockdError
    from lockd_scheduler.app import DEFAULT_DB
    from lockd_scheduler.engines import open_engine
    from lockd_scheduler.errors import BadSchedule, SchedulerError
    from lockd_scheduler.loading import load_cron
    from lockd_scheduler.reports import RunLine, check_is_ledger, list_runs, schedule_definition
    from lockd_scheduler.runs import State
    from lockd_scheduler.triggers import Dst, Trigger, read_schedule, trigger_from_json
    from lockd_scheduler.worker import first_line
except ModuleNotFoundError as error:
    if (error.name or "").startswith("lockd"):
        raise
    print(EXTRA_MISSING.format(error.name), file=sys.stderr)
    sys.exit(2)

LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """Run each scheduled job once, and keep a ledger of every fire."""


def _db_option(function: Callable[..., Any]) -> Callable[..., Any]:
    text = "The ledger's database: a sqlite:/// file or postgresql:// URL."
    return click.option("--db", metavar="URL", default=DEFAULT_DB, show_default=True, help=text)(function)


@commands.command()
@click.argument("jobs", metavar="FILE|MODULE[:CRON]")
@_db_option
@click.option("--lockd", "endpoints", metavar="ENDPOINTS", help="lockd nodes: one active, others stand by.")
@click.option("--drain", default="5m", show_default=True, help="How long attempts may go on after SIGTERM.")
@click.option("--lease-ttl", default="5s", show_default=True, help="After it a dead active one is replaced.")
@click.option("--lost-after", default="30s", show_default=True, help="An attempt silent so long is lost.")
@click.option("--threads", default=32, show_default=True, help="Attempts at a time.")
def serve(jobs: str, db: str, endpoints: str | None, **timings: Any) -> None:
    """Serve the jobs of a file (jobs.py) or module until SIGTERM."""
    logging.basicConfig(format=LOG_FORMAT, level=logging.INFO, stream=sys.stderr)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    cron = load_cron(jobs)
    if not cron.jobs:
        raise BadSchedule(f"{jobs}: the scheduler {cron.name!r} has no jobs")
    is_idle = cron.serve(db=db, lockd=endpoints, **timings)
    sys.exit(0 if is_idle else 1)


@commands.command()
@click.argument("job", required=False)
@_db_option
@click.option("--state", type=click.Choice([state.value for state in State]), help="Only runs in this state.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="A list of objects.")
def runs(job: str | None, db: str, state: str | None, limit: int, as_json: bool) -> None:  # noqa: FBT001
    """List the newest runs, of one JOB or of all."""
    with _open_ledger(db) as engine:
        lines = list_runs(engine, job=job, state=state, limit=limit)
    if as_json:
        click.echo(json.dumps([line.to_json() for line in lines], indent=1))
        return
    rows = [("ID", "JOB", "FIRE TIME (UTC)", "STATE", "TRIES", "LASTED", "WHY")]
    rows += [_columns(line) for line in lines]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    for row in rows:
        cells = [text.ljust(width) for text, width in zip(row[:6], widths, strict=True)]
        click.echo("  ".join([*cells, row[6]]).rstrip())


@commands.command("next")
@click.argument("job_or_cron", metavar="JOB|'CRON'")
@_db_option
@click.option("--tz", default="UTC", show_default=True, help="The zone of a cron line.")
@click.option(
    "--dst",
    type=click.Choice([rule.value for rule in Dst]),
    default="once",
    show_default=True,
    help="Where clocks change.",
)
@click.option("--from", "start", metavar="TIME", help="ISO 8601, UTC if it has no offset. Default: now.")
@click.option("--count", type=click.IntRange(1, 10_000), default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="A list of UTC times in ISO 8601.")
def next_fires(
    job_or_cron: str,
    db: str,
    tz: str,
    dst: str,
    start: str | None,
    count: int,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Print the next fires of a JOB in the ledger, or of a cron line."""
    line = job_or_cron.strip()
    is_line = " " in line or line.startswith("@")
    trigger = read_schedule(line, tz=tz, dst=dst) if is_line else _trigger_of(job_or_cron, db)
    moment = _moment(start)
    fires: list[datetime] = []
    fire = trigger.first(moment)
    while fire is not None and len(fires) < count:
        fires.append(fire)
        fire = trigger.next_after(fire)
    texts = [fire.isoformat().replace("+00:00", "Z") for fire in fires]
    click.echo(json.dumps(texts) if as_json else "\n".join(texts))


def main() -> None:
    """Run the command; every error is one line on stderr."""
    try:
        commands.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except LockdError as error:
        click.echo(f"Error: {first_line(error)}", err=True)
        sys.exit(2)
    except (SQLAlchemyError, OSError) as error:
        click.echo(f"Error: {first_line(error)}", err=True)
        sys.exit(1)


@contextmanager
def _open_ledger(db: str) -> Iterator["Engine"]:
    engine = open_engine(db)
    try:
        path = engine.url.database
        if engine.dialect.name == "sqlite" and not Path(path or "").exists():
            raise SchedulerError(f"there is no ledger at {path}; name it with --db")
        check_is_ledger(engine)
        yield engine
    finally:
        engine.dispose()


def _trigger_of(job: str, db: str) -> "Trigger":
    with _open_ledger(db) as engine:
        definition = schedule_definition(engine, job)
    if definition is None:
        raise BadSchedule(f"the ledger has no job {job!r}, and it is not a cron line")
    return trigger_from_json(definition["trigger"])


def _moment(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BadSchedule(f"--from {text!r} is not a time in ISO 8601, like 2027-03-28T02:00") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _columns(line: "RunLine") -> tuple[str, str, str, str, str, str, str]:
    lasted = ""
    if line.started_at is not None and line.finished_at is not None:
        lasted = f"{(line.finished_at - line.started_at).total_seconds():.3f}s"
    why = line.reason or ""
    if line.skipped_until is not None:
        why += f" until {_text(line.skipped_until)}"
    if line.error:
        why = line.error.strip().splitlines()[-1][:100]
    tries = str(line.attempts) if line.attempts else ""
    return (str(line.id), line.job, _text(line.fire_time), line.state, tries, lasted, why)


def _text(moment: datetime) -> str:
    return moment.replace(tzinfo=None).isoformat(sep=" ")


if __name__ == "__main__":
    main()
