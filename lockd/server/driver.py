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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from msgspec import structs

from lockd.disk.record import Identity, LogWrite, SnapshotMark
from lockd.ids import NO_NODE, ClusterId, Incarnation, InstanceId, LogIndex, NodeId, SessionId, Term
from lockd.locks.codec import decode_batch
from lockd.locks.commands import (
    Acquire,
    AddMember,
    Batch,
    ClearSilent,
    CreateCluster,
    Granted,
    OpenSession,
    Operation,
    OriginGone,
    Outcome,
    PromoteMember,
    Refused,
    RegisterNode,
    RemoveMember,
    RequestOrphaned,
    SessionOpened,
)
from lockd.locks.leases import RenewalVerdict
from lockd.locks.machine import LockMachine
from lockd.locks.views import SessionView
from lockd.raft.codec import decode_message, encode_message
from lockd.raft.entries import Configuration, EntryKind, EntryRun, SnapshotMeta
from lockd.raft.membership import decode_change
from lockd.raft.messages import InstallSnapshot, Message
from lockd.raft.node import RaftNode, Ready, Role
from lockd.server import frames
from lockd.server.calls import Callback
from lockd.server.checkpoints import Checkpoints
from lockd.server.leadership import Leadership
from lockd.server.membership import Membership, Wish
from lockd.server.port import Backup, ClusterStatus
from lockd.server.proposals import Asked, Proposals
from lockd.server.reads import NOT_LEADER, Reads
from lockd.server.snapshots import Receiving, Sending, SnapshotFiles
from lockd.server.status import describe


class Disk(Protocol):
    def submit(self, write: LogWrite) -> None:
        """Take the write; `Driver.on_durable` follows with its ticket, in order."""


class Network(Protocol):
    def send(self, node: NodeId, frame: frames.Frame) -> bool:
        """Take the frame, or return False when it is certain that it won't be delivered."""

    def is_connected(self, node: NodeId) -> bool:
        """Whether frames to the node can be sent now."""


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
    snapshots: SnapshotFiles
    unix_s: Callable[[], int]
    """The wall clock, for the date of a snapshot alone (T1)."""
    members_changed: Callable[[], None]
    """Another configuration is in force, or an address is new: connect to those who are members now."""


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
    snapshot_log_bytes: int
    """After so much log a snapshot is taken. Nodes with different values can't compare their states."""


@dataclass(frozen=True, slots=True)
class _Unsynced:
    """A write on its way to the disk, and what must wait for it (SAFETY C2, D1)."""

    ticket: int
    last: tuple[Term, LogIndex] | None
    messages: tuple[Message, ...]
    notify: tuple[Callable[[], None], ...]


class Driver:
    """A lockd node without its threads and sockets. See the module's text for the order of calls."""

    def __init__(
        self,
        *,
        settings: DriverSettings,
        identity: Identity,
        addresses: Mapping[NodeId, str],
        boot: int,
        raft: RaftNode,
        machine: LockMachine,
        ports: Ports,
    ) -> None:
        """`addresses` are the members' peer addresses as far as the disk has them.

        `raft` and `machine` come from the same snapshot, or both from nothing.
        """
        self.settings = settings
        self.raft = raft
        self.machine = machine
        self.identity = identity
        self.addresses = dict(addresses)
        self.leadership: Leadership | None = None
        self.leader_changes = 0
        self.grants = 0
        self.disk_writes = 0
        self._boot = boot
        self._ports = ports
        self._proposals = Proposals(
            origin=(identity.node_id, boot),
            raft=raft,
            send=ports.network.send,
            clock_ms=ports.clock_ms,
            answer_ms_max=settings.answer_ms_max,
        )
        self._tickets = itertools.count(1)
        self._unsynced: deque[_Unsynced] = deque()
        self._reads = Reads(boot=boot, raft=raft, send=ports.network.send, renew=self._lead_keepalive)
        self._membership = Membership(
            node_id=identity.node_id,
            boot=boot,
            raft=raft,
            machine=lambda: self.machine,
            proposals=self._proposals,
            send=ports.network.send,
            clock_ms=ports.clock_ms,
            election_timeout_ms=settings.election_timeout_ms,
            hears=self._is_alive,
            leadership=lambda: self.leadership,
        )
        self.sending = Sending(
            raft=raft,
            files=ports.snapshots,
            send=ports.network.send,
            clock_ms=ports.clock_ms,
            node_id=identity.node_id,
            resend_ms=settings.election_timeout_ms,
        )
        self.receiving = Receiving(
            raft=raft,
            files=ports.snapshots,
            send=ports.network.send,
            node_id=identity.node_id,
            install=self._install_received,
        )
        self.checkpoints = Checkpoints(
            raft=raft,
            files=ports.snapshots,
            state=lambda: (self.machine, self.identity, self.addresses),
            write=self._note_snapshot,
            send=ports.network.send,
            unix_s=ports.unix_s,
            log_bytes=settings.snapshot_log_bytes,
        )
        self.disk_is_full = False
        self._leader_seen = NO_NODE
        self._owe(
            RegisterNode(
                self.node_id,
                identity.instance,
                settings.peer_address,
                settings.client_address,
                settings.http_address,
                settings.version,
            )
        )

    @property
    def node_id(self) -> NodeId:
        return self.identity.node_id

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
        """Have the operation applied. `on_outcome` is called once, or after a Queued once more.

        A TTL under 3 election timeouts becomes that: a lease has to outlast an election (T2).
        """
        ttl_floor_ms = 3 * self.settings.election_timeout_ms
        if isinstance(operation, OpenSession | Acquire) and 0 < operation.ttl_ms < ttl_floor_ms:
            operation = structs.replace(operation, ttl_ms=ttl_floor_ms)
        asked = Asked(operation, user, session, owner, request, connection)
        if isinstance(operation, RequestOrphaned):
            self._proposals.owe(replace(asked, connection=0))
        elif self.disk_is_full:
            on_outcome(Refused("UNAVAILABLE", "the disk of this node is full"))
            return
        else:
            self._proposals.ask(asked, on_outcome)
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

    def change_members(
        self,
        *,
        user: str,
        operation: AddMember | PromoteMember | RemoveMember,
        force: bool,
        on_outcome: Callback,
    ) -> None:
        """Have the membership changed by the leader: Changed(1) once it is in force, or Refused (C7)."""
        self._ask_operator(frames.ChangeMembers(operation, force), user, on_outcome)

    def transfer(self, *, target: NodeId, on_outcome: Callback) -> None:
        """Have another node lead, NO_NODE: the most up to date. Changed(1) when it does, or Refused."""
        self._ask_operator(frames.Transfer(target), "", on_outcome)

    def backup(self, on_ready: Callable[[Backup | Refused], None]) -> None:
        """Take a snapshot that has everything acknowledged before this call; the reader is the caller's."""

        def fresh(refusal: Refused | None) -> None:
            if refusal is not None:
                on_ready(refusal)
            else:
                self.checkpoints.backup(on_ready)

        self.read(fresh)

    def _ask_operator(self, wish: Wish, user: str, on_outcome: Callback) -> None:
        deadline = self._ports.clock_ms() + self.settings.answer_ms_max
        self._membership.ask(wish, user=user, deadline_ms=deadline, done=on_outcome)
        self._ports.wake()

    def connection_gone(self, connection: int) -> None:
        """Nobody listens on it any more: its waits are withdrawn through the log (G4)."""
        if self._proposals.calls.connection_gone(connection):
            self._owe(OriginGone(self.node_id, self._boot, connection))

    @property
    def open_calls(self) -> int:
        """Commands of this node and its clients that have no outcome yet."""
        return len(self._proposals.calls)

    def status(self) -> ClusterStatus:
        """This node's own view, at once and without asking anyone."""
        return describe(
            raft=self.raft,
            machine=self.machine,
            identity=self.identity,
            addresses=self.addresses,
            version=self.settings.version,
            is_alive=self._is_alive,
        )

    def _is_alive(self, node: NodeId) -> bool:
        """A leader hears from everyone who lives; others know of their connections alone."""
        if node == self.node_id:
            return True
        if self.leadership is None:
            return self._ports.network.is_connected(node)
        return self.leadership.hears(node, self.settings.election_timeout_ms)

    def stop(self) -> None:
        """Tell everyone who still waits that this node is going."""
        self._proposals.calls.fail_all("this node is stopping")
        self._reads.fail_all("this node is stopping")
        self._membership.fail_all("this node is stopping")
        self.sending.close()
        self.receiving.discard()

    # What happened.

    def tick(self) -> None:
        """Call once per tick of Raft's clock; ticks that were missed are not made up for."""
        now_ms = self._ports.clock_ms()
        self.raft.tick()
        self._proposals.calls.fail_overdue(now_ms)
        self._reads.tick(now_ms)
        self._proposals.tick()
        self.sending.tick()
        if self.leadership is not None:
            self.leadership.advance(now_ms)
            self._do_leader_duties(self.leadership)
        self._membership.tick()
        self.turn()

    def on_disk_full(self, *, is_full: bool) -> None:
        """The disk takes no more, or has room again. Nothing is lost meanwhile, and nothing accepted (D4)."""
        self.disk_is_full = is_full
        if is_full and self.raft.role is Role.LEADER:
            self.transfer(target=NO_NODE, on_outcome=lambda _: None)
        self._ports.wake()

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
                self._proposals.on_forward(sender, commands)
            case frames.ForwardRefused(origins):
                self._proposals.hold_again(origins)
            case frames.ReadRequest(call):
                self._reads.lead_round(
                    lambda index: self._send(
                        sender, frames.ReadReply(call, NOT_LEADER if index is None else index)
                    )
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
            case frames.OperatorRequest(call, user, wish):
                self._membership.lead(
                    wish,
                    user=user,
                    answer=lambda outcome: self._send(sender, frames.OperatorReply(call, outcome)),
                )
            case frames.OperatorReply(call, outcome):
                self._membership.on_reply(call, outcome)
            case _:
                self._on_snapshot_frame(sender, frame)
        self._ports.wake()

    def _on_snapshot_frame(self, sender: NodeId, frame: frames.Frame) -> None:
        match frame:
            case frames.SnapshotChunk():
                self.receiving.on_chunk(sender, frame)
            case frames.SnapshotAck():
                self.sending.on_ack(sender, frame)
            case frames.StateHash(index, state_hash):
                self.checkpoints.compare(sender, LogIndex(index), state_hash)
            case _:
                raise frames.FrameError(f"{frame.KIND.name} frame after the handshake")

    def joined(
        self,
        cluster: ClusterId,
        incarnation: Incarnation,
        *,
        founders: tuple[NodeId, ...],
        addresses: Mapping[NodeId, str],
    ) -> None:
        """Keep what an empty node was told of the cluster that it joins: whose it is, and where (C8).

        It replays the log from its first entry, or a snapshot: before either, the founders vote.
        """
        self.identity = replace(self.identity, cluster=cluster, incarnation=incarnation, founders=founders)
        self.addresses |= addresses
        self.raft.found(Configuration(founders))
        self._write(
            LogWrite(
                next(self._tickets),
                cluster=(cluster, incarnation),
                founders=founders,
                addresses=tuple(sorted(addresses.items())),
            )
        )

    def bind_peer(self, node: NodeId, instance: InstanceId, on_bound: Callable[[], None]) -> None:
        """Remember durably that this instance is that node; then `on_bound` is called (C8)."""
        self._write(LogWrite(next(self._tickets), bindings=((node, instance),)), notify=(on_bound,))

    def turn(self) -> None:
        """Do all that can be done now: route, propose, and carry out what Raft asks for."""
        now_ms = self._ports.clock_ms()
        self._proposals.route()
        self._reads.route()
        if self.leadership is not None:
            self.leadership.advance(now_ms)
            self._proposals.propose(self.leadership)
        while (ready := self.raft.ready()) is not None:
            self._carry_out(ready)
            self._notice_leader_change()
            if self.leadership is not None:
                self._proposals.propose(self.leadership)

    # What Raft asks for.

    def _carry_out(self, ready: Ready) -> None:
        if ready.snapshot is not None:
            self._load_snapshot(ready.snapshot)
        if ready.must_sync:
            last = (ready.append.terms[-1], ready.append.last) if ready.append else None
            mark = None
            if ready.snapshot is not None:
                mark = SnapshotMark(ready.snapshot.index, ready.snapshot.term, resets=True)
            write = LogWrite(next(self._tickets), ready.hard_state, ready.append or None, snapshot=mark)
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
        self.disk_writes += 1
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
            elif isinstance(message, InstallSnapshot):
                self.sending.begin(message)
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
                self._apply_batch(index, decode_batch(payload))
            elif kind is EntryKind.CONFIGURATION:
                self._apply_change(index, payload)
            self.raft.applied(index)
            self.checkpoints.applied(len(payload))
            if kind is EntryKind.NOOP:
                self._proposals.calls.fail_sent_before(term)
                if self.raft.role is Role.LEADER and term == self.raft.term:
                    self._begin_leadership()
        if run:
            self._reads.on_applied(run.last)

    def _apply_batch(self, index: LogIndex, batch: Batch) -> None:
        completions = self.machine.apply(index, batch)
        if self.leadership is not None:
            self.leadership.book.learn(self.machine.lease_changes, self.leadership.clock_ms)
        for command in batch.commands:
            match command.operation:
                case CreateCluster():
                    self._learn_cluster()
                case RegisterNode(node=node, peer_address=address) if node in self.machine.nodes:
                    self._learn_address(NodeId(node), address)
                case AddMember(node=node, peer_address=address) if node in self.machine.members:
                    self._learn_address(NodeId(node), address)
        for completion in completions:
            origin = completion.origin
            if (origin.node, origin.boot) != (self.node_id, self._boot):
                continue
            self.grants += isinstance(completion.outcome, Granted)
            if self._proposals.calls.complete(origin.operation, completion.outcome):
                gone = OriginGone(self.node_id, self._boot, origin.connection, operation=origin.operation)
                self._owe(gone)

    def _learn_cluster(self) -> None:
        """Keep the cluster's identity where a start finds it before the log is applied (C8)."""
        learnt = self.machine.cluster, self.machine.incarnation
        if (self.identity.cluster, self.identity.incarnation) != learnt:
            self.identity = replace(self.identity, cluster=learnt[0], incarnation=learnt[1])
            self._write(LogWrite(next(self._tickets), cluster=learnt))

    def _learn_address(self, node: NodeId, address: str) -> None:
        if self.addresses.get(node) != address:
            self.addresses[node] = address
            self._write(LogWrite(next(self._tickets), addresses=((node, address),)))
            self._ports.members_changed()

    def _apply_change(self, index: LogIndex, payload: bytes) -> None:
        """The state machine's part of a membership change, then Raft's: from here on it is in force (C7)."""
        change = decode_change(payload)
        if change.context:
            self._apply_batch(index, decode_batch(change.context))
        self.raft.apply_change(change)
        self._ports.members_changed()

    # Snapshots.

    def _note_snapshot(self, mark: SnapshotMark, on_durable: Callable[[], None]) -> None:
        self._write(LogWrite(next(self._tickets), snapshot=mark), notify=(on_durable,))

    def _install_received(self, message: InstallSnapshot) -> None:
        """At once: Raft goes on from the snapshot, so no read may meet the state of before it (C6)."""
        self.raft.step(message)
        self.turn()

    def _load_snapshot(self, meta: SnapshotMeta) -> None:
        """Go on from a leader's snapshot: its state takes the place of this node's (C9)."""
        stored, body = self._ports.snapshots.load(meta.index, meta.term)
        self.machine = LockMachine.from_snapshot(body)
        self.checkpoints.installed()
        self._proposals.calls.fail_sent("this node was behind and has caught up by a snapshot")
        for wait in self.machine.waits_of(self.node_id, self._boot):
            # Whoever waited has just been told to ask again, or was gone before: nobody listens (G4).
            self._owe(OriginGone(wait.node, wait.boot, wait.connection, operation=wait.operation))
        self._learn_cluster()
        for node, address in stored.header.addresses:
            # The leader is heard from where we dial it, and has sent this on our word from there. The
            # snapshot may be from before it moved; then nothing after it would ever be acknowledged.
            if node != self.raft.leader_id:
                self._learn_address(node, address)
        self._ports.members_changed()
        self._reads.on_applied(meta.index)

    # What a leader does.

    def _notice_leader_change(self) -> None:
        if self.raft.leader_id not in (NO_NODE, self._leader_seen):
            self._leader_seen = self.raft.leader_id
            self.leader_changes += 1
        if self.raft.role is Role.LEADER:
            return
        self.leadership = None
        self._proposals.leadership_lost()

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

    def _lead_keepalive(
        self, user: str, session: SessionId, answer: Callable[[Outcome | None], None]
    ) -> None:
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
            else:
                self._answer_renewal(leadership, view, answer)

        self._reads.lead_round(confirmed)

    def _answer_renewal(
        self, leadership: Leadership, view: SessionView, answer: Callable[[Outcome | None], None]
    ) -> None:
        match leadership.book.renew(view.id, leadership.clock_ms):
            case RenewalVerdict.RENEWED:
                answer(SessionOpened(view.id, view.ttl_ms))
            case RenewalVerdict.RENEWED_MARKED:
                # The log says it was silent: take that back first, or the next leader cuts its TTL (T2).
                self._decide(ClearSilent(), session=view.id, on_outcome=answer)
            case RenewalVerdict.EXPIRING:
                answer(None)  # asked again until the choice is applied, or void with this leadership
            case RenewalVerdict.UNKNOWN:
                answer(Refused("NOSESSION", "its lease has not begun: its request still waits"))

    def _ask(self, user: str, session: SessionId | None, done: Callable[[Outcome | None], None]) -> None:
        deadline = self._ports.clock_ms() + self.settings.answer_ms_max
        self._reads.ask(deadline_ms=deadline, user=user, session=session, done=done)
        self._ports.wake()

    def _owe(self, operation: Operation) -> None:
        """Have an operation of the node's own applied, however often leaders change before."""
        self._proposals.owe(Asked(operation))
        self._ports.wake()

    def _decide(self, operation: Operation, *, session: str = "", on_outcome: Callback | None = None) -> None:
        """As the leader, log a decision of this term; it is dropped with the leadership."""
        self._proposals.decide(Asked(operation, session=session), on_outcome or (lambda _: None))
