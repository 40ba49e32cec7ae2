"""What a fence costs on an object store and on local files: fenced writes against plain ones.

    python -m benchmarks.fenced_objects [--seconds 0.3] [--rounds 7]

The store is moto's S3 server on this machine, over loopback, or SeaweedFS with LOCKD_WEED_BIN. A plain
write to a file does what a careful program does: a temporary file, fsync, rename, fsync of the directory;
the files are in a temporary folder of the current directory. Each client is a process with a resource of
its own, and writes objects or files of 1,000 bytes. In every round all kinds run one after the other, in a
random order, so that what else the machine does hits all alike. The ratio is of writes a second, fenced
to plain, in the same round: median, and between them the quartiles.
"""

import argparse
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine
from lockd_storage.filesystem import FileFence
from lockd_storage.s3 import S3Fence
from tests.servers.moto import running_moto, s3_client
from tests.servers.seaweed import running_seaweed
from tests.storage.leases import GivenLease

Write = Callable[[], object]

DATA = b"x" * 1000
MANY = 10
BUCKET = "bench"
LEASE_SECONDS = 3600.0


class Kind(NamedTuple):
    fenced: str
    plain: str


KINDS = [
    Kind("S3: one object", "S3: PUT"),
    Kind("S3: ten objects", "S3: ten PUT"),
    Kind("S3: the body", "S3: PUT"),
    Kind("S3: PUT and conditional PUT", "S3: PUT"),
    Kind("file: one", "file: replaced"),
    Kind("file: ten", "file: ten replaced"),
]
"""Each kind of write with what it is compared with. The conditional one is a bare pair, without a fence."""


def s3_writers(port: int, number: int) -> dict[str, Write]:
    """The kinds of an object store, ready to be called."""
    client = s3_client(port)
    fence = S3Fence(client, BUCKET, prefix=f"{number}/")
    lease = GivenLease(33, seconds=LEASE_SECONDS)
    fence.install(lease)
    etag = client.put_object(Bucket=BUCKET, Key=f"{number}/pointer", Body=DATA)["ETag"]

    def put(count: int) -> None:
        for item in range(count):
            client.put_object(Bucket=BUCKET, Key=f"{number}/plain{item}", Body=DATA)

    def fenced(count: int) -> None:
        with fence.write(lease) as objects:
            for item in range(count):
                objects.put(str(item), DATA)

    def body() -> None:
        with fence.write(lease) as objects:
            objects.body = DATA

    def pair() -> None:
        put(1)
        client.put_object(Bucket=BUCKET, Key=f"{number}/pointer", Body=DATA, IfMatch=etag)

    return {
        "S3: PUT": lambda: put(1),
        "S3: ten PUT": lambda: put(MANY),
        "S3: one object": lambda: fenced(1),
        "S3: ten objects": lambda: fenced(MANY),
        "S3: the body": body,
        "S3: PUT and conditional PUT": pair,
    }


def file_writers(folder: Path, number: int) -> dict[str, Write]:
    """The kinds of a directory, ready to be called."""
    fence = FileFence(folder)
    lease = GivenLease(33, lock=f"client{number}", seconds=LEASE_SECONDS)
    fence.install(lease)

    def replace(count: int) -> None:
        for item in range(count):
            target = folder / f"plain-{number}-{item}"
            temporary = target.with_suffix(".new")
            with temporary.open("wb") as file:
                file.write(DATA)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
            directory = os.open(folder, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)

    def fenced(count: int) -> None:
        with fence.write(lease) as files:
            for item in range(count):
                files.write(f"fenced-{number}-{item}", DATA)

    return {
        "file: replaced": lambda: replace(1),
        "file: ten replaced": lambda: replace(MANY),
        "file: one": lambda: fenced(1),
        "file: ten": lambda: fenced(MANY),
    }


def client_process(port: int, folder: Path, number: int, orders: Connection) -> None:
    """Run what the parent names, for as long as it says; answer writes a second."""
    kinds = s3_writers(port, number) | file_writers(folder, number)
    for write in kinds.values():
        write()
    orders.send("ready")
    while (order := orders.recv()) is not None:
        kind, seconds = order
        write, done, start = kinds[kind], 0, time.perf_counter()
        while (now := time.perf_counter()) - start < seconds:
            write()
            done += 1
        orders.send(done / (now - start))


def measure(port: int, folder: Path, clients: int, *, seconds: float, rounds: int) -> dict[str, list[float]]:
    """For each kind the writes a second of all clients together, by round."""
    context = multiprocessing.get_context("spawn")  # the server's threads are not to be forked
    ends = []
    processes = []
    for number in range(clients):
        ours, theirs = context.Pipe()
        process = context.Process(target=client_process, args=(port, folder, number, theirs))
        process.start()
        ends.append(ours)
        processes.append(process)
    for end in ends:
        end.recv()
    kinds = sorted({name for kind in KINDS for name in kind})
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind in random.sample(kinds, len(kinds)):
            for end in ends:
                end.send((kind, seconds))
            rates[kind].append(sum(end.recv() for end in ends))
    for end, process in zip(ends, processes, strict=True):
        end.send(None)
        process.join()
    return rates


def main(seconds: float, rounds: int) -> None:
    weed = os.environ.get("LOCKD_WEED_BIN")
    print(machine.describe())
    print(f"store: {'moto' if weed is None else 'SeaweedFS'}\n")
    print("| write | clients | fenced/s | plain/s | ratio | quartiles |")
    print("|---|---|---|---|---|---|")
    with (
        tempfile.TemporaryDirectory(
            prefix="lockd-bench-", dir=Path.cwd()
        ) as name,  # a disk, where /tmp is none
        running_moto() if weed is None else running_seaweed(Path(weed)) as server,
    ):
        server.shared_client.create_bucket(Bucket=BUCKET)
        for clients in (1, 4):
            rates = measure(server.port, Path(name), clients, seconds=seconds, rounds=rounds)
            for kind in KINDS:
                pairs = list(zip(rates[kind.fenced], rates[kind.plain], strict=True))
                low, ratio, high = statistics.quantiles([us / them for us, them in pairs], n=4)
                ours, plain = statistics.median(rates[kind.fenced]), statistics.median(rates[kind.plain])
                print(
                    f"| {kind.fenced} | {clients} | {ours:,.0f} | {plain:,.0f}"
                    f" | {ratio:.2f} | {low:.2f} to {high:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each kind in each round")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    main(given.seconds, given.rounds)
