"""One run: a cluster, clients, a seeded schedule of faults; then no faults, and everybody must get on.

The seed fixes which faults come in which order, what they hit where that is drawn, how long they last at
most, and what the clients want. It does not fix who leads or who is first: real processes are not replayed,
only treated in the same way again.
"""

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.nemesis.checks import check
from tests.nemesis.clients import Locker, running_lockers
from tests.nemesis.cluster import NemesisCluster, nemesis_cluster
from tests.nemesis.faults import Fault, possible_faults
from tests.nemesis.history import History
from tests.processes import PATIENCE_S, eventually

CLIENTS = 5
BOTH_AT_ONCE = 0.25
"""How often a second fault comes while the first lasts."""
RECOVERS_BETWEEN = 0.7
"""How often the next fault waits until locks are granted again."""
LASTS_S_MIN, LASTS_S_MAX = 0.3, 2.5
SNAPSHOTS_OFTEN = ("--snapshot-log-bytes=65536",)
"""So that logs are cut short, and whoever comes back after a while needs a snapshot."""
SNAPSHOT_LINE = "INFO     snapshot of entry "
ENOUGH_GRANTS = 300
"""A fault that does not hinder the clients has lasted long enough after so many."""


@dataclass
class Report:
    """What a run met."""

    seed: int
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    timeline: list[str] = field(default_factory=list)
    leaders: set[tuple[int, int]] = field(default_factory=set)
    """(term, node) of every leader that was seen."""
    terms: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    operations: int = 0
    grants: int = 0
    log_index: int = 0
    snapshots: int = 0
    """That nodes have put on their disks, taken or received."""
    replaced: int = 0
    """Nodes whose disk was lost, with another in their place."""

    @property
    def leader_changes(self) -> int:
        return max(0, len(self.leaders) - 1)

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.seconds:.0f} s, {self.faults.total()} faults of {len(self.faults)} "
            f"kinds, {self.leader_changes} leader changes seen in {self.terms} terms, {self.grants} grants, "
            f"{self.operations} operations checked, {self.snapshots} snapshots, "
            f"{self.replaced} nodes replaced, "
            f"a log of {self.log_index} entries on every node"
        )


def run(
    directory: Path,
    *,
    seed: int,
    seconds: float,
    faults_min: int = 1,
    tell: Callable[[str], None] = lambda _: None,
) -> Report:
    """Start everything, disturb it for `seconds` and with `faults_min` faults at least, and check.

    Raises AssertionError, with how to repeat it.
    """
    report = Report(seed)
    draw = random.Random(seed)
    history = History()
    start = time.monotonic()

    def going_on() -> bool:
        return time.monotonic() < start + seconds or report.faults.total() < faults_min

    try:
        with nemesis_cluster(directory, flags=SNAPSHOTS_OFTEN) as cluster:
            with running_lockers(cluster.endpoints, history, count=CLIENTS, seed=seed) as lockers:
                _disturb(cluster, history, draw, report, going_on=going_on, tell=tell)
                cluster.recover()
                _await_all_served(lockers)
            _check_equal(cluster, report)
            report.replaced = cluster.replaced
            cluster.check_not_failed()
        check(history)
    except BaseException as error:
        error.add_note("\n".join(report.timeline))
        error.add_note(f"the same faults again: python -m tests.nemesis --seed {seed} --seconds {seconds:g}")
        raise
    report.seconds = time.monotonic() - start
    report.outcomes = history.outcomes()
    report.operations, report.grants = len(history.operations), history.grants
    return report


def _disturb(
    cluster: NemesisCluster,
    history: History,
    draw: random.Random,
    report: Report,
    *,
    going_on: Callable[[], bool],
    tell: Callable[[str], None],
) -> None:
    started = time.monotonic()
    kinds = _shuffled(draw)
    while going_on():
        cluster.check_not_failed()
        _note_leader(cluster, report)
        names = [next(kinds) for _ in range(2 if draw.random() < BOTH_AT_ONCE else 1)]
        lasts_s = draw.uniform(LASTS_S_MIN, LASTS_S_MAX)
        with contextlib.ExitStack() as stack:
            for name, fault in names:
                what = stack.enter_context(fault(cluster, draw))
                report.faults[name] += 1
                report.timeline.append(f"{time.monotonic() - started:6.2f} s  {name}: {what}")
                tell(report.timeline[-1])
            history.await_grants(ENOUGH_GRANTS, at_most_s=lasts_s)
            _note_leader(cluster, report)
        if draw.random() < RECOVERS_BETWEEN:
            assert history.await_grants(1, at_most_s=PATIENCE_S), f"no grant within {PATIENCE_S} s: {names}"


def _shuffled(draw: random.Random) -> Iterator[tuple[str, Fault]]:
    """Every kind once in some order, then again in another: a short run meets them all."""
    possible, _ = possible_faults()
    while True:
        kinds = sorted(possible.items())
        draw.shuffle(kinds)
        yield from kinds


def _note_leader(cluster: NemesisCluster, report: Report) -> None:
    leader = cluster.leader_now()
    if leader is not None and (seen := leader.glimpse()) is not None and seen["role"] == "leader":
        report.leaders.add((int(str(seen["term"])), leader.node_id))


def _await_all_served(lockers: Sequence[Locker]) -> None:
    """Liveness: without faults every client is granted a lock again."""
    before = [locker.grants for locker in lockers]
    eventually(
        lambda: all(
            locker.failure is not None or locker.grants > count
            for locker, count in zip(lockers, before, strict=True)
        ),
        "every client is granted a lock once the faults are over",
    )


def _check_equal(cluster: NemesisCluster, report: Report) -> None:
    """Every node has the whole log, and made the same state of it; the clients have left nothing behind."""

    def all_free() -> bool:
        return not cluster.leader().ask("LOCK.LIST")["locks"]

    eventually(all_free, "all locks are free: their clients are gone")
    report.log_index = cluster.await_caught_up()
    glimpses = [node.glimpse() for node in cluster]
    states = {
        (seen["last_applied"], seen["revision"], seen["locks"]) for seen in glimpses if seen is not None
    }
    assert len(states) == 1, f"nodes that applied the same log differ: {glimpses}"
    report.terms = cluster.term()
    report.snapshots = sum(node.log_text().count(SNAPSHOT_LINE) for node in cluster)
