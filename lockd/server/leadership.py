"""What only a leader does, and only once its no-op is applied: keep time and keep leases.

The state's clock (SAFETY T1): base = the state's clock when the no-op was applied, plus the time
this leader has counted since. One turn of the loop counts at most an election timeout, so that
a process which was paused wakes up without a jump. Leases are counted on the same clock.

Nothing here outlives the term: the next leader starts with full TTLs (T2).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from lockd.ids import NO_NODE, NodeId, Term
from lockd.locks.commands import ExpireSessions, FreeRevoked, MarkSilent, Operation, OriginGone
from lockd.locks.leases import LeaseBook
from lockd.locks.machine import LockMachine
from lockd.raft.node import RaftNode, Role

EXPIRIES_PER_SECOND = 750
"""After an election many leases can be due at once: they end at this rate (SAFETY T4)."""
EXPIRIES_PER_ENTRY = 256


@dataclass(slots=True)
class Leadership:
    """One leader's term, from its no-op on. Times are milliseconds."""

    term: Term
    machine: LockMachine
    book: LeaseBook
    turn_ms_max: int
    """The most that one turn adds to the clock: an election timeout (T1)."""
    clock_ms: int
    """What the next batch is stamped with."""
    begun_ms: int
    """What `clock_ms` was at the beginning."""
    _seen_ms: int
    _stamped_ms: int = -1
    _expiry_credit_ms: int = 1000
    _heard_ms: dict[NodeId, int] = field(default_factory=dict)
    _watched_ms: dict[NodeId, int] = field(default_factory=dict)
    """Since when each peer is expected to be heard of."""
    _announced_gone: set[NodeId] = field(default_factory=set)

    @classmethod
    def begin(cls, *, term: Term, machine: LockMachine, now_ms: int, turn_ms_max: int) -> "Leadership":
        base = machine.clock_ms
        book = LeaseBook(base, machine.lease_sessions(), machine.revoked())
        return cls(term, machine, book, turn_ms_max, clock_ms=base, begun_ms=base, _seen_ms=now_ms)

    def advance(self, now_ms: int) -> None:
        """Count the time since the last turn, by this machine's monotonic clock."""
        elapsed = min(max(now_ms - self._seen_ms, 0), self.turn_ms_max)
        self._seen_ms = now_ms
        self.clock_ms += elapsed
        self._expiry_credit_ms = min(self._expiry_credit_ms + elapsed, 1000)

    def stamped(self, stamp_ms: int) -> None:
        """A batch with this stamp is in the log: what was due by then needs no other."""
        self._stamped_ms = stamp_ms

    def timer_due(self) -> bool:
        """Whether a timer of the state is due and no proposed batch covers it yet."""
        timer = self.machine.next_timer_ms()
        return timer is not None and self._stamped_ms < timer <= self.clock_ms

    def expired(self) -> ExpireSessions | None:
        """Sessions whose TTL has run out, chosen: they are not renewed any more (T3)."""
        budget = min(self._expiry_credit_ms * EXPIRIES_PER_SECOND // 1000, EXPIRIES_PER_ENTRY)
        chosen = self.book.choose_expired(self.clock_ms, budget) if budget else ()
        if not chosen:
            return None
        self._expiry_credit_ms -= len(chosen) * 1000 // EXPIRIES_PER_SECOND
        return ExpireSessions(chosen)

    def duties(self, peers: tuple[NodeId, ...], gone_after_ms: int) -> Iterator[Operation]:
        """What to log besides expiry: silences (T2), the end of grants that were taken from holders whose
        TTL has run since (P1), and nodes that have been gone for long (G4)."""
        silences = self.book.silent(self.clock_ms)
        if silences:
            yield MarkSilent(silences)
        freed = self.book.choose_freed(self.clock_ms, EXPIRIES_PER_ENTRY)
        if freed:
            yield FreeRevoked(freed)
        for node in peers:
            watched_ms = self._watched_ms.setdefault(node, self.clock_ms)
            silent_ms = self.clock_ms - max(watched_ms, self._heard_ms.get(node, watched_ms))
            if silent_ms < gone_after_ms:
                self._announced_gone.discard(node)
            elif node not in self._announced_gone:
                self._announced_gone.add(node)
                yield OriginGone(node, boot=0, connection=0, boot_is_alive=True)

    def heard(self, node: NodeId) -> None:
        self._heard_ms[node] = self.clock_ms

    def has_listened(self, for_ms: int) -> bool:
        """Whether it lasts so long that who was not heard of for as long is silent indeed."""
        return self.clock_ms - self.begun_ms >= for_ms

    def hears(self, node: NodeId, within_ms: int) -> bool:
        """Whether the node was heard of in the last so many ms."""
        return node in self._heard_ms and self.clock_ms - self._heard_ms[node] < within_ms


class Leading:
    """Whether this node leads, and if so its leadership: from its no-op until it is deposed."""

    def __init__(
        self,
        *,
        raft: RaftNode,
        machine: Callable[[], LockMachine],
        clock_ms: Callable[[], int],
        election_timeout_ms: int,
        decide: Callable[[Operation], None],
    ) -> None:
        """`clock_ms` is this machine's; `decide` logs an operation as a decision of the leader's."""
        self.now: Leadership | None = None
        self.changes = 0
        """How many leaders this node has seen."""
        self._raft = raft
        self._machine = machine
        self._clock_ms = clock_ms
        self._election_timeout_ms = election_timeout_ms
        self._decide = decide
        self._leader_seen = NO_NODE
        self._heard_ms: dict[NodeId, int] = {}
        """When each peer was last heard of, by this machine's clock."""

    def heard(self, node: NodeId) -> None:
        """A frame of that peer has come."""
        self._heard_ms[node] = self._clock_ms()
        if self.now is not None:
            self.now.heard(node)

    def notice_change(self) -> bool:
        """Look at who leads after Raft has moved; return whether another node may, so not this one."""
        if self._raft.leader_id not in (NO_NODE, self._leader_seen):
            self._leader_seen = self._raft.leader_id
            self.changes += 1
        if self._raft.role is Role.LEADER:
            return False
        self.now = None
        return True

    def begin(self) -> None:
        """This leader's no-op is applied: keep time and leases from here on (T1, T2).

        It has heard of those who voted for it and of those who acknowledged its no-op.
        """
        now_ms = self._clock_ms()
        self.now = Leadership.begin(
            term=self._raft.term,
            machine=self._machine(),
            now_ms=now_ms,
            turn_ms_max=self._election_timeout_ms,
        )
        for node, heard_ms in self._heard_ms.items():
            if now_ms - heard_ms < self._election_timeout_ms:
                self.now.heard(node)

    def tick(self) -> None:
        """Log what is due of a leader."""
        if self.now is None:
            return
        self.now.advance(self._clock_ms())
        expired = self.now.expired()
        if expired is not None:
            self._decide(expired)
        peers = tuple(node for node in self._raft.configuration.members if node != self._raft.node_id)
        for duty in self.now.duties(peers, 3 * self._election_timeout_ms):
            self._decide(duty)
