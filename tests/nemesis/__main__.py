"""Real processes under faults, for as long as you like; see the package's text."""

import argparse
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.nemesis.faults import possible_faults
from tests.nemesis.run import run

RUN_S_MAX = 30.0
"""A run starts anew after this, with the next seed: its history stays short enough to be checked."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.nemesis", description=__doc__)
    parser.add_argument("--seconds", type=float, default=RUN_S_MAX, help="how long (default 30)")
    parser.add_argument("--seed", type=int, help="the first seed; drawn if not given")
    parser.add_argument("--quiet", action="store_true", help="do not tell each fault")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    for name, reason in possible_faults()[1].items():
        print(f"NOT TRIED: {name}: {reason}")
    met: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    start = time.monotonic()
    while (left := given.seconds - (time.monotonic() - start)) > 1.0:
        with tempfile.TemporaryDirectory(prefix="lockd-nemesis-") as directory:
            seconds = min(RUN_S_MAX, left)
            report = run(Path(directory), seed=seed, seconds=seconds, tell=_silent if given.quiet else _say)
        print(report, flush=True)
        kinds += report.faults
        met += report.outcomes
        met["leader changes"] += report.leader_changes
        met["snapshots"] += report.snapshots
        met["runs"] += 1
        seed += 1
    print(f"faults: {dict(sorted(kinds.items()))}")
    print(f"met in {time.monotonic() - start:.0f} s: {dict(sorted(met.items()))}")


def _say(text: str) -> None:
    print(text, flush=True)


def _silent(_: str) -> None:
    pass


if __name__ == "__main__":
    main()
