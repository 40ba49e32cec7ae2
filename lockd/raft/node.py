"""One Raft node as a function of its inputs: what it takes in, and the Ready it gives out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import assert_never, final

from lockd.ids import NO_NODE, LogIndex, NodeId, Term
from lockd.raft import election, reads, replication
from lockd.raft.entries import Configuration, EntryKind, EntryRun, HardState
from lockd.raft.log import Log
from lockd.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    RequestVote,
    RequestVoteReply,
)
from lockd.raft.progress import Progress
from lockd.raft.state import NotLeader, RaftConfig, RaftState, ReadReady, Role, TooMuchUncommitted

__all__ = ["NotLeader", "RaftConfig", "RaftNode", "ReadReady", "Ready", "Role", "TooMuchUncommitted"]


@dataclass(frozen=True, slots=True)
class Ready:
    """What has come about since the last Ready; `lockd.raft` says what the caller owes for it."""

    hard_state: HardState | None
    """To disk, when term or vote changed, or when entries go there anyway and commit has moved."""
    append: EntryRun
    """To disk, which first drops whatever it has at or after `append.first`. May be empty."""
    send_now: tuple[Message, ...]
    send_after_durable: tuple[Message, ...]
    """Only when this Ready's and all earlier Readys' writes are on disk, even if this one has none."""
    committed: EntryRun
    """To apply, in order. All of it is on this node's own disk already."""
    reads: tuple[ReadReady, ...]
    reads_dropped: bool
    """Leadership was lost: rounds that were neither answered before nor in `reads` are void."""
    must_sync: bool
    """There is something for the disk."""


@final
class RaftNode:
    """The consensus of one member (SAFETY C1): not thread-safe, one task owns it.

    `log` is what the disk holds. `draw(low, high)` gives a whole number between both inclusive;
    it is the only randomness. Raises CorruptData when log and hard state contradict each other.
    """

    __slots__ = ("_emitted", "_state")

    def __init__(
        self,
        config: RaftConfig,
        *,
        configuration: Configuration,
        hard_state: HardState,
        log: Log,
        draw: Callable[[int, int], int],
    ) -> None:
        self._state = RaftState(
            config, configuration=configuration, hard_state=hard_state, log=log, draw=draw
        )
        self._emitted = self._state.hard_state

    @property
    def role(self) -> Role:
        return self._state.role

    @property
    def term(self) -> Term:
        return self._state.term

    @property
    def leader_id(self) -> NodeId:
        """Who leads the present term as far as this node knows, or NO_NODE."""
        return self._state.leader_id

    @property
    def commit_index(self) -> LogIndex:
        return self._state.commit_index

    @property
    def last_applied(self) -> LogIndex:
        return self._state.last_applied

    @property
    def configuration(self) -> Configuration:
        return self._state.configuration

    @property
    def is_leader_ready(self) -> bool:
        """Leader, and an entry of its own term is committed: reads and renewals may be answered."""
        return self._state.is_leader_ready

    @property
    def progress(self) -> Mapping[NodeId, Progress]:
        """What a leader knows of each member; empty on the others. To look at, not to change."""
        return self._state.progress

    @property
    def log(self) -> Log:
        """The log in memory. To look at, not to change."""
        return self._state.log

    def tick(self) -> None:
        """Let one tick pass."""
        state = self._state
        if state.role is not Role.LEADER:
            election.tick(state)
            return
        election.tick_leader(state)
        if state.role is Role.LEADER:
            replication.tick_leader(state)

    def step(self, message: Message) -> None:
        """Take in a message from a peer, or one of this node's own that is now durable.

        What is late, repeated, addressed to another or from a stranger changes nothing. Raises
        CorruptData when a leader's message proves that committed data was lost; then stop.
        """
        if message.receiver != self._state.node_id or not self._admit(message):
            return
        self._dispatch(message)

    def propose(self, kind: EntryKind, payload: bytes) -> tuple[Term, LogIndex]:
        """Append an entry; return its term and index, which tell in `committed` whether it made it.

        If another term shows up at that index, it did not. Raises NotLeader or
        TooMuchUncommitted; then nothing was appended.
        """
        return replication.propose(self._state, kind, payload)

    def read_index(self) -> int:
        """Join the ReadIndex round that begins after this call; return its sequence.

        A later Ready names it in `reads`, or voids it by `reads_dropped`. Raises NotLeader.
        """
        return reads.join_round(self._state)

    def persisted(self, term: Term, index: LogIndex) -> None:
        """Note that a Ready's `append`, which ended with that entry, is on disk.

        Once for each non-empty append, in their order. Anything else is dropped (SAFETY C2).
        """
        if self._state.log.acknowledge_write(term, index) and self._state.role is Role.LEADER:
            replication.acknowledge_own(self._state)

    def applied(self, index: LogIndex) -> None:
        """Note that the state machine has everything up to `index`, which a Ready handed out."""
        state = self._state
        assert state.last_applied <= index <= state.handed_to_apply
        state.last_applied = index

    def ready(self) -> Ready | None:
        """Return what is new since the last call, or None. Call again until None.

        Work is bounded per call (SAFETY C10), so one Ready may leave committed entries for the next.
        """
        state = self._state
        if state.role is Role.LEADER:
            if reads.begin_round(state):
                state.broadcast_heartbeat()
            replication.offer_appends(state)
        if not self._has_news():
            return None
        append = state.log.take_unwritten()
        hard_state = self._hard_state_to_write(append)
        ready = Ready(
            hard_state=hard_state,
            append=append,
            send_now=tuple(state.send_now),
            send_after_durable=tuple(state.send_after_durable),
            committed=state.take_committed(),
            reads=tuple(state.reads_confirmed),
            reads_dropped=state.reads_dropped,
            must_sync=hard_state is not None or len(append) > 0,
        )
        state.send_now.clear()
        state.send_after_durable.clear()
        state.reads_confirmed.clear()
        state.reads_dropped = False
        return ready

    def check_invariants(self) -> None:
        """Assert what must hold between any two calls; for the simulator, after each of them."""
        self._state.check_invariants()

    def _has_news(self) -> bool:
        state = self._state
        return (
            bool(state.send_now or state.send_after_durable or state.reads_confirmed)
            or state.reads_dropped
            or state.log.has_unwritten
            or state.has_committed
            or self._vote_changed
        )

    @property
    def _vote_changed(self) -> bool:
        state, emitted = self._state, self._emitted
        return state.term != emitted.term or state.voted_for != emitted.voted_for

    def _hard_state_to_write(self, append: EntryRun) -> HardState | None:
        commit_moved = self._state.commit_index != self._emitted.commit
        # A commit index alone is a hint, not worth a sync of its own.
        if not self._vote_changed and not (append.terms and commit_moved):
            return None
        self._emitted = self._state.hard_state
        return self._emitted

    def _admit(self, message: Message) -> bool:
        """Settle the terms (§5.1); return whether the message is to be handled in the present one."""
        state = self._state
        is_reply = isinstance(message, RequestVoteReply | AppendEntriesReply | HeartbeatReply)
        if is_reply and message.sender not in state.configuration.members:
            return False  # Nobody else was asked: a removed node, whose term must not count (SAFETY C5).
        if message.term == state.term:
            return True
        if message.term < state.term:
            self._refuse_old_term(message)
            return False
        return self._admit_higher_term(message)

    def _refuse_old_term(self, message: Message) -> None:
        match message:
            case AppendEntries() | Heartbeat():
                replication.refuse_old_leader(self._state, message.sender)
            case RequestVote():
                election.refuse_old_candidate(self._state, message)
            case RequestVoteReply() | AppendEntriesReply() | HeartbeatReply():
                pass
            case _:
                assert_never(message)

    def _admit_higher_term(self, message: Message) -> bool:
        state = self._state
        match message:
            case RequestVote() if election.ignores_candidate(state, message):
                return False
            case RequestVote(pre_vote=True) | RequestVoteReply(pre_vote=True, granted=True):
                pass  # The term of a possible election, in which nobody is yet.
            case AppendEntries() | Heartbeat():
                state.become_follower(message.term, message.sender)
            case _:
                state.become_follower(message.term, NO_NODE)
        return True

    def _dispatch(self, message: Message) -> None:
        state = self._state
        match message:
            case AppendEntries():
                replication.handle_append(state, message)
            case AppendEntriesReply():
                replication.handle_append_reply(state, message)
            case Heartbeat():
                replication.handle_heartbeat(state, message)
            case HeartbeatReply():
                replication.handle_heartbeat_reply(state, message)
                reads.handle_heartbeat_reply(state, message)
            case RequestVote():
                election.handle_request_vote(state, message)
            case RequestVoteReply():
                if election.handle_vote_reply(state, message):
                    replication.lead(state)
            case _:
                assert_never(message)
