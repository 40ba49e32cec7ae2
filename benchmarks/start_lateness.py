"""How late the scheduler starts a job after its nominal fire time.

    python -m benchmarks.start_lateness [--fires 20]

One process on SQLite, one job every second. Lateness is the database's time in the job's first
line less the fire time: planning, the claim, the committed start and the hand-over to a thread.
"""

import argparse
import asyncio
import statistics
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import machine
from lockd_scheduler import Cron, Run


async def measure(fires: int, database: str) -> list[float]:
    """Milliseconds of lateness of so many fires."""
    cron = Cron("lateness")
    late: list[float] = []
    enough = asyncio.Event()

    @cron.every("1s", name="tick", overlap="allow")
    async def tick(run: Run) -> None:
        late.append((datetime.now(UTC) - run.fire_at).total_seconds() * 1000)
        if len(late) >= fires:
            enough.set()

    async with cron.running(db=database):
        await enough.wait()
    return late


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--fires", type=int, default=20)
    given = parser.parse_args()
    print(machine.describe())
    with tempfile.TemporaryDirectory(prefix="lockd-bench-") as name:
        lateness = asyncio.run(measure(given.fires, f"sqlite:///{Path(name) / 'ledger.db'}"))
    lateness.sort()
    print(f"{len(lateness)} fires: p50 {statistics.median(lateness):.0f} ms, worst {lateness[-1]:.0f} ms")
