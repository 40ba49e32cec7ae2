"""What must hold after every step of every node. The checks are cheap: what is new is compared
with one record of everything that any node ever committed, applied or granted.
"""

from lockd.ids import LogIndex, NodeId, Term
from lockd.locks.fingerprint import fingerprint
from lockd.locks.machine import LockMachine
from lockd.raft.entries import EntryKind, SnapshotMeta
from lockd.raft.log import Log
from lockd.raft.node import Role
from lockd.server.driver import Driver
from tests.sim.history import History


class Invariants:
    """The cluster's history as an outsider sees it, and the rules it must keep."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._leaders: dict[Term, NodeId] = {}
        self._committed: dict[LogIndex, tuple[Term, EntryKind, bytes]] = {}
        self._last_of_term: dict[Term, LogIndex] = {}
        self._states: dict[LogIndex, bytes] = {}
        self._checked: dict[NodeId, LogIndex] = {}
        self._commit_seen: dict[NodeId, LogIndex] = {}
        self._term_seen: dict[NodeId, Term] = {}
        self._seen: dict[NodeId, tuple[object, ...]] = {}

    def after_step(self, node: NodeId, driver: Driver) -> None:
        """Raises AssertionError, naming the rule, when something happened that must not."""
        raft, machine, log = driver.raft, driver.machine, driver.raft.log
        seen = (
            raft.role,
            raft.term,
            raft.commit_index,
            raft.last_applied,
            log.last_index,
            log.persisted_index,
        )
        if seen == self._seen.get(node):
            return  # as after most steps
        self._seen[node] = seen
        raft.check_invariants()
        assert raft.term >= self._term_seen.get(node, 0), "§5.1: a term never goes back"
        assert raft.commit_index >= self._commit_seen.get(node, 0), "C3: commit_index never goes back"
        self._term_seen[node] = raft.term
        self._commit_seen[node] = raft.commit_index
        if raft.role is Role.LEADER:
            if raft.term not in self._leaders:
                self._check_complete(node, raft.term, log)
            leader = self._leaders.setdefault(raft.term, node)
            assert leader == node, f"§5.2 election safety: nodes {leader} and {node} lead term {raft.term}"
        applied = raft.last_applied
        if applied == self._checked.get(node, 0):
            return
        self._check_applied(node, driver)
        self.on_state(node, applied, machine)

    def on_state(self, node: NodeId, applied: LogIndex, machine: LockMachine) -> None:
        """§5.4.3: all nodes have one state at one index, however they came by it (C9, C11)."""
        state = fingerprint(machine.state)
        if applied not in self._states:
            machine.check_invariants()
        known = self._states.setdefault(applied, state)
        assert known == state, f"state machine safety: node {node} differs from another at index {applied}"

    def on_snapshot(self, node: NodeId, meta: SnapshotMeta, machine: LockMachine) -> None:
        """A node goes on from a snapshot: it is of a committed entry, and says what was applied there."""
        committed = self._committed.get(meta.index)
        assert committed is not None, f"C9: node {node} has a snapshot of entry {meta.index}, not committed"
        assert committed[0] == meta.term, f"C9: node {node} has a snapshot of another entry {meta.index}"
        assert meta.index in self._states, f"C9: nobody took the snapshot of entry {meta.index}"
        self.on_state(node, meta.index, machine)

    def on_crash(self, node: NodeId) -> None:
        """A new life starts from the disk: a term that nothing was said in, the commit index and the
        applied state may be behind."""
        self._seen.pop(node, None)
        self._term_seen.pop(node, None)
        self._checked.pop(node, None)
        self._commit_seen.pop(node, None)

    def _check_complete(self, node: NodeId, term: Term, log: Log) -> None:
        """§5.4.3: a new leader has every entry that was committed in an earlier term.

        By log matching (§5.3) the last of them says so for all. A later term may have begun meanwhile.
        """
        earlier = max((known for known in self._last_of_term if known < term), default=None)
        if earlier is not None:
            last = self._last_of_term[earlier]
            assert last <= log.base or log.matches(last, earlier), (
                f"leader completeness: node {node} leads term {term} without entry {last} of term {earlier}"
            )

    def _check_applied(self, node: NodeId, driver: Driver) -> None:
        """§5.3, §5.4: what one node applies at an index, every node applies there (P3).

        Entries up to the log's base came in a snapshot, of which the state at its index is compared.
        """
        raft = driver.raft
        first = max(self._checked.get(node, 0), raft.log.base) + 1
        assert first - 1 <= len(self._committed), f"C9: node {node} has a snapshot of what nobody applied"
        for index in range(first, raft.last_applied + 1):
            run = raft.log.slice(LogIndex(index), LogIndex(index), 1)
            entry = run.terms[0], run.kinds[0], run.payloads[0]
            if index not in self._committed:
                self._history.commit(LogIndex(index), run.kinds[0], run.payloads[0])
                self._last_of_term[run.terms[0]] = LogIndex(index)
            known = self._committed.setdefault(LogIndex(index), entry)
            assert known == entry, f"log matching: entry {index} of node {node} is not what was committed"
        self._checked[node] = raft.last_applied

    @property
    def newest_term_led(self) -> Term:
        """The highest term in which anybody ever led."""
        return max(self._leaders, default=Term(0))

    @property
    def terms_led(self) -> int:
        return len(self._leaders)
