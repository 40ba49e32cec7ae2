"""A cluster of one, in memory: the driver's port over a lock machine, without log or peers.

What clients ask within one turn of the loop becomes one batch, as group commit does. Its clock
stands still until a test turns it, and a test may hold commands back, or refuse them.
"""

import asyncio
import itertools
from collections.abc import Callable

from lockd.ids import NO_NODE, ClusterId, Incarnation, InstanceId, LogIndex, NodeId, SessionId, Term
from lockd.locks.codec import decode_batch, encode_batch
from lockd.locks.commands import (
    AddMember,
    Batch,
    Changed,
    Command,
    CreateCluster,
    Operation,
    Origin,
    OriginGone,
    Outcome,
    PromoteMember,
    Queued,
    Refused,
    RegisterNode,
    RemoveMember,
    RequestOrphaned,
    SessionOpened,
)
from lockd.locks.machine import LockMachine
from lockd.server.history import History
from lockd.server.port import Backup, ClusterStatus, MemberStatus

CLUSTER = ClusterId("c" * 32)
INCARNATION = Incarnation("1" * 8)
_NODE, _BOOT = NodeId(1), 7


class SnapshotInMemory:
    """A snapshot's file."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.is_closed = False

    @property
    def size(self) -> int:
        return len(self._data)

    def read(self, offset: int, count: int) -> bytes:
        assert not self.is_closed
        return self._data[offset : offset + count]

    def close(self) -> None:
        self.is_closed = True


class SingleNode:
    """Fills lockd.server.port.Driver."""

    def __init__(self) -> None:
        self.machine = LockMachine()
        self.history = History(0)
        self.clock_ms = 0
        self.batches: list[tuple[Operation, ...]] = []
        """The operations of each entry, of clients alone."""
        self.gone: list[int] = []
        """Connections that were reported to be gone."""
        self.unavailable = False
        """Without a leader: everything is refused."""
        self.forced: list[bool] = []
        """Of each change of the membership, whether it was forced."""
        self.refuses_changes = False
        """As a leader does that finds what is asked for to be so already."""
        self.transfers: list[NodeId] = []
        self.snapshots: list[SnapshotInMemory] = []
        self.snapshot_bytes = b"snapshot"
        """What the next one has in it."""
        self._index = 0
        self._operations = itertools.count(1)
        self._callers: dict[int, Callable[[Outcome], None]] = {}
        self._commands: list[Command] = []
        self._held: tuple[type, ...] = ()
        self._reads: list[Callable[[Refused | None], None]] = []
        self._apply(CreateCluster(CLUSTER, INCARNATION))
        self._apply(RegisterNode(_NODE, "i" * 32, "peer:1", "client:1", "http:1", "0"))

    # The port.

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
        if self.unavailable:
            on_outcome(Refused("UNAVAILABLE", "no leader is known"))
            return
        origin = Origin(_NODE, _BOOT, connection, next(self._operations))
        self._callers[origin.operation] = on_outcome
        self._commands.append(Command(user, session, owner, request, origin, operation))
        self._soon()

    def read(self, on_done: Callable[[Refused | None], None]) -> None:
        if self.unavailable:
            on_done(Refused("UNAVAILABLE", "no leader is known"))
            return
        self._reads.append(on_done)
        self._soon()

    def keepalive(self, *, user: str, session: str, on_outcome: Callable[[Outcome], None]) -> None:
        view = self.machine.session(SessionId(session))
        if view is None or view.user != user:
            on_outcome(Refused("NOSESSION", "no such session"))
        else:
            on_outcome(SessionOpened(session, view.ttl_ms, self.machine.notices(SessionId(session))))

    def connection_gone(self, connection: int) -> None:
        self.gone.append(connection)
        self.submit(
            user="",
            session="",
            owner="",
            request=0,
            operation=OriginGone(_NODE, _BOOT, connection),
            connection=0,
            on_outcome=lambda _: None,
        )

    def change_members(
        self,
        *,
        user: str,
        operation: AddMember | PromoteMember | RemoveMember,
        force: bool,
        on_outcome: Callable[[Outcome], None],
    ) -> None:
        self.forced.append(force)
        if self.refuses_changes:
            on_outcome(Refused("ERR", "it is so already"))
            return
        self.submit(
            user=user,
            session="",
            owner="",
            request=0,
            operation=operation,
            connection=0,
            on_outcome=on_outcome,
        )

    def transfer(self, *, target: NodeId, on_outcome: Callable[[Outcome], None]) -> None:
        self.transfers.append(target)
        if self.refuses_changes:
            on_outcome(Refused("ERR", "it is so already"))
        else:
            on_outcome(Refused("UNAVAILABLE", "no leader is known") if self.unavailable else Changed(1))

    def backup(self, on_ready: Callable[[Backup | Refused], None]) -> None:
        if self.unavailable:
            on_ready(Refused("UNAVAILABLE", "the disk is full"))
            return

        def done(_: Refused | None) -> None:
            self.snapshots.append(SnapshotInMemory(self.snapshot_bytes))
            on_ready(Backup(LogIndex(self._index), Term(1), self.snapshots[-1]))

        self.read(done)

    def status(self) -> ClusterStatus:
        founder = MemberStatus(
            node=_NODE,
            peer_address="peer:1",
            client_address="client:1",
            http_address="http:1",
            instance=InstanceId("i" * 32),
            voter=True,
            wants_vote=False,
            match_index=LogIndex(self._index),
            alive=True,
        )
        added = [
            MemberStatus(
                node=NodeId(node),
                peer_address=member.peer_address,
                client_address="",
                http_address="",
                instance=InstanceId(""),
                voter=False,
                wants_vote=member.wants_vote,
                match_index=LogIndex(0),
                alive=False,
            )
            for node, member in self.machine.members.items()
        ]
        return ClusterStatus(
            cluster=CLUSTER,
            incarnation=INCARNATION,
            node=_NODE,
            role="follower" if self.unavailable else "leader",
            leader=NO_NODE if self.unavailable else _NODE,
            term=Term(1),
            commit_index=LogIndex(self._index),
            last_applied=LogIndex(self._index),
            log_last=LogIndex(self._index),
            members=(founder, *added),
            removed=tuple(NodeId(node) for node in sorted(self.machine.removed)),
            locks=self.machine.stats.locks,
            waiters=self.machine.stats.waiters,
            sessions=self.machine.stats.sessions,
            revision=self.machine.revision,
            version="0",
            feature_level=self.machine.feature_level,
        )

    # For tests.

    def hold_back(self, *kinds: type[Operation]) -> None:
        """Apply nothing until `let_go`, or nothing of these kinds."""
        self._held = kinds or (object,)

    def let_go(self) -> None:
        self._held = ()
        self._turn()

    @property
    def pending(self) -> list[Operation]:
        """What is held back."""
        return [command.operation for command in self._commands]

    def advance(self, ms: int) -> None:
        """Turn the state's clock on, as a leader's batches would."""
        self.clock_ms += ms
        self._apply()

    def orphaned(self) -> list[RequestOrphaned]:
        """The grants that were given back, in order."""
        return [entry for batch in self.batches for entry in batch if isinstance(entry, RequestOrphaned)]

    def _soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        commands = [command for command in self._commands if not isinstance(command.operation, self._held)]
        self._commands = [command for command in self._commands if isinstance(command.operation, self._held)]
        if commands:
            self.batches.append(tuple(command.operation for command in commands))
            self._apply_commands(commands)
        if object in self._held:
            return
        reads, self._reads = self._reads, []
        for on_done in reads:
            on_done(None)

    def _apply(self, *operations: Operation) -> None:
        origin = Origin(_NODE, _BOOT, 0, 0)
        self._apply_commands([Command("", "", "", 0, origin, operation) for operation in operations])

    def _apply_commands(self, commands: list[Command]) -> None:
        self._index += 1
        batch = decode_batch(encode_batch(Batch(Batch.VERSION, self.clock_ms, tuple(commands))))
        completions = self.machine.apply(LogIndex(self._index), batch)
        self.history.record(self.machine.events)
        for completion in completions:
            operation = completion.origin.operation
            caller = self._callers.get(operation)
            if caller is not None:
                if not isinstance(completion.outcome, Queued):
                    del self._callers[operation]
                caller(completion.outcome)
        self.machine.check_invariants()
