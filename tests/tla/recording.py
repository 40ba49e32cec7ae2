"""A cluster of the shipped core that writes down what its nodes do as actions of etcd's specification.

Every call into a node (a message, a tick, a proposal, a write that is done) is one step: what it did is
told from the node's state before and after, and from what the node then has ready; the state goes into
the recording with it, so that an action which was told wrongly, or not at all, cannot pass.

What the specification has otherwise, and how the run is held to it:
- it writes a node's state at once and sends after that: all Readys of a node are written together, and
  what they send leaves then; in some runs what the core lets go at once does, as one action more. A crash
  loses what was not written, as there. It has of the disk's log the length alone: a write that cuts off
  what was written before is done at once.
- it knows no pre-vote: that is off. Check-quorum is a node that steps down or loses a message.
- it knows no compaction and no snapshot of a log that has something: none is taken.
- it knows only simple changes of the configuration.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from lockd.ids import NO_NODE, LogIndex, NodeId, Term
from lockd.raft.entries import EntryKind, HardState
from lockd.raft.membership import Change, ChangeKind, ConfigurationChange
from lockd.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
)
from lockd.raft.node import RaftConfig, RaftNode, Ready, Role
from tests.raft.network import Draw, Network
from tests.tla.events import Action, DiskState, Event, Members, NodeState, Recording

_FOUNDING_TERM = Term(1)
_FOUNDING_INDEX = LogIndex(1)
_CHANGES = {
    ChangeKind.ADD_VOTER: Action.ADD_VOTER,
    ChangeKind.ADD_LEARNER: Action.ADD_LEARNER,
    ChangeKind.REMOVE: Action.REMOVE,
}


class BeyondTheSpecification(Exception):
    """A node did right, and the specification has no action for it: the recording ends before that."""


@dataclass(frozen=True, slots=True)
class _Before:
    role: Role
    term: Term
    commit: LogIndex

    @classmethod
    def of(cls, node: RaftNode) -> "_Before":
        return cls(node.role, node.term, node.commit_index)


class RecordedNetwork(Network):
    """As Network, whose own checks are off: TLC is to find what is wrong.

    Starts as etcd's bootstrap leaves a cluster: in term 1, one entry committed everywhere.
    """

    def __init__(
        self, size: int, *, sends_at_once: bool, draw: Draw, config: Callable[[NodeId], RaftConfig]
    ) -> None:
        self.sends_at_once = sends_at_once
        self.events: list[Event] = []
        self.changes: dict[tuple[LogIndex, Term], Members] = {}
        self._recording = False
        self._known: dict[NodeId, NodeState] = {}
        self._step_began = 0
        self._held: dict[NodeId, list[Message]] = {}
        self._own_acks: dict[NodeId, list[AppendEntriesReply | None]] = {}
        self._unseen: Counter[Message] = Counter()
        self._pending_change: dict[NodeId, LogIndex] = {}
        founding = dict.fromkeys(range(1, size + 1), (_FOUNDING_TERM,))
        super().__init__(size, logs=founding, term=_FOUNDING_TERM, draw=draw, config=config)
        self.founders = size
        for node_id in self.ids:
            self.disks[node_id].payloads = [b"0"]
            self.disks[node_id].hard_state = HardState(_FOUNDING_TERM, NO_NODE, _FOUNDING_INDEX)
            self.restart(node_id)
        self._recording = True

    def recording(self, name: str, end: str, *, failed: bool) -> Recording:
        return Recording(
            name,
            self.founders,
            self.sends_at_once,
            tuple(self.ids),
            tuple(self.events),
            dict(self.changes),
            end,
            failed,
        )

    def restart(self, node_id: int) -> RaftNode:
        """Start a node; what it applies again from its disk is part of that."""
        identity = NodeId(node_id)
        self._held[identity], self._own_acks[identity] = [], []
        self._pending_change[identity] = LogIndex(0)
        was_recording, self._recording = self._recording, False
        node = super().restart(node_id)
        self.slow_disks.add(identity)
        self.pump(node_id)
        self._recording = was_recording
        self._emit(Event(Action.RESTART, identity))
        self._end_step(identity)
        return node

    def join(self, node_id: int) -> RaftNode:
        """Start an empty node; to the specification it was there from the beginning."""
        self._recording = False
        node = super().join(node_id)
        self._recording = True
        return node

    def crash(self, node_id: int) -> None:
        """Stop a node; what was not written is gone, and nobody has heard of it."""
        super().crash(node_id)
        self._held[NodeId(node_id)].clear()
        self._own_acks[NodeId(node_id)].clear()

    def hand(self, message: Message) -> None:
        """Hand over a message, or lose it where the way is cut or the receiver is down."""
        if (message.sender, message.receiver) in self.cut or message.receiver not in self.nodes:
            if self._take_from_view(message):
                self._emit(Event(Action.DROP, message.receiver, message))
        else:
            self._step(message)

    def duplicate(self, message: Message) -> None:
        """Let a message under way arrive twice."""
        if self._is_seen(message):
            self._emit(Event(Action.DUPLICATE, message.receiver, message))
        else:
            self._unseen[message] += 1
        self.in_flight.append(message)

    def lose(self, message: Message) -> None:
        self.in_flight.remove(message)
        if self._take_from_view(message):
            self._emit(Event(Action.DROP, message.receiver, message))

    def tick(self, node_id: int, times: int = 1) -> None:
        for _ in range(times):
            node = self.node(node_id)
            before = _Before.of(node)
            node.tick()
            self._tell_consequences(node, before)
            self.pump(node_id)

    def campaign(self, node_id: int) -> None:
        """Have a node stand for election now."""
        node = self.node(node_id)
        before = _Before.of(node)
        node.campaign()
        self._tell_consequences(node, before)
        self.pump(node_id)

    def propose_at(self, node: RaftNode, number: int) -> None:
        """Have a leader propose; raises what it raises."""
        node.propose(EntryKind.COMMANDS, str(number).encode())
        self._emit(Event(Action.CLIENT_REQUEST, node.node_id, value=number))
        self.pump(node.node_id)

    def may_change(self, node: RaftNode) -> bool:
        """The specification never forgets a change that a leader proposed and did not see through."""
        return self._pending_change[node.node_id] == 0

    def change_at(self, node: RaftNode, change: Change) -> None:
        """Have a leader propose a simple change; raises what it raises."""
        assert self.may_change(node)
        learners = self._members(node).learners
        voters = frozenset(node.configuration.voters)
        term, index = node.propose_change(ConfigurationChange((change,)))
        one = frozenset({change.node})
        self.changes[index, term] = {
            ChangeKind.ADD_VOTER: Members(voters | one, learners),
            ChangeKind.ADD_LEARNER: Members(voters, learners | one),
            ChangeKind.REMOVE: Members(voters - one, learners - one),
        }[change.kind]
        self._pending_change[node.node_id] = index
        self._emit(Event(_CHANGES[change.kind], node.node_id, peer=change.node))
        self.pump(node.node_id)

    def transfer(self, node: RaftNode, to: NodeId) -> None:
        """Have a leader hand over; raises what it raises."""
        node.transfer_leadership(to)
        self.pump(node.node_id)

    def pump(self, node_id: int) -> None:
        """Take what a node has ready and keep it until `sync`, but for what may leave at once."""
        identity, node = NodeId(node_id), self.node(node_id)
        while (ready := node.ready()) is not None:
            for message in (*ready.send_now, *ready.send_after_durable):
                self._tell_sent(message)
            for message in ready.send_now:
                self._send_now(message)
            later = (message for message in ready.send_after_durable if message.receiver != identity)
            self._held[identity].extend(later)
            ack = None
            if ready.append.terms and node.role is Role.LEADER:
                ack = AppendEntriesReply(
                    identity, identity, node.term, success=True, match_index=ready.append.last
                )
                self._emit(Event(Action.APPEND_TO_SELF, identity, ack))
            self._own_acks[identity].append(ack)
            self.disks[identity].pending.append(ready)
            self._apply(identity, ready)
        self._end_step(identity)

    def sync(self, node_id: int, writes: int | None = None) -> None:
        """Write all that a node has ready, and send what waited for it."""
        assert writes is None, "the specification writes everything at once"
        identity, node, disk = NodeId(node_id), self.node(node_id), self.disks[NodeId(node_id)]
        if not disk.pending:
            return
        readies = [disk.sync_one() for _ in range(len(disk.pending))]
        acks, self._own_acks[identity] = self._own_acks[identity], []
        written = disk.hard_state
        last = LogIndex(len(disk.terms))
        on_disk = DiskState(written.term, written.voted_for, last, written.commit)
        self._emit(Event(Action.READY, identity, disk=on_disk))
        self._end_step(identity)
        self.in_flight += self._held[identity]
        self._held[identity] = []
        for ready, ack in zip(readies, acks, strict=True):
            if ready.append.terms:
                before = _Before.of(node)
                node.persisted(ready.append.terms[-1], ready.append.last)
                if ack is not None:
                    self._emit(Event(Action.RECEIVE, identity, ack))
                self._tell_consequences(node, before)
                self.pump(node_id)
            for message in ready.send_after_durable:
                if message.receiver == identity:
                    self._step(message)

    def _check(self, identity: NodeId) -> None:
        """Nothing: see the class."""

    def _apply(self, identity: NodeId, ready: Ready) -> None:
        node = self.nodes[identity]
        before = _Before.of(node)
        super()._apply(identity, ready)
        # The specification applies the last of several changes alone.
        if EntryKind.CONFIGURATION in ready.committed.kinds and not node._state.has_unapplied_change:
            self._emit(Event(Action.APPLY_CHANGE, identity))
            if before.role is Role.LEADER and self._pending_change[identity] <= node.last_applied:
                self._pending_change[identity] = LogIndex(0)
        self._tell_consequences(node, before)

    def _step(self, message: Message) -> None:
        node = self.nodes[message.receiver]
        seen = self._take_from_view(message)
        before = _Before.of(node)
        asked = message.sender in node.configuration.members
        persisted = node.log.persisted_index
        node.step(message)
        if isinstance(message, RequestVote | RequestVoteReply) and node.commit_index > before.commit:
            raise BeyondTheSpecification("a node learnt from a vote what is committed")
        if seen:
            self._tell_taken(node, message, asked=asked)
        heard_leader = isinstance(message, AppendEntries | Heartbeat)
        self._tell_consequences(node, before, heard_leader=heard_leader)
        self.pump(message.receiver)
        if node.log.persisted_index < persisted:
            self.sync(message.receiver)

    def _tell_taken(self, node: RaftNode, message: Message, *, asked: bool) -> None:
        """A message that a node did not look at, as far as the specification goes, was lost."""
        reply = None
        taken = asked
        if isinstance(message, RequestVote | AppendEntries | Heartbeat):
            reply = _queued_reply(node, message.sender)
            taken = reply is not None
        withheld = isinstance(message, RequestVote) and _is_withheld(node, message, reply)
        if withheld and reply is not None:
            # It knows who leads this term: etcd's code refuses as well, its specification does not.
            self._unseen[reply] += 1
            taken, reply = False, None
        action = Action.RECEIVE if taken else Action.DROP
        self._emit(Event(action, node.node_id, message, reply))

    def _tell_consequences(self, node: RaftNode, before: _Before, *, heard_leader: bool = False) -> None:
        """What a node did besides taking a message in: to the specification that is an action of its own."""
        identity = node.node_id
        stood = node.role is Role.CANDIDATE and node.term > before.term
        if stood:
            self._emit(Event(Action.TIMEOUT, identity))
        if node.role is Role.LEADER and before.role is not Role.LEADER:
            self._emit(Event(Action.BECOME_LEADER, identity))
            self._emit(Event(Action.CLIENT_REQUEST, identity, value=0))
        elif node.role is Role.LEADER and node.commit_index > before.commit:
            self._emit(Event(Action.ADVANCE_COMMIT, identity))
        left = before.role in {Role.LEADER, Role.CANDIDATE} and node.role is Role.FOLLOWER
        if left and node.term == before.term and not heard_leader:
            self._emit(Event(Action.STEP_DOWN, identity))

    def _send_now(self, message: Message) -> None:
        """Let a message go, unless in this run all wait for the disk."""
        if not self.sends_at_once:
            self._held[message.sender].append(message)
            return
        self.in_flight.append(message)
        if self._is_seen(message):
            self._emit(Event(Action.SEND_NOW, message.sender, message))

    def _tell_sent(self, message: Message) -> None:
        """Replies are told along with what they answer."""
        match message:
            case RequestVote():
                self._emit(Event(Action.REQUEST_VOTE, message.sender, message))
            case RequestVoteReply() if message.sender == message.receiver:
                self._emit(Event(Action.REQUEST_VOTE, message.sender, message))
            case AppendEntries():
                self._emit(Event(Action.APPEND_ENTRIES, message.sender, message))
            case Heartbeat():
                self._emit(Event(Action.HEARTBEAT, message.sender, message))
            case _:
                pass

    def _emit(self, event: Event) -> None:
        if self._recording:
            self.events.append(event)

    def _end_step(self, identity: NodeId) -> None:
        """Put the node's state to the last event of the step, or to one of its own if there was none."""
        state = NodeState.of(self.nodes[identity])
        known = self._known.get(identity, state)
        if self.nodes[identity]._state.has_unapplied_change:
            # Of several committed changes the specification applies the last alone, and has not yet.
            state = replace(state, voters=known.voters, learners=known.learners)
        if self._recording:
            if len(self.events) == self._step_began and state != known:
                self.events.append(Event(Action.NOTHING, identity))
            if len(self.events) > self._step_began and self.events[-1].node == identity:
                self.events[-1] = replace(self.events[-1], state=state)
        self._known[identity] = state
        self._step_began = len(self.events)

    def _is_seen(self, message: Message) -> bool:
        return not isinstance(message, TimeoutNow) and not self._unseen[message]

    def _take_from_view(self, message: Message) -> bool:
        """Tell whether the specification knows of this message, which is under way no more."""
        seen = self._is_seen(message)
        if self._unseen[message]:
            self._unseen[message] -= 1
        return seen

    def _members(self, node: RaftNode) -> Members:
        """What the specification has in force at a node."""
        for number in range(node.last_applied, 0, -1):
            known = self.changes.get((LogIndex(number), node.log.term_at(LogIndex(number))))
            if known is not None:
                return known
        return Members(frozenset(self.ids[: self.founders]), frozenset())


def _queued_reply(node: RaftNode, receiver: NodeId) -> Message | None:
    """What a node is about to answer."""
    outbox = (*node._state.send_now, *node._state.send_after_durable)
    replies = (m for m in outbox if isinstance(m, RequestVoteReply | AppendEntriesReply | HeartbeatReply))
    return next((reply for reply in replies if reply.receiver == receiver), None)


def _is_withheld(node: RaftNode, request: RequestVote, reply: Message | None) -> bool:
    if not isinstance(reply, RequestVoteReply):
        return False
    free = node._state.voted_for in {NO_NODE, request.sender}
    fit = node.log.is_up_to_date(request.last_log_index, request.last_log_term)
    return not reply.granted and reply.term == request.term and free and fit
