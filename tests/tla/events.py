"""What a recorded run is: events, each an action of etcd's specification that a node or the network took."""

import enum
from dataclasses import dataclass

from lockd.ids import LogIndex, NodeId, Term
from lockd.raft.messages import Message
from lockd.raft.node import RaftNode, Role


class Action(enum.Enum):
    """The values are the names in etcdraft.tla, but for RECEIVE, SEND_NOW and NOTHING."""

    TIMEOUT = "Timeout"
    REQUEST_VOTE = "RequestVote"
    BECOME_LEADER = "BecomeLeader"
    CLIENT_REQUEST = "ClientRequest"
    APPEND_ENTRIES = "AppendEntries"
    APPEND_TO_SELF = "AppendEntriesToSelf"
    HEARTBEAT = "Heartbeat"
    ADVANCE_COMMIT = "AdvanceCommitIndex"
    READY = "Ready"
    RESTART = "Restart"
    STEP_DOWN = "StepDownToFollower"
    ADD_VOTER = "AddNewServer"
    ADD_LEARNER = "AddLearner"
    REMOVE = "DeleteServer"
    APPLY_CHANGE = "ApplySimpleConfChange"
    DUPLICATE = "DuplicateMessage"
    DROP = "DropMessage"
    RECEIVE = "Receive"
    """A message is taken in and consumed, and `reply` sent, if any."""
    SEND_NOW = "SendNow"
    """A message leaves before anything is on disk."""
    NOTHING = "Nothing"
    """Something that the specification has no word for, and that must change nothing it knows of."""


@dataclass(frozen=True, slots=True)
class NodeState:
    """What the specification knows of a node."""

    term: Term
    vote: NodeId
    commit: LogIndex
    role: Role
    terms: tuple[tuple[Term, LogIndex], ...]
    """The log's terms in order, each with the last index that has it."""
    voters: tuple[NodeId, ...]
    learners: tuple[NodeId, ...]
    match: tuple[tuple[NodeId, LogIndex], ...]
    """A leader's match_index of each member; empty on others."""

    @classmethod
    def of(cls, node: RaftNode) -> "NodeState":
        assert node.log.base == 0, "the specification knows no compaction"
        last_of: dict[Term, LogIndex] = {}
        for number in range(1, node.log.last_index + 1):
            index = LogIndex(number)
            last_of[node.log.term_at(index)] = index
        match = ((peer, progress.match_index) for peer, progress in node.progress.items())
        return cls(
            node.term,
            node._state.voted_for,
            node.commit_index,
            node.role,
            tuple(last_of.items()),
            node.configuration.voters,
            node.configuration.learners,
            tuple(match),
        )


@dataclass(frozen=True, slots=True)
class DiskState:
    """What is on a node's disk once a write is done."""

    term: Term
    vote: NodeId
    last: LogIndex
    commit: LogIndex


@dataclass(frozen=True, slots=True)
class Members:
    """What a change of the configuration leads to, as the specification has it.

    There a learner that is promoted stays among the learners.
    """

    voters: frozenset[NodeId]
    learners: frozenset[NodeId]


@dataclass(frozen=True, slots=True)
class Event:
    """`state` is given with the last event of each call into a node: how it left that node."""

    action: Action
    node: NodeId
    message: Message | None = None
    reply: Message | None = None
    peer: NodeId | None = None
    value: int | None = None
    disk: DiskState | None = None
    state: NodeState | None = None


@dataclass(frozen=True, slots=True)
class Recording:
    """One run. `servers` are all that ever took part; the founders are 1 to `founders`."""

    name: str
    founders: int
    sends_at_once: bool
    """Whether what the core lets go at once did."""
    servers: tuple[NodeId, ...]
    events: tuple[Event, ...]
    changes: dict[tuple[LogIndex, Term], Members]
    """What the entries that change the configuration lead to, by index and term."""
    end: str
    """Why the recording ends here."""
    failed: bool = False
    """It ends because the core, or the cluster around it, found its state to be wrong."""
