"""Plays seeds from the command line: a range of them, or as many as fit; see the package's text."""

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

from tests.storage.hunt.arenas import ARENAS
from tests.storage.hunt.conductor import Conductor


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.storage.hunt", description=__doc__)
    parser.add_argument("--adapter", choices=sorted(ARENAS), help="one adapter (default: all in turn)")
    parser.add_argument("--seeds", default="0-999", metavar="FIRST[-LAST]", help="default 0-999")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of each adapter, at most")
    given = parser.parse_args()
    # Refusals and dead connections are what this is about: a line for each would hide the verdict.
    for name in ("lockd_storage", "sqlalchemy", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    first, _, last = given.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    failed = [
        _hunt(adapter, seeds, given.seconds) for adapter in ([given.adapter] if given.adapter else ARENAS)
    ]
    return 1 if any(failed) else 0


def _hunt(adapter: str, seeds: range, seconds: float) -> int:
    """How many seeds broke the rule."""
    failed = played = 0
    with tempfile.TemporaryDirectory(prefix="lockd-hunt-") as folder, ARENAS[adapter](Path(folder)) as arena:
        conductor = Conductor(arena)
        start = time.monotonic()
        for seed in seeds:
            if time.monotonic() - start > seconds:
                break
            found = conductor.play(seed)
            played += 1
            if found:
                failed += 1
                print(f"FAILED: python -m tests.storage.hunt --adapter {adapter} --seeds {seed}")
                print("\n".join(f"    {words}" for words in found), flush=True)
        took = time.monotonic() - start
        conductor.close()
    print(f"{adapter}: {played} games, {played / took:.0f} a second; {failed} broke the rule", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
