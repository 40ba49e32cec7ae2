"""What a fence costs on Redis: fenced writes against plain ones, through redis-py as users call it.

    python -m benchmarks.fenced_redis [--seconds 0.05] [--rounds 41]

One Valkey 9 without persistence, on this machine over loopback. Each client is a process with a
connection of its own, and writes 100-byte values to its own key under one resource. In every round all
kinds run one after the other, in a random order, so that what else the machine does hits all alike. The
ratio is of writes a second, fenced to plain, in the same round: median, and between them the quartiles.
"""

import argparse
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import redis

from benchmarks import machine
from lockd_storage.redis import RedisFence
from tests.servers.valkey import running_valkey
from tests.storage.leases import GivenLease

Write = Callable[[], Any]

VALUE = "x" * 100
BATCH = 10
LEASE_SECONDS = 3600.0
PLAIN = {"SET": "SET", "script": "SET", "10 in one step": "MULTI of 10 SET"}
"""What each fenced kind is compared with."""


def writers(client: "redis.Redis", key: str) -> dict[str, Write]:
    """Each kind of write, ready to be called."""
    fence = RedisFence(client)
    lease = GivenLease(33, seconds=LEASE_SECONDS)
    fenced = fence.of(lease)
    script = fence.script("return redis.call('SET', KEYS[1], ARGV[1])")

    def fenced_batch() -> None:
        with fence.write(lease) as batch:
            for _ in range(BATCH):
                batch.set(key, VALUE)

    def plain_batch() -> None:
        with client.pipeline(transaction=True) as pipeline:
            for _ in range(BATCH):
                pipeline.set(key, VALUE)
            pipeline.execute()

    return {
        "plain SET": lambda: client.set(key, VALUE),
        "fenced SET": lambda: fenced.set(key, VALUE),
        "fenced script": lambda: script(lease, keys=[key], args=[VALUE]),
        "plain MULTI of 10 SET": plain_batch,
        "fenced 10 in one step": fenced_batch,
    }


def client_process(port: int, number: int, orders: Connection) -> None:
    """Run what the parent names, for as long as it says; answer writes a second."""
    with redis.Redis(port=port) as client:
        kinds = writers(client, f"{{orders}}:{number}")
        for write in kinds.values():
            write()
        orders.send("ready")
        while (order := orders.recv()) is not None:
            kind, seconds = order
            write, done, start = kinds[kind], 0, time.perf_counter()
            while (now := time.perf_counter()) - start < seconds:
                for _ in range(10):
                    write()
                done += 10
            orders.send(done / (now - start))


def measure(port: int, clients: int, *, seconds: float, rounds: int) -> dict[str, list[float]]:
    """Writes a second of all clients together, by kind and round."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for number in range(clients):
        ours, theirs = context.Pipe()
        process = context.Process(target=client_process, args=(port, number, theirs))
        process.start()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()
    with redis.Redis(port=port) as client:
        kinds = list(writers(client, "{orders}:names"))
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind in random.sample(kinds, len(kinds)):
            for pipe in pipes:
                pipe.send((kind, seconds))
            rates[kind].append(sum(pipe.recv() for pipe in pipes))
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()
    return rates


def main(seconds: float, rounds: int) -> None:
    print("| clients | fenced | against | plain writes/s | fenced writes/s | ratio (quartiles) |")
    print("|---|---|---|---|---|---|")
    with running_valkey() as server, server.client() as client:
        RedisFence(client).install(GivenLease(33, seconds=LEASE_SECONDS))
        for clients in (1, 4):
            rates = measure(server.port, clients, seconds=seconds, rounds=rounds)
            for fenced, against in PLAIN.items():
                ours, theirs = rates[f"fenced {fenced}"], rates[f"plain {against}"]
                low, middle, high = statistics.quantiles(
                    [us / them for us, them in zip(ours, theirs, strict=True)], n=4
                )
                print(
                    f"| {clients} | {fenced} | {against} | {statistics.median(theirs):,.0f}"
                    f" | {statistics.median(ours):,.0f} | {middle:.2f} ({low:.2f} to {high:.2f}) |",
                    flush=True,
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.05, help="of each kind in a round")
    parser.add_argument("--rounds", type=int, default=41, help="for each number of clients")
    given = parser.parse_args()
    print(machine.describe(), "\n")
    main(given.seconds, given.rounds)
