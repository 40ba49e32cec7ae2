"""Reading: the next fires, the runs, what a run has said."""

import sys
import time
from datetime import UTC, datetime

import click
from sqlalchemy import Engine

from lockd.cli.options import WholeNumber
from lockd_scheduler.cli.auditing import audit
from lockd_scheduler.cli.options import (
    as_json,
    chosen_scope,
    open_desk,
    open_ledger,
    read_moment,
    read_past,
    with_db,
    with_scope,
)
from lockd_scheduler.cli.output import iso_text, show_json, show_table, utc_text
from lockd_scheduler.errors import BadSchedule
from lockd_scheduler.mandates import AFTER, BACKFILL, MANUAL, SCHEDULED
from lockd_scheduler.outputs import ROWS_AT_ONCE_MAX, read_output
from lockd_scheduler.reports import (
    AttemptLine,
    RunLine,
    job_meant,
    list_attempts,
    list_runs,
    one_run,
    schedule_definition,
)
from lockd_scheduler.runs import LIVE, State
from lockd_scheduler.triggers import Dst, Trigger, read_schedule, trigger_from_json

POLL_SECONDS = 0.5
"""How often `logs -f` looks."""


@click.command()
@click.argument("job", required=False)
@click.option("--state", type=click.Choice([state.value for state in State]), help="Only runs in this state.")
@click.option(
    "--kind", type=click.Choice((SCHEDULED, MANUAL, AFTER, BACKFILL)), help="Only runs of this kind."
)
@click.option("--since", metavar="7d|TIME", help="Only runs with a fire time from then on.")
@click.option("--limit", type=WholeNumber(1, 100_000), default=50, show_default=True)
@with_scope
@with_db
@as_json
def runs(
    job: str | None,
    state: str | None,
    kind: str | None,
    since: str | None,
    limit: int,
    scope: str | None,
    db: str,
    as_json: bool,  # noqa: FBT001
) -> None:
    """List the newest runs, of one JOB or of all."""
    moment = None if since is None else read_past(since, "--since", datetime.now(UTC))
    with open_ledger(db) as engine:
        chosen = None if scope is None else chosen_scope(engine, scope)
        meant = None if job is None else job_meant(engine, job, chosen)
        if job is not None and meant is None:
            raise BadSchedule(f"the ledger has no job {job!r}")
        lines = list_runs(engine, job=meant, state=state, limit=limit, scope=chosen, kind=kind, since=moment)
    if as_json:
        show_json([line.to_json() for line in lines])
        return
    header = ("ID", "JOB", "FIRE TIME (UTC)", "STATE", "TRIES", "LASTED", "WHY")
    show_table(header, (_columns(line) for line in lines))


@click.command("next")
@click.argument("job_or_cron", metavar="JOB|'CRON'")
@click.option("--tz", default="UTC", show_default=True, help="The zone of a cron line.")
@click.option(
    "--dst",
    type=click.Choice([rule.value for rule in Dst]),
    default="once",
    show_default=True,
    help="Where clocks change.",
)
@click.option("--from", "start", metavar="TIME", help="ISO 8601, UTC if it has no offset. Default: now.")
@click.option("--count", type=WholeNumber(1, 10_000), default=5, show_default=True)
@with_scope
@with_db
@click.option("--json", "as_json", is_flag=True, help="A list of UTC times in ISO 8601.")
def next_fires(
    job_or_cron: str,
    tz: str,
    dst: str,
    start: str | None,
    count: int,
    scope: str | None,
    db: str,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Print the next fires of a JOB in the ledger, or of a cron line."""
    line = job_or_cron.strip()
    is_line = " " in line or line.startswith("@")
    # An H of a line without a job stands for some value of it, the same each time.
    trigger = (
        read_schedule(line, tz=tz, dst=dst, slot=line) if is_line else _trigger_of(job_or_cron, db, scope)
    )
    if is_line and any(term.startswith("H") for field in line.split() for term in field.split(",")):
        click.echo(
            "a job's own name decides what H stands for; these are the fires of one such job", err=True
        )
    fires: list[datetime] = []
    fire = trigger.first(datetime.now(UTC) if start is None else read_moment(start, "--from"))
    while fire is not None and len(fires) < count:
        fires.append(fire)
        fire = trigger.next_after(fire)
    texts = [iso_text(fire) for fire in fires]
    if as_json:
        show_json(texts)
    elif texts:
        click.echo("\n".join(texts))


@click.command()
@click.argument("run_id", metavar="RUN", type=WholeNumber(1))
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended.")
@click.option("--attempt", "number", type=WholeNumber(1), help="Only this try of the run.")
@with_scope
@with_db
def logs(run_id: int, follow: bool, number: int | None, scope: str | None, db: str) -> None:  # noqa: FBT001
    """Print what RUN has said, each try after the other; its errors go to stderr."""
    with open_desk(db, scope) as desk:
        teller = _Teller(desk.engine)
        while True:
            # The state is read first: whatever a run said was written before it ended.
            line = one_run(desk.engine, run_id)
            tries = list_attempts(desk.engine, run_id)
            if number is not None:
                tries = [one for one in tries if one.number == number]
            for one in tries:
                teller.tell(one, is_alone=len(tries) == 1)
            if not follow or line.state not in LIVE:
                break
            time.sleep(POLL_SECONDS)
    if number is not None and not tries:
        raise BadSchedule(f"run {run_id} has no attempt {number}")
    if line.state == State.SKIPPED:
        click.echo(f"run {run_id} was skipped: {line.reason}", err=True)
    elif not teller.has_told:
        click.echo(f"run {run_id} is {line.state} and has said nothing", err=True)


class _Teller:
    """Prints attempts, and remembers how far it has come with each."""

    def __init__(self, engine: Engine) -> None:
        self.has_told = False
        self._engine = engine
        self._told: dict[int, int] = {}
        self._ended: set[int] = set()

    def tell(self, attempt: AttemptLine, *, is_alone: bool) -> None:
        """Print what is new of an attempt, and its error once it has ended."""
        if attempt.id not in self._told:
            self._told[attempt.id] = 0
            if not is_alone:
                click.echo(f"--- attempt {attempt.number}", err=True)
        while rows := read_output(self._engine, attempt.id, after=self._told[attempt.id]):
            for row in rows:
                click.echo(row.text, nl=False, err=row.stream in ("stderr", "lockd"))
            self._told[attempt.id] = rows[-1].number
            self.has_told = True
            if len(rows) < ROWS_AT_ONCE_MAX:
                break
        if attempt.finished_at is not None and attempt.error and attempt.id not in self._ended:
            self._ended.add(attempt.id)
            self.has_told = True
            click.echo(f"attempt {attempt.number} {attempt.state}: {attempt.error.rstrip()}", err=True)
        sys.stdout.flush()


def _trigger_of(job: str, db: str, scope: str | None) -> Trigger:
    with open_ledger(db) as engine:
        definition = schedule_definition(engine, job_meant(engine, job, scope) or job, scope)
    if definition is None:
        raise BadSchedule(f"the ledger has no job {job!r}, and it is not a cron line")
    return trigger_from_json(definition["trigger"])


def _columns(line: RunLine) -> tuple[str, ...]:
    lasted = ""
    if line.started_at is not None and line.finished_at is not None:
        lasted = f"{(line.finished_at - line.started_at).total_seconds():.3f}s"
    why = line.reason or ""
    if line.skipped_until is not None:
        why += f" until {utc_text(line.skipped_until)}"
    if line.error:
        why = line.error.strip().splitlines()[-1][:100]
    tries = str(line.attempts) if line.attempts else ""
    return (str(line.id), line.job, utc_text(line.fire_time), line.state, tries, lasted, why)


COMMANDS: tuple[click.Command, ...] = (next_fires, runs, logs, audit)
