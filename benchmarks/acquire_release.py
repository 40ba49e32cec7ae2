"""How many times a second clients take a lock and give it back, with three durable nodes.

    python -m benchmarks.acquire_release [--seconds 2] [--rounds 3]

Servers, nodes and clients share this machine. One cycle is acquire then release, by a client as a
user would write it; each client has its own connection and session. "own locks": each client has a
lock of its own; "one lock": all of them want the same. The peer is a single Valkey that syncs every
write, with redis-py's Lock: less safe (no replica, no token), so a bar that is set high. Rounds
alternate between the two, and medians are shown.
"""

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import redis.asyncio
import uvloop

import lockd
from benchmarks import machine, peers
from tests.processes import running_cluster

Cycle = Callable[[], Awaitable[None]]


class Figures(NamedTuple):
    """Of one round, or medians of several."""

    cycles_per_second: float
    p50_ms: float
    p99_ms: float


class Case(NamedTuple):
    title: str
    clients: int
    contended: bool


CASES = [
    Case("1 client", 1, contended=False),
    Case("8 clients, own locks", 8, contended=False),
    Case("32 clients, own locks", 32, contended=False),
    Case("128 clients, own locks", 128, contended=False),
    Case("32 clients, one lock", 32, contended=True),
]


@contextlib.asynccontextmanager
async def lockd_cycle(endpoints: str, lock: str) -> AsyncIterator[Cycle]:
    async with lockd.AsyncClient(endpoints, ttl=30) as client:

        async def cycle() -> None:
            async with client.lock(lock):
                pass

        yield cycle


@contextlib.asynccontextmanager
async def redis_cycle(port: int, lock: str) -> AsyncIterator[Cycle]:
    async with redis.asyncio.Redis(port=port) as client:

        async def cycle() -> None:
            async with client.lock(lock, timeout=30):
                pass

        yield cycle


async def measure(
    case: Case, seconds: float, connect: Callable[[int, str], contextlib.AbstractAsyncContextManager[Cycle]]
) -> Figures:
    """Run all clients of a case for so long."""
    latencies: list[float] = []

    async def client(number: int, begin: asyncio.Barrier) -> None:
        async with connect(number, "one" if case.contended else f"own:{number}") as cycle:
            await cycle()  # connect and open the session before the clock runs
            await begin.wait()
            end = time.perf_counter() + seconds
            while (start := time.perf_counter()) < end:
                await cycle()
                latencies.append(time.perf_counter() - start)

    barrier = asyncio.Barrier(case.clients)
    await asyncio.gather(*(client(number, barrier) for number in range(case.clients)))
    latencies.sort()
    return Figures(
        len(latencies) / seconds,
        statistics.median(latencies) * 1000,
        latencies[int(len(latencies) * 0.99)] * 1000,
    )


def medians(rounds: list[Figures]) -> Figures:
    return Figures(*(statistics.median(column) for column in zip(*rounds, strict=True)))


async def main(seconds: float, rounds: int, endpoints: str, port: int) -> None:
    nodes = endpoints.split(",")

    def to_lockd(number: int, lock: str) -> contextlib.AbstractAsyncContextManager[Cycle]:
        return lockd_cycle(",".join(nodes[number % 3 :] + nodes[: number % 3]), lock)

    def to_valkey(_: int, lock: str) -> contextlib.AbstractAsyncContextManager[Cycle]:
        return redis_cycle(port, lock)

    print("| case | lockd x3 cycles/s | p50 / p99 ms | Valkey x1 cycles/s | p50 / p99 ms | ratio |")
    print("|---|---|---|---|---|---|")
    for case in CASES:
        ours: list[Figures] = []
        theirs: list[Figures] = []
        for _ in range(rounds):
            ours.append(await measure(case, seconds, to_lockd))
            theirs.append(await measure(case, seconds, to_valkey))
        us, them = medians(ours), medians(theirs)
        print(
            f"| {case.title} | {us.cycles_per_second:,.0f} | {us.p50_ms:.2f} / {us.p99_ms:.2f} "
            f"| {them.cycles_per_second:,.0f} | {them.p50_ms:.2f} / {them.p99_ms:.2f} "
            f"| {us.cycles_per_second / them.cycles_per_second:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3, help="of each case and peer")
    given = parser.parse_args()
    print(machine.describe())
    print(f"peer: Valkey {peers.valkey_version()}, one node, appendfsync always, redis-py Lock\n")
    with tempfile.TemporaryDirectory(prefix="lockd-bench-") as name:
        directory = Path(name)
        with running_cluster(directory) as cluster, peers.running_valkey(directory) as valkey_port:
            uvloop.run(main(given.seconds, given.rounds, cluster.endpoints, valkey_port))
