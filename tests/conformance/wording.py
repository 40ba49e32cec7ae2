"""etcd's words for what our core calls otherwise."""

import json
from typing import Final

from lockd.ids import NodeId
from lockd.raft.entries import Configuration, EntryKind
from lockd.raft.membership import Change, ChangeKind, ConfigurationChange, Objection, decode_change
from lockd.raft.node import Role
from lockd.raft.progress import Pace

OBJECTIONS: Final = {
    Objection.IS_JOINT: "can't apply simple config change in joint config",
    Objection.ALREADY_JOINT: "config is already joint",
    Objection.NOT_JOINT: "can't leave a non-joint config",
    Objection.NO_VOTERS_BEFORE: "can't make a zero-voter config joint",
    Objection.NO_VOTERS_LEFT: "removed all voters",
    Objection.SEVERAL_VOTERS: "more than one voter changed without entering joint config",
}
ROLES: Final = {
    Role.FOLLOWER: "StateFollower",
    Role.PRE_CANDIDATE: "StatePreCandidate",
    Role.CANDIDATE: "StateCandidate",
    Role.LEADER: "StateLeader",
}
PACES: Final = {
    Pace.PROBE: "StateProbe",
    Pace.REPLICATE: "StateReplicate",
    Pace.SNAPSHOT: "StateSnapshot",
}
_CHANGES: Final = {
    "v": ChangeKind.ADD_VOTER,
    "l": ChangeKind.ADD_LEARNER,
    "r": ChangeKind.REMOVE,
    "u": ChangeKind.UPDATE,
}
_LETTERS: Final = {kind: letter for letter, kind in _CHANGES.items()}


def changes_of(text: str) -> tuple[Change, ...]:
    """Read `v1 l2 r3 u4`. Raises KeyError or ValueError for anything else."""
    return tuple(Change(_CHANGES[word[0]], NodeId(int(word[1:]))) for word in text.split())


def describe_change(change: ConfigurationChange) -> str:
    return " ".join(f"{_LETTERS[single.kind]}{single.node}" for single in change.changes)


def describe_entry(index: int, term: int, kind: EntryKind, payload: bytes) -> str:
    """As `1/12 EntryNormal "text"`. The two versions of etcd's change entries are one to us."""
    if kind is EntryKind.CONFIGURATION:
        return f"{term}/{index} EntryConfChange {describe_change(decode_change(payload))}".rstrip()
    return f"{term}/{index} EntryNormal {json.dumps(payload.decode())}"


def describe_configuration(configuration: Configuration) -> str:
    """As `voters=(1 2)&&(1) learners=(3) learners_next=(1) autoleave`."""
    voters = _group(configuration.voters)
    if configuration.is_joint:
        voters += f"&&{_group(configuration.voters_outgoing)}"
    parts = [f"voters={voters}"]
    if configuration.learners:
        parts.append(f"learners={_group(configuration.learners)}")
    if configuration.learners_next:
        parts.append(f"learners_next={_group(configuration.learners_next)}")
    if configuration.auto_leave:
        parts.append("autoleave")
    return " ".join(parts)


def describe_snapshot_configuration(configuration: Configuration) -> str:
    """As etcd prints the configuration within a snapshot."""
    groups = {
        "Voters": configuration.voters,
        "VotersOutgoing": configuration.voters_outgoing,
        "Learners": configuration.learners,
        "LearnersNext": configuration.learners_next,
    }
    lists = " ".join(f"{name}:[{' '.join(map(str, nodes))}]" for name, nodes in groups.items())
    return f"{lists} AutoLeave:{str(configuration.auto_leave).lower()}"


def _group(nodes: tuple[NodeId, ...]) -> str:
    return f"({' '.join(map(str, nodes))})"
