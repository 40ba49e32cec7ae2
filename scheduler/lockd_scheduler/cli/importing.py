"""`import`: another scheduler's schedules as a file of ours, and a report of what will differ."""

import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from lockd_scheduler.cli.options import as_json
from lockd_scheduler.cli.output import show_json
from lockd_scheduler.errors import BadSchedule
from lockd_scheduler.importers.apscheduler3 import DEFAULT_TABLE, read_store
from lockd_scheduler.importers.celery_beat import read_beat
from lockd_scheduler.importers.crontab import read_crontab
from lockd_scheduler.importers.imported import Imported, finish_import, to_yaml

CRONTAB_BYTES_MAX = 4 * 1024 * 1024

with_output = click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write. Default: it is printed, and the report goes to stderr.",
)


@click.group("import")
def imports() -> None:
    """Read another scheduler's schedules, write them as a file for `plan` and `apply`, and report."""


def _with_common(function: Callable[..., Any]) -> Callable[..., Any]:
    scope = click.option("--scope", default="default", show_default=True, help="The scheduler's name.")
    return scope(with_output(as_json(function)))


@imports.command()
@click.argument("file", metavar="FILE|-")
@click.option("--tz", metavar="ZONE", help="The zone of its machine. Default: this machine's.")
@click.option("--system/--user", "is_system", default=None, help="With a user column. Default: by the path.")
@_with_common
def crontab(
    file: str,
    tz: str | None,
    is_system: bool | None,  # noqa: FBT001
    **common: Any,
) -> None:
    """Import a crontab: /etc/crontab, a file of /etc/cron.d, or `crontab -l | ... import crontab -`."""
    try:
        data = sys.stdin.buffer.read(CRONTAB_BYTES_MAX + 1) if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise BadSchedule(f"{file} can't be read: {error.strerror}") from None
    if len(data) > CRONTAB_BYTES_MAX:
        raise BadSchedule(f"{file}: it is larger than a crontab")
    by_path = file == "/etc/crontab" or file.startswith("/etc/cron.d/")
    text = data.decode("utf-8", errors="replace")
    zone = tz or machine_zone()
    found = read_crontab(text, tz=zone, is_system=by_path if is_system is None else is_system)
    _finish(found, **common)


@imports.command()
@click.argument("url")
@click.option("--table", default=DEFAULT_TABLE, show_default=True, help="The store's table.")
@_with_common
def apscheduler(url: str, table: str, **common: Any) -> None:
    """Import the SQLAlchemy job store of APScheduler 3 at URL. Its pickles are read and never unpickled."""
    _finish(read_store(url, table), **common)


@imports.command()
@click.argument("reference", metavar="FILE.py|MODULE[:NAME]")
@click.option("--tz", metavar="ZONE", help="The schedule's zone, if no app says it.")
@_with_common
def celery(reference: str, tz: str | None, **common: Any) -> None:
    """Import the beat schedule of a Celery app, or a dictionary of one. The module is imported."""
    _finish(read_beat(reference, tz=tz), **common)


def machine_zone() -> str:
    """The IANA name of this machine's zone. Raises BadSchedule if it can't be told."""
    named = os.environ.get("TZ", "").removeprefix(":")
    if named:
        return named
    _, found, zone = str(Path("/etc/localtime").resolve()).partition("/zoneinfo/")
    if found:
        return "UTC" if zone in ("Etc/UTC", "UCT", "Zulu") else zone
    raise BadSchedule("this machine's zone can't be told: name that of the crontab's with --tz")


def _finish(found: Sequence[Imported], *, scope: str, output: Path | None, as_json: bool) -> None:
    finish_import(found, scope, now=datetime.now(UTC))
    text = to_yaml(found, scope)
    if output is not None:
        try:
            with output.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise BadSchedule(f"{output} is there already: name another file") from None
    if as_json:
        show_json({"jobs": [one.to_json() for one in found], "file": text if output is None else str(output)})
    else:
        if output is None:
            click.echo(text, nl=False)
        _report(found)
    sys.exit(0 if all(one.words is not None for one in found) else 1)


def _report(found: Sequence[Imported]) -> None:
    for one in found:
        click.echo(f"{one.name} ({one.origin}){'' if one.words is not None else ': NOT IMPORTED'}", err=True)
        for note in one.notes:
            click.echo(f"    {note}", err=True)
    taken = sum(one.words is not None for one in found)
    click.echo(f"{taken} of {len(found)} are imported", err=True)


COMMANDS: tuple[click.Command, ...] = (imports,)
