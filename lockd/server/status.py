"""A node's view of its cluster, put together from what it has applied and what it hears."""

from collections.abc import Callable, Mapping

from lockd.disk.record import Identity
from lockd.ids import InstanceId, LogIndex, NodeId
from lockd.locks.machine import LockMachine
from lockd.raft.node import RaftNode
from lockd.server.port import ClusterStatus, MemberStatus


def describe(
    *,
    raft: RaftNode,
    machine: LockMachine,
    identity: Identity,
    addresses: Mapping[NodeId, str],
    version: str,
    is_alive: Callable[[NodeId], bool],
) -> ClusterStatus:
    """The status now. `addresses` stand in for members that have not registered yet."""

    def member(node: NodeId) -> MemberStatus:
        known, progress = machine.nodes.get(node), raft.progress.get(node)
        added = machine.members.get(node)
        is_voter = node in (*raft.configuration.voters, *raft.configuration.voters_outgoing)
        return MemberStatus(
            node=node,
            peer_address=known.peer_address if known else addresses.get(node, ""),
            client_address=known.client_address if known else "",
            http_address=known.http_address if known else "",
            instance=InstanceId(known.instance if known else ""),
            voter=is_voter,
            wants_vote=not is_voter and added is not None and added.wants_vote,
            match_index=progress.match_index if progress else LogIndex(0),
            alive=is_alive(node),
        )

    stats = machine.stats
    return ClusterStatus(
        cluster=identity.cluster,
        incarnation=identity.incarnation,
        node=identity.node_id,
        role=raft.role.name.lower(),
        leader=raft.leader_id,
        term=raft.term,
        commit_index=raft.commit_index,
        last_applied=raft.last_applied,
        log_last=raft.log.last_index,
        members=tuple(member(node) for node in raft.configuration.members),
        removed=tuple(NodeId(node) for node in sorted(machine.removed)),
        locks=stats.locks,
        waiters=stats.waiters,
        sessions=stats.sessions,
        revision=machine.revision,
        version=version,
        feature_level=machine.feature_level,
    )
