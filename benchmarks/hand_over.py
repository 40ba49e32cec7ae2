"""What it costs to hand a lock over, with few and with many who wait for it (SAFETY G5).

    python -m benchmarks.hand_over [--hand-overs 300] [--rounds 3]

Three durable nodes. All waiters stand in one queue, over a few RESP3 connections, as NOTIFY waits. The
holder releases, and the clock runs from its command to the push that tells the next one; that one
waits again once it is told, so the queue keeps its length. Every push is counted: a release that woke
more than one, or none, ends the benchmark with an error. Rounds alternate between the lengths.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import hiredis
import uvloop

from benchmarks import machine
from tests.processes import running_cluster

LENGTHS = (10, 10_000)
WAITS_PER_CONNECTION = 500
AT_ONCE = 200
LOCK = "handed-over"


class Waiters:
    """One connection with one session, and the waits that it has open."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        pushes: "asyncio.Queue[tuple[Waiters, dict[str, Any]]]",
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._parser = hiredis.Reader(notEnoughData=...)
        self._replies: asyncio.Queue[Any] = asyncio.Queue()
        self._session = ""
        self._requests = 0
        self._pushes = pushes
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def connect(
        cls, endpoint: str, pushes: "asyncio.Queue[tuple[Waiters, dict[str, Any]]]"
    ) -> "Waiters":
        host, _, port = endpoint.rpartition(":")
        waiters = cls(*await asyncio.open_connection(host, int(port)), pushes)
        await waiters.ask("HELLO", "3")
        opened = await waiters.ask("SESSION.OPEN", "600000")
        waiters._session = opened["session"]
        return waiters

    async def _read(self) -> None:
        while data := await self._reader.read(65_536):
            self._parser.feed(data)
            while (reply := self._parser.gets()) is not ...:
                if isinstance(reply, hiredis.PushNotification):
                    kind, message = reply
                    if kind == b"lock.granted":  # at the end of a round the other waits are told so
                        self._pushes.put_nowait((self, _text(message)))
                else:
                    self._replies.put_nowait(_text(reply))

    async def ask(self, *words: str) -> Any:
        self._writer.write(_pack(words))
        reply = await self._replies.get()
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def acquire(self) -> dict[str, Any]:
        """Hold the lock, or wait for it as an owner of its own."""
        self._requests += 1
        number = str(self._requests)
        scope = ("SESSION", self._session, "OWNER", number, "REQUEST", number)
        reply: dict[str, Any] = await self.ask("LOCK.ACQUIRE", LOCK, *scope, "WAIT", "FOREVER", "NOTIFY")
        return reply

    async def release(self, token: int) -> None:
        assert await self.ask("LOCK.RELEASE", LOCK, str(token), "SESSION", self._session) == 1

    async def close(self) -> None:
        await self.ask("SESSION.CLOSE", self._session)
        self._writer.close()
        self._reading.cancel()


def _pack(words: tuple[str, ...]) -> bytes:
    command: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub has a tuple of one
    return command


def _text(reply: Any) -> Any:
    if isinstance(reply, dict):
        return {key.decode(): _text(value) for key, value in reply.items()}
    return reply.decode() if isinstance(reply, bytes) else reply


async def measure(endpoints: list[str], length: int, hand_overs: int) -> list[float]:
    """How long each hand-over took, in ms, with so many in the queue."""
    pushes: asyncio.Queue[tuple[Waiters, dict[str, Any]]] = asyncio.Queue()
    connections = [
        await Waiters.connect(endpoints[number % len(endpoints)], pushes)
        for number in range(max(2, length // WAITS_PER_CONNECTION))
    ]
    holder = connections[0]
    held = await holder.acquire()
    assert held["status"] == "granted", held
    for begin in range(0, length, AT_ONCE):
        numbers = range(begin, min(begin + AT_ONCE, length))
        await asyncio.gather(*(connections[number % len(connections)].acquire() for number in numbers))
    took: list[float] = []
    for _ in range(hand_overs):
        began = time.perf_counter()
        _, (next_holder, granted) = await asyncio.gather(holder.release(held["token"]), pushes.get())
        took.append((time.perf_counter() - began) * 1000)
        assert granted["token"] > held["token"], "P2: tokens grow"
        waits = await holder.acquire()
        assert waits["status"] == "queued", waits
        assert pushes.empty(), "G5: one release woke more than one"
        holder, held = next_holder, granted
    for connection in connections:
        await connection.close()
    return took


async def main(endpoints: list[str], hand_overs: int, rounds: int) -> None:
    took: dict[int, list[float]] = {length: [] for length in LENGTHS}
    for _ in range(rounds):
        for length in LENGTHS:
            took[length] += await measure(endpoints, length, hand_overs)
    print("| waiters | hand-overs | p50 ms | p99 ms |")
    print("|---|---|---|---|")
    for length in LENGTHS:
        ordered = sorted(took[length])
        p99 = ordered[int(len(ordered) * 0.99)]
        print(f"| {length:,} | {len(ordered)} | {statistics.median(ordered):.2f} | {p99:.2f} |")
    few, many = (statistics.median(took[length]) for length in LENGTHS)
    print(f"\nratio of the medians, {LENGTHS[1]:,} to {LENGTHS[0]}: {many / few:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--hand-overs", type=int, default=300, help="of each round")
    parser.add_argument("--rounds", type=int, default=3, help="of each length")
    given = parser.parse_args()
    print(machine.describe(), "\n")
    with (
        tempfile.TemporaryDirectory(prefix="lockd-bench-") as name,
        running_cluster(Path(name)) as cluster,
    ):
        uvloop.run(main(cluster.endpoints.split(","), given.hand_overs, given.rounds))
