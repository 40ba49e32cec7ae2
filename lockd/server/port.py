"""What the client side of a node asks of its inside: one port, which the driver fills.

The listener, the HTTP side and the tests' single-node twin all meet here. Callbacks run on the
event loop, maybe before the call that was given them returns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lockd.ids import ClusterId, Incarnation, InstanceId, LogIndex, NodeId, Term
from lockd.locks.commands import AddMember, Operation, Outcome, PromoteMember, Refused, RemoveMember
from lockd.locks.machine import LockMachine
from lockd.server.history import History


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """A node as the applied log and this node's own view of the network know it."""

    node: NodeId
    peer_address: str
    client_address: str
    http_address: str
    instance: InstanceId
    voter: bool
    wants_vote: bool
    """A learner that becomes a voter by itself once it has caught up."""
    match_index: LogIndex
    """What the leader knows to be on its disk; 0 on every node but the leader."""
    alive: bool
    """Heard of within an election timeout, as far as this node can tell."""


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """This node's own view, at once and without asking anyone: it may be behind."""

    cluster: ClusterId
    incarnation: Incarnation
    node: NodeId
    role: str
    """leader, follower, candidate or pre_candidate."""
    leader: NodeId
    """NO_NODE when it is not known."""
    term: Term
    commit_index: LogIndex
    last_applied: LogIndex
    log_last: LogIndex
    members: tuple[MemberStatus, ...]
    """Ordered by node id."""
    removed: tuple[NodeId, ...]
    """Ids that were members' and are never used again (C8), in order."""
    locks: int
    """Locks that are held or waited for."""
    waiters: int
    """Requests that wait."""
    sessions: int
    revision: int
    version: str
    feature_level: int


class SnapshotReader(Protocol):
    """A snapshot's file, which can be read though newer ones replace it, until it is closed."""

    @property
    def size(self) -> int:
        """In bytes."""

    def read(self, offset: int, count: int) -> bytes:
        """So many bytes from there; fewer at the end."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Backup:
    """A snapshot that this node has made, and the last entry that it has in it."""

    index: LogIndex
    term: Term
    reader: SnapshotReader
    """Whoever got it closes it."""


class Driver(Protocol):
    """One node of the cluster, as its clients' connections see it."""

    def submit(
        self,
        *,
        user: str,
        session: str,
        owner: str,
        request: int | str,
        operation: Operation,
        connection: int,
        on_outcome: Callable[[Outcome], None],
    ) -> None:
        """Put one command of an authorised `user` into the log, through the leader (G11).

        `on_outcome` is called once with what became of it; for an Acquire that may wait (its
        wait_ms is not 0) that can be preceded by one Queued. Refused("UNAVAILABLE") says that
        nothing was appended anywhere, Refused("UNKNOWN") that it may have been. Calls made in one
        turn of the loop reach the log in their order.

        `connection` counts up within this process; 0 for a command that no connection waits for.
        A RequestOrphaned is kept and tried again until it is applied.
        """

    def read(self, on_done: Callable[[Refused | None], None]) -> None:
        """Tell when `machine` shows everything that was acknowledged before this call (C6)."""

    def keepalive(self, *, user: str, session: str, on_outcome: Callable[[Outcome], None]) -> None:
        """Renew a session at the leader (T3): SessionOpened with its TTL, or Refused."""

    def connection_gone(self, connection: int) -> None:
        """Nobody listens on `connection` any more: withdraw its waits through the log (G4)."""

    @property
    def machine(self) -> LockMachine:
        """What this node has applied; current only after `read`."""

    @property
    def history(self) -> History:
        """What happened to locks lately, as far as this node has applied it."""

    def status(self) -> ClusterStatus:
        """This node's view of the cluster, now."""

    def change_members(
        self,
        *,
        user: str,
        operation: AddMember | PromoteMember | RemoveMember,
        force: bool,
        on_outcome: Callable[[Outcome], None],
    ) -> None:
        """Have a change of the membership made by the leader, for an authorised `user` (C7, G11).

        `on_outcome` is called once: Changed(1) when it is applied here, Refused otherwise. An ADD is
        done when the node is a learner; that it then becomes a voter follows by itself. `force` makes
        a change although its new quorum cannot be reached now.
        """

    def transfer(self, *, target: NodeId, on_outcome: Callable[[Outcome], None]) -> None:
        """Have another voter lead: Changed(1) when it does. NO_NODE: the one most up to date."""

    def backup(self, on_ready: Callable[[Backup | Refused], None]) -> None:
        """Make a fresh snapshot of what this node has applied, and hand it over."""
