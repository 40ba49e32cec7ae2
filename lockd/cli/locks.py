"""`lockd acquire, renew, release, inspect, ls`: locks from a script or by hand.

`acquire` takes a lock in a session of its own, which outlives the command: whoever has the
session's id renews or releases it.
"""

import uuid
from typing import Any

import click

from lockd.cli.options import Access, Duration, LockName, as_json, with_access, with_meta
from lockd.cli.output import duration, lock_document, show_facts, show_json, show_table
from lockd.client import queries
from lockd.client.inspection import LockInfo
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
    wait: float | None,
    meta: dict[str, Any] | None,
    request: uuid.UUID | None,
    as_json: bool,
) -> None:
    """Take the lock NAME for a time, and print its token, fence and session.

    The session's id is what it takes to renew or release the lock: keep it to yourself. Exits with
    1 when the lock was not obtained, 3 when the cluster did not answer.
    """
    with access.client() as client:
        grant = client.acquire_ttl(
            name, ttl=ttl, wait=wait, meta=meta, request=str(request) if request else None
        )
    if as_json:
        show_json(grant)
    else:
        show_facts(
            {
                "lock": grant.lock,
                "token": grant.token,
                "fence": grant.fence,
                "session": grant.session,
                "ttl": duration(grant.ttl_ms),
            }
        )


@click.command()
@click.argument("session")
@as_json
@with_access
def renew(*, access: Access, session: str, as_json: bool) -> None:
    """Give SESSION its full time again. Exits with 4 when it is over."""
    with access.client() as client:
        renewal = client.ask(queries.keepalive(session))
    if as_json:
        show_json({"session": session, "ttl_ms": renewal.ttl_ms})
    else:
        click.echo(f"renewed for {duration(renewal.ttl_ms)}")


@click.command()
@click.argument("name", type=LockName())
@click.argument("token", type=click.IntRange(1, TOKEN_MAX))
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


@click.command()
@click.argument("name", type=LockName())
@as_json
@with_access
def inspect(*, access: Access, name: str, as_json: bool) -> None:
    """Show who holds the lock NAME and how many wait."""
    with access.client() as client:
        lock = client.inspect(name)
    if as_json:
        show_json(lock_document(lock))
        return
    show_facts({"lock": lock.lock, "status": lock.status, "waiting": lock.queue_length})
    for holder in lock.holders:
        facts: dict[str, object] = {
            "session": f"{holder.session} {holder.name}".rstrip(),
            "owner": holder.owner,
            "token": holder.token,
            "held": duration(holder.held_ms),
            "meta": holder.meta,
        }
        show_facts({name: value for name, value in facts.items() if value != ""})


@click.command()
@click.argument("prefix", default="")
@as_json
@with_access
def ls(*, access: Access, prefix: str, as_json: bool) -> None:
    """List the locks that are held or waited for, or those whose names begin with PREFIX."""
    with access.client() as client:
        locks = client.locks(prefix)
    if as_json:
        show_json([lock_document(lock) for lock in locks])
    else:
        show_table(("LOCK", "TOKEN", "HELD", "WAITING", "HOLDER"), map(_row, locks))


def _row(lock: LockInfo) -> tuple[object, ...]:
    holders = ", ".join(f"{holder.session} {holder.name}".rstrip() for holder in lock.holders)
    held = duration(lock.held_ms) if lock.holders else "-"
    return lock.lock, lock.granted_last or "-", held, lock.queue_length, holders or "-"
