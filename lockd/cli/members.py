"""`lockd members`: who belongs to the cluster, and changes of that.

A change is refused by the cluster, with its reason and status 1, when the cluster's state is in its
way; with status 3 when it can't be made now, or its answer was lost: look before asking again.
"""

from collections.abc import Callable
from typing import Any, Final

import click
import msgspec
from click.core import ParameterSource

from lockd.cli.exits import ExitStatus, NotChangedError
from lockd.cli.options import PATIENCE_SECONDS, Access, WholeNumber, as_json, with_access
from lockd.cli.output import role_of, show_json, show_table
from lockd.client import cluster
from lockd.client.cluster import MembersReply
from lockd.client.queries import Query
from lockd.errors import AccessDenied, OutcomeUnknown, Rejected
from lockd.ids import NODE_ID_MAX
from lockd.protocol.arguments import read_address

CHANGE_PATIENCE_SECONDS: Final = 2 * PATIENCE_SECONDS
"""A change waits for the one before it, and for a leader. A client leaves a node that does not answer for
a quarter of this: time enough for one to say, four election timeouts later, that there is no leader."""


class PeerAddress(click.ParamType[str]):
    """HOST:PORT as the other nodes dial it."""

    name = "host:port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return read_address(str(value).encode())
        except ValueError as error:  # UnicodeEncodeError is one
            self.fail(str(error), param, ctx)


_ID: Final = WholeNumber(1, NODE_ID_MAX)
_force = click.option(
    "--force",
    is_flag=True,
    help="Even if too few of the voters that are left answer, or it has not caught up.",
)


@click.group(invoke_without_command=True)
@as_json
@with_access
@click.pass_context
def members(context: click.Context, *, access: Access, as_json: bool) -> ExitStatus:
    """List the cluster's nodes, or change which they are.

    To replace a dead node 3: `lockd members remove 3`, `lockd members add 4 HOST:PORT`, and on the new
    machine `lockd serve --node-id 4 --join HOST:PORT`, in any order. Ids are never used again.
    """
    if context.invoked_subcommand is not None:
        _refuse_options_before(context, context.invoked_subcommand)
        return ExitStatus.DONE
    with access.client() as client:
        found = client.ask(cluster.members())
    if as_json:
        show_json(found)
    else:
        _show(found)
    return ExitStatus.DONE if found.leader else ExitStatus.UNAVAILABLE


def _refuse_options_before(context: click.Context, subcommand: str) -> None:
    """They would be read and not used: another cluster might be changed than the one that is meant."""
    for name in context.params:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"options go behind the command: lockd members {subcommand} ... OPTIONS")


def _show(found: MembersReply) -> None:
    show_table(
        ("NODE", "ROLE", "ALIVE", "PEERS", "CLIENTS", "INSTANCE"),
        (
            (
                member.node,
                role_of(msgspec.to_builtins(member), leader=found.leader),
                "yes" if member.alive else "no",
                member.peer or "-",
                member.client or "-",
                member.instance or "not started yet",
            )
            for member in found.members
        ),
    )
    if found.removed:
        click.echo(f"\nremoved, never to be used again: {', '.join(map(str, found.removed))}")


@members.command()
@click.argument("node", metavar="ID", type=_ID)
@click.argument("address", metavar="HOST:PORT", type=PeerAddress())
@click.option("--learner", is_flag=True, help="It gets the log and no vote, until it is promoted.")
@_force
@as_json
@with_access
def add(*, access: Access, node: int, address: str, learner: bool, force: bool, as_json: bool) -> None:
    """Add the node ID, which the others dial at HOST:PORT. It votes once it has caught up.

    ID is a number that the cluster has never had. Start the node before or after with `lockd serve
    --node-id ID --advertise-peer HOST:PORT --join HOST:PORT-OF-A-MEMBER`.
    """
    _change(
        access,
        cluster.add_member(node, address, learner=learner, force=force),
        lambda found: any((member.node, member.peer) == (node, address) for member in found.members),
    )
    follows = "stays a learner" if learner else "becomes a voter once it has caught up"
    _tell(as_json, f"node {node} is a member at {address}, and {follows}", node=node, address=address)


@members.command()
@click.argument("node", metavar="ID", type=_ID)
@_force
@as_json
@with_access
def promote(*, access: Access, node: int, force: bool, as_json: bool) -> None:
    """Make the learner ID a voter."""
    _change(
        access,
        cluster.promote_member(node, force=force),
        lambda found: any(member.node == node and member.voter for member in found.members),
    )
    _tell(as_json, f"node {node} is a voter", node=node)


@members.command()
@click.argument("node", metavar="ID", type=_ID)
@_force
@as_json
@with_access
def remove(*, access: Access, node: int, force: bool, as_json: bool) -> None:
    """Remove the node ID for good: its id and its data are of no use to this cluster any more."""
    _change(access, cluster.remove_member(node, force=force), lambda found: node in found.removed)
    _tell(as_json, f"node {node} is removed", node=node)


@members.command()
@click.argument("node", metavar="[ID]", type=_ID, required=False)
@as_json
@with_access
def transfer(*, access: Access, node: int | None, as_json: bool) -> None:
    """Hand leadership to the node ID, or to the one that is most up to date."""
    _change(access, cluster.transfer_leadership(node or 0), lambda found: found.leader == node)
    with access.client() as client:
        leader = client.ask(cluster.members()).leader
    _tell(
        as_json,
        f"node {node or leader} leads" if node or leader else "another node leads",
        leader=node or leader,
    )


def _change(access: Access, query: Query[int], is_so: Callable[[MembersReply], bool]) -> None:
    """Have it changed. A refusal of what is so already is none: the answer to it may have been lost."""
    try:
        with access.client(ttl=CHANGE_PATIENCE_SECONDS) as client:
            try:
                client.ask(query)
            except AccessDenied:
                raise
            except Rejected as error:
                if not is_so(client.ask(cluster.members())):
                    raise NotChangedError(str(error)) from error
    except OutcomeUnknown as error:
        raise OutcomeUnknown(f"{error}. It may have been made: look with `lockd members`") from error


def _tell(as_json: bool, text: str, **facts: object) -> None:  # noqa: FBT001 - the option of that name
    if as_json:
        show_json(facts)
    else:
        click.echo(text)
