"""Replays seeds from the command line, or runs as many as fit; see the package's text."""

import argparse
import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from multiprocessing import Pool
from multiprocessing.pool import Pool as PoolType

from tests.sim.run import Report, simulate

PROCESSES = 2


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--seeds", default="0-19", metavar="FIRST-LAST", help="a range (default 0-19)")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="as many seeds as fit")
    parser.add_argument("--first", type=int, default=1_000, metavar="SEED", help="of a soak (default 1000)")
    given = parser.parse_args()
    if given.soak is not None:
        return _run(itertools.count(given.first), PROCESSES, end=time.monotonic() + given.soak)
    first, last = (given.seed, given.seed) if given.seed is not None else map(int, given.seeds.split("-"))
    return _run(range(first, last + 1), 1)


def _run(seeds: Iterable[int], processes: int, *, end: float = float("inf")) -> int:
    """Print what each seed met, then all of them; 1 when one broke a rule."""
    total: Counter[str] = Counter()
    counted, failures, seconds = 0, 0, 0.0
    start = time.monotonic()
    with Pool(processes) as pool:
        for result in _results(pool, seeds, processes, end):
            print(result, flush=True)
            if isinstance(result, str):
                failures += 1
                continue
            if result.is_worth_counting:
                counted += 1
                seconds += result.seconds
                total += result.met
                total["leader changes"] += result.leader_changes
    took = time.monotonic() - start
    for name, count in sorted(total.items()):
        print(f"{count:10} {name}")
    print(
        f"{counted} seeds counted, {seconds / 3600:.2f} simulated hours, {took:.0f} s: "
        f"{counted / took * 60:.0f} seeds and {seconds / 60 / took:.2f} simulated hours a minute; "
        f"{failures} failed"
    )
    return 1 if failures else 0


def _results(pool: PoolType, seeds: Iterable[int], processes: int, end: float) -> Iterator[Report | str]:
    """In the seeds' order; none is begun after `end`."""
    upcoming = iter(seeds)
    while time.monotonic() < end and (batch := list(itertools.islice(upcoming, 4 * processes))):
        yield from pool.imap(_outcome, batch)


def _outcome(seed: int) -> Report | str:
    """What the seed met, or which rule it broke and how to replay it."""
    try:
        return simulate(seed)
    except AssertionError as error:
        return f"FAILED {error}"


if __name__ == "__main__":
    sys.exit(main())
