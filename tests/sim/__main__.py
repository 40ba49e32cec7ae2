"""Replays seeds from the command line; see the package's text."""

import argparse
import time
from collections import Counter

from tests.sim.run import simulate


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--seeds", default="0-19", metavar="FIRST-LAST", help="a range (default 0-19)")
    given = parser.parse_args()
    first, last = (given.seed, given.seed) if given.seed is not None else map(int, given.seeds.split("-"))
    total: Counter[str] = Counter()
    start = time.monotonic()
    for seed in range(first, last + 1):
        report = simulate(seed)
        print(report)
        total += report.met
        total["leader changes"] += report.leader_changes
    print(f"{last - first + 1} seeds in {time.monotonic() - start:.1f} s: {dict(sorted(total.items()))}")


if __name__ == "__main__":
    main()
