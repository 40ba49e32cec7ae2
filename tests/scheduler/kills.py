"""Real deaths of the active process: kill -9, and SIGSTOP past its lease; then the ledger is checked.

python -m tests.scheduler.kills --count 50 --office lockd
python -m tests.scheduler.kills --count 50 --office row
"""

import argparse
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import running_cluster
from tests.scheduler.fleet import (
    LEASE,
    POSTGRES,
    Fleet,
    broken_promises,
    elapsed_since,
    running_fleet,
    summary,
)
from tests.servers.postgres import PostgresServer, running_postgres

REPLICAS = 3


def kill_often(fleet: Fleet, count: int, draw: random.Random, *, tell: bool = False) -> Counter[str]:
    """So many times let the active replica die or sleep until another has taken over; how often which.

    A death is at any moment of its life. The one that died is replaced, and one that slept goes on, a stale
    process with work in its hands. Both kinds come at least once, if there are two.
    """
    kinds: Counter[str] = Counter()
    start = time.monotonic()
    for number in range(count):
        fleet.await_serving()
        token, _ = fleet.office()
        active = fleet.active()
        time.sleep(draw.uniform(0.0, 1.0))  # a fire each second: anywhere between two of them
        kind = ("kill -9", "SIGSTOP")[number % 2]
        kinds[kind] += 1
        if kind == "kill -9":
            fleet.kill(active)
            fleet.start()
        else:
            fleet.freeze(active)
        fleet.await_successor(token)
        if kind == "SIGSTOP":
            time.sleep(draw.choice([0.0, 0.5, 3.0]))  # under and over the time after which work is lost
            active.send_signal(signal.SIGCONT)
        if tell:
            print(f"{elapsed_since(start)}  {number + 1:3d} {kind}: token {fleet.office()[0]}", flush=True)
    return kinds


@contextmanager
def fleet_of(
    folder: Path, server: PostgresServer, office: str, *, copies: int = 2, lease: str | None = LEASE
) -> Iterator[Fleet]:
    """Replicas on a fresh database, their office by a 3-node lockd or by a row."""
    with server.fresh_database() as url:
        if office == "row":
            with running_fleet(folder, url, copies=copies, replicas=REPLICAS, lease=lease) as fleet:
                yield fleet
        else:
            with (
                running_cluster(folder) as cluster,
                running_fleet(
                    folder, url, lockd=cluster.endpoints, copies=copies, replicas=REPLICAS, lease=lease
                ) as fleet,
            ):
                yield fleet


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.scheduler.kills", description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--office", choices=("lockd", "row"), default="lockd")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="lockd-kills-") as folder,
        running_postgres(POSTGRES) as server,
        fleet_of(Path(folder), server, given.office) as fleet,
    ):
        kinds = kill_often(fleet, given.count, random.Random(given.seed), tell=True)
        found = broken_promises(fleet, fleet.settle())
        print(f"{dict(kinds)}; {summary(fleet.engine)}")
        print("\n".join(found) or "every promise held")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
