"""`audit`: what became of every nominal fire; exit 1 if one was really missed."""

import sys
from collections import Counter
from collections.abc import Iterable

import click

from lockd_scheduler.audit import JobAudit, Verdict
from lockd_scheduler.audit import audit as judge
from lockd_scheduler.cli.options import as_json, chosen_scope, open_ledger, read_past, with_db, with_scope
from lockd_scheduler.cli.output import iso_text, show_json, show_table, utc_text
from lockd_scheduler.errors import BadSchedule
from lockd_scheduler.ledger import Ledger
from lockd_scheduler.reports import job_meant, schedule_definition

MISSES_SHOWN_MAX = 1_000


@click.command()
@click.argument("job", required=False)
@click.option("--since", metavar="7d|TIME", default="7d", show_default=True, help="From when on.")
@with_scope
@with_db
@as_json
def audit(job: str | None, since: str, scope: str | None, db: str, as_json: bool) -> None:  # noqa: FBT001
    """Say of every fire, of JOB or of all, what became of it. Exit 1 if one was really missed."""
    with open_ledger(db) as engine:
        chosen = None if scope is None else chosen_scope(engine, scope)
        now = Ledger(engine, chosen or "").read_time()
        start = read_past(since, "--since", now)
        if start >= now:
            raise BadSchedule(f"--since {since} is not in the past")
        meant = None if job is None else job_meant(engine, job, chosen)
        if job is not None and (meant is None or schedule_definition(engine, meant, chosen) is None):
            raise BadSchedule(f"the ledger has no job {job!r}")
        total: Counter[Verdict] = Counter()
        found = _counted(judge(engine, since=start, now=now, scope=chosen, job=meant), total)
        if as_json:
            jobs = [one.to_json() for one in found]
            show_json({"since": iso_text(start), "until": iso_text(now), "total": dict(total), "jobs": jobs})
        else:
            _show([one for one in found if one.counts.keys() - {Verdict.ON_TIME}], total)
    sys.exit(1 if total[Verdict.REAL_MISS] else 0)


def _counted(found: Iterable[JobAudit], total: Counter[Verdict]) -> Iterable[JobAudit]:
    for one in found:
        total.update(one.counts)
        yield one


def _show(notable: list[JobAudit], total: Counter[Verdict]) -> None:
    verdicts = [verdict for verdict in Verdict if total[verdict]]
    if notable:
        rows = [
            [_name(one), *(str(one.counts[verdict] or "") for verdict in verdicts), _why(one)]
            for one in notable
        ]
        show_table(["JOB", *(verdict.value for verdict in verdicts), "WHY"], rows)
    told = ", ".join(f"{total[verdict]} {verdict.value}" for verdict in verdicts)
    click.echo(f"{sum(total.values())} fires: {told}" if told else "no fires")
    misses = [(one, miss) for one in notable for miss in one.misses]
    for one, miss in misses[:MISSES_SHOWN_MAX]:
        span = utc_text(miss.first) if miss.count == 1 else f"{utc_text(miss.first)} to {utc_text(miss.last)}"
        click.echo(f"MISSED {_name(one)}: {span} UTC" + (f" ({miss.count} fires)" if miss.count > 1 else ""))
    if len(misses) > MISSES_SHOWN_MAX:
        click.echo(f"and {len(misses) - MISSES_SHOWN_MAX} more stretches; --json has all of them")


def _name(one: JobAudit) -> str:
    return f"{one.scheduler}/{one.job}"


def _why(one: JobAudit) -> str:
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(one.reasons.items()))
    return f"{reasons} (at least: not all were counted)".strip() if one.is_floor else reasons
