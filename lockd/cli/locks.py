"""`lockd acquire, renew, release, break`: locks from a script or by hand.

`acquire` takes a lock in a session of its own, which outlives the command: whoever has the
session's id renews or releases it.
"""

import uuid
from typing import Any

import click

from lockd.cli.exits import ExitStatus
from lockd.cli.options import (
    Access,
    Duration,
    LockName,
    WholeNumber,
    as_json,
    with_access,
    with_max_hold,
    with_meta,
    with_shared,
)
from lockd.cli.output import duration, show_facts, show_json
from lockd.client import queries
from lockd.client.demand import LockMode
from lockd.client.queries import GrantReply
from lockd.client.sync import Client
from lockd.errors import NotHeld
from lockd.ids import TOKEN_MAX


@click.command()
@click.argument("name", type=LockName())
@click.option("--ttl", type=Duration(), required=True, help="How long it is held unless it is renewed.")
@click.option(
    "--wait",
    type=Duration(or_forever=True),
    default="0",
    show_default=True,
    help="How long to stand in the queue; or `forever`.",
)
@with_shared
@click.option(
    "--limit", type=WholeNumber(min=1), metavar="N", help="Of a semaphore of N units; no fence then."
)
@click.option(
    "--weight", type=WholeNumber(min=1), metavar="N", help="Units of --limit to take.  [default: 1]"
)
@with_max_hold
@click.option(
    "--delay",
    type=Duration(),
    help="For how long nobody gets it when this grant ends otherwise than by a release.",
)
@with_meta
@click.option(
    "--request",
    type=click.UUID,
    metavar="UUID",
    help="Name the request, so that the same command again finds the same grant.",
)
@as_json
@with_access
def acquire(
    *,
    access: Access,
    name: str,
    ttl: float,
    request: uuid.UUID | None,
    as_json: bool,
    weight: int | None,
    **asked: Any,
) -> None:
    """Take the lock NAME for a time, and print its token, fence and session.

    The session's id is what it takes to renew or release the lock: keep it to yourself. Exits with
    1 when the lock was not obtained, 3 when the cluster did not answer.
    """
    if weight is not None and asked["limit"] is None:
        raise click.UsageError("--weight is a share of --limit")
    with access.client() as client:
        try:
            grant = client.acquire_ttl(
                name, ttl=ttl, request=str(request) if request else None, weight=weight or 1, **asked
            )
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    if as_json:
        show_json(grant)
    else:
        _show(grant)


def _show(grant: GrantReply) -> None:
    facts: dict[str, object] = {"lock": grant.lock, "token": grant.token}
    if grant.mode == LockMode.SEMAPHORE:
        facts["units"] = f"{grant.weight} of {grant.limit}"
    else:
        facts["fence"] = grant.fence
    show_facts(facts | {"session": grant.session, "ttl": duration(grant.ttl_ms)})


@click.command()
@click.argument("session")
@as_json
@with_access
def renew(*, access: Access, session: str, as_json: bool) -> ExitStatus:
    """Give SESSION its full time again, and tell which of its grants were taken from it.

    Exits with 4 when the session is over, or when it has lost a grant by `lockd break` or by
    --max-hold: stop that work, then release it, and the next holder need not wait for the TTL.
    """
    with access.client() as client:
        renewal = client.ask(queries.keepalive(session))
    if as_json:
        ended = [{"lock": each.lock, "token": each.token, "reason": each.reason} for each in renewal.ended]
        show_json({"session": session, "ttl_ms": renewal.ttl_ms, "ended": ended})
    else:
        click.echo(f"renewed for {duration(renewal.ttl_ms)}")
        for each in renewal.ended:
            click.echo(f"ended  {each.lock}  token {each.token}  {each.reason}")
    return ExitStatus.LEASE_LOST if renewal.ended else ExitStatus.DONE


@click.command()
@click.argument("name", type=LockName())
@click.argument("token", type=WholeNumber(1, TOKEN_MAX))
@click.option("--session", required=True, help="The session that holds it, as `lockd acquire` printed it.")
@as_json
@with_access
def release(*, access: Access, name: str, token: int, session: str, as_json: bool) -> None:
    """Give the lock NAME back, as it was granted with TOKEN. Exits with 4 when that grant was over."""
    with access.client() as client:
        if not client.ask(queries.release(name, token=token, session=session)):
            raise NotHeld(f"{name!r} was not held with token {token} in that session any more")
    if as_json:
        show_json({"lock": name, "token": token, "released": True})
    else:
        click.echo(f"released {name}")


@click.command("break")
@click.argument("name", type=LockName())
@click.option("--reason", required=True, metavar="TEXT", help="What its holder and the log are told.")
@click.option(
    "--token",
    type=WholeNumber(1, TOKEN_MAX),
    help="Which grant.  [default: the one that holds the lock now, if there is only one]",
)
@click.option(
    "--now",
    is_flag=True,
    help="Pass the lock on at once, though its holder may trust its lease: two may work under it then.",
)
@as_json
@with_access
def break_lock(
    *, access: Access, name: str, reason: str, token: int | None, now: bool, as_json: bool
) -> None:
    """Take the lock NAME from its holder. Needs the role `break` where there are users.

    The holder is told. The lock is passed on once it has stopped, once its session has ended, or a TTL
    later. Exits with 4 when that grant was not held.
    """
    with access.client() as client:
        if token is None:
            token = _only_holder(client, name)
        if not client.break_lock(name, token, reason=reason, now=now):
            raise NotHeld(f"{name!r} is not held with token {token}")
    if as_json:
        show_json({"lock": name, "token": token, "broken": True, "now": now})
    else:
        passed_on = "" if now else "; it is passed on when its holder has stopped, or a TTL later"
        click.echo(f"broke {name}, token {token}{passed_on}")


def _only_holder(client: Client, name: str) -> int:
    tokens = [holder.token for holder in client.inspect(name).holders]
    if not tokens:
        raise NotHeld(f"{name!r} is not held")
    if len(tokens) > 1:
        raise click.UsageError(f"several hold {name!r}: give --token, one of {', '.join(map(str, tokens))}")
    return tokens[0]
