"""Tries every mutation; see the package's text. Exits 0 when each is caught."""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from tests.mutations.catalogue import MUTATIONS, NOT_MUTATED
from tests.mutations.mutation import ROOT, Mutation
from tests.mutations.trial import Copy, CopyError, Verdict

WORKERS = 2


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("--only", metavar="TEXT", help="mutations whose name or rule has this in it")
    only = parser.parse_args().only
    chosen = [m for m in MUTATIONS if not only or only in m.name or only == m.rule]
    if stale := [text for m in chosen if (text := m.staleness(ROOT))]:
        print("\n".join(stale))
        return 2
    if not chosen:
        print(f"no mutation has {only!r} in its name")
        return 2
    start = time.monotonic()
    caught = 0
    with tempfile.TemporaryDirectory(prefix="lockd-mutations-") as folder:
        try:
            for verdict in _try_all(Path(folder), chosen):
                print(_line(verdict), flush=True)
                caught += verdict.caught_by is not None
        except CopyError as error:
            print(error)
            return 2
    for rule, reason in sorted(NOT_MUTATED.items()):
        print(f"{rule:4} is not mutated: {reason}")
    print(f"in {time.monotonic() - start:.0f} s")
    print(f"{len(chosen)} mutations, {caught} caught")
    return 0 if caught == len(chosen) else 1


def _try_all(folder: Path, mutations: Sequence[Mutation]) -> Iterator[Verdict]:
    """Control first, then every mutation, in the order of the catalogue, each worker in its own copy."""
    first = Copy.of_tree(folder / "0")
    tests = sorted({test for mutation in mutations for test in mutation.tests})
    first.control(tests)
    print(
        f"control: the tests that are to catch them pass in a clean copy ({len(tests)} selections)",
        flush=True,
    )
    copies: SimpleQueue[Copy] = SimpleQueue()
    copies.put(first)
    for number in range(1, WORKERS):
        copies.put(first.another(folder / str(number)))

    def try_out(mutation: Mutation) -> Verdict:
        copy = copies.get()
        try:
            return copy.try_out(mutation)
        finally:
            copies.put(copy)

    with ThreadPoolExecutor(WORKERS) as workers:
        yield from workers.map(try_out, mutations)


def _line(verdict: Verdict) -> str:
    mutation = verdict.mutation
    what = f"{mutation.rule:4} {mutation.name}"
    if verdict.caught_by is None:
        return f"{what}\n     SURVIVED: {verdict.said}"
    return f"{what}\n     caught by {verdict.caught_by} ({verdict.seconds:.1f} s)"


if __name__ == "__main__":
    sys.exit(main())
