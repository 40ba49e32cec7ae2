"""`lockd watch` and `lockd observe`: a line for each thing that happens, until they are interrupted."""

from typing import Any

import click
import msgspec

from lockd.cli.options import Access, LockName, WholeNumber, as_json, with_access
from lockd.cli.output import show_json
from lockd.client.election import Leader
from lockd.client.inspection import LockEvent, parsed


@click.command()
@click.argument("prefix", default="")
@click.option(
    "--from",
    "revision",
    type=WholeNumber(min=0),
    metavar="REVISION",
    help="Begin with what happened after it; `inspect --json` and each event tell one.  [default: now]",
)
@as_json
@with_access
def watch(*, access: Access, prefix: str, revision: int | None, as_json: bool) -> None:
    """Show what happens to locks, or to those whose names begin with PREFIX, one line each.

    It goes on over failing nodes, and loses nothing. Exits with 2 when the cluster has forgotten
    events that were not shown yet: look with `lockd ls`, and watch again.
    """
    with access.client() as client, client.watch(prefix, revision=revision) as events:
        for event in events:
            if as_json:
                show_json(msgspec.to_builtins(event) | {"meta": parsed(event.meta)})
            else:
                click.echo(_line(event))


def _line(event: LockEvent) -> str:
    words = [str(event.revision), event.event, event.lock, f"token={event.token}"]
    words.append(f"session={event.session}")
    for name, value in (("name", event.name), ("owner", event.owner), ("mode", event.mode)):
        if value not in ("", "exclusive"):
            words.append(f"{name}={value}")
    words += [f"meta={event.meta}"] if event.meta else []
    words += [f"reason={event.reason}"] if event.reason else []
    return "  ".join(words)


@click.command()
@click.argument("name", type=LockName())
@as_json
@with_access
def observe(*, access: Access, name: str, as_json: bool) -> None:
    """Show who leads the election NAME, and then each change, one line each."""
    with access.client() as client, client.election(name).observe() as leaders:
        for leader in leaders:
            if as_json:
                show_json({"election": name, "leader": _document(leader), "revision": leaders.revision})
            else:
                click.echo("vacant" if leader is None else _leader_line(leader))


def _document(leader: Leader | None) -> dict[str, Any] | None:
    return None if leader is None else msgspec.to_builtins(leader)


def _leader_line(leader: Leader) -> str:
    value = leader.value if isinstance(leader.value, str) else msgspec.json.encode(leader.value).decode()
    return f"leader  {value}  token={leader.token}  session={leader.session} {leader.name}".rstrip()
