"""A cluster in memory: nodes, disks that lose what was not synced, and a network to be cut.

Nothing happens by itself. `settle` runs everything to rest with instant disks and delivery in
order; the finer steps (`pump`, `sync`, `deliver`) let a test place a crash or a delay between
any two of them. After every step the promises of §5 are checked over all nodes.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from lockd.ids import NO_NODE, LogIndex, NodeId, Term
from lockd.raft.entries import Configuration, EntryKind, EntryRun, HardState, SnapshotMeta
from lockd.raft.log import Log
from lockd.raft.membership import ConfigurationChange, decode_change
from lockd.raft.messages import InstallSnapshot, Message
from lockd.raft.node import RaftConfig, RaftNode, ReadReady, Ready, Role
from lockd.raft.progress import Pace
from tests.raft.single import latest, run_of

Draw = Callable[[int, int], int]
Entry = tuple[Term, EntryKind, bytes]
NO_INDEX = LogIndex(0)
NO_SNAPSHOT = SnapshotMeta(NO_INDEX, Term(0), Configuration(()))


class Disk:
    """What a node has written. It survives a crash, but for the writes of `pending` Readys.

    `snapshot` is what a start begins with; the log goes on from it, and may begin earlier.
    """

    def __init__(self, run: EntryRun, hard_state: HardState, configuration: Configuration) -> None:
        self.founding = configuration
        self.hard_state = hard_state
        self.snapshot = NO_SNAPSHOT
        self.base = NO_INDEX
        self.base_term = Term(0)
        self.terms = list(run.terms)
        self.kinds = list(run.kinds)
        self.payloads = list(run.payloads)
        self.pending: deque[Ready] = deque()

    @property
    def configuration(self) -> Configuration:
        """What is in force at the snapshot, or before the first entry."""
        return self.snapshot.configuration if self.snapshot.index else self.founding

    def sync_one(self) -> Ready:
        ready = self.pending.popleft()
        if ready.snapshot is not None:
            self.snapshot = ready.snapshot
            self.base, self.base_term = ready.snapshot.index, ready.snapshot.term
            self._replace(0, EntryRun(LogIndex(self.base + 1), (), (), ()))
        if ready.append.terms:
            kept = ready.append.first - 1 - self.base
            assert 0 <= kept <= len(self.terms), "a write leaves a hole in the log"
            self._replace(kept, ready.append)
        if ready.hard_state is not None:
            assert ready.hard_state.term >= self.hard_state.term
            self.hard_state = ready.hard_state
        return ready

    def drop_up_to(self, index: LogIndex) -> None:
        """Remove what the snapshot stands for."""
        assert self.base <= index <= self.snapshot.index
        dropped = index - self.base
        if dropped:
            self.base, self.base_term = index, self.terms[dropped - 1]
            del self.terms[:dropped], self.kinds[:dropped], self.payloads[:dropped]

    def run(self) -> EntryRun:
        first = LogIndex(self.base + 1)
        return EntryRun(first, tuple(self.terms), tuple(self.kinds), tuple(self.payloads))

    def _replace(self, kept: int, run: EntryRun) -> None:
        self.terms[kept:] = run.terms
        self.kinds[kept:] = run.kinds
        self.payloads[kept:] = run.payloads


class Network:
    """Nodes 1 to `size`, their disks, and the messages under way; `join` adds more.

    A node's state machine is the list of the entries it has applied, and a snapshot of it a copy.
    """

    def __init__(
        self,
        size: int,
        *,
        logs: Mapping[int, Sequence[int]] | None = None,
        term: int = 0,
        draw: Draw = latest,
        config: Callable[[NodeId], RaftConfig] = RaftConfig,
        configuration: Configuration | None = None,
    ) -> None:
        self.ids = [NodeId(i) for i in range(1, size + 1)]
        self.configuration = configuration or Configuration(tuple(self.ids))
        self.in_flight: list[Message] = []
        self.cut: set[tuple[NodeId, NodeId]] = set()
        self.slow_disks: set[NodeId] = set()
        self.applied: dict[NodeId, list[Entry]] = {}
        self.installed: dict[NodeId, int] = {}
        self.reads: dict[NodeId, list[ReadReady]] = {i: [] for i in self.ids}
        self.reads_dropped: dict[NodeId, int] = dict.fromkeys(self.ids, 0)
        self.leaders: dict[Term, NodeId] = {}
        self.agreed: list[Entry] = []
        self.configurations: dict[LogIndex, Configuration] = {}
        self._draw = draw
        self._config = config
        self._seen: dict[NodeId, tuple[Term, LogIndex]] = {}
        self._matched: dict[tuple[NodeId, Term], dict[NodeId, LogIndex]] = {}
        self._copies: dict[SnapshotMeta, list[Entry]] = {}
        hard_state = HardState(Term(term), NO_NODE, NO_INDEX)
        self.disks = {
            i: Disk(run_of(1, (logs or {}).get(i, ())), hard_state, self.configuration) for i in self.ids
        }
        self.nodes: dict[NodeId, RaftNode] = {}
        for node_id in self.ids:
            self.restart(node_id)

    def node(self, node_id: int) -> RaftNode:
        return self.nodes[NodeId(node_id)]

    def role(self, node_id: int) -> Role:
        return self.node(node_id).role

    def leader(self) -> RaftNode | None:
        """Return the leader of the highest term, if any."""
        leading = [node for node in self.nodes.values() if node.role is Role.LEADER]
        return max(leading, key=lambda node: node.term, default=None)

    def crash(self, node_id: int) -> None:
        """Stop a node; writes that were not synced are gone."""
        del self.nodes[NodeId(node_id)]
        self.disks[NodeId(node_id)].pending.clear()

    def restart(self, node_id: int) -> RaftNode:
        """Start a node from its disk; its state machine starts over, or from the disk's snapshot."""
        identity, disk = NodeId(node_id), self.disks[NodeId(node_id)]
        node = RaftNode(
            self._config(identity),
            configuration=disk.configuration,
            hard_state=disk.hard_state,
            log=Log.from_run(disk.run(), base_term=disk.base_term),
            draw=self._draw,
            applied=disk.snapshot.index,
        )
        if disk.snapshot.index:
            node.snapshot_taken(disk.snapshot)
        self.nodes[identity] = node
        self.applied[identity] = list(self._copies.get(disk.snapshot, ()))
        self._seen[identity] = (node.term, NO_INDEX)
        return node

    def join(self, node_id: int) -> RaftNode:
        """Start an empty node, which knows who founded the cluster; it waits to be added."""
        identity = NodeId(node_id)
        self.ids.append(identity)
        self.reads[identity], self.reads_dropped[identity] = [], 0
        hard_state = HardState(Term(0), NO_NODE, NO_INDEX)
        self.disks[identity] = Disk(run_of(1, ()), hard_state, self.configuration)
        return self.restart(node_id)

    def change(self, change: ConfigurationChange) -> LogIndex:
        """Have the leader propose a membership change; raises what it raises."""
        leader = self.leader()
        assert leader is not None
        return leader.propose_change(change)[1]

    def take_snapshot(self, node_id: int, *, keep: int = 0) -> SnapshotMeta:
        """Take a snapshot of what a node has applied, and drop the log before it but for `keep` entries."""
        node, disk = self.node(node_id), self.disks[NodeId(node_id)]
        index = node.last_applied
        if index > disk.snapshot.index:
            meta = SnapshotMeta(index, node.log.term_at(index), node.configuration)
            self._copies[meta] = list(self.applied[NodeId(node_id)])
            disk.snapshot = meta
            node.snapshot_taken(meta)
        cut = LogIndex(max(node.log.base, index - keep))
        node.compact(cut)
        disk.drop_up_to(cut)
        self._check(NodeId(node_id))
        return disk.snapshot

    def isolate(self, node_id: int) -> None:
        """Cut a node off from all others, both ways."""
        for other in self.ids:
            self.cut |= {(NodeId(node_id), other), (other, NodeId(node_id))}

    def heal(self) -> None:
        self.cut.clear()

    def tick(self, node_id: int, times: int = 1) -> None:
        for _ in range(times):
            self.node(node_id).tick()
            self.pump(node_id)

    def pump(self, node_id: int) -> None:
        """Take what a node has ready: send, hand to the disk, apply. The disk waits for `sync`."""
        identity, node = NodeId(node_id), self.node(node_id)
        self._check(identity)
        while (ready := node.ready()) is not None:
            self.in_flight += ready.send_now
            if ready.snapshot is not None:
                self.applied[identity] = list(self._copies[ready.snapshot])
                self.installed[identity] = self.installed.get(identity, 0) + 1
            self.disks[identity].pending.append(ready)
            self._apply(identity, ready)
            if identity not in self.slow_disks:
                self.sync(node_id)
            self._check(identity)

    def sync(self, node_id: int, writes: int | None = None) -> None:
        """Finish that many writes of a node's disk, or all, and what waited for them."""
        identity, node, disk = NodeId(node_id), self.node(node_id), self.disks[NodeId(node_id)]
        for _ in range(len(disk.pending) if writes is None else writes):
            ready = disk.sync_one()
            if ready.append.terms:
                node.persisted(ready.append.terms[-1], ready.append.last)
            for message in ready.send_after_durable:
                if message.receiver == identity:
                    node.step(message)
                else:
                    self.in_flight.append(message)
            self._check(identity)

    def deliver(self, message: Message) -> None:
        """Hand over a message under way, unless the way is cut or the receiver is down."""
        self.in_flight.remove(message)
        self.hand(message)

    def hand(self, message: Message) -> None:
        """Hand over a message, which may be a copy from long ago."""
        if (message.sender, message.receiver) in self.cut or message.receiver not in self.nodes:
            return
        self.nodes[message.receiver].step(message)
        self._check(message.receiver)

    def settle(self, keep: Callable[[Message], bool] = lambda _: True) -> None:
        """Run until nothing moves any more; messages that `keep` refuses are lost."""
        while True:
            for node_id in list(self.nodes):
                self.pump(node_id)
            if not self.in_flight:
                return
            under_way, self.in_flight = self.in_flight, []
            for message in under_way:
                if keep(message):
                    self.hand(message)

    def elect(self, node_id: int, keep: Callable[[Message], bool] = lambda _: True) -> RaftNode:
        """Let a node lead: all others have lost patience with their leader, it stands first."""
        node = self.node(node_id)
        for other, peer in self.nodes.items():
            if other != node_id and peer.role is not Role.LEADER:
                self.tick(other, 10)
        while self.role(node_id) is Role.FOLLOWER:
            self.tick(node_id)
        self.settle(keep)
        assert self.role(node_id) is Role.LEADER, "the others did not vote for it"
        return node

    def beat(self, times: int = 1) -> None:
        """Let every leader's heartbeat interval pass, and everything settle."""
        for _ in range(times):
            for node_id, node in list(self.nodes.items()):
                if node.role is Role.LEADER:
                    self.tick(node_id)
            self.settle()

    def propose(self, payload: bytes) -> LogIndex:
        leader = self.leader()
        assert leader is not None
        return leader.propose(EntryKind.COMMANDS, payload)[1]

    def propose_numbers(self, count: int) -> None:
        """Propose b"0", b"1", ..., each when all is still again."""
        for number in range(count):
            self.propose(b"%d" % number)
            self.settle()

    def commands(self, node_id: int) -> list[bytes]:
        """Return the payloads of the commands that a node has applied since it started."""
        return [body for _, kind, body in self.applied[NodeId(node_id)] if kind is EntryKind.COMMANDS]

    def resend_snapshots(self) -> None:
        """Do what a leader's owner does while a snapshot is under way: ask again until it is answered."""
        for node_id, node in self.nodes.items():
            for peer, progress in node.progress.items():
                under_way = any(isinstance(m, InstallSnapshot) and m.receiver == peer for m in self.in_flight)
                if progress.pace is Pace.SNAPSHOT and not under_way:
                    (meta,) = (meta for meta in self._copies if meta.index == progress.pending_snapshot)
                    self.in_flight.append(InstallSnapshot(node_id, peer, node.term, meta))

    def _apply(self, identity: NodeId, ready: Ready) -> None:
        self.reads[identity] += ready.reads
        self.reads_dropped[identity] += ready.reads_dropped
        run, applied = ready.committed, self.applied[identity]
        if not run.terms:
            return
        assert run.first == len(applied) + 1, "entries are applied in order, each once"
        node = self.nodes[identity]
        for term, kind, payload in zip(run.terms, run.kinds, run.payloads, strict=True):
            applied.append((term, kind, payload))
            index = LogIndex(len(applied))
            if kind is EntryKind.CONFIGURATION:
                configuration = node.apply_change(decode_change(payload))
                assert self.configurations.setdefault(index, configuration) == configuration
            node.applied(index)
        # State machine safety (Figure 3): no two nodes ever apply different entries at an index.
        shared = min(len(applied), len(self.agreed))
        assert applied[run.first - 1 : shared] == self.agreed[run.first - 1 : shared]
        self.agreed += applied[len(self.agreed) :]

    def check_logs(self) -> None:
        """Log matching (Figure 3): logs that agree at an index agree on all before it."""
        nodes = list(self.nodes.values())
        for one, other in pairwise(nodes):
            low = max(one.log.base, other.log.base) + 1
            last = min(one.log.last_index, other.log.last_index)
            mine, theirs = (n.log.slice(LogIndex(low), last, 2**31) for n in (one, other))
            same = [a == b for a, b in zip(mine.terms, theirs.terms, strict=True)]
            agreeing = max((i + 1 for i, agrees in enumerate(same) if agrees), default=0)
            assert all(same[:agreeing]), "logs agree after they have differed"
            assert mine.payloads[:agreeing] == theirs.payloads[:agreeing]
            assert mine.kinds[:agreeing] == theirs.kinds[:agreeing]

    def _check(self, identity: NodeId) -> None:
        node = self.nodes[identity]
        node.check_invariants()
        term, commit = self._seen[identity]
        assert node.term >= term, "the term went back"
        assert node.commit_index >= commit, "C3: the commit index went back"
        self._seen[identity] = (node.term, node.commit_index)
        if node.role is not Role.LEADER:
            return
        # Election safety (Figure 3).
        assert self.leaders.setdefault(node.term, identity) == identity, "two leaders in a term"
        # Leader completeness (Figure 3): it has all that was applied in its term or an earlier one.
        for index in range(max(node.log.base + 1, len(self.agreed) - 3), len(self.agreed) + 1):
            applied_term = self.agreed[index - 1][0]
            assert applied_term > node.term or node.log.matches(LogIndex(index), applied_term)
        before = self._matched.get((identity, node.term), {})
        matched = {peer: progress.match_index for peer, progress in node.progress.items()}
        assert all(index >= before.get(peer, 0) for peer, index in matched.items()), (
            "C3: match_index went back"
        )
        self._matched[identity, node.term] = matched
