"""`lockd inspect, ls, validate, sessions`: what is held, waited for and lives, as of now."""

from typing import Any

import click

from lockd.cli.exits import ExitStatus
from lockd.cli.options import Access, LockName, WholeNumber, as_json, with_access
from lockd.cli.output import duration, lock_document, party, queue_document, show_facts, show_json, show_table
from lockd.client.inspection import LockInfo, QueueInfo, SessionInfo, parsed
from lockd.ids import TOKEN_MAX


@click.command()
@click.argument("name", type=LockName())
@click.option("--queue", "with_queue", is_flag=True, help="And who waits, the next one first.")
@as_json
@with_access
def inspect(*, access: Access, name: str, with_queue: bool, as_json: bool) -> None:
    """Show who holds the lock NAME and how many wait."""
    with access.client() as client:
        lock = client.inspect(name)
        queue = client.queue(name) if with_queue else None
    if as_json:
        show_json(lock_document(lock) | ({} if queue is None else queue_document(queue)))
        return
    facts: dict[str, object] = {"lock": lock.lock, "status": lock.status, "waiting": lock.queue_length}
    if lock.holders:
        facts["mode"] = lock.mode
    if lock.limit:
        facts["used"] = f"{lock.used} of {lock.limit}"
    if lock.delay_ms:
        facts["delay"] = duration(lock.delay_ms)
    show_facts(facts)
    for holder in lock.holders:
        facts = {
            "session": party(holder),
            "owner": holder.owner,
            "token": holder.token,
            "weight": holder.weight if lock.limit else "",
            "held": duration(holder.held_ms),
            "meta": holder.meta,
            "ending": holder.ending,
        }
        show_facts({name: value for name, value in facts.items() if value != ""})
    if queue is not None and queue.waiters:
        _show_queue(queue)


def _show_queue(queue: QueueInfo) -> None:
    click.echo()
    show_table(
        ("POSITION", "SESSION", "OWNER", "MODE", "WEIGHT", "WAITING", "META"),
        (
            (
                waiter.position,
                party(waiter),
                waiter.owner or "-",
                waiter.mode if len(waiter.locks) < 2 else f"{waiter.mode}, with {len(waiter.locks) - 1} more",
                waiter.weight,
                duration(waiter.waiting_ms),
                waiter.meta or "-",
            )
            for waiter in queue.waiters
        ),
    )


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
        show_table(("LOCK", "MODE", "TOKEN", "HELD", "WAITING", "HOLDER"), map(_row, locks))


def _row(lock: LockInfo) -> tuple[object, ...]:
    holders = ", ".join(f"{party(holder)}{' (ending)' if holder.ending else ''}" for holder in lock.holders)
    held = duration(lock.held_ms) if lock.holders else "-"
    mode = f"{lock.mode} {lock.used}/{lock.limit}" if lock.limit else lock.mode
    return (
        lock.lock,
        mode if lock.holders else "-",
        lock.granted_last or "-",
        held,
        lock.queue_length,
        holders or "-",
    )


@click.command()
@click.argument("name", type=LockName())
@click.argument("token", type=WholeNumber(1, TOKEN_MAX))
@as_json
@with_access
def validate(*, access: Access, name: str, token: int, as_json: bool) -> ExitStatus:
    """Tell whether the lock NAME is still held under TOKEN: current, superseded or free.

    Exits with 0 only when it is current, with 4 when that grant is over. It was so a moment ago: a
    storage that must refuse a stale writer compares the token itself, as it writes.
    """
    with access.client() as client:
        status = client.validate(name, token)
    if as_json:
        show_json({"lock": name, "token": token, "status": status})
    else:
        click.echo(status)
    return ExitStatus.DONE if status == "current" else ExitStatus.LEASE_LOST


@click.command()
@as_json
@with_access
def sessions(*, access: Access, as_json: bool) -> None:
    """List the sessions that live, by their public numbers, and how much each holds and waits for."""
    with access.client() as client:
        found = client.sessions()
    if as_json:
        show_json([_document(session) for session in found])
    else:
        show_table(
            ("SESSION", "NAME", "USER", "TTL", "HELD", "WAITING", "META"),
            (
                (
                    session.session,
                    session.name or ("(private)" if session.private else "-"),
                    session.user,
                    duration(session.ttl_ms),
                    session.held,
                    session.waiting,
                    session.meta or "-",
                )
                for session in found
            ),
        )


def _document(session: SessionInfo) -> dict[str, Any]:
    return {
        "session": session.session,
        "name": session.name,
        "user": session.user,
        "ttl_ms": session.ttl_ms,
        "held": session.held,
        "waiting": session.waiting,
        "meta": parsed(session.meta),
        "private": bool(session.private),
    }
