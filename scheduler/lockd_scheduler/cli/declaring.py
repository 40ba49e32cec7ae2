"""`plan` and `apply`: schedules from files, and what they change."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import click
from sqlalchemy import Engine

from lockd_scheduler.cli.options import as_json, open_ledger, whoever_asks, with_db, with_scope
from lockd_scheduler.cli.output import show_json
from lockd_scheduler.engines import open_engine
from lockd_scheduler.errors import BadSchedule, NoLedger
from lockd_scheduler.files import job_specs, read_files
from lockd_scheduler.jobs import JobSpec, checked_name
from lockd_scheduler.ledger import Ledger
from lockd_scheduler.plans import Change, Step, apply_plan, make_plan, summary
from lockd_scheduler.reports import list_scopes
from lockd_scheduler.testing.ledgers import private_ledger
from lockd_storage.schema import upgrade

SIGNS = {
    Step.CREATED: "+",
    Step.CHANGED: "~",
    Step.RESUMED: "^",
    Step.PARKED: "-",
    Step.UNCHANGED: "=",
}

with_files = click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False)
)


@dataclass(frozen=True)
class _Declared:
    """What the files say, and the ledger it is for."""

    engine: Engine
    scope: str
    specs: dict[str, JobSpec]
    now: datetime


@click.command()
@with_files
@with_scope
@with_db
@as_json
def plan(files: Sequence[Path], scope: str | None, db: str, as_json: bool) -> None:  # noqa: FBT001
    """Show what `apply` would change for the schedules of FILEs, and their next fires. Changes nothing."""
    with _declared(files, scope, db, makes_tables=False) as declared:
        changes = make_plan(declared.engine, declared.scope, declared.specs, now=declared.now)
    _show(changes, declared.scope, as_json=as_json, is_done=False)


@click.command()
@with_files
@with_scope
@with_db
@as_json
def apply(files: Sequence[Path], scope: str | None, db: str, as_json: bool) -> None:  # noqa: FBT001
    """Bring the ledger's schedules that come from files to what FILEs say: all of them, or none.

    What is no longer in them is parked, never deleted. A service that runs finds them at its next turn.
    """
    with _declared(files, scope, db, makes_tables=True) as declared:
        changes = apply_plan(
            declared.engine, declared.scope, declared.specs, now=declared.now, by=whoever_asks()
        )
    _show(changes, declared.scope, as_json=as_json, is_done=True)


@contextmanager
def _declared(
    files: Sequence[Path], scope: str | None, db: str, *, makes_tables: bool
) -> Iterator[_Declared]:
    named, jobs = read_files(files)
    if makes_tables:
        engine = open_engine(db)
        try:
            upgrade(engine, branch="scheduler")
        finally:
            engine.dispose()
    with ExitStack() as opened:
        try:
            engine = opened.enter_context(open_ledger(db))
        except NoLedger:
            engine = opened.enter_context(private_ledger())  # before the first `apply` all is new
        chosen = scope or named or _only_scope(engine)
        yield _Declared(
            engine, checked_name(chosen), job_specs(jobs, chosen), Ledger(engine, chosen).read_time()
        )


def _only_scope(engine: Engine) -> str:
    scopes = list_scopes(engine)
    if len(scopes) > 1:
        names = ", ".join(repr(name) for name in scopes[:10])
        raise BadSchedule(
            f"the ledger has the schedulers {names}: choose one with `scheduler:` in the file, or --scope"
        )
    return scopes[0] if scopes else "default"


def _show(changes: Sequence[Change], scope: str, *, as_json: bool, is_done: bool) -> None:
    if as_json:
        show_json(
            {
                "scheduler": scope,
                "applied": is_done,
                "summary": summary(changes),
                "changes": [change.to_json() for change in changes if change.step is not Step.UNCHANGED],
            }
        )
        return
    for change in changes:
        if change.step is not Step.UNCHANGED:
            _show_change(change)
    told = ", ".join(f"{count} {step}" for step, count in summary(changes).items()) or "no jobs"
    click.echo(f"{scope}: {told}" + ("" if is_done else "; `apply` does it"))


def _show_change(change: Change) -> None:
    click.echo(f"{SIGNS[change.step]} {change.job}  {change.step.value}")
    for one in change.differences:
        click.echo(f"    {one.field}: {_value(one.before)} -> {_value(one.after)}")
    for fire in change.fires:
        mark = "  clocks change that day" if fire.is_change_day else ""
        click.echo(f"    {fire.local:%a %Y-%m-%d %H:%M:%S %Z} ({fire.moment:%Y-%m-%dT%H:%M:%SZ}){mark}")


def _value(value: object) -> str:
    return "(none)" if value is None else json.dumps(value, ensure_ascii=False)


COMMANDS: tuple[click.Command, ...] = (plan, apply)
