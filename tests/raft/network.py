"""A cluster in memory: nodes, disks that lose what was not synced, and a network to be cut.

Nothing happens by itself. `settle` runs everything to rest with instant disks and delivery in
order; the finer steps (`pump`, `sync`, `deliver`) let a test place a crash or a delay between
any two of them. After every step the promises of §5 are checked over all nodes.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from lockd.ids import NO_NODE, LogIndex, NodeId, Term
from lockd.raft.entries import Configuration, EntryKind, EntryRun, HardState
from lockd.raft.log import Log
from lockd.raft.messages import Message
from lockd.raft.node import RaftConfig, RaftNode, ReadReady, Ready, Role
from tests.raft.single import latest, run_of

Draw = Callable[[int, int], int]


class Disk:
    """What a node has written. Only `stored` survives a crash; `pending` is in flight."""

    def __init__(self, run: EntryRun, hard_state: HardState) -> None:
        self.hard_state = hard_state
        self.terms = list(run.terms)
        self.kinds = list(run.kinds)
        self.payloads = list(run.payloads)
        self.pending: deque[Ready] = deque()

    def sync_one(self) -> Ready:
        ready = self.pending.popleft()
        if ready.append.terms:
            kept = ready.append.first - 1
            assert kept <= len(self.terms), "a write leaves a hole in the log"
            self.terms[kept:] = ready.append.terms
            self.kinds[kept:] = ready.append.kinds
            self.payloads[kept:] = ready.append.payloads
        if ready.hard_state is not None:
            assert ready.hard_state.term >= self.hard_state.term
            self.hard_state = ready.hard_state
        return ready

    def run(self) -> EntryRun:
        return EntryRun(LogIndex(1), tuple(self.terms), tuple(self.kinds), tuple(self.payloads))


class Network:
    """Nodes 1 to `size`, their disks, and the messages under way."""

    def __init__(
        self,
        size: int,
        *,
        logs: Mapping[int, Sequence[int]] | None = None,
        term: int = 0,
        draw: Draw = latest,
        config: Callable[[NodeId], RaftConfig] = RaftConfig,
    ) -> None:
        self.ids = [NodeId(i) for i in range(1, size + 1)]
        self.configuration = Configuration(tuple(self.ids))
        self.in_flight: list[Message] = []
        self.cut: set[tuple[NodeId, NodeId]] = set()
        self.slow_disks: set[NodeId] = set()
        self.applied: dict[NodeId, list[tuple[Term, EntryKind, bytes]]] = {}
        self.reads: dict[NodeId, list[ReadReady]] = {i: [] for i in self.ids}
        self.reads_dropped: dict[NodeId, int] = dict.fromkeys(self.ids, 0)
        self.leaders: dict[Term, NodeId] = {}
        self.agreed: list[tuple[Term, EntryKind, bytes]] = []
        self._draw = draw
        self._config = config
        self._seen: dict[NodeId, tuple[Term, LogIndex]] = {}
        self._matched: dict[tuple[NodeId, Term, NodeId], LogIndex] = {}
        hard_state = HardState(Term(term), NO_NODE, LogIndex(0))
        self.disks = {i: Disk(run_of(1, (logs or {}).get(i, ())), hard_state) for i in self.ids}
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
        """Start a node from its disk; its state machine starts over."""
        identity, disk = NodeId(node_id), self.disks[NodeId(node_id)]
        node = RaftNode(
            self._config(identity),
            configuration=self.configuration,
            hard_state=disk.hard_state,
            log=Log.from_run(disk.run()),
            draw=self._draw,
        )
        self.nodes[identity] = node
        self.applied[identity] = []
        self._seen[identity] = (node.term, LogIndex(0))
        return node

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

    def commands(self, node_id: int) -> list[bytes]:
        """Return the payloads of the commands that a node has applied since it started."""
        return [body for _, kind, body in self.applied[NodeId(node_id)] if kind is EntryKind.COMMANDS]

    def _apply(self, identity: NodeId, ready: Ready) -> None:
        self.reads[identity] += ready.reads
        self.reads_dropped[identity] += ready.reads_dropped
        run, applied = ready.committed, self.applied[identity]
        if not run.terms:
            return
        assert run.first == len(applied) + 1, "entries are applied in order, each once"
        applied += zip(run.terms, run.kinds, run.payloads, strict=True)
        self.nodes[identity].applied(run.last)
        # State machine safety (Figure 3): no two nodes ever apply different entries at an index.
        shared = min(len(applied), len(self.agreed))
        assert applied[run.first - 1 : shared] == self.agreed[run.first - 1 : shared]
        self.agreed += applied[len(self.agreed) :]

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
        for index in range(max(1, len(self.agreed) - 3), len(self.agreed) + 1):
            applied_term = self.agreed[index - 1][0]
            assert applied_term > node.term or node.log.matches(LogIndex(index), applied_term)
        for peer, progress in node.progress.items():
            key = (identity, node.term, peer)
            assert progress.match_index >= self._matched.get(key, 0), "C3: match_index went back"
            self._matched[key] = progress.match_index
