"""`lockd fences`: what an operator does to a fence store. What the verbs mean: `lockd_storage.upkeep`.

A token or fence that is not given is taken from the cluster, by acquiring a lock for a moment: it is
then above all that were ever issued, and nothing can be mistyped.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, Final

import click

from lockd.cli.exits import NotChangedError, RefusedError
from lockd.cli.options import PATIENCE_SECONDS, Access, Duration, WholeNumber, as_json, with_access
from lockd.cli.output import show_facts, show_json, show_table
from lockd.errors import OutcomeUnknown, Unavailable
from lockd.ids import Fence
from lockd_storage.fencing import Floor
from lockd_storage.upkeep import UPKEEP_SECONDS, FloorChange, KeptMark, UpkeepPort, adopted, raised

DB_VARIABLE: Final = "LOCKD_DB"
PROBE_LOCK: Final = "lockd-fences"
"""Held for a moment, for its token: a user needs the right to it."""

OLDEST: Final = timedelta(days=36_525)

SQL: Final = "lockd_storage.sqlalchemy.opening"
OPENERS: Final = {
    "mariadb": SQL,
    "mysql": SQL,
    "postgres": SQL,
    "postgresql": SQL,
    "redis": "lockd_storage.redis.opening",
    "rediss": "lockd_storage.redis.opening",
    "sqlite": SQL,
}
"""By a URL's scheme, the module whose `open_upkeep(url)` gives an `UpkeepPort` inside `with`."""

with_db = click.option(
    "--db", envvar=DB_VARIABLE, required=True, metavar="URL", help=f"Where the marks are. Or {DB_VARIABLE}."
)
with_yes = click.option("--yes", is_flag=True, help="Don't ask.")
with_timeout = click.option(
    "--timeout",
    type=Duration(),
    default=UPKEEP_SECONDS,
    show_default=f"{UPKEEP_SECONDS:g}s",
    help="How long writes under way get to end. Installs wait meanwhile.",
)


@click.group()
def fences() -> None:
    """Look after the marks that a storage compares fencing tokens with."""


@fences.command()
@click.argument("prefix", default="")
@with_db
@as_json
def ls(*, prefix: str, db: str, as_json: bool) -> None:
    """List the marks, or those of resources that begin with PREFIX, and the floor."""
    with _opened(db) as upkeep:
        floor, marks = upkeep.floor(), upkeep.marks(prefix)
    if as_json:
        show_json({"floor": _floor_document(floor), "marks": [_document(kept) for kept in marks]})
        return
    show_table(("RESOURCE", "LOCK", "TOKEN", "INCARNATION", "CLUSTER", "INSTALLED (UTC)"), map(_row, marks))
    click.echo()
    show_facts({"floor": floor.token, "cluster": floor.cluster or "any"})


@fences.command()
@click.option(
    "--older-than", type=Duration(), required=True, metavar="DURATION", help="Since the last install: 90d."
)
@click.option("--prefix", default="", help="Only resources that begin with it.")
@with_db
@with_timeout
@with_yes
@as_json
def purge(*, older_than: float, prefix: str, db: str, timeout: float, yes: bool, as_json: bool) -> None:
    """Remove marks that have not been installed for long, and raise the floor to the highest of them."""
    age = _age(older_than)
    with _opened(db) as upkeep:
        which = f" of resources that begin with {prefix!r}" if prefix else ""
        _ask(
            f"Remove the marks{which} that are older than {age}?"
            " A lease that has been held for longer has to be acquired anew.",
            yes=yes,
        )
        change = upkeep.purge(age, prefix=prefix, timeout=timeout)
    _show(change, as_json=as_json)


@fences.command("raise-floor")
@click.argument("token", type=WholeNumber(min=1), required=False)
@with_db
@with_timeout
@with_yes
@as_json
@with_access
def raise_floor(
    *, access: Access, token: int | None, db: str, timeout: float, yes: bool, as_json: bool
) -> None:
    """After the storage was restored from a backup: let no token at or under TOKEN write any more.

    Without TOKEN it is one that the cluster issues now. Keep writers away until this is done.
    """
    with _opened(db) as upkeep:
        if token is None:
            token = _of_same_cluster(_fresh_fence(access), upkeep).token
        removed = sum(kept.mark.token <= token for kept in upkeep.marks())
        _ask(_question(upkeep.floor(), raised(upkeep.floor(), token), removed), yes=yes)
        change = upkeep.raise_floor(token, timeout=timeout)
    _show(change, as_json=as_json)


@fences.command()
@click.argument("fence", required=False)
@with_db
@with_timeout
@with_yes
@as_json
@with_access
def adopt(*, access: Access, fence: str | None, db: str, timeout: float, yes: bool, as_json: bool) -> None:
    """After a move to another lockd cluster: let only leases count that are newer than FENCE.

    FENCE is `cluster/incarnation/token` of a lease acquired just now; without it, one is acquired.
    """
    with _opened(db) as upkeep:
        new = _fresh_fence(access) if fence is None else Fence.parse(fence)
        floor, marks = upkeep.floor(), upkeep.marks()
        has_own_marks = any(kept.mark.fence.cluster == new.cluster for kept in marks)
        removed = sum(
            kept.mark.fence.cluster != new.cluster or kept.mark.token <= new.token for kept in marks
        )
        _ask(_question(floor, adopted(floor, new, has_own_marks=has_own_marks), removed), yes=yes)
        change = upkeep.adopt(str(new), timeout=timeout)
    _show(change, as_json=as_json)


@fences.command()
@with_db
@as_json
def upgrade(*, db: str, as_json: bool) -> None:
    """Create the fence store in a database, or bring it up to date."""
    if OPENERS.get(_scheme(db)) != SQL:
        raise RefusedError(f"--db: only a SQL database has tables to make, not {_scheme(db)!r}")
    with _refusing():
        upgrade_store: Callable[[str], None] = importlib.import_module(SQL).upgrade_store
        upgrade_store(db)
    if as_json:
        show_json({"upgraded": True})
    else:
        click.echo("the fence store is there and up to date")


def _age(seconds: float) -> timedelta:
    if seconds > OLDEST.total_seconds():  # calendars end, and with them the arithmetic
        raise RefusedError("--older-than: no mark is older than a hundred years")
    return timedelta(seconds=seconds)


def _fresh_fence(access: Access) -> Fence:
    try:
        with (
            access.client(name=PROBE_LOCK) as client,
            client.lock(PROBE_LOCK, wait=PATIENCE_SECONDS) as lease,
        ):
            return Fence.parse(lease.fence)
    except (Unavailable, OutcomeUnknown) as error:
        raise Unavailable(f"none was given, and lockd can't be asked for one: {error}") from error


def _of_same_cluster(fence: Fence, upkeep: UpkeepPort) -> Fence:
    """The fence, if the store is of its cluster as far as the store knows."""
    clusters = {kept.mark.fence.cluster for kept in upkeep.marks()} | {upkeep.floor().cluster} - {None}
    others = sorted(str(cluster) for cluster in clusters if cluster != fence.cluster)
    if others:
        raise RefusedError(
            f"the marks are of cluster {', '.join(others)}, and lockd here is {fence.cluster}, whose tokens"
            " can't be compared with them: after a move it is `lockd fences adopt`"
        )
    return fence


@contextmanager
def _opened(url: str) -> Iterator[UpkeepPort]:
    module = OPENERS.get(_scheme(url))
    if module is None:
        raise RefusedError(f"--db wants a URL that begins with one of {', '.join(sorted(OPENERS))}, and ://")
    with _refusing():
        opener: Callable[[str], AbstractContextManager[UpkeepPort]]
        opener = importlib.import_module(module).open_upkeep
        with opener(url) as upkeep:
            yield upkeep


def _scheme(url: str) -> str:
    return url.partition("://")[0].partition("+")[0].lower() if "://" in url else ""


@contextmanager
def _refusing() -> Iterator[None]:
    """Tell in one line what is wrong with what was given, or which library is missing."""
    try:
        yield
    except (ValueError, ImportError) as error:
        raise RefusedError(str(error)) from error


def _ask(question: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise RefusedError(f"nobody can be asked here, so it needs --yes: {question}")
    if not click.confirm(question, err=True):
        raise NotChangedError("nothing was changed")


def _question(before: Floor, after: Floor, removed: int) -> str:
    return (
        f"The floor goes from {_words(before)} to {_words(after)}, and {removed} marks are removed: every"
        f" lease with a token at or under {after.token} has to be acquired anew. Go on?"
    )


def _words(floor: Floor) -> str:
    return f"{floor.token} of {f'cluster {floor.cluster}' if floor.cluster else 'any cluster'}"


def _show(change: FloorChange, *, as_json: bool) -> None:
    if as_json:
        before, after = _floor_document(change.before), _floor_document(change.after)
        show_json({"before": before, "floor": after, "removed": change.removed})
        return
    show_facts(
        {"floor": change.after.token, "cluster": change.after.cluster or "any", "removed": change.removed}
    )


def _floor_document(floor: Floor) -> dict[str, Any]:
    return {"token": floor.token, "cluster": floor.cluster}


def _document(kept: KeptMark) -> dict[str, Any]:
    return {
        "resource": kept.mark.resource,
        "lock": kept.mark.lock,
        "cluster": kept.mark.fence.cluster,
        "incarnation": kept.mark.fence.incarnation,
        "token": kept.mark.token,
        "installed_at": None if kept.installed_at is None else kept.installed_at.isoformat(),
    }


def _row(kept: KeptMark) -> tuple[object, ...]:
    fence = kept.mark.fence
    when = "-" if kept.installed_at is None else f"{kept.installed_at:%Y-%m-%d %H:%M:%S}"
    return kept.mark.resource, kept.mark.lock, fence.token, fence.incarnation, fence.cluster, when
