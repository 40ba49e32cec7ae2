"""Plays one of etcd's interaction scripts against the shipped core, and compares after each directive.

Compared, for every node of which the script has told it, until it tells otherwise:
the hard state (term, vote, commit index) and the soft state (leader, role) of the last Ready; role and
term at this moment; the entries given to the disk and those given out as committed, each by
index, term and content, and where both end; the configuration in force, whole; an installed
snapshot's index, term and configuration. And when the script asks or tells: `raft-state`;
`raft-log`, which is what the disk holds; `status` (state, match, learner); what a new node starts from;
proposals dropped and changes refused; who was answered by a stranger.

Not compared, on purpose:
- Messages: their number, order, text, and MustSync. Our core sends what is new once a Ready, etcd at
  each step; ours puts several proposals in one append; heartbeats, appends and acks that change
  nothing may be more or fewer.
- Of `status`: next, paused, inactive, inflight and pendingSnap, which pin how a leader paces its messages.
  And that there was nothing to deliver, or no work for a thread, which follows from that number too.
  They are asked all the same, and it is counted and told how many agree.
- Votes cast and counted as the log tells them: they show in the hard state and in who leads.
- `lastterm` of a new node: ours boots with term 0 there (see tests/conformance/member.py), and the
  term of a snapshot that is no newer than that.
- Which of its two entry types etcd stores a change in.
- `max-committed-size-per-ready` counts payload bytes in ours, whole entries in etcd.

Where our core is stricter, the player does what etcd would do past it, each place with its reason: a
change before the leader's first entry is committed, requests for votes that wait for the disk
(tests/conformance/cluster.py, member.py). Proposals of followers are forwarded by the player.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lockd.ids import LogIndex, NodeId, Term
from lockd.raft.entries import HardState, SnapshotMeta
from tests.conformance.cluster import IDLE, Cluster
from tests.conformance.datadriven import parse
from tests.conformance.expectation import Expectation, Fact
from tests.conformance.member import Member
from tests.conformance.wording import (
    PACES,
    ROLES,
    describe_configuration,
    describe_snapshot_configuration,
)


@dataclass(frozen=True, slots=True)
class Played:
    """A whole script went well: so many directives, so many facts asked in all."""

    directives: int
    facts: int
    details: int
    """How many of the things that need not agree were asked, and"""
    agreeing: int


class Difference(AssertionError):
    """The core did not do what the script tells, or the script could not be played."""


def play(text: str, name: str) -> Played:
    """Play a script to its end. Raises Difference at the first directive where something differs."""
    cluster, expectation = Cluster(), Expectation()
    directives = facts = details = agreeing = 0
    for directive in parse(text):
        where = f"{name}:{directive.line}: {directive.command.name} {' '.join(directive.command.plain)}"
        expectation.read(directive)
        if expectation.not_understood:
            raise Difference(f"{where}: not understood: {expectation.not_understood}")
        try:
            cluster.play(directive)
        except Exception as error:
            raise Difference(f"{where}: {type(error).__name__}: {error}") from error
        wrong = [
            f"  {' '.join(map(str, fact))}: expected {expected!r}, is {actual!r}"
            for fact, expected in expectation.facts.items()
            if (actual := ask(cluster, fact)) != expected
        ]
        if wrong:
            raise Difference("\n".join([f"{where}", *wrong]))
        directives += 1
        facts += len(expectation.facts)
        details += len(expectation.details)
        agreeing += sum(ask(cluster, fact) == text for fact, text in expectation.details.items())
    return Played(directives, facts, details, agreeing)


def ask(cluster: Cluster, fact: Fact) -> str:
    """Return what the cluster says of a fact that an Expectation knows; "nothing" if it knows none."""
    match fact:
        case ("errors",):
            return "; ".join(sorted({*cluster.errors} - IDLE))
        case ("idle",):
            return "; ".join(sorted({*cluster.errors} & IDLE))
        case ("answers from strangers to",):
            return " ".join(map(str, sorted(cluster.strangers))) or "nobody"
        case ("changes refused by",):
            return " ".join(map(str, sorted(cluster.refused_changes))) or "nobody"
        case (str(kind), int(node)):
            return _of_member(cluster.members[NodeId(node)], kind)
        case ("progress", int(leader), int(peer)):
            return _progress(cluster.members[NodeId(leader)], NodeId(peer))
        case ("flow", int(leader), int(peer)):
            return _flow(cluster.members[NodeId(leader)], NodeId(peer))
        case ("entry", int(node), int(index)):
            return _entry(cluster.members[NodeId(node)].handed, index)
        case ("committed", int(node), int(index)):
            return _entry(cluster.members[NodeId(node)].committed, index)
    raise AssertionError(f"nothing can be asked about {fact}")


def _of_member(member: Member, kind: str) -> str:
    raft = member.raft
    match kind:
        case "hard state":
            return _hard_state(member.hard_state)
        case "soft state":
            return str(member.soft)
        case "role":
            return f"{ROLES[raft.role]} Term:{raft.term}"
        case "configuration":
            return describe_configuration(raft.configuration)
        case "snapshot":
            return _snapshot(member.installed, member.bootstrap_index)
        case "last of entry":
            return str(max(member.handed, default=0))
        case "last of committed":
            return str(max(member.committed, default=0))
        case "raft-log":
            return _disk(member)
        case "raft-state":
            voters = {*raft.configuration.voters, *raft.configuration.voters_outgoing}
            voting = "Voter" if member.node_id in voters else "Non-Voter"
            return f"{ROLES[raft.role]} ({voting}) Term:{raft.term} Lead:{raft.leader_id}"
        case "new":
            log = raft.log
            return (
                f"term: {raft.term}, commit: {raft.commit_index}, "
                f"applied: {raft.last_applied}, lastindex: {log.last_index}"
            )
    raise AssertionError(f"nothing can be asked about {kind!r}")


def _hard_state(hard_state: HardState) -> str:
    vote = f" Vote:{hard_state.voted_for}" if hard_state.voted_for else ""
    return f"Term:{hard_state.term}{vote} Commit:{hard_state.commit}"


def _snapshot(snapshot: SnapshotMeta | None, bootstrap_index: LogIndex) -> str:
    if snapshot is None:
        return "nothing"
    term = max(snapshot.term, Term(1)) if snapshot.index <= bootstrap_index else snapshot.term
    configuration = describe_snapshot_configuration(snapshot.configuration)
    return f"Index:{snapshot.index} Term:{term} {configuration}"


def _disk(member: Member) -> str:
    disk = member.disk
    if not disk.entries:
        return f"log is empty: first index={disk.base + 1}, last index={disk.base}"
    return "\n".join(text for _, text in disk.entries.values())


def _progress(leader: Member, peer: NodeId) -> str:
    progress = leader.raft.progress.get(peer)
    if progress is None:
        return "nothing"
    learner = " learner" if peer in leader.raft.configuration.learners else ""
    return f"{PACES[progress.pace]} match={progress.match_index}{learner}"


def _flow(leader: Member, peer: NodeId) -> str:
    progress = leader.raft.progress.get(peer)
    if progress is None:
        return "nothing"
    inflight = progress.inflight_appends
    notes = {
        "paused": progress.paused,
        f"pendingSnap={progress.pending_snapshot}": progress.pending_snapshot > 0,
        "inactive": not progress.active,
        f"inflight={inflight}{'[full]' * progress.is_window_full}": inflight > 0,
    }
    return " ".join([f"next={progress.next_index}", *(note for note, is_so in notes.items() if is_so)])


def _entry(log: Mapping[LogIndex, tuple[Term, str]], index: int) -> str:
    return log[LogIndex(index)][1] if index in log else "nothing"
