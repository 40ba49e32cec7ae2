"""One Raft node as a function of its inputs: what it takes in, and the Ready it gives out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import assert_never, final

from lockd.ids import NO_NODE, LogIndex, NodeId, Term
from lockd.raft import election, reads, replication
from lockd.raft.entries import Configuration, EntryKind, EntryRun, HardState, SnapshotMeta
from lockd.raft.log import Log
from lockd.raft.membership import ConfigurationChange, apply_change
from lockd.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
)
from lockd.raft.progress import Progress
from lockd.raft.state import (
    ChangeRefused,
    NotLeader,
    RaftConfig,
    RaftState,
    ReadReady,
    Role,
    TooMuchUncommitted,
)

__all__ = [
    "ChangeRefused",
    "NotLeader",
    "RaftConfig",
    "RaftNode",
    "ReadReady",
    "Ready",
    "Role",
    "TooMuchUncommitted",
]


@dataclass(frozen=True, slots=True)
class Ready:
    """What has come about since the last Ready; `lockd.raft` says what the caller owes for it."""

    hard_state: HardState | None
    """To disk, when term or vote changed, when commit has moved and something else goes there, or when a
    membership change is committed."""
    snapshot: SnapshotMeta | None
    """To install before all else in this Ready: state and log begin with it from now on (§7)."""
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

    `log` is what the disk holds, and `configuration` what is in force at `applied`: the index of the
    snapshot from which the state machine was loaded, by default where the log begins.
    `draw(low, high)` gives a whole number between both inclusive; it is the only randomness.
    Raises CorruptData when log and hard state contradict each other.
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
        applied: LogIndex | None = None,
    ) -> None:
        self._state = RaftState(
            config, configuration=configuration, hard_state=hard_state, log=log, draw=draw, applied=applied
        )
        self._emitted = self._state.hard_state

    @property
    def node_id(self) -> NodeId:
        return self._state.node_id

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
    def has_change_pending(self) -> bool:
        """A membership change is in the log and not in force yet, or a joint mode is to be left."""
        state = self._state
        return state.pending_change_index > state.last_applied or state.configuration.is_joint

    @property
    def snapshot(self) -> SnapshotMeta | None:
        """The newest snapshot: what a follower is sent that lags behind the log."""
        return self._state.snapshot

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

    def propose_change(self, change: ConfigurationChange) -> tuple[Term, LogIndex]:
        """As `propose`, for a membership change (SAFETY C7).

        Raises ChangeRefused as well, which says what has to come before.
        """
        return replication.propose_change(self._state, change)

    def apply_change(self, change: ConfigurationChange) -> Configuration:
        """Let a change be in force, and return the configuration; before `applied` of its entry.

        Raises MembershipError for one that can't follow the present configuration: the log holds
        what no leader proposes. Then stop.
        """
        state = self._state
        state.change_configuration(apply_change(state.configuration, change))
        replication.configuration_applied(state)
        reads.confirm_rounds(state)
        return state.configuration

    def found(self, configuration: Configuration) -> None:
        """Tell an empty node of no configuration what was in force before the first entry."""
        state = self._state
        assert not state.configuration.members
        assert state.log.last_index == 0
        state.change_configuration(configuration)

    def campaign(self) -> None:
        """Stand for election now, if this node may (not as a learner, nor before a change is applied)."""
        election.campaign(self._state)

    def transfer_leadership(self, to: NodeId) -> None:
        """Hand leadership over to a voter, as soon as it has the whole log (thesis §3.10).

        Until it leads nothing can be proposed; after an election timeout this node goes on. Raises NotLeader.
        """
        replication.transfer_leadership(self._state, to)

    def forget_leader(self) -> None:
        """As a follower, follow nobody: candidates are listened to at once, as if the leader were silent.

        For an owner who knows better than the clock that the leader is gone; lockd's driver does not. It
        can be called at any time, and the tests of etcd's scripts and of chaos do.
        """
        if self._state.role is Role.FOLLOWER:
            self._state.leader_id = NO_NODE

    def report_unreachable(self, peer: NodeId) -> None:
        """An append to the peer was certainly lost: probe it, and fill no window with what can't arrive."""
        replication.report_unreachable(self._state, peer)

    def report_snapshot_failed(self, peer: NodeId) -> None:
        """An InstallSnapshot handed out for the peer will not arrive; it may be sent another."""
        replication.report_snapshot_failed(self._state, peer)

    def snapshot_taken(self, snapshot: SnapshotMeta) -> None:
        """From now on this is what a follower is sent that lags behind the log's beginning."""
        assert snapshot.index <= self._state.last_applied
        self._state.snapshot = snapshot

    def compact(self, index: LogIndex) -> None:
        """Forget the log up to `index`, which is applied and within the newest snapshot (§7)."""
        state = self._state
        assert state.snapshot is not None
        assert index <= state.snapshot.index
        state.log.compact(index)

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
        assert index <= state.handed_to_apply
        state.last_applied = max(state.last_applied, index)  # a snapshot may have overtaken it
        replication.leave_joint_if_due(state)

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
        snapshot, state.snapshot_to_install = state.snapshot_to_install, None
        append = state.log.take_unwritten()
        hard_state = self._hard_state_to_write(writes=bool(append.terms) or snapshot is not None)
        ready = Ready(
            hard_state=hard_state,
            snapshot=snapshot,
            append=append,
            send_now=tuple(state.send_now),
            send_after_durable=tuple(state.send_after_durable),
            committed=state.take_committed(),
            reads=tuple(state.reads_confirmed),
            reads_dropped=state.reads_dropped,
            must_sync=hard_state is not None or snapshot is not None or len(append) > 0,
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
            or state.snapshot_to_install is not None
            or state.has_committed
            or self._vote_changed
        )

    @property
    def _vote_changed(self) -> bool:
        state, emitted = self._state, self._emitted
        return state.term != emitted.term or state.voted_for != emitted.voted_for

    def _hard_state_to_write(self, *, writes: bool) -> HardState | None:
        commit_moved = self._state.commit_index != self._emitted.commit
        # A commit index alone is not worth a sync of its own. With entries it has to go: a node that
        # has a membership change in its log knows all earlier ones to be committed (SAFETY C7).
        if not self._vote_changed and not (writes and commit_moved) and not self._change_committed:
            return None
        self._emitted = self._state.hard_state
        return self._emitted

    @property
    def _change_committed(self) -> bool:
        """A membership change is committed that the disk does not know to be.

        After a loss of power on all nodes they would ask the voters of before, of whom one may have been
        lost for good: a minority of the voters of now, and perhaps half of those (SAFETY P3).
        """
        first = LogIndex(max(self._emitted.commit, self._state.log.base) + 1)
        return self._state.log.has_kind(EntryKind.CONFIGURATION, first, self._state.commit_index)

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
            case AppendEntries() | Heartbeat() | InstallSnapshot():
                if self._state.config.pre_vote or self._state.config.check_quorum:
                    replication.refuse_old_leader(self._state, message.sender)
            case RequestVote():
                election.refuse_old_candidate(self._state, message)
            case RequestVoteReply() | AppendEntriesReply() | HeartbeatReply() | TimeoutNow():
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
            case AppendEntries() | Heartbeat() | InstallSnapshot():
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
            case InstallSnapshot():
                replication.handle_snapshot(state, message)
            case TimeoutNow():
                election.handle_timeout_now(state)
            case RequestVote():
                election.handle_request_vote(state, message)
            case RequestVoteReply():
                if election.handle_vote_reply(state, message):
                    replication.lead(state)
            case _:
                assert_never(message)
