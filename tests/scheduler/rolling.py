"""Rolling restarts of three replicas under load: nothing is lost, doubled, or fenced.

python -m tests.scheduler.rolling --restarts 10 --office lockd
"""

import argparse
import tempfile
import time
from pathlib import Path

from sqlalchemy import text

from tests.scheduler.fleet import POSTGRES, Fleet, broken_promises, elapsed_since, summary
from tests.scheduler.kills import fleet_of
from tests.servers.postgres import running_postgres

COPIES = 10


def restart_all(fleet: Fleet, restarts: int, *, tell: bool = False) -> list[int]:
    """So often let every replica in turn leave (SIGTERM) and a new one come; their exit statuses."""
    start = time.monotonic()
    statuses = []
    for number in range(restarts):
        for process in list(fleet.replicas):
            fleet.start()
            fleet.await_serving()
            statuses.append(fleet.leave(process))
            fleet.active()
        if tell:
            print(f"{elapsed_since(start)}  restart {number + 1}: token {fleet.office()[0]}", flush=True)
    return statuses


def disturbed(fleet: Fleet) -> list[str]:
    """Attempts that did not succeed at the first try, as sentences: a deploy loses no work (R1)."""
    query = text(
        "SELECT id, run_id, number, state, late_state, error FROM lockd_attempt"
        " WHERE state NOT IN ('succeeded', 'claimed') OR late_state IS NOT NULL OR number > 1 ORDER BY id"
    )
    with fleet.engine.connect() as connection:
        return [f"a deploy disturbed {tuple(row)}" for row in connection.execute(query)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.scheduler.rolling", description=__doc__)
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--office", choices=("lockd", "row"), default="lockd")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="lockd-rolling-") as folder,
        running_postgres(POSTGRES) as server,
        fleet_of(Path(folder), server, given.office, copies=COPIES) as fleet,
    ):
        statuses = restart_all(fleet, given.restarts, tell=True)
        found = [*broken_promises(fleet, fleet.settle()), *disturbed(fleet)]
        if set(statuses) != {0}:
            found.append(f"exit statuses {statuses}")
        print(f"{len(statuses)} replicas left; {summary(fleet.engine)}")
        print("\n".join(found) or "every promise held")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
