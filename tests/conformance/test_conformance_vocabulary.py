"""The whole vocabulary of the scripts, at random: nothing stumbles, nobody contradicts another.

What etcd would print is not known here. What must hold whatever is played: every command is one that the
player knows, the invariants of the core after each message, and one committed entry at an index (§5.4.3).
"""

import random
from collections.abc import Callable, Mapping

import pytest

from lockd.ids import LogIndex, NodeId
from lockd.raft.node import Role
from tests.conformance.cluster import Cluster
from tests.conformance.datadriven import parse
from tests.conformance.member import MESSAGE_TYPES, NEVER_ON_THE_WAY

SCRIPTS = 600
DIRECTIVES = 60
OPTIONS = (
    "inflight=3",
    "async-storage-writes=true",
    "prevote=true",
    "checkquorum=true",
    "max-committed-size-per-ready=5",
    "read-only=lease-based",
    "step-down-on-removal=true",
)
"""Not disable-conf-change-validation: what nobody may propose ends the core, as it ends etcd's."""
TYPES = sorted({*MESSAGE_TYPES, *NEVER_ON_THE_WAY})


class Author:
    """Writes one script, directive by directive, for a cluster of one to four nodes."""

    def __init__(self, seed: int, cluster: Cluster) -> None:
        self._random = random.Random(seed)
        self._cluster = cluster
        self._size = self._random.randint(1, 4)
        self._verbs: Mapping[str, Callable[[], str]] = {
            "campaign": lambda: f"campaign {self._any()}",
            "compact": self._compact,
            "deliver-msgs": self._deliver,
            "forget-leader": lambda: f"forget-leader {self._any()}",
            "process-append-thread": lambda: f"process-append-thread {self._any()} {self._any()}",
            "process-apply-thread": lambda: f"process-apply-thread {self._any()}",
            "process-ready": lambda: f"process-ready {self._any()} {self._any()}",
            "propose": lambda: f"propose {self._any()} p{self._random.randrange(100)}",
            "propose-conf-change": self._change,
            "raft-log": lambda: f"raft-log {self._any()}\nraft-state\nstatus {self._any()}",
            "report-unreachable": lambda: f"report-unreachable {self._any()} {self._any()}",
            "send-snapshot": self._send_snapshot,
            "set-randomized-election-timeout": lambda: (
                f"set-randomized-election-timeout {self._any()} timeout={self._random.randint(3, 6)}"
            ),
            "stabilize": lambda: "stabilize",
            "stabilize some": lambda: f"stabilize {self._any()} {self._any()} log-level=none",
            "tick-election": lambda: f"tick-election {self._any()}",
            "tick-heartbeat": lambda: f"tick-heartbeat {self._any()}",
            "transfer-leadership": lambda: f"transfer-leadership from={self._any()} to={self._any()}",
        }

    def opening(self) -> str:
        voters = self._random.randint(1, self._size)
        ids = [str(node) for node in range(1, self._size + 1)]
        chosen = [option for option in OPTIONS if self._random.random() < 0.4]
        groups = f"voters=({','.join(ids[:voters])}) learners=({','.join(ids[voters:])})"
        return f"add-nodes {self._size} {groups} index=10 {' '.join(chosen)}"

    def next(self) -> str:
        return self._verbs[self._random.choice(sorted(self._verbs))]()

    def _any(self) -> int:
        return self._random.randint(1, self._size)

    def _compact(self) -> str:
        """Only what is applied and within a snapshot: more is not to be had from the core."""
        node = self._any()
        raft = self._cluster.members[NodeId(node)].raft
        newest = raft.snapshot.index if raft.snapshot else raft.log.base
        if newest == raft.log.base:
            return "_breakpoint"
        return f"compact {node} {self._random.randint(raft.log.base + 1, newest)}"

    def _send_snapshot(self) -> str:
        """Only a leader's: another's would show two leaders in a term, which ends a node."""
        leaders = [n for n, member in self._cluster.members.items() if member.raft.role is Role.LEADER]
        receiver = self._any()
        if not leaders or leaders == [receiver]:
            return "_breakpoint"
        return f"send-snapshot {next(leader for leader in leaders if leader != receiver)} {receiver}"

    def _deliver(self) -> str:
        of_type = f" type={self._random.choice(TYPES)}" if self._random.random() < 0.4 else ""
        receiver = self._any()
        dropped = self._any()
        dropping = f" drop=({dropped})" if dropped != receiver and self._random.random() < 0.3 else ""
        return f"deliver-msgs {receiver}{dropping}{of_type}"

    def _change(self) -> str:
        way = self._random.choice(
            ["v1=true", "transition=auto", "transition=implicit", "transition=explicit", ""]
        )
        count = self._random.choice([1, 1, 2, 3] if way == "v1=true" else [0, 1, 1, 2, 3])
        changes = [
            f"{self._random.choice('vlru')}{self._random.randint(1, self._size)}" for _ in range(count)
        ]
        return f"propose-conf-change {self._any()} {way}\n{' '.join(changes)}"


@pytest.mark.parametrize("part", range(3))
def test_5_4_3_any_script_of_the_vocabulary_plays_and_all_commit_the_same(part: int) -> None:
    changes = elections = 0
    for seed in range(part, SCRIPTS, 3):
        cluster = Cluster()
        author = Author(seed, cluster)
        script = [author.opening()]
        _play(cluster, script)
        for _ in range(DIRECTIVES):
            script.append(author.next())
            _play(cluster, script)
            _check_agreement(cluster, script)
        members = cluster.members.values()
        elections += max(member.raft.term for member in members)
        changes += sum("Conf" in text for member in members for _, text in member.committed.values())
    assert elections > SCRIPTS / 3, "scripts in which nobody leads prove nothing"
    assert changes > SCRIPTS / 3, "nor do those without a committed change"


def _play(cluster: Cluster, script: list[str]) -> None:
    try:
        for directive in parse(f"{script[-1]}\n----\nok\n"):
            cluster.play(directive)
    except Exception as error:
        raise AssertionError("this script does not play:\n" + "\n".join(script)) from error


def _check_agreement(cluster: Cluster, script: list[str]) -> None:
    known: dict[LogIndex, object] = {}
    for member in cluster.members.values():
        for index, entry in member.committed.items():
            if known.setdefault(index, entry) != entry:
                told = f"§5.4.3: node {member.node_id} committed {entry} at {index}, another {known[index]}"
                raise AssertionError(told + ":\n" + "\n".join(script))
