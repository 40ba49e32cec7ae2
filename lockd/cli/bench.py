"""`lockd bench`: how fast this cluster grants and takes back, as clients see it.

It loads the cluster that it is pointed at, and holds locks of its own under a prefix; it is bounded in
time and in clients, and leaves nothing behind.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import click

from lockd.cli.exits import ExitStatus
from lockd.cli.options import PATIENCE_SECONDS, Access, WholeNumber, as_json, with_access
from lockd.cli.output import show_facts, show_json
from lockd.client.aio import AsyncClient
from lockd.errors import LockdError, LockTimeout

CLIENTS_MAX: Final = 1000
SECONDS_MAX: Final = 600.0
_PERCENTILES: Final = (50, 90, 99)


@dataclass
class _Tally:
    """What the clients have done: the seconds of each cycle, and what went wrong how often."""

    cycles: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)


@click.command()
@click.option(
    "--clients",
    type=WholeNumber(1, CLIENTS_MAX),
    default=8,
    show_default=True,
    help="Each with a connection and a session of its own, all in this process.",
)
@click.option("--seconds", type=click.FloatRange(0.1, SECONDS_MAX), default=5.0, show_default=True)
@click.option(
    "--lock",
    "prefix",
    default="lockd-bench/",
    show_default=True,
    metavar="PREFIX",
    help="Of its locks' names.",
)
@click.option("--contended", is_flag=True, help="All want the same lock.  [default: each its own]")
@as_json
@with_access
def bench(
    *, access: Access, clients: int, seconds: float, prefix: str, contended: bool, as_json: bool
) -> ExitStatus:
    """Acquire and release as fast as it goes, and show how many cycles a second and how long each took.

    With --contended a cycle is the wait in the queue as well. One process can't load a large cluster
    fully: run several. Exits with 3 when no cycle was finished.
    """
    names = [f"{prefix}{0 if contended else number}" for number in range(clients)]
    tally = asyncio.run(_load([access.async_client() for _ in names], names, seconds))
    found = _summary(tally, seconds) | {"clients": clients, "contended": contended}
    if as_json:
        show_json(found)
    else:
        show_facts({name.replace("_", " "): value for name, value in found.items() if name != "errors"})
        for name, count in tally.errors.items():
            click.echo(f"{count} times {name}")
    return ExitStatus.DONE if tally.cycles else ExitStatus.UNAVAILABLE


async def _load(clients: list[AsyncClient], names: list[str], seconds: float) -> _Tally:
    tally = _Tally()
    try:
        # Connections and sessions are made before the clock runs; this raises if there is no cluster.
        await asyncio.gather(*(_open(client, name) for client, name in zip(clients, names, strict=True)))
        end = asyncio.get_running_loop().time() + seconds
        await asyncio.gather(
            *(_cycle(client, name, end, tally) for client, name in zip(clients, names, strict=True))
        )
    finally:
        await asyncio.gather(*(client.close() for client in clients), return_exceptions=True)
    return tally


async def _open(client: AsyncClient, name: str) -> None:
    lease = await client.acquire(name, wait=PATIENCE_SECONDS)
    await lease.release()


async def _cycle(client: AsyncClient, name: str, end: float, tally: _Tally) -> None:
    now = asyncio.get_running_loop().time
    while (began := now()) < end:
        try:
            lease = await client.acquire(name, wait=end - began)
            await lease.release()
        except LockTimeout:
            return  # the time was over
        except LockdError as error:
            tally.errors[type(error).__name__] += 1
        else:
            tally.cycles.append(now() - began)


def _summary(tally: _Tally, seconds: float) -> dict[str, Any]:
    took = sorted(tally.cycles)
    found: dict[str, Any] = {"cycles": len(took), "seconds": seconds}
    found["cycles_per_s"] = round(len(took) / seconds, 1)
    for percent in _PERCENTILES:
        found[f"p{percent}_ms"] = _milliseconds(took[len(took) * percent // 100] if took else 0.0)
    return found | {"max_ms": _milliseconds(took[-1] if took else 0.0), "errors": dict(tally.errors)}


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
