"""The way of commands to the log: held here, passed on to the leader, batched and proposed.

A command of a client stays in the inbox until a leader is known. On the leader it is queued and
goes into the next batch; elsewhere it is forwarded, unstamped (SAFETY T1). What the asked node
did not append comes back and is routed again at the next tick, so nobody spins on a leader that is
just losing its office.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lockd.ids import NO_NODE, NodeId
from lockd.locks.codec import encode_batch
from lockd.locks.commands import (
    AddMember,
    Batch,
    ClearSilent,
    Command,
    Completion,
    CreateCluster,
    ExpireSessions,
    FreeRevoked,
    Granted,
    MarkSilent,
    Operation,
    Origin,
    OriginGone,
    Outcome,
    PromoteMember,
    Refused,
    RemoveMember,
)
from lockd.raft.entries import EntryKind
from lockd.raft.node import NotLeader, RaftNode, Role, TooMuchUncommitted
from lockd.server import frames
from lockd.server.calls import NOT_SENT, Call, Callback, Calls
from lockd.server.leadership import Leadership

BATCH_COMMANDS_MAX = 256
BATCH_BYTES_MAX = 64 * 1024
FORWARD_BYTES_MAX = 1024 * 1024
"""Of commands in one frame: 256 of the largest would not fit into any."""
PROPOSALS_MAX = 100_000
"""Commands that a leader queues for its log; more stay with the nodes that took them (SAFETY C10)."""
LEADER_ONLY = (
    CreateCluster,
    ExpireSessions,
    FreeRevoked,
    MarkSilent,
    ClearSilent,
    AddMember,
    PromoteMember,
    RemoveMember,
)


def is_decision(command: Command) -> bool:
    """A leader decided so, in a term and for that term alone: it is never passed on (T1, T3).

    A node may say of its own connections that they are gone. That a whole node is dead is for the
    leader to say (G4).
    """
    match command.operation:
        case OriginGone(node=node, boot_is_alive=boot_is_alive):
            return boot_is_alive or node != command.origin.node
        case operation:
            return isinstance(operation, LEADER_ONLY)


@dataclass(frozen=True, slots=True)
class Asked:
    """An operation, and on whose behalf."""

    operation: Operation
    user: str = ""
    session: str = ""
    owner: str = ""
    request: int | str = 0
    connection: int = 0
    """0: the node itself asks."""


class Proposals:
    """All commands of one node that are not in the log yet."""

    def __init__(
        self,
        *,
        origin: tuple[NodeId, int],
        raft: RaftNode,
        send: Callable[[NodeId, frames.Frame], bool],
        clock_ms: Callable[[], int],
        wake: Callable[[], None],
        answer_ms_max: int,
    ) -> None:
        """`origin` is this node's id and boot; `wake` asks for `route` to be called soon."""
        self.calls = Calls()
        self._node, self._boot = origin
        self._raft = raft
        self._send = send
        self._clock_ms = clock_ms
        self._wake = wake
        self._answer_ms_max = answer_ms_max
        self._operations = itertools.count(1)
        self._inbox: deque[int] = deque()
        self._refused: list[int] = []
        self._queue: deque[Command] = deque()
        self._owed: list[Asked] = []

    # What this node and its clients ask.

    def ask(self, asked: Asked, on_outcome: Callback) -> None:
        """Have it applied, or tell why not."""
        self._inbox.append(self._open(asked, on_outcome).origin.operation)
        self._wake()

    def owe(self, asked: Asked) -> None:
        """Have it applied, however often leaders change before."""

        def settled(outcome: Outcome) -> None:
            if isinstance(outcome, Refused) and outcome.code in ("UNAVAILABLE", "UNKNOWN"):
                self._owed.append(asked)

        self.ask(asked, settled)

    def decide(self, asked: Asked, on_outcome: Callback) -> None:
        """As the leader, have a decision of this term applied; it is dropped with the leadership."""
        self._queue.append(self.begin(asked, on_outcome))

    def found(self, asked: Asked) -> None:
        """As the first leader, name the cluster, before all that has queued up: a grant names it (C8)."""
        self._queue.appendleft(self.begin(asked, lambda _: None))

    def begin(self, asked: Asked, on_outcome: Callback) -> Command:
        """Open a call of the leader's own, for a command that it puts into the log itself."""
        command = self._open(asked, on_outcome)
        self._mark_sent(command.origin.operation, forwarded=False)
        return command

    def tick(self) -> None:
        """Ask again what was owed or refused."""
        self._inbox.extendleft(reversed(self._refused))
        self._refused.clear()
        owed, self._owed = self._owed, []
        for asked in owed:
            self.owe(asked)

    def _open(self, asked: Asked, on_outcome: Callback) -> Command:
        origin = Origin(self._node, self._boot, asked.connection, next(self._operations))
        command = Command(asked.user, asked.session, asked.owner, asked.request, origin, asked.operation)
        self.calls.add(Call(command, on_outcome, self._clock_ms() + self._answer_ms_max))
        return command

    # What came of it.

    def settle(self, completions: Iterable[Completion]) -> int:
        """Tell this node's callers what was applied; return how many of them were granted a lock."""
        grants = 0
        for completion in completions:
            origin = completion.origin
            if (origin.node, origin.boot) != (self._node, self._boot):
                continue
            grants += isinstance(completion.outcome, Granted)
            if self.calls.complete(origin.operation, completion.outcome):
                # It waits for nobody.
                self._withdraw(origin.connection, operation=origin.operation)
        return grants

    def lose_sight(self, waits: Iterable[Origin]) -> None:
        """A snapshot hides what became of the commands that were sent; `waits` of this boot's are in it."""
        self.calls.fail_sent("this node was behind and has caught up by a snapshot")
        for wait in waits:
            # Whoever waited has just been told to ask again, or was gone before: nobody listens (G4).
            self._withdraw(wait.connection, operation=wait.operation)

    def connection_gone(self, connection: int) -> None:
        """Nobody listens on it any more: its waits are withdrawn through the log (G4)."""
        if self.calls.connection_gone(connection):
            self._withdraw(connection)

    def _withdraw(self, connection: int, *, operation: int = 0) -> None:
        self.owe(Asked(OriginGone(self._node, self._boot, connection, operation=operation)))

    # Routing.

    def route(self) -> None:
        """Move the inbox on to the leader, whoever that is; keep it while nobody is known."""
        while self._inbox and self._inbox[0] not in self.calls:
            self._inbox.popleft()  # overdue: without a leader nothing else makes room (C10)
        if self._raft.role is Role.LEADER:
            while self._inbox and len(self._queue) < PROPOSALS_MAX:
                call = self._mark_sent(self._inbox.popleft(), forwarded=False)
                if call is not None:
                    self._queue.append(call.command)
        elif self._raft.leader_id != NO_NODE:
            while self._inbox and self._forward():
                pass

    def _forward(self) -> bool:
        """Pass on the next commands of the inbox; False when they can't be sent now."""
        operations = list(itertools.islice(self._inbox, BATCH_COMMANDS_MAX))
        calls = [call for operation in operations if (call := self.calls.get(operation)) is not None]
        commands, _ = _fitting(tuple(call.command for call in calls), FORWARD_BYTES_MAX)
        if len(commands) < len(calls):
            rest = calls[len(commands)].command.origin.operation
            operations = operations[: operations.index(rest)]
        frame = frames.Forward(commands)
        if calls and not self._send(self._raft.leader_id, frame):
            return False
        for operation in operations:
            self._inbox.popleft()
            self._mark_sent(operation, forwarded=True)
        return True

    def _mark_sent(self, operation: int, *, forwarded: bool) -> Call | None:
        call = self.calls.get(operation)
        if call is not None:
            call.sent_term, call.forwarded = self._raft.term, forwarded
        return call

    def on_forward(self, sender: NodeId, commands: tuple[Command, ...]) -> None:
        """A peer passes on its clients' commands. Raises FrameError for what can't be theirs."""
        for command in commands:
            if command.origin.node != sender or is_decision(command):
                raise frames.FrameError(f"node {sender} forwarded a command that isn't its own to pass on")
        if self._raft.role is Role.LEADER and len(self._queue) < PROPOSALS_MAX:
            self._queue.extend(commands)
        else:
            self._refuse(sender, commands)

    def hold_again(self, origins: tuple[Origin, ...]) -> None:
        """Nobody appended these. Those of another boot are not this one's to send again."""
        for origin in origins:
            call = self.calls.get(origin.operation)
            if call is not None and call.command.origin == origin and not call.waiting:
                call.sent_term = NOT_SENT
                self._refused.append(origin.operation)

    def _refuse(self, sender: NodeId, commands: tuple[Command, ...]) -> None:
        self._send(sender, frames.ForwardRefused(tuple(command.origin for command in commands)))

    # The leader's queue.

    def propose(self, leadership: Leadership) -> None:
        """Put the queue, or an empty batch when a timer is due, into the log."""
        while self._queue or leadership.timer_due():
            stamp_ms = leadership.clock_ms
            commands = tuple(itertools.islice(self._queue, BATCH_COMMANDS_MAX))
            commands, payload = _fitting(commands, BATCH_BYTES_MAX, stamp_ms)
            try:
                self._raft.propose(EntryKind.COMMANDS, payload)
            except (NotLeader, TooMuchUncommitted):
                return
            leadership.stamped(stamp_ms)
            for _ in commands:
                self._queue.popleft()

    def leadership_lost(self) -> None:
        """What was not proposed goes back to where it came from; decisions of the term are dropped."""
        queue, self._queue = self._queue, deque()
        for command in queue:
            if command.origin.node != self._node:
                self._refuse(NodeId(command.origin.node), (command,))
            elif is_decision(command):
                refusal = Refused("UNAVAILABLE", "the leader changed")
                self.calls.complete(command.origin.operation, refusal)
            else:
                self.hold_again((command.origin,))


def _fitting(
    commands: tuple[Command, ...], bytes_max: int, stamp_ms: int = 0
) -> tuple[tuple[Command, ...], bytes]:
    """The first of these commands, as many as take up so many bytes, or one; and the batch of them."""
    payload = encode_batch(Batch(Batch.VERSION, stamp_ms, commands))
    while len(payload) > bytes_max and len(commands) > 1:
        commands = commands[: len(commands) // 2]
        payload = encode_batch(Batch(Batch.VERSION, stamp_ms, commands))
    return commands, payload
