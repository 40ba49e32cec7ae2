"""`lockd elect`: stand for election, from a script or by hand."""

import click

from lockd.cli.exits import ExitStatus
from lockd.cli.options import Access, Duration, LockName, as_json, with_access
from lockd.cli.output import show_json
from lockd.cli.run import client_name, run_under
from lockd.cli.signals import Interrupted, Signals
from lockd.client.threads import Lease
from lockd.errors import LeaseLost


@click.command()
@click.argument("name", type=LockName())
@click.option("--value", metavar="TEXT", help="What observers see while it leads.")
@click.option(
    "--ttl",
    type=Duration(),
    default="10s",
    show_default=True,
    help="How soon another one is elected when this machine dies.",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@as_json
@with_access
def elect(
    *,
    access: Access,
    name: str,
    value: str | None,
    ttl: float,
    command: tuple[str, ...],
    as_json: bool,
) -> int:
    """Stand for election: lockd elect NAME --value TEXT [-- COMMAND ARGS...]

    Without a command it shows each election and each loss, one line each, and leads until it is
    interrupted. With one it runs the command while it leads, as `lockd run` does, stops it when the
    lease is lost and stands again; it resigns when the command ends by itself, and exits with its
    status. While the cluster does not answer it waits.
    """
    if command:
        return _lead_by_command(access, name, value, ttl=ttl, command=command)
    try:
        with Signals(), access.client(ttl=ttl, name=client_name()) as client:
            client.election(name, value=value).run(lambda lease: _lead(lease, as_json=as_json))
    except Interrupted as interrupted:
        return ExitStatus.SIGNALLED + interrupted.number
    raise AssertionError("a lead that waits for its loss does not resign")


def _lead(lease: Lease, *, as_json: bool) -> None:
    _show("elected", lease, as_json=as_json)
    lease.wait_lost()
    _show("lost", lease, as_json=as_json)


def _show(event: str, lease: Lease, *, as_json: bool) -> None:
    if as_json:
        show_json({"election": lease.lock, "event": event, "token": lease.token, "fence": lease.fence})
    else:
        click.echo(f"{event}  token={lease.token}  fence={lease.fence}")


def _lead_by_command(
    access: Access, name: str, value: str | None, *, ttl: float, command: tuple[str, ...]
) -> int:
    while True:
        try:
            return run_under(
                access,
                ttl=ttl,
                command=command,
                obtain=lambda client: client.election(name, value=value).campaign(),
            )
        except LeaseLost as error:
            click.echo(f"lockd elect: {error}; it stands again", err=True)
