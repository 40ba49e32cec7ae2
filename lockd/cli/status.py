"""`lockd status`: the cluster as a node that answers knows it."""

from typing import Any

import click

from lockd.cli.exits import ExitStatus
from lockd.cli.options import Access, as_json, with_access
from lockd.cli.output import role_of, show_facts, show_json, show_table


@click.command()
@as_json
@with_access
def status(*, access: Access, as_json: bool) -> ExitStatus:
    """Show the cluster, its leader and its nodes. Exits with 3 while no leader is known.

    Any node answers, also alone. How far the nodes' logs match is known by the leader only.
    """
    with access.client() as client:
        found = client.status()
    if as_json:
        show_json(found)
    else:
        _show(found)
    return ExitStatus.DONE if found["leader"] else ExitStatus.UNAVAILABLE


def _show(found: dict[str, Any]) -> None:
    show_facts(
        {
            "cluster": found["cluster"] or "not known yet",
            "incarnation": found["incarnation"] or "-",
            "leader": f"node {found['leader']}" if found["leader"] else "none is known",
            "term": found["term"],
            "committed": found["commit_index"],
            "locks": found["locks"],
            "sessions": found["sessions"],
            "answered by": f"node {found['node']}, lockd {found['version']}",
        }
    )
    click.echo()
    show_table(
        ("NODE", "ROLE", "ALIVE", "MATCH", "CLIENTS", "PEERS", "HTTP"),
        (_row(member, found) for member in found["members"]),
    )


def _row(member: dict[str, Any], found: dict[str, Any]) -> tuple[object, ...]:
    is_known = found["role"] == "leader"
    return (
        member["node"],
        role_of(member, leader=found["leader"]),
        "yes" if member["alive"] else "no",
        member["match_index"] if is_known else "-",
        member["client"] or "-",
        member["peer"] or "-",
        member["http"] or "-",
    )
