"""How an empty node finds the cluster that it was started to join (`--join HOST:PORT`).

It asks the node at that address, whoever it is, and learns which cluster this is and where its
members are dialled. Nothing that decides about the cluster rests on this: the node binds no one
by it, and is bound by no one. An operator has to add the node with `lockd members add`; before or
after it is started, either will do.
"""

import asyncio
import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

from lockd.ids import ClusterId, Incarnation, NodeId
from lockd.server import frames
from lockd.server.config import Address, ConfigError
from lockd.server.dialling import introduced
from lockd.server.handshake import ANYONE, Introduction, exclusion

log = logging.getLogger(__name__)

ASK_AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ClusterFound:
    """What a member has said of its cluster, of which the asking node is a member too."""

    cluster: ClusterId
    incarnation: Incarnation
    addresses: Mapping[NodeId, str]
    """Where the members are dialled."""
    founders: tuple[NodeId, ...]
    """The voters that it began with."""


async def find_cluster(
    introduction: Introduction,
    at: Address,
    *,
    tls: ssl.SSLContext | None,
    ask_again_s: float = ASK_AGAIN_SECONDS,
) -> ClusterFound:
    """Ask until the node at `at` says that this one is a member of its cluster.

    Waits while nobody answers and while this node is no member yet, and logs each of these once,
    with what to do. Raises ConfigError when the cluster will never take this node as it is: its id
    was removed, or belongs to another data directory (SAFETY C8).
    """
    reported = ""
    while True:
        try:
            found = await _ask(introduction, at, tls)
        except (OSError, TimeoutError, frames.FrameError) as error:
            reason = f"nobody answers as a node at {at}: {str(error) or type(error).__name__}"
        else:
            if isinstance(found, ClusterFound):
                return found
            reason = (
                f"waiting to be added: {found}. On the cluster run "
                f"`lockd members add {introduction.node_id} {introduction.address}`"
            )
        if reason != reported:
            log.warning("%s", reason)
            reported = reason
        await asyncio.sleep(ask_again_s)


async def _ask(introduction: Introduction, at: Address, tls: ssl.SSLContext | None) -> ClusterFound | str:
    """The cluster, or why not yet. Raises as `introduced` does, and ConfigError."""
    nothing_known = ClusterId(""), Incarnation("")
    async with introduced(introduction, nothing_known, ANYONE, at, tls) as call:
        answer = call.answer
    if isinstance(answer, frames.Refusal):
        reason = " ".join(answer.reason.split())
        if answer.verdict is not frames.Verdict.NOT_NOW:
            raise ConfigError(exclusion(introduction, answer.verdict, f"the node at {at}", reason))
        return reason
    if not isinstance(answer, frames.Welcome) or not call.header.cluster or not answer.founders:
        raise frames.FrameError("its answer is not that of a cluster's node")
    addresses = {NodeId(node): address for node, address in answer.addresses}
    founders = tuple(map(NodeId, answer.founders))
    return ClusterFound(call.header.cluster, Incarnation(answer.incarnation), addresses, founders)
