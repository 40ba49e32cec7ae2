"""The nodes of the cluster as its state knows them: who registered, joined and left (SAFETY C7, C8).

Who votes is the configuration of the consensus. What is kept here is what it has no room for: where
a node that was added can be reached, whether it is to become a voter, and which ids are used up.
"""

from lockd.ids import NODE_ID_MAX
from lockd.locks.commands import (
    AddMember,
    Changed,
    Command,
    Outcome,
    PromoteMember,
    Refused,
    RegisterNode,
    RemoveMember,
)
from lockd.locks.limits import check_name
from lockd.locks.listening import orphan_all
from lockd.locks.state import LockState, Member


def objection_to(state: LockState, operation: AddMember | PromoteMember | RemoveMember) -> Refused | None:
    """What is refused when it is applied. The leader asks before it proposes, too."""
    node = operation.node
    if not 0 < node <= NODE_ID_MAX:
        return Refused("ERR", f"{node} is no id of a node: 1 to {NODE_ID_MAX}")
    match operation:
        case AddMember(peer_address=address):
            if not address:
                return Refused("ERR", f"the address of node {node} is empty")
            return _was_removed(state, node) or check_name(
                "peer address", address, state.limits.address_bytes_max
            )
        case PromoteMember():
            return _was_removed(state, node)
        case RemoveMember():
            return None


def _was_removed(state: LockState, node: int) -> Refused | None:
    if node not in state.removed:
        return None
    return Refused("ERR", f"node {node} was removed: ids are not used again")


def register_node(state: LockState, command: Command, operation: RegisterNode) -> Outcome:
    """A node that registers has started: what waits on connections of its earlier boots is orphaned.

    The registering node's boot is that of the command's origin. So no leader has to notice a quick
    restart (G4). An id belongs to the instance that registered first: another is refused, should its
    peers not have done so (C8).
    """
    if command.origin.node != operation.node:
        return Refused("ERR", "a node registers itself only")
    refusal = _was_removed(state, operation.node)  # it was on its way when the node was removed
    if refusal is not None:
        return refusal
    known = state.nodes.get(operation.node)
    if known is not None and known.instance != operation.instance:
        return Refused("ERR", f"node {operation.node} is instance {known.instance}, not {operation.instance}")
    state.nodes[operation.node] = operation
    orphan_all(state, state.waits.of_other_boots(operation.node, command.origin.boot))
    return Changed(1)


def add_member(state: LockState, command: Command, operation: AddMember) -> Outcome:
    del command
    refusal = objection_to(state, operation)
    if refusal is not None:
        return refusal
    state.members[operation.node] = Member(operation.peer_address, operation.wants_vote)
    return Changed(1)


def promote_member(state: LockState, command: Command, operation: PromoteMember) -> Outcome:
    """Changed(0) for a node that was never added: a founder, which votes from the start."""
    del command
    refusal = objection_to(state, operation)
    if refusal is not None:
        return refusal
    member = state.members.get(operation.node)
    if member is None:
        return Changed(0)
    state.members[operation.node] = member._replace(wants_vote=True)
    return Changed(1)


def remove_member(state: LockState, command: Command, operation: RemoveMember) -> Outcome:
    """Leave a tombstone. Its clients lose their node: their waits are orphans, as with OriginGone (G4)."""
    del command
    refusal = objection_to(state, operation)
    if refusal is not None:
        return refusal
    node = operation.node
    if node in state.removed:
        return Changed(0)
    registered = state.nodes.pop(node, None)
    state.members.pop(node, None)
    state.removed[node] = registered.instance if registered else ""
    orphan_all(state, state.waits.of_node(node))
    return Changed(1)
