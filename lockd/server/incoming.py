"""What a frame of a peer sets off: to which part of the driver it goes, and where its answer goes.

Whoever sent it has introduced itself and is bound (SAFETY C8). What makes no sense is a FrameError,
which costs the sender its connection (P6).
"""

from lockd.ids import LogIndex, NodeId, SessionId
from lockd.raft.codec import decode_message
from lockd.raft.messages import InstallSnapshot
from lockd.raft.node import RaftNode
from lockd.server import frames
from lockd.server.checkpoints import Checkpoints
from lockd.server.membership import Membership
from lockd.server.proposals import Proposals
from lockd.server.reads import NOT_LEADER, Reads
from lockd.server.renewals import Renewals
from lockd.server.snapshots import Receiving, Sending
from lockd.server.surroundings import Network

_FOR_CLIENTS = (frames.Forward, frames.ReadRequest, frames.KeepaliveRequest, frames.OperatorRequest)
"""What one node asks of the leader on behalf of its clients, whom it has let in (G11)."""


class Incoming:
    """The frames that one node hears."""

    def __init__(
        self,
        *,
        node_id: NodeId,
        raft: RaftNode,
        network: Network,
        proposals: Proposals,
        reads: Reads,
        renewals: Renewals,
        membership: Membership,
        snapshots: tuple[Sending, Receiving, Checkpoints],
    ) -> None:
        self._node_id = node_id
        self._raft = raft
        self._network = network
        self._proposals = proposals
        self._reads = reads
        self._renewals = renewals
        self._membership = membership
        self._sending, self._receiving, self._checkpoints = snapshots

    def take(self, sender: NodeId, frame: frames.Frame) -> None:
        """Do what the frame asks for. Raises FrameError on nonsense."""
        if isinstance(frame, _FOR_CLIENTS) and self._raft.is_leader_ready:
            self._check_member(sender, frame)
        match frame:
            case frames.Raft():
                self._on_raft_message(sender, frame)
            case frames.Forward(commands):
                self._proposals.on_forward(sender, commands)
            case frames.ForwardRefused(origins):
                self._proposals.hold_again(origins)
            case frames.ReadRequest(call):
                self._reads.lead_round(
                    lambda index: self._answer(
                        sender, frames.ReadReply(call, NOT_LEADER if index is None else index)
                    )
                )
            case frames.ReadReply(call, index):
                self._reads.on_read_reply(call, index)
            case frames.KeepaliveRequest(call, user, session):
                self._renewals.lead(
                    user,
                    SessionId(session),
                    lambda outcome: self._answer(sender, frames.KeepaliveReply(call, outcome)),
                )
            case frames.KeepaliveReply(call, outcome):
                self._reads.on_keepalive_reply(call, outcome)
            case frames.OperatorRequest(call, user, wish):
                self._membership.lead(
                    wish,
                    user=user,
                    answer=lambda outcome: self._answer(sender, frames.OperatorReply(call, outcome)),
                )
            case frames.OperatorReply(call, outcome):
                self._membership.on_reply(call, outcome)
            case _:
                self._on_snapshot_frame(sender, frame)

    def _check_member(self, sender: NodeId, frame: frames.Frame) -> None:
        """A node that no configuration here knows may be a leader, and is heard as one. It has no clients
        for whom the leader that knows all members could do anything (P6)."""
        if sender not in self._raft.configuration.members:
            raise frames.FrameError(f"node {sender} is no member, and sent a {frame.KIND.name} for clients")

    def _on_snapshot_frame(self, sender: NodeId, frame: frames.Frame) -> None:
        match frame:
            case frames.SnapshotChunk():
                self._receiving.on_chunk(sender, frame)
            case frames.SnapshotAck():
                self._sending.on_ack(sender, frame)
            case frames.StateHash(index, state_hash):
                self._checkpoints.compare(sender, LogIndex(index), state_hash)
            case _:
                raise frames.FrameError(f"{frame.KIND.name} frame after the handshake")

    def _on_raft_message(self, sender: NodeId, frame: frames.Raft) -> None:
        try:
            message = decode_message(frame.message)
        except ValueError as error:
            raise frames.FrameError(str(error)) from error
        if message.sender != sender or message.receiver != self._node_id:
            raise frames.FrameError(f"node {sender} sent a message of {message.sender} to {message.receiver}")
        if isinstance(message, InstallSnapshot):  # it comes with its file, or not at all (C9)
            raise frames.FrameError(f"node {sender} sent a snapshot without its file")
        self._raft.step(message)

    def _answer(self, node: NodeId, frame: frames.Frame) -> None:
        """Whoever asked has a deadline, and asks again: a loss is covered."""
        self._network.send(node, frame)
