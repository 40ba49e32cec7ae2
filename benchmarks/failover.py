"""How long a dead active scheduler is missed: three replicas on one PostgreSQL, kill -9, the next one acts.

    python -m benchmarks.failover [--kills 50]

taken   from the kill to the office's row being another's
fired   from the kill to the first run that has succeeded under the new office; a fire is due each second

Once with the office in a 3-node lockd, once with no more than the database; the lease is the default one.
"""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import machine
from tests.processes import eventually
from tests.scheduler.fleet import POSTGRES, Fleet
from tests.scheduler.kills import fleet_of
from tests.servers.postgres import DURABLE, running_postgres


def failovers(fleet: Fleet, kills: int) -> list[tuple[float, float]]:
    """Seconds until the office was taken and until a run had succeeded, for each kill."""
    draw, found = random.Random(1), []
    for _ in range(kills):
        fleet.await_serving()
        token, _ = fleet.office()
        active = fleet.active()
        time.sleep(draw.uniform(0.0, 1.0))
        killed = time.monotonic()
        fleet.kill(active)
        eventually(lambda: fleet.office()[0] > token, "another is in office")  # noqa: B023  called at once
        taken = time.monotonic() - killed
        eventually(fleet.succeeds, "a run has succeeded under it")
        found.append((taken, time.monotonic() - killed))
        fleet.start()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    given = parser.parse_args()
    print(machine.describe())
    print("| office | kills | taken p50 s | p99 s | fired p50 s | p99 s |")
    print("|---|---|---|---|---|---|")
    with running_postgres({**DURABLE, **POSTGRES}) as server:
        for office in ("lockd", "row"):
            with (
                tempfile.TemporaryDirectory(prefix="lockd-failover-") as folder,
                fleet_of(Path(folder), server, office, lease=None) as fleet,
            ):
                found = failovers(fleet, given.kills)
            cells = [f"{statistics.median(one):.2f} | {_p99(one):.2f}" for one in zip(*found, strict=True)]
            print(f"| {office} | {len(found)} | {' | '.join(cells)} |", flush=True)


def _p99(seconds: tuple[float, ...]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99)]


if __name__ == "__main__":
    main()
