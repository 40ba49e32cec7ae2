"""The state of one node (Figure 2), its four roles, and the ways from one to another.

    FOLLOWER ── timeout ──▶ PRE_CANDIDATE ── quorum would vote ──▶ CANDIDATE ── quorum ──▶ LEADER
        ▲                        │                                    │                      │
        └── a leader is heard, a higher term is seen, the election is lost, no quorum is heard ──┘

The rules of election, replication and reads are functions over this state in the files of those
names. Messages collect in the two lists of SAFETY C2, which `lockd.raft.node` hands out.
"""

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never, final

from lockd.errors import CorruptData
from lockd.ids import NO_NODE, LogIndex, NodeId, Term
from lockd.raft.entries import Configuration, EntryKind, EntryRun, HardState, SnapshotMeta
from lockd.raft.log import Log
from lockd.raft.messages import (
    AppendEntriesReply,
    Heartbeat,
    Message,
    RequestVote,
    RequestVoteReply,
)
from lockd.raft.progress import Progress


class Role(enum.Enum):
    FOLLOWER = enum.auto()
    PRE_CANDIDATE = enum.auto()
    CANDIDATE = enum.auto()
    LEADER = enum.auto()


class NotLeader(Exception):
    """Only a leader can do this; nothing was done. `leader_id` is who may lead, or NO_NODE."""

    def __init__(self, leader_id: NodeId) -> None:
        super().__init__(f"not the leader; node {leader_id} may be" if leader_id else "no leader is known")
        self.leader_id = leader_id


class TooMuchUncommitted(Exception):
    """The log's uncommitted tail is at its limit (SAFETY C10); nothing was appended."""


class ChangeRefused(Exception):
    """A membership change can't begin now (SAFETY C7); nothing was appended."""


@dataclass(frozen=True, slots=True)
class RaftConfig:
    """One node's settings. Ticks are the caller's unit of time; sizes count payload bytes.

    A follower stands for election after `election_ticks` to `2 * election_ticks - 1` ticks without a leader.
    """

    node_id: NodeId
    election_ticks: int = 10
    heartbeat_ticks: int = 1
    inflight_appends_max: int = 64
    inflight_bytes_max: int = 8 * 1024 * 1024
    append_bytes_max: int = 1024 * 1024
    uncommitted_bytes_max: int = 16 * 1024 * 1024
    apply_bytes_max: int = 4 * 1024 * 1024
    read_rounds_max: int = 64
    pre_vote: bool = True
    """Off for the traces of others' specifications, which know no pre-vote; a server leaves it on."""
    check_quorum: bool = True
    """As `pre_vote`."""
    step_down_on_removal: bool = True
    """Off, a removed leader goes on until another is elected, as etcd's scripts have it."""

    def __post_init__(self) -> None:
        if self.node_id == NO_NODE:
            raise ValueError("node id 0 stands for no node")
        if not 1 <= self.heartbeat_ticks < self.election_ticks:
            raise ValueError("heartbeats must be more frequent than elections")
        limits = (
            self.inflight_appends_max,
            self.inflight_bytes_max,
            self.append_bytes_max,
            self.uncommitted_bytes_max,
            self.apply_bytes_max,
            self.read_rounds_max,
        )
        if min(limits) < 1:
            raise ValueError("every limit must be at least 1")


@dataclass(frozen=True, slots=True)
class ReadReady:
    """A ReadIndex round that a quorum has confirmed: serve it once `index` is applied here."""

    sequence: int
    index: LogIndex


@final
class RaftState:
    """Everything that one node knows. Only RaftNode makes and changes it (SAFETY C1)."""

    def __init__(
        self,
        config: RaftConfig,
        *,
        configuration: Configuration,
        hard_state: HardState,
        log: Log,
        draw: Callable[[int, int], int],
        applied: LogIndex | None,
    ) -> None:
        applied = log.base if applied is None else applied
        assert log.base <= applied <= log.last_index
        if hard_state.commit > log.last_index:
            raise CorruptData(
                f"entry {hard_state.commit} was committed and the log ends at {log.last_index}: "
                "this disk has lost entries. Replace this node; do not restart it with this data directory."
            )
        if log.last_term > hard_state.term:
            raise CorruptData(
                f"the log ends in term {log.last_term} and the term on disk is {hard_state.term}: "
                "this disk has lost writes. Replace this node; do not restart it with this data directory."
            )
        self.config = config
        self.node_id = config.node_id
        self.configuration = configuration
        self.log = log
        self._draw = draw

        self.term = hard_state.term
        self.voted_for = hard_state.voted_for
        self.commit_index = max(hard_state.commit, applied)
        self.handed_to_apply = applied
        self.last_applied = applied
        self.snapshot: SnapshotMeta | None = None
        self.snapshot_to_install: SnapshotMeta | None = None

        self.role = Role.FOLLOWER
        self.leader_id = NO_NODE
        self.votes: dict[NodeId, bool] = {}
        self.election_elapsed = 0
        self.election_timeout = 0
        self.heartbeat_elapsed = 0

        self.progress: dict[NodeId, Progress] = {}
        self.first_own_index = LogIndex(0)
        self.uncommitted_bytes = 0
        self.pending_change_index = LogIndex(0)
        self.transferee = NO_NODE

        self.read_sequence = 0
        self.read_is_joinable = False
        self.read_rounds: deque[ReadReady] = deque()
        self.reads_confirmed: list[ReadReady] = []
        self.reads_dropped = False

        self.send_now: list[Message] = []
        self.send_after_durable: list[Message] = []
        self._restart_election_timer()

    @property
    def hard_state(self) -> HardState:
        return HardState(self.term, self.voted_for, self.commit_index)

    @property
    def is_voter(self) -> bool:
        return self.node_id in self.configuration.voters or self.node_id in self.configuration.voters_outgoing

    @property
    def is_leader_ready(self) -> bool:
        """Leader, and an entry of its own term is committed: it knows all that is (§5.4.2, §8)."""
        return self.role is Role.LEADER and self.commit_index >= self.first_own_index

    @property
    def hears_leader(self) -> bool:
        """A leader was heard within the shortest election timeout, so none is missing (§6)."""
        return self.leader_id != NO_NODE and self.election_elapsed < self.config.election_ticks

    @property
    def has_unapplied_change(self) -> bool:
        """A membership change is committed and not in force here yet: no time for an election (SAFETY C7)."""
        first = LogIndex(self.last_applied + 1)
        return self.log.has_kind(EntryKind.CONFIGURATION, first, self.commit_index)

    def send(self, message: Message) -> None:
        """Queue a message in the list that its promise asks for (SAFETY C2, and D1).

        Votes and append replies promise what must be on disk. A request for a vote speaks for
        this node's term, own vote and log tail, so it waits as well. That departs from etcd, which
        lets it go at once and holds back the own vote alone: a candidate could then crash, come
        back with its term and unsynced tail forgotten, stand again in the same term with a
        shorter log, and count a late vote that was cast for the longer one. The wait costs one
        sync per election. A pre-vote promises nothing; only its request goes at once, so that one
        rule holds for all replies.
        """
        match message:
            case RequestVote():
                outbox = self.send_now if message.pre_vote else self.send_after_durable
            case RequestVoteReply() | AppendEntriesReply():
                outbox = self.send_after_durable
            case _:
                outbox = self.send_now
        outbox.append(message)

    def become_follower(self, term: Term, leader_id: NodeId) -> None:
        """Follow `leader_id` (NO_NODE: nobody yet) in `term`; in the same term the vote stays (SAFETY C4)."""
        assert term >= self.term
        if term > self.term:
            self.term = term
            self.voted_for = NO_NODE
        self._leave_leadership()
        self.role = Role.FOLLOWER
        self.leader_id = leader_id
        self.votes.clear()
        self._restart_election_timer()

    def become_pre_candidate(self) -> None:
        """Ask whether an election could be won, in the present term and with the vote as it is."""
        assert self.role is not Role.LEADER
        self.role = Role.PRE_CANDIDATE
        self.leader_id = NO_NODE
        self.votes.clear()
        self._restart_election_timer()

    def become_candidate(self) -> None:
        """Stand for election in a new term with the own vote (§5.2)."""
        assert self.role is not Role.LEADER
        self.term = Term(self.term + 1)
        self.voted_for = self.node_id
        self.role = Role.CANDIDATE
        self.leader_id = NO_NODE
        self.votes.clear()
        self._restart_election_timer()

    def become_leader(self) -> None:
        """Lead the present term: nothing is known of the followers, next_index is the log's end (§5.3)."""
        assert self.role is Role.CANDIDATE
        self.role = Role.LEADER
        self.leader_id = self.node_id
        self.votes.clear()
        self._restart_election_timer()
        self.heartbeat_elapsed = 0
        next_index = LogIndex(self.log.last_index + 1)
        self.progress = {member: self._new_progress(next_index) for member in self.configuration.members}
        for member, progress in self.progress.items():
            progress.active = member == self.node_id
        self._acknowledge_own()
        # What earlier leaders left may hold a change: none is proposed before all of it is applied.
        self.pending_change_index = self.log.last_index
        self.first_own_index = next_index
        self.uncommitted_bytes = self.log.payload_bytes(LogIndex(self.commit_index + 1), self.log.last_index)

    def broadcast_heartbeat(self) -> None:
        """Send every follower a heartbeat with the newest ReadIndex round and what it may commit.

        The commit index is cut to what the follower is known to have: a heartbeat carries no
        log position that the follower could check.
        """
        sequence = self.read_rounds[-1].sequence if self.read_rounds else 0
        for peer, progress in self.progress.items():
            if peer != self.node_id:
                commit = min(self.commit_index, progress.match_index)
                self.send(Heartbeat(self.node_id, peer, self.term, commit, sequence))

    def commit_to(self, index: LogIndex) -> bool:
        """Advance commit_index to `index`, never back (SAFETY C3); return whether it moved."""
        if index <= self.commit_index:
            return False
        assert index <= self.log.last_index
        if self.role is Role.LEADER:
            self.uncommitted_bytes -= self.log.payload_bytes(LogIndex(self.commit_index + 1), index)
        self.commit_index = index
        return True

    def change_configuration(self, configuration: Configuration) -> None:
        """Let a configuration be in force; a leader forgets who left and begins to send to who came."""
        self.configuration = configuration
        if self.role is Role.LEADER:
            known = self.progress
            self.progress = {
                peer: known.get(peer) or self._new_progress(LogIndex(max(self.log.last_index, 1)))
                for peer in configuration.members
            }
            self._acknowledge_own()

    def restore(self, snapshot: SnapshotMeta) -> None:
        """Take a snapshot's place in the log: it stands for all that was committed up to it (§7)."""
        self.log.reset(snapshot.index, snapshot.term)
        self.commit_index = self.handed_to_apply = self.last_applied = snapshot.index
        self.snapshot = self.snapshot_to_install = snapshot
        self.change_configuration(snapshot.configuration)

    @property
    def has_committed(self) -> bool:
        """There are entries to apply that were not handed out."""
        return self.handed_to_apply < self._applicable_index

    def take_committed(self) -> EntryRun:
        """Hand out the next committed entries to apply, up to `apply_bytes_max`.

        Only those that are on this node's own disk: what is applied and answered must not have
        to be fetched again from others after a crash (SAFETY D1).
        """
        first = LogIndex(self.handed_to_apply + 1)
        run = self.log.slice(first, self._applicable_index, self.config.apply_bytes_max)
        self.handed_to_apply = run.last
        return run

    def check_invariants(self) -> None:
        self.log.check_invariants()
        assert self.log.base <= self.last_applied <= self.handed_to_apply <= self.commit_index
        assert self.commit_index <= self.log.last_index
        assert self.handed_to_apply <= self.log.persisted_index, "applied before it was on the own disk"
        assert self.log.last_term <= self.term
        assert self.uncommitted_bytes >= 0
        match self.role:
            case Role.FOLLOWER:
                assert not self.votes
                assert not self.progress
            case Role.PRE_CANDIDATE:
                assert self.leader_id == NO_NODE
                assert not self.progress
            case Role.CANDIDATE:
                assert self.leader_id == NO_NODE
                assert self.voted_for == self.node_id
                assert not self.progress
            case Role.LEADER:
                self._check_leader_invariants()
            case _:
                assert_never(self.role)

    @property
    def _applicable_index(self) -> LogIndex:
        return min(self.commit_index, self.log.persisted_index)

    def _check_leader_invariants(self) -> None:
        assert self.leader_id == self.node_id
        assert self.voted_for == self.node_id
        assert tuple(self.progress) == self.configuration.members
        assert self.first_own_index <= self.log.last_index
        if self.first_own_index >= self.log.base:
            assert self.log.term_at(self.first_own_index) == self.term
        tail = LogIndex(self.commit_index + 1)
        assert self.uncommitted_bytes == self.log.payload_bytes(tail, self.log.last_index)
        sequences = [round_.sequence for round_ in self.read_rounds]
        assert sequences == sorted(set(sequences))
        assert len(sequences) <= self.config.read_rounds_max
        for peer, progress in self.progress.items():
            progress.check_invariants()
            assert progress.match_index <= self.log.last_index
            assert progress.read_acknowledged <= self.read_sequence
            if peer == self.node_id:
                assert progress.match_index == self.log.persisted_index, "own ack is what the disk has"

    def _new_progress(self, next_index: LogIndex) -> Progress:
        """A member that counts as heard of, so that a new one does not cost the leader its quorum."""
        progress = Progress(
            next_index,
            inflight_appends_max=self.config.inflight_appends_max,
            inflight_bytes_max=self.config.inflight_bytes_max,
        )
        progress.active = True
        return progress

    def _acknowledge_own(self) -> None:
        own = self.progress.get(self.node_id)
        if own is not None:
            own.acknowledged(self.log.persisted_index)

    def _restart_election_timer(self) -> None:
        # §5.2: a timeout drawn anew at each change spreads the candidates out.
        self.election_elapsed = 0
        ticks = self.config.election_ticks
        self.election_timeout = self._draw(ticks, 2 * ticks - 1)

    def _leave_leadership(self) -> None:
        if self.role is not Role.LEADER:
            return
        self.progress = {}
        self.transferee = NO_NODE
        self.read_is_joinable = False
        self.read_rounds.clear()
        self.reads_dropped = True
