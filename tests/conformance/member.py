"""One node of a script: the shipped RaftNode, its disk, and the state machine that it feeds.

The driver keeps the duties of `lockd.raft` in etcd's rhythm, since the scripts count in Readys:

- Without threads one `process-ready` writes, applies, sends and acknowledges what one Ready of etcd
  holds. etcd hands out committed entries in the Ready that also writes them; our core when they
  are on disk. So a follower's second Ready, which has nothing else, belongs to the same step.
- With `async-storage-writes` the disk and the state machine are threads with queues of work. etcd
  gives its append thread a hard state whose commit index alone has moved; our core does not ask for
  that, and the driver queues it, so that the n-th piece of work is the same in both.
- Our core makes appends when a Ready is taken, etcd after each input, one for each proposal. The
  driver has them made as etcd would, so that windows fill alike.
- A request for a vote leaves at once there, as in etcd; our core would have it wait for the disk.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from lockd.ids import NO_NODE, LogIndex, NodeId, Term
from lockd.raft import replication
from lockd.raft.entries import Configuration, EntryKind, EntryRun, HardState, SnapshotMeta
from lockd.raft.log import Log
from lockd.raft.membership import ConfigurationChange, decode_change
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
from lockd.raft.node import RaftConfig, RaftNode, Ready, Role
from tests.conformance.wording import ROLES, describe_entry


@dataclass(frozen=True, slots=True)
class AppendDone:
    """The append thread tells its node that a write is durable. It is never lost."""

    receiver: NodeId
    term: Term
    index: LogIndex


@dataclass(frozen=True, slots=True)
class ApplyDone:
    """The apply thread tells its node how far it has come. It is never lost."""

    receiver: NodeId
    index: LogIndex


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What etcd's followers pass on to their leader: a proposal, a change, a wish for transfer."""

    sender: NodeId
    receiver: NodeId
    request: "Proposal | ConfigurationChange | Transfer"


@dataclass(frozen=True, slots=True)
class Proposal:
    payload: bytes


@dataclass(frozen=True, slots=True)
class Transfer:
    to: NodeId


Parcel = Message | AppendDone | ApplyDone | Forwarded
MESSAGE_TYPES: Final[dict[str, type[Parcel]]] = {
    "MsgApp": AppendEntries,
    "MsgAppResp": AppendEntriesReply,
    "MsgVote": RequestVote,
    "MsgVoteResp": RequestVoteReply,
    "MsgPreVote": RequestVote,
    "MsgPreVoteResp": RequestVoteReply,
    "MsgHeartbeat": Heartbeat,
    "MsgHeartbeatResp": HeartbeatReply,
    "MsgSnap": InstallSnapshot,
    "MsgTimeoutNow": TimeoutNow,
    "MsgProp": Forwarded,
    "MsgTransferLeader": Forwarded,
    "MsgStorageAppendResp": AppendDone,
    "MsgStorageApplyResp": ApplyDone,
}
NEVER_ON_THE_WAY: Final = frozenset(
    {
        *("MsgHup", "MsgBeat", "MsgUnreachable", "MsgSnapStatus", "MsgCheckQuorum", "MsgForgetLeader"),
        *("MsgReadIndex", "MsgReadIndexResp", "MsgStorageAppend", "MsgStorageApply"),
    }
)
"""etcd's other types: what a node tells itself, work for its threads, and reads, which no script asks for."""


def is_of_type(parcel: Parcel, name: str) -> bool:
    """Tell whether etcd would call it by that name. Raises KeyError for one that is unknown."""
    if name in NEVER_ON_THE_WAY or not isinstance(parcel, MESSAGE_TYPES[name]):
        return False
    match parcel:
        case RequestVote() | RequestVoteReply():
            return parcel.pre_vote == name.startswith("MsgPre")
        case Forwarded():
            return isinstance(parcel.request, Transfer) == (name == "MsgTransferLeader")
    return True


@dataclass
class Disk:
    """What is durable: where the log begins, and its entries as (term, text) by index."""

    base: LogIndex
    entries: dict[LogIndex, tuple[Term, str]] = field(default_factory=dict)

    def write(self, snapshot: SnapshotMeta | None, run: EntryRun) -> None:
        if snapshot is not None:
            self.base = snapshot.index
            self.entries.clear()
        put_entries(self.entries, run)

    def compact(self, index: LogIndex) -> None:
        self.base = index
        self.entries = {i: entry for i, entry in self.entries.items() if i > index}

    @property
    def last_index(self) -> LogIndex:
        return max(self.entries, default=self.base)


def put_entries(log: dict[LogIndex, tuple[Term, str]], run: EntryRun) -> None:
    """Let the run take the place of whatever the log has from its first index on."""
    if run.terms:
        for overwritten in [index for index in log if index >= run.first]:
            del log[overwritten]
    for position, (term, kind, payload) in enumerate(zip(run.terms, run.kinds, run.payloads, strict=True)):
        index = LogIndex(run.first + position)
        log[index] = term, describe_entry(index, term, kind, payload)


@dataclass(frozen=True, slots=True)
class Soft:
    """Who leads, and what this node is."""

    leader_id: NodeId
    role: Role

    def __str__(self) -> str:
        return f"Lead:{self.leader_id} State:{ROLES[self.role]}"


@dataclass(frozen=True, slots=True)
class _Write:
    snapshot: SnapshotMeta | None
    append: EntryRun
    then_send: tuple[Message, ...]


class Member:
    """See the module's text. `raft` is the node itself."""

    def __init__(
        self,
        config: RaftConfig,
        *,
        configuration: Configuration,
        index: LogIndex,
        threads: bool,
        validates_changes: bool,
        may_forget_leader: bool,
    ) -> None:
        self.node_id = config.node_id
        self.validates_changes = validates_changes
        self.may_forget_leader = may_forget_leader
        self.threads = threads
        # etcd boots a node of term 0 from a snapshot of term 1, which our core would call data
        # that contradict each other. All nodes boot alike, so term 0 there serves as well.
        self.bootstrap_index = index
        base = SnapshotMeta(index, Term(0), configuration)
        self.raft = RaftNode(
            config,
            configuration=configuration,
            hard_state=HardState(Term(0), NO_NODE, index),
            log=Log(base=index, base_term=Term(0)),
            draw=max,
        )
        self.raft.snapshot_taken(base)
        self.history = [base]
        self.disk = Disk(index)
        # What Readys have told so far.
        self.hard_state = HardState(Term(0), NO_NODE, index)
        self.soft = self._live_soft
        self.installed: SnapshotMeta | None = None
        self.handed: dict[LogIndex, tuple[Term, str]] = {}
        self.committed: dict[LogIndex, tuple[Term, str]] = {}
        # What waits.
        self.outbox: list[Forwarded] = []
        self._to_write: deque[_Write | None] = deque()
        self._to_apply: deque[EntryRun] = deque()

    @property
    def has_append_work(self) -> bool:
        return bool(self._to_write)

    @property
    def has_apply_work(self) -> bool:
        return bool(self._to_apply)

    def process_ready(self) -> list[Parcel] | None:
        """Deal with what etcd would hand out as one Ready; return what is sent, None if nothing is new."""
        commit_before, durable_before = self.raft.commit_index, self.raft.log.persisted_index
        soft = self._live_soft
        ready = self.raft.ready()
        hard_state = self._live_hard_state(ready)
        hard_state_is_new = hard_state != self.hard_state
        if ready is None and not hard_state_is_new and soft == self.soft and not self.outbox:
            return None
        self.hard_state, self.soft = hard_state, soft
        sent: list[Parcel] = [*self.outbox]
        self.outbox.clear()
        if ready is not None:
            sent += self._queue(ready, hard_state_is_new) if self.threads else self._finish(ready)
            # Unless the first page of what is committed was cut by its size.
            if not self.threads and ready.committed.last >= min(commit_before, durable_before):
                sent += self._finish_committed(commit_before)
        elif self.threads and hard_state_is_new:
            self._to_write.append(None)
        self.raft.check_invariants()
        return sent

    def process_append(self) -> list[Parcel]:
        """Have the append thread do its next piece of work; return its answers."""
        write = self._to_write.popleft()
        if write is None:
            return []
        self.disk.write(write.snapshot, write.append)
        answers: list[Parcel] = [*write.then_send]
        if write.append.terms:
            answers.append(AppendDone(self.node_id, write.append.terms[-1], write.append.last))
        return answers

    def process_apply(self) -> list[Parcel]:
        """Have the apply thread do its next piece of work; return its answer."""
        run = self._to_apply.popleft()
        self._apply(run)
        return [ApplyDone(self.node_id, run.last)]

    def take(self, parcel: Message | AppendDone | ApplyDone) -> None:
        """Take in what was delivered."""
        match parcel:
            case AppendDone():
                self.raft.persisted(parcel.term, parcel.index)
            case ApplyDone():
                self._applied(parcel.index)
            case _:
                self.raft.step(parcel)
        self.offer_appends()
        self.raft.check_invariants()

    def offer_appends(self) -> None:
        """Have a leader's appends made now, as by `ready()`: etcd makes them after each input."""
        if self.raft.role is Role.LEADER:
            replication.offer_appends(self.raft._state)

    def _queue(self, ready: Ready, hard_state_is_new: bool) -> list[Parcel]:
        self._note(ready)
        at_once = [m for m in ready.send_after_durable if isinstance(m, RequestVote)]
        later = tuple(m for m in ready.send_after_durable if not isinstance(m, RequestVote))
        if ready.must_sync or later:
            self._to_write.append(_Write(ready.snapshot, ready.append, later))
        elif hard_state_is_new:
            self._to_write.append(None)
        if ready.committed.terms:
            self._to_apply.append(ready.committed)
        return [*ready.send_now, *at_once]

    def _finish(self, ready: Ready) -> list[Parcel]:
        self._note(ready)
        self.disk.write(ready.snapshot, ready.append)
        self._apply(ready.committed)
        if ready.append.terms:
            self.raft.persisted(ready.append.terms[-1], ready.append.last)
        sent: list[Parcel] = [*ready.send_now]
        for message in ready.send_after_durable:
            if message.receiver == self.node_id:
                self.raft.step(message)
            else:
                sent.append(message)
        if ready.committed.terms:
            self._applied(ready.committed.last)
        self.offer_appends()
        return sent

    def _finish_committed(self, commit_before: LogIndex) -> list[Parcel]:
        sent: list[Parcel] = []
        if self.raft.role is Role.LEADER:
            return sent
        if self.raft.last_applied < commit_before and (ready := self.raft.ready()) is not None:
            sent += self._finish(ready)
        return sent

    def _note(self, ready: Ready) -> None:
        if ready.snapshot is not None:
            self.installed = ready.snapshot
            self.history.append(ready.snapshot)
            self.handed.clear()
        put_entries(self.handed, ready.append)
        put_entries(self.committed, ready.committed)

    def _apply(self, run: EntryRun) -> None:
        entries: Sequence[tuple[Term, EntryKind, bytes]] = list(
            zip(run.terms, run.kinds, run.payloads, strict=True)
        )
        for index, (term, kind, payload) in enumerate(entries, start=run.first):
            configuration = self.history[-1].configuration
            if kind is EntryKind.CONFIGURATION:
                configuration = self.raft.apply_change(decode_change(payload))
                self.offer_appends()
            self.history.append(SnapshotMeta(LogIndex(index), term, configuration))

    def _applied(self, index: LogIndex) -> None:
        self.raft.applied(index)
        applied = [meta for meta in self.history if meta.index <= self.raft.last_applied]
        self.raft.snapshot_taken(applied[-1])

    def _live_hard_state(self, ready: Ready | None) -> HardState:
        voted_for = self.hard_state.voted_for
        if ready is not None and ready.hard_state is not None:
            voted_for = ready.hard_state.voted_for
        return HardState(self.raft.term, voted_for, self.raft.commit_index)

    @property
    def _live_soft(self) -> Soft:
        return Soft(self.raft.leader_id, self.raft.role)
