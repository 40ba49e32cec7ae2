"""Clients of every kind at once while the leader is killed every few seconds, judged by their own records.

    python -m tests.nemesis.mixed [--clients 50] [--seconds 120] [--kill-every 10]

The kinds: threads and tasks of the Python client, redis-py with RESP2 and with RESP3, `lockd run`, and
scripts of `lockd acquire` and `lockd release`. Each writes down when it asked, when it was told, and how
long it trusted what it got, by CLOCK_BOOTTIME. Then: no token twice, none out of order (P2), and no two
that exclude each other trusted at one moment (P1).
"""

import argparse
import asyncio
import itertools
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lockd.client.lease import MARGIN_SECONDS
from tests.nemesis.kinds import KINDS, Errand, Tasks
from tests.nemesis.trust import Grant, check_exclusion, check_order
from tests.processes import ClusterProcesses, running_cluster

SHARES = {"thread": 14, "task": 16, "redis RESP2": 8, "redis RESP3": 6, "lockd run": 4, "script": 2}
"""How many of fifty clients are of each kind."""
DEAD_S = 3.0
"""How long a killed leader stays away."""


@dataclass
class Report:
    """What a run met. `grants` are by kind."""

    seconds: float
    kills: int
    grants: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        by_kind = ", ".join(f"{kind} {count}" for kind, count in sorted(self.grants.items()))
        by_mode = ", ".join(f"{mode} {count}" for mode, count in sorted(self.modes.items()))
        total = self.grants.total()
        return f"{self.seconds:.0f} s, {self.kills} leaders killed, {total} grants ({by_kind}; {by_mode})"


def run(directory: Path, *, clients: int, kills: int, kill_every: float, seed: int) -> Report:
    """One run. Raises AssertionError with the evidence when a promise was broken."""
    grants: list[Grant] = []
    done = threading.Event()
    with running_cluster(directory) as cluster:
        errand = Errand(cluster.endpoints, grants, done, seed=seed)
        errands = [
            threading.Thread(target=errand.follow, args=(kind, KINDS[kind], name), name=name)
            for name, kind in _named(clients)
            if kind in KINDS
        ]
        tasks = [name for name, kind in _named(clients) if kind not in KINDS]
        errands.append(threading.Thread(target=lambda: asyncio.run(Tasks(errand, tasks).run()), name="tasks"))
        for each in errands:
            each.start()
        began = time.monotonic()
        _kill_leaders(cluster, kills=kills, every=kill_every)
        seconds = time.monotonic() - began
        done.set()
        for each in errands:
            each.join()
    if errand.failures:
        raise errand.failures[0]
    check_order(grants)
    check_exclusion(grants)
    report = Report(seconds, kills)
    report.grants.update(grant.kind for grant in grants)
    report.modes.update(grant.mode for grant in grants)
    return report


def _named(clients: int) -> Iterator[tuple[str, str]]:
    """Names and kinds of so many clients, each kind in its share."""
    whole = [kind for kind, share in SHARES.items() for _ in range(share)]
    random.Random(0).shuffle(whole)
    for number, kind in zip(range(clients), itertools.cycle(whole), strict=False):
        yield f"{kind} {number}", kind


def _kill_leaders(cluster: ClusterProcesses, *, kills: int, every: float) -> None:
    """Kill -9 the leader so often, at these intervals, and start it again a little later."""
    for _ in range(kills):
        _pass(every - DEAD_S)
        leader = cluster.leader()
        leader.kill()
        _pass(DEAD_S)
        leader.start().await_ready()
    _pass(every - DEAD_S)


def _pass(seconds: float) -> None:
    """Let the load go on for so long: that time is what is tested."""
    threading.Event().wait(seconds)


def main(tell: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.nemesis.mixed", description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--kill-every", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    given = parser.parse_args()
    tell(f"{given.clients} clients, seed {given.seed}, margin {MARGIN_SECONDS} s")
    with tempfile.TemporaryDirectory(prefix="lockd-mixed-") as directory:
        report = run(
            Path(directory),
            clients=given.clients,
            kills=max(1, int(given.seconds / given.kill_every)),
            kill_every=given.kill_every,
            seed=given.seed,
        )
    tell(f"{report}\nno token twice, none out of order, no lease trusted by two holders")


if __name__ == "__main__":
    main()
