"""One node, whole: it owns Raft, the lock state machine and the leases, and decides their order.

Everything that is not a decision is a port: disk, network, clock and randomness come in as
arguments, so the simulator runs this very code (SAFETY C1). The owner calls the driver from one
task: `submit`, `read`, `keepalive` for clients; `on_frame`, `on_durable`, `tick` for what
happened; `turn` once after any of them, which the `wake` port asks for.

The way of a command: `submit` → held until a leader is known → the leader's batch → disk and
quorum → every node applies it → the node whose client asked recognises its origin and answers.
The way of a read or a keepalive: a ReadIndex round of the leader that begins after it arrived
(C6, T3), then the applied state.
"""

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from lockd.disk.wal import Identity, LogWrite
from lockd.ids import NO_NODE, ClusterId, Incarnation, InstanceId, LogIndex, NodeId, SessionId, Term
from lockd.locks.codec import decode_batch, encode_batch
from lockd.locks.commands import (
    Batch,
    ClearSilent,
    Command,
    Completion,
    CreateCluster,
    ExpireSessions,
    Granted,
    MarkSilent,
    Operation,
    Origin,
    OriginGone,
    Outcome,
    Refused,
    RegisterNode,
    RequestOrphaned,
    SessionOpened,
)
from lockd.locks.leases import RenewalVerdict
from lockd.locks.machine import LockMachine
from lockd.raft.codec import decode_message, encode_message
from lockd.raft.entries import EntryKind, EntryRun
from lockd.raft.messages import Message
from lockd.raft.node import RaftNode, Ready, Role
from lockd.raft.state import NotLeader, TooMuchUncommitted
from lockd.server import frames
from lockd.server.calls import Call, Callback, Calls
from lockd.server.leadership import Leadership
from lockd.server.reads import NOT_LEADER, Reads

BATCH_COMMANDS_MAX = 256
BATCH_BYTES_MAX = 64 * 1024
PROPOSALS_MAX = 100_000
"""Commands that a leader queues for its log; more are refused, and their callers told."""
LEADER_ONLY = (CreateCluster, ExpireSessions, MarkSilent, ClearSilent)
"""Decisions that hold in the term of the leader who made them, and are never passed on (T1, T3)."""


class Disk(Protocol):
    def submit(self, write: LogWrite) -> None:
        """Take the write; `Driver.on_durable` follows with its ticket, in order."""


class Network(Protocol):
    def send(self, node: NodeId, frame: frames.Frame) -> bool:
        """Take the frame, or return False when it is certain that it won't be delivered."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Whatever the driver does not decide for itself."""

    disk: Disk
    network: Network
    clock_ms: Callable[[], int]
    """This machine's monotonic clock."""
    wake: Callable[[], None]
    """Asks the owner to call `turn` soon; cheap to call often."""
    draw_cluster: Callable[[], tuple[ClusterId, Incarnation]]


@dataclass(frozen=True, slots=True)
class DriverSettings:
    """What the node is told at its start. Durations in ms."""

    election_timeout_ms: int
    answer_ms_max: int
    """How long a caller waits for an outcome that is not a place in a queue."""
    peer_address: str
    client_address: str
    http_address: str
    version: str


@dataclass(frozen=True, slots=True)
class _Unsynced:
    """A write on its way to the disk, and what must wait for it (SAFETY C2, D1)."""

    ticket: int
    last: tuple[Term, LogIndex] | None
    messages: tuple[Message, ...]
    notify: tuple[Callable[[], None], ...]


@dataclass(frozen=True, slots=True)
class _Owed:
    """What a command will be made of: an operation, and on whose behalf."""

    user: str
    session: str
    request: int | str
    operation: Operation


def _ignore(outcome: Outcome) -> None:
    """For decisions whose effect is in the state."""


class Driver:
    """A lockd node without its threads and sockets. See the module's text for the order of calls."""

    def __init__(
        self,
        *,
        settings: DriverSettings,
        identity: Identity,
        boot: int,
        raft: RaftNode,
        machine: LockMachine,
        ports: Ports,
    ) -> None:
        self.settings = settings
        self.raft = raft
        self.machine = machine
        self.leadership: Leadership | None = None
        self.leader_changes = 0
        self._identity = identity
        self._boot = boot
        self._ports = ports
        self._calls = Calls()
        self._inbox: deque[int] = deque()
        self._refused: list[int] = []
        self._proposals: deque[Command] = deque()
        self._owed: deque[_Owed] = deque()
        self._operations = itertools.count(1)
        self._tickets = itertools.count(1)
        self._unsynced: deque[_Unsynced] = deque()
        self._reads = Reads(raft=raft, send=ports.network.send, renew=self._lead_keepalive)
        self._leader_seen = NO_NODE

    @property
    def node_id(self) -> NodeId:
        return self._identity.node_id

    # What clients ask.

    def submit(
        self,
        *,
        user: str,
        session: str,
        owner: str,
        request: int | str,
        operation: Operation,
        connection: int,
        on_outcome: Callback,
    ) -> None:
        """Have the operation applied. `on_outcome` is called once, or after a Queued once more."""
        owed = _Owed(user, session, request, operation)
        if isinstance(operation, RequestOrphaned):
            self._owed.append(owed)
            self._submit_owed()
            return
        command = self._open_call(owed, connection=connection, on_outcome=on_outcome, owner=owner)
        self._inbox.append(command.origin.operation)
        self._ports.wake()

    def read(self, on_done: Callable[[Refused | None], None]) -> None:
        """Call back once `machine` is at least as new as now, or with why not (C6)."""

        def done(outcome: Outcome | None) -> None:
            on_done(outcome if isinstance(outcome, Refused) else None)

        self._ask("", None, done)

    def keepalive(self, *, user: str, session: str, on_outcome: Callback) -> None:
        """Renew a session: SessionOpened with the TTL that now runs, or Refused (T3)."""

        def done(outcome: Outcome | None) -> None:
            on_outcome(outcome or Refused("UNAVAILABLE", "no leader is known"))

        self._ask(user, SessionId(session), done)

    def connection_gone(self, connection: int) -> None:
        """Nobody listens on it any more: its waits are withdrawn through the log (G4)."""
        self._calls.connection_gone(connection)
        self._owe(OriginGone(self.node_id, self._boot, connection))

    def stop(self) -> None:
        """Tell everyone who still waits that this node is going."""
        self._calls.fail_all("this node is stopping")
        self._reads.fail_all("this node is stopping")

    # What happened.

    def tick(self) -> None:
        """Call once per tick of Raft's clock; ticks that were missed are not made up for."""
        now_ms = self._ports.clock_ms()
        self.raft.tick()
        self._calls.fail_overdue(now_ms)
        self._reads.tick(now_ms)
        self._inbox.extendleft(reversed(self._refused))
        self._refused.clear()
        self._submit_owed()
        if self.leadership is not None:
            self.leadership.advance(now_ms)
            self._do_leader_duties(self.leadership)
        self.turn()

    def on_durable(self, ticket: int) -> None:
        """The disk has everything up to this ticket (D1)."""
        while self._unsynced and self._unsynced[0].ticket <= ticket:
            done = self._unsynced.popleft()
            if done.last is not None:
                self.raft.persisted(*done.last)
            for notify in done.notify:
                notify()
            self._send_all(done.messages)
        self.turn()

    def on_frame(self, sender: NodeId, frame: frames.Frame) -> None:
        """A peer that has introduced itself, and is bound, sent this. Raises FrameError on nonsense."""
        if self.leadership is not None:
            self.leadership.heard(sender)
        match frame:
            case frames.Raft():
                self._on_raft_message(sender, frame)
            case frames.Forward(commands):
                self._on_forward(sender, commands)
            case frames.ForwardRefused(operations):
                self._hold_again(operations)
            case frames.ReadRequest(call):
                self._reads.lead_round(
                    lambda index: self._send(sender, frames.ReadReply(call, NOT_LEADER if index is None else index))
                )
            case frames.ReadReply(call, index):
                self._reads.on_read_reply(call, index)
            case frames.KeepaliveRequest(call, user, session):
                self._lead_keepalive(
                    user,
                    SessionId(session),
                    lambda outcome: self._send(sender, frames.KeepaliveReply(call, outcome)),
                )
            case frames.KeepaliveReply(call, outcome):
                self._reads.on_keepalive_reply(call, outcome)
            case _:
                raise frames.FrameError(f"{frame.KIND.name} frame after the handshake")
        self._ports.wake()

    def bind_peer(self, node: NodeId, instance: InstanceId, on_bound: Callable[[], None]) -> None:
        """Remember durably that this instance is that node; then `on_bound` is called (C8)."""
        self._write(LogWrite(next(self._tickets), bindings=((node, instance),)), notify=(on_bound,))

    def turn(self) -> None:
        """Do all that can be done now: route, propose, and carry out what Raft asks for."""
        now_ms = self._ports.clock_ms()
        self._route_inbox()
        self._reads.route()
        if self.leadership is not None:
            self.leadership.advance(now_ms)
            self._propose_queued(self.leadership)
        while (ready := self.raft.ready()) is not None:
            self._carry_out(ready)
            self._notice_leader_change()
            if self.leadership is not None:
                self._propose_queued(self.leadership)

    # Commands on their way to the log.

    def _route_inbox(self) -> None:
        if not self._inbox:
            return
        if self.raft.role is Role.LEADER:
            while self._inbox and len(self._proposals) < PROPOSALS_MAX:
                call = self._calls.get(self._inbox.popleft())
                if call is not None:
                    call.sent_term, call.forwarded = self.raft.term, False
                    self._proposals.append(call.command)
        elif self.raft.leader_id != NO_NODE:
            while self._inbox:
                batch = list(itertools.islice(self._inbox, BATCH_COMMANDS_MAX))
                calls = [call for operation in batch if (call := self._calls.get(operation)) is not None]
                forward = frames.Forward(tuple(call.command for call in calls))
                if not self._ports.network.send(self.raft.leader_id, forward):
                    return
                for _ in batch:
                    self._inbox.popleft()
                for call in calls:
                    call.sent_term, call.forwarded = self.raft.term, True

    def _on_forward(self, sender: NodeId, commands: tuple[Command, ...]) -> None:
        for command in commands:
            if command.origin.node != sender or isinstance(command.operation, LEADER_ONLY):
                raise frames.FrameError(f"node {sender} forwarded a command that isn't its own to pass on")
        if self.raft.role is Role.LEADER and len(self._proposals) < PROPOSALS_MAX:
            self._proposals.extend(commands)
        else:
            self._refuse_forwarded(sender, commands)

    def _refuse_forwarded(self, sender: NodeId, commands: tuple[Command, ...]) -> None:
        self._send(sender, frames.ForwardRefused(tuple(command.origin.operation for command in commands)))

    def _hold_again(self, operations: tuple[int, ...]) -> None:
        """Nobody appended these: they are routed anew from the next tick on."""
        for operation in operations:
            call = self._calls.get(operation)
            if call is not None and not call.waiting:
                call.sent_term = Term(0)
                self._refused.append(operation)

    def _propose_queued(self, leadership: Leadership) -> None:
        while self._proposals or leadership.timer_due():
            count = min(len(self._proposals), BATCH_COMMANDS_MAX)
            commands = tuple(itertools.islice(self._proposals, count))
            payload = encode_batch(Batch(Batch.VERSION, leadership.stamped(), commands))
            while len(payload) > BATCH_BYTES_MAX and len(commands) > 1:
                commands = commands[: len(commands) // 2]
                payload = encode_batch(Batch(Batch.VERSION, leadership.stamped(), commands))
            try:
                self.raft.propose(EntryKind.COMMANDS, payload)
            except (NotLeader, TooMuchUncommitted):
                return
            for _ in commands:
                self._proposals.popleft()

    def _owe(self, operation: Operation) -> None:
        """Have an operation of the node's own applied, however often leaders change before."""
        self._owed.append(_Owed("", "", 0, operation))
        self._submit_owed()

    def _submit_owed(self) -> None:
        while self._owed:
            owed = self._owed.popleft()

            def settled(outcome: Outcome, owed: _Owed = owed) -> None:
                if isinstance(outcome, Refused) and outcome.code in ("UNAVAILABLE", "UNKNOWN"):
                    self._owed.append(owed)

            self._inbox.append(self._open_call(owed, connection=0, on_outcome=settled).origin.operation)
            self._ports.wake()

    def _open_call(self, owed: _Owed, *, connection: int, on_outcome: Callback, owner: str = "") -> Command:
        origin = Origin(self.node_id, self._boot, connection, next(self._operations))
        command = Command(owed.user, owed.session, owner, owed.request, origin, owed.operation)
        deadline = self._ports.clock_ms() + self.settings.answer_ms_max
        self._calls.add(Call(command, on_outcome, deadline))
        return command

    def _decide(self, operation: Operation, *, session: str = "", on_outcome: Callback = _ignore) -> None:
        """As the leader, log a decision of this term; it is dropped with the leadership."""
        command = self._open_call(_Owed("", session, 0, operation), connection=0, on_outcome=on_outcome)
        call = self._calls.get(command.origin.operation)
        assert call is not None
        call.sent_term = self.raft.term
        self._proposals.append(command)

    # What Raft asks for.

    def _carry_out(self, ready: Ready) -> None:
        if ready.must_sync:
            last = (ready.append.terms[-1], ready.append.last) if ready.append else None
            write = LogWrite(next(self._tickets), ready.hard_state, ready.append or None)
            self._write(write, last=last, messages=ready.send_after_durable)
        else:
            self._after_writes(ready.send_after_durable)
        self._send_all(ready.send_now)
        self._apply(ready.committed)
        self._reads.on_rounds(ready.reads, dropped=ready.reads_dropped)

    def _write(
        self,
        write: LogWrite,
        *,
        last: tuple[Term, LogIndex] | None = None,
        messages: tuple[Message, ...] = (),
        notify: tuple[Callable[[], None], ...] = (),
    ) -> None:
        self._unsynced.append(_Unsynced(write.ticket, last, messages, notify))
        self._ports.disk.submit(write)

    def _after_writes(self, messages: tuple[Message, ...]) -> None:
        """Send once everything written so far is durable: these rest on nothing newer."""
        if not messages:
            return
        if not self._unsynced:
            self._send_all(messages)
        else:
            newest = self._unsynced.pop()
            self._unsynced.append(replace(newest, messages=newest.messages + messages))

    def _send_all(self, messages: tuple[Message, ...]) -> None:
        for message in messages:
            if message.receiver == self.node_id:
                self.raft.step(message)
            else:
                self._send(message.receiver, frames.Raft(encode_message(message)))

    def _send(self, node: NodeId, frame: frames.Frame) -> None:
        """Send what the receiver can do without: Raft and the callers' deadlines cover a loss."""
        self._ports.network.send(node, frame)

    def _on_raft_message(self, sender: NodeId, frame: frames.Raft) -> None:
        try:
            message = decode_message(frame.message)
        except ValueError as error:
            raise frames.FrameError(str(error)) from error
        if message.sender != sender or message.receiver != self.node_id:
            raise frames.FrameError(f"node {sender} sent a message of {message.sender} to {message.receiver}")
        self.raft.step(message)

    def _apply(self, run: EntryRun) -> None:
        for offset, (term, kind, payload) in enumerate(zip(run.terms, run.kinds, run.payloads, strict=True)):
            index = LogIndex(run.first + offset)
            if kind is EntryKind.COMMANDS:
                for completion in self.machine.apply(index, decode_batch(payload)):
                    self._on_completion(completion)
            self.raft.applied(index)
            if kind is EntryKind.NOOP:
                self._calls.fail_sent_before(term)
                if self.raft.role is Role.LEADER and term == self.raft.term:
                    self._begin_leadership()
        if run:
            self._reads.on_applied(run.last)

    def _on_completion(self, completion: Completion) -> None:
        outcome, origin = completion.outcome, completion.origin
        if self.leadership is not None:
            if isinstance(outcome, SessionOpened):
                self.leadership.opened(SessionId(outcome.session), outcome.ttl_ms)
            elif isinstance(outcome, Granted) and outcome.ttl_ms:
                self.leadership.opened(SessionId(outcome.session), outcome.ttl_ms)
        if (origin.node, origin.boot) != (self.node_id, self._boot):
            return
        if self._calls.complete(origin.operation, outcome):
            self._owe(OriginGone(self.node_id, self._boot, origin.connection))

    # What a leader does.

    def _notice_leader_change(self) -> None:
        if self.raft.leader_id not in (NO_NODE, self._leader_seen):
            self._leader_seen = self.raft.leader_id
            self.leader_changes += 1
        if self.raft.role is Role.LEADER:
            return
        self.leadership = None
        for command in self._proposals:
            operation = command.origin.operation
            if command.origin.node != self.node_id:
                self._refuse_forwarded(NodeId(command.origin.node), (command,))
            elif isinstance(command.operation, LEADER_ONLY):
                self._calls.complete(operation, Refused("UNAVAILABLE", "the leader changed"))
            else:
                self._hold_again((operation,))
        self._proposals.clear()

    def _begin_leadership(self) -> None:
        self.leadership = Leadership.begin(
            term=self.raft.term,
            machine=self.machine,
            now_ms=self._ports.clock_ms(),
            turn_ms_max=self.settings.election_timeout_ms,
        )
        if not self.machine.cluster:
            self._decide(CreateCluster(*self._ports.draw_cluster()))

    def _do_leader_duties(self, leadership: Leadership) -> None:
        expired = leadership.expired()
        if expired is not None:
            self._decide(expired)
        peers = tuple(node for node in self.raft.configuration.members if node != self.node_id)
        for duty in leadership.duties(peers, 3 * self.settings.election_timeout_ms):
            self._decide(duty)

    def _lead_keepalive(self, user: str, session: SessionId, answer: Callable[[Outcome | None], None]) -> None:
        """Renew after a round that begins now (T3). `answer` gets None when this isn't the leader."""
        term = self.raft.term

        def confirmed(index: LogIndex | None) -> None:
            if index is None:
                answer(None)
            else:
                self._reads.when_applied(index, renew)

        def renew() -> None:
            leadership = self.leadership
            view = self.machine.session(session)
            if leadership is None or leadership.term != term:
                answer(None)
            elif view is None or view.user != user:
                answer(Refused("NOSESSION", "no such session: it has expired or was closed"))
            elif leadership.renew(session) is not RenewalVerdict.RENEWED:
                answer(Refused("NOSESSION", "the session has expired"))
            elif view.silent_ms:
                self._renew_silent(session, view.ttl_ms, answer)
            else:
                answer(SessionOpened(session, view.ttl_ms))

        self._reads.lead_round(confirmed)

    def _renew_silent(
        self, session: SessionId, ttl_ms: int, answer: Callable[[Outcome | None], None]
    ) -> None:
        """The log says it has been silent: take that back first, or the next leader cuts its TTL (T2)."""

        def cleared(outcome: Outcome) -> None:
            answer(outcome if isinstance(outcome, Refused) else SessionOpened(session, ttl_ms))

        self._decide(ClearSilent(), session=session, on_outcome=cleared)

    def _ask(self, user: str, session: SessionId | None, done: Callable[[Outcome | None], None]) -> None:
        deadline = self._ports.clock_ms() + self.settings.answer_ms_max
        self._reads.ask(deadline_ms=deadline, user=user, session=session, done=done)
        self._ports.wake()
