"""CLUSTER.*: looking at the cluster, its members, who leads, and a copy of its state."""

from collections.abc import Sequence

from lockd.ids import is_hex_id
from lockd.protocol.arguments import options, read_address, read_node, read_number, shown
from lockd.protocol.requests import (
    ClusterAdd,
    ClusterMembers,
    ClusterPromote,
    ClusterRemove,
    ClusterSnapshot,
    ClusterSnapshotPart,
    ClusterStatusRequest,
    ClusterTransfer,
)
from lockd.protocol.verb import Verb

SNAPSHOT_PART_BYTES_MAX = 1024 * 1024

_FORCE = frozenset({b"FORCE"})


def _parse_add(words: Sequence[bytes]) -> ClusterAdd:
    node, address = read_node(words[0]), read_address(words[1])
    found = options(words[2:], valued=frozenset(), flags=frozenset({b"LEARNER"}) | _FORCE)
    return ClusterAdd(node, address, learner=b"LEARNER" in found, force=b"FORCE" in found)


def _node_and_force(words: Sequence[bytes]) -> tuple[int, bool]:
    return read_node(words[0]), b"FORCE" in options(words[1:], valued=frozenset(), flags=_FORCE)


def _parse_snapshot(words: Sequence[bytes]) -> ClusterSnapshot | ClusterSnapshotPart:
    if not words:
        return ClusterSnapshot()
    if len(words) != 3:
        raise ValueError("id, offset and count go together")
    backup = shown(words[0])
    if not is_hex_id(backup, 16):
        raise ValueError(f"id '{backup}' is not 16 lower-case hex digits")
    offset = read_number(words[1], "offset", low=0, high=2**63 - 1)
    return ClusterSnapshotPart(
        backup, offset, read_number(words[2], "count", low=1, high=SNAPSHOT_PART_BYTES_MAX)
    )


CLUSTER_VERBS = (
    Verb(
        "CLUSTER.STATUS",
        "",
        "Nodes, roles and log positions, as this node knows them.",
        lambda _: ClusterStatusRequest(),
        0,
        0,
    ),
    Verb(
        "CLUSTER.MEMBERS",
        "",
        "The members and the ids that were removed, as this node knows them.",
        lambda _: ClusterMembers(),
        0,
        0,
    ),
    Verb(
        "CLUSTER.ADD",
        "id peer_addr [LEARNER] [FORCE]",
        "Add a node as a learner, which becomes a voter once it has caught up.",
        _parse_add,
        2,
        4,
    ),
    Verb(
        "CLUSTER.PROMOTE",
        "id [FORCE]",
        "Make a learner a voter.",
        lambda words: ClusterPromote(*_node_and_force(words)),
        1,
        2,
    ),
    Verb(
        "CLUSTER.REMOVE",
        "id [FORCE]",
        "Remove a node for good: its id is never used again.",
        lambda words: ClusterRemove(*_node_and_force(words)),
        1,
        2,
    ),
    Verb(
        "CLUSTER.TRANSFER",
        "[id]",
        "Hand leadership to a voter, or to the one that is most up to date.",
        lambda words: ClusterTransfer(read_node(words[0]) if words else 0),
        0,
        1,
    ),
    Verb(
        "CLUSTER.SNAPSHOT",
        "[id offset count]",
        "Make a snapshot of the state, or read a part of the one made last on this connection.",
        _parse_snapshot,
        0,
        3,
    ),
)
