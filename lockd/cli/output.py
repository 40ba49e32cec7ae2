"""How answers look: columns for people, one JSON document for machines."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
import msgspec

from lockd.client.inspection import HolderInfo, LockInfo, QueueInfo, WaiterInfo, parsed


def show_json(document: Any) -> None:
    """Print one JSON document on one line."""
    click.echo(json.dumps(msgspec.to_builtins(document), ensure_ascii=False))


def show_facts(facts: Mapping[str, object]) -> None:
    """Print one `name  value` a line."""
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{name:<{width}}  {value}".rstrip())


def show_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under their header, as narrow as they can be."""
    lines = [tuple(header), *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def duration(milliseconds: int) -> str:
    """A duration for people: 350ms, 12.5s, 3m05s, 2h03m, 4d01h."""
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    seconds = milliseconds // 1000
    if seconds < 60:
        return f"{milliseconds // 100 / 10:.1f}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    if seconds < 86400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 86400}d{seconds % 86400 // 3600:02d}h"


def role_of(member: Mapping[str, Any], *, leader: int) -> str:
    """What a member of CLUSTER.STATUS or CLUSTER.MEMBERS is in its cluster."""
    if member["node"] == leader:
        return "leader"
    if member["voter"]:
        return "follower"
    return "learner, will vote" if member["wants_vote"] else "learner"


def party(of: HolderInfo | WaiterInfo) -> str:
    """Who holds or waits: the session's public number and name."""
    return f"{of.session} {of.name}".rstrip()


def queue_document(queue: QueueInfo) -> dict[str, Any]:
    """A lock's queue for --json."""
    waiters = [msgspec.to_builtins(waiter) | {"meta": parsed(waiter.meta)} for waiter in queue.waiters]
    return {"waiters": waiters}


def lock_document(lock: LockInfo) -> dict[str, Any]:
    """A lock for --json; metadata is embedded as the JSON that it is."""
    document: dict[str, Any] = msgspec.to_builtins(lock)
    for holder in document["holders"]:
        holder["meta"] = parsed(holder["meta"])
    return document
