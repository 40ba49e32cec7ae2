"""Requests: start, cancel, pause, resume, backfill. Rows that the service finds at its next turn."""

import json
import secrets
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from lockd.cli.options import WholeNumber
from lockd_scheduler.cli.options import (
    as_json,
    open_desk,
    read_moment,
    read_range,
    whoever_asks,
    with_db,
    with_scope,
)
from lockd_scheduler.cli.output import iso_text, show_json
from lockd_scheduler.errors import BadSchedule
from lockd_scheduler.reports import RunLine, one_run
from lockd_scheduler.runs import LIVE, State

POLL_SECONDS = 0.5
"""How often `start --wait` looks."""


@click.command()
@click.argument("job")
@click.option("--arg", "pairs", metavar="NAME=TEXT", multiple=True, help="An argument; may be repeated.")
@click.option("--args", "document", metavar="JSON", help='Arguments as an object: \'{"region": "eu"}\'.')
@click.option("--key", help="Names this request: asked twice with one key, it is one run.")
@click.option("--at", metavar="TIME", help="When. ISO 8601, UTC if it has no offset. Default: now.")
@click.option("--wait", is_flag=True, help="Wait for its end; exit 1 unless it succeeds.")
@with_scope
@with_db
@as_json
def start(
    job: str,
    pairs: Sequence[str],
    document: str | None,
    key: str | None,
    at: str | None,
    wait: bool,  # noqa: FBT001
    scope: str | None,
    db: str,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Ask for one run of JOB, with its own arguments and those given here."""
    args = _read_args(pairs, document)
    moment = None if at is None else read_moment(at, "--at")
    with open_desk(db, scope) as desk:
        job = desk.job(job)
        run_id = desk.asking.start(
            job,
            args=args,
            key=secrets.token_hex(8) if key is None else key,
            at=moment,
            by=whoever_asks(),
            now=desk.now,
        )
        line = one_run(desk.engine, run_id)
        if wait and not as_json:
            click.echo(f"run {run_id} of {job!r} is asked for, waiting for its end", err=True)
        while wait and line.state in LIVE:
            time.sleep(POLL_SECONDS)
            line = one_run(desk.engine, run_id)
    if as_json:
        show_json(line.to_json())
    else:
        click.echo(_start_text(line))
    if wait and line.state != State.SUCCEEDED:
        sys.exit(1)


@click.command()
@click.argument("run_id", metavar="RUN", type=WholeNumber(1))
@click.option("--reason", help="Why, for the ledger.")
@with_scope
@with_db
@as_json
def cancel(run_id: int, reason: str | None, scope: str | None, db: str, as_json: bool) -> None:  # noqa: FBT001
    """Ask for the end of RUN. Exit 1 if it had ended already."""
    if reason is not None and len(reason) > 255:
        raise BadSchedule("--reason has at most 255 characters")
    with open_desk(db, scope) as desk:
        state = desk.asking.cancel(run_id, reason=reason, now=desk.now)
    is_live = state in LIVE
    if as_json:
        show_json({"run": run_id, "was": state.value, "asked": is_live})
    elif is_live:
        click.echo(f"run {run_id} is {state.value} and is asked to end")
    else:
        click.echo(f"run {run_id} had ended already: {state.value}")
    sys.exit(0 if is_live else 1)


@click.command()
@click.argument("job")
@click.option("--until", metavar="TIME", help="It resumes by itself then. Default: when it is resumed.")
@click.option("--note", help="Why, for whoever finds it paused.")
@with_scope
@with_db
def pause(job: str, until: str | None, note: str | None, scope: str | None, db: str) -> None:
    """Let JOB fire no more. What falls into the pause is written down as skipped."""
    end = None if until is None else read_moment(until, "--until")
    with open_desk(db, scope) as desk:
        job = desk.job(job)
        is_new = desk.asking.pause(job, note=note, until=end, by=whoever_asks(), now=desk.now)
    text = f"{job!r} is paused" + ("" if end is None else f" until {iso_text(end)}")
    click.echo(text if is_new else f"{text}; it was before, this is its note and its end now")


@click.command()
@click.argument("job")
@click.option("--note", help="Why, for the record.")
@with_scope
@with_db
def resume(job: str, note: str | None, scope: str | None, db: str) -> None:
    """Let JOB fire again, from its next fire on."""
    with open_desk(db, scope) as desk:
        job = desk.job(job)
        was_paused = desk.asking.resume(job, note=note, by=whoever_asks(), now=desk.now)
    click.echo(f"{job!r} fires again" if was_paused else f"{job!r} was not paused")


@click.command()
@click.argument("job", required=False)
@click.argument("span", metavar="[FROM..TO]", required=False)
@click.option("--parallel", type=int, default=1, show_default=True, help="Runs at a time.")
@click.option("--cancel", "cancelled", metavar="ID", type=WholeNumber(1), help="End a backfill.")
@with_scope
@with_db
@as_json
def backfill(
    job: str | None,
    span: str | None,
    parallel: int,
    cancelled: int | None,
    scope: str | None,
    db: str,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Run every fire of JOB from FROM until before TO, a few at a time; times are UTC without an offset."""
    if cancelled is not None:
        if job is not None:
            raise BadSchedule("backfill --cancel ID stands alone")
        with open_desk(db, scope) as desk:
            desk.asking.cancel_backfill(cancelled, now=desk.now)
        click.echo(f"backfill {cancelled} is cancelled, its runs are asked to end")
        return
    if job is None or span is None:
        raise BadSchedule("name a job and a range, like: backfill nightly 2027-03-01..2027-03-08")
    first, last = read_range(span, "the range")
    with open_desk(db, scope) as desk:
        job = desk.job(job)
        number = desk.asking.backfill(
            job, start=first, end=last, parallel=parallel, by=whoever_asks(), now=desk.now
        )
    if as_json:
        show_json({"backfill": number, "job": job, "from": iso_text(first), "to": iso_text(last)})
    else:
        click.echo(f"backfill {number} of {job!r} is asked for; end it with: backfill --cancel {number}")


def _read_args(pairs: Sequence[str], document: str | None) -> dict[str, Any]:
    args: dict[str, Any] = {}
    if document is not None:
        try:
            args = json.loads(document)
        except ValueError as error:
            raise BadSchedule(f"--args is not JSON: {error}") from None
        if not isinstance(args, dict):
            raise BadSchedule('--args is not an object, like {"region": "eu"}')
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise BadSchedule(f"--arg {pair[:60]!r}: write it like region=eu")
        if name in args:
            raise BadSchedule(f"the argument {name!r} is given twice")
        args[name] = text
    return args


def _start_text(line: RunLine) -> str:
    text = f"run {line.id} of {line.job!r} is {line.state}"
    return f"{text}: {line.error.strip().splitlines()[-1][:200]}" if line.error else text


COMMANDS: tuple[click.Command, ...] = (start, cancel, pause, resume, backfill)
