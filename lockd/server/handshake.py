"""Who may speak with whom: the rules by which two nodes take each other on (SAFETY C8).

`objection` is the acceptor's side, `check_answer` the caller's. Both are decided from what the
two say of themselves and from what this node knows of the cluster, and do no IO.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from lockd.ids import NODE_ID_MAX, ClusterId, Incarnation, InstanceId, NodeId
from lockd.server import frames

ANYONE = NodeId(0)
"""The receiver of a Hello that asks to join."""


@dataclass(frozen=True, slots=True)
class Introduction:
    """What this node says of itself in each handshake."""

    node_id: NodeId
    instance: InstanceId
    boot: int
    founders: tuple[int, ...]
    """Empty for a node that joined, or is about to."""
    version: str
    address: str
    """Where the others dial it."""


class Local(Protocol):
    """The node behind the network, as the connections see it."""

    def identity(self) -> tuple[ClusterId, Incarnation]:
        """The cluster's identity as far as this node knows it; empty texts before that."""

    def objection_to(self, node: NodeId) -> str | None:
        """None for a member by this node's configuration; else why it is none."""

    def is_removed(self, node: NodeId) -> bool:
        """Whether the id was a member's and is none's any more, for ever."""

    def addresses(self) -> Mapping[NodeId, str]:
        """Where the members are dialled."""

    def founders(self) -> tuple[NodeId, ...]:
        """The voters that the cluster began with."""

    def bound_instance(self, node: NodeId) -> InstanceId | None:
        """The instance that is a peer's: durably bound, or else registered in the log; None if unknown."""

    def has_room_for(self, node: NodeId) -> bool:
        """Whether one more id may be bound: those that are no member's are limited (C10)."""

    def bind_peer(self, node: NodeId, instance: InstanceId, on_bound: Callable[[], None]) -> None:
        """Bind durably, then call back; at once when that is durable already."""

    def on_frame(self, sender: NodeId, frame: frames.Frame) -> None:
        """A frame of a peer that is bound. Raises FrameError on nonsense."""

    def on_excluded(self, reason: str) -> None:
        """A peer that this node believes knows that it may not take part, now or ever as it is."""


def objection(
    me: Introduction, local: Local, header: frames.Header, hello: frames.Hello, *, heard_of: ClusterId
) -> frames.Refusal | None:
    """Why a caller is not welcome; None when it is.

    `heard_of` is the cluster that a peer of the same founding has told this node of, while it has
    none of its own. A caller of this very cluster need not be a member by this node's
    configuration: it may be a leader that was added while this node was away.
    """
    own_cluster, incarnation = local.identity()
    cluster = own_cluster or heard_of
    sender = NodeId(hello.sender)
    if hello.receiver not in (me.node_id, ANYONE):
        return frames.Refusal(f"this is node {me.node_id}, not {hello.receiver}")
    if not 0 < sender <= NODE_ID_MAX:
        return frames.Refusal(f"{sender} is no id of a node: 1 to {NODE_ID_MAX}")
    if sender == me.node_id:
        return frames.Refusal(f"node {sender} is here already")
    if header.cluster and cluster and header.cluster != cluster:
        return frames.Refusal(f"this node is of cluster {cluster}, not {header.cluster}")
    if hello.incarnation and incarnation and hello.incarnation != incarnation:
        return frames.Refusal(
            f"this cluster's incarnation is {incarnation}, not {hello.incarnation!r}: it was restored"
        )
    if local.is_removed(sender):
        return frames.Refusal(_removed(sender), frames.Verdict.REMOVED)
    bound = local.bound_instance(sender)
    if bound is not None and bound != header.instance:
        return frames.Refusal(
            f"node {sender} is instance {bound}, not {header.instance}", frames.Verdict.REPLACED
        )
    if header.cluster and cluster:
        if local.has_room_for(sender):
            return None
        return frames.Refusal(f"node {sender} is not a member, and too many that are none have come before")
    if cluster:
        return _objection_to_empty(me, local, hello)
    return _objection_to_founder(me, local, hello)


def _objection_to_empty(me: Introduction, local: Local, hello: frames.Hello) -> frames.Refusal | None:
    """Against a caller without a cluster, of a node that has one: a late founder is no stranger."""
    sender = NodeId(hello.sender)
    stranger = local.objection_to(sender)
    if hello.founders and (stranger is not None or (me.founders and hello.founders != me.founders)):
        return frames.Refusal(
            f"an empty node can't found a cluster with nodes {_listed(hello.founders)}: node {me.node_id} "
            f"has one already, founded with {_listed(me.founders) or 'others'}",
            frames.Verdict.CLUSTER_EXISTS,
        )
    return None if stranger is None else frames.Refusal(stranger)


def _objection_to_founder(me: Introduction, local: Local, hello: frames.Hello) -> frames.Refusal | None:
    """Against a caller, of a node that knows no cluster: they have to be of one founding."""
    if hello.receiver == ANYONE:
        return frames.Refusal(f"node {me.node_id} knows no cluster yet")
    if not me.founders or hello.founders != me.founders:
        return frames.Refusal(
            f"founded with nodes {_listed(hello.founders) or 'of a cluster that was there'}; "
            f"this node was founded with {_listed(me.founders) or 'none'}"
        )
    stranger = local.objection_to(NodeId(hello.sender))
    return None if stranger is None else frames.Refusal(stranger)


def check_answer(
    me: Introduction, local: Local, peer: NodeId, header: frames.Header, answer: frames.Frame
) -> frames.Welcome:
    """The Welcome of the peer that was dialled. Raises FrameError when it is none, or of another.

    A peer's word that this node is out is believed, and told to `local`, when the peer is of this
    node's cluster and is the instance that is bound to its id, as far as this node knows either.
    """
    cluster, _ = local.identity()
    bound = local.bound_instance(peer)
    if isinstance(answer, frames.Refusal):
        reason = " ".join(answer.reason.split())  # it goes into the log: one line
        is_known = bound in (None, header.instance) and cluster in ("", header.cluster)
        if answer.verdict is not frames.Verdict.NOT_NOW and is_known:
            local.on_excluded(exclusion(me, answer.verdict, f"node {peer}", reason))
        raise frames.FrameError(f"refused: {reason}")
    if not isinstance(answer, frames.Welcome) or answer.sender != peer:
        raise frames.FrameError(f"whoever answered is not node {peer}")
    if bound not in (None, header.instance):
        raise frames.FrameError(f"instance {header.instance} answered; node {peer} is {bound}")
    if header.cluster and cluster and header.cluster != cluster:
        raise frames.FrameError(f"a node of cluster {header.cluster} answered; this one is of {cluster}")
    return answer


def exclusion(me: Introduction, verdict: frames.Verdict, who: str, reason: str) -> str:
    """What an operator has to know and do when `who` has excluded this node."""
    match verdict:
        case frames.Verdict.REMOVED:
            return f"{who} refuses this node: {reason}"
        case frames.Verdict.REPLACED:
            what = (
                f"{who} refuses this data directory: {reason}. The cluster knows this node under its old "
                "disk. Restore that disk, or replace the node:"
            )
        case _:
            what = f"{who} refuses this empty node: {reason}. To replace a member whose disk is lost:"
    return (
        f"{what} run `lockd members remove {me.node_id}`, then "
        f"`lockd members add NEW_ID {me.address}` with an id that the cluster has never had, and start this "
        f"node on an empty directory with --node-id NEW_ID --join HOST:PORT (of a member)"
    )


def _removed(node: NodeId) -> str:
    return (
        f"node {node} was removed from this cluster; ids are never used again: start with a new --node-id "
        "on an empty directory"
    )


def _listed(nodes: tuple[int, ...]) -> str:
    return ",".join(map(str, nodes))
