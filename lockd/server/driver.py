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

from collections.abc import Callable, Mapping
from dataclasses import replace

from msgspec import structs

from lockd.disk.record import Identity, LogWrite, SnapshotMark
from lockd.ids import NO_NODE, ClusterId, Incarnation, InstanceId, LogIndex, NodeId, SessionId
from lockd.locks.codec import decode_batch
from lockd.locks.commands import (
    Acquire,
    AddMember,
    Batch,
    CreateCluster,
    OpenSession,
    Operation,
    Outcome,
    PromoteMember,
    Refused,
    RegisterNode,
    RemoveMember,
    RequestOrphaned,
)
from lockd.locks.machine import LockMachine
from lockd.raft.codec import encode_message
from lockd.raft.entries import Configuration, EntryKind, EntryRun, SnapshotMeta
from lockd.raft.membership import decode_change
from lockd.raft.messages import AppendEntries, InstallSnapshot, Message
from lockd.raft.node import RaftNode, Ready, Role
from lockd.server import frames
from lockd.server.applying import Applying
from lockd.server.calls import Callback
from lockd.server.checkpoints import Checkpoints
from lockd.server.history import History
from lockd.server.incoming import Incoming
from lockd.server.leadership import Leadership, Leading
from lockd.server.membership import Membership, Wish
from lockd.server.port import Backup, ClusterStatus
from lockd.server.proposals import Asked, Proposals
from lockd.server.reads import Reads
from lockd.server.renewals import Renewals
from lockd.server.snapshots import Receiving, Sending
from lockd.server.status import describe
from lockd.server.surroundings import DriverSettings, Ports
from lockd.server.writes import Writes


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
        self.grants = 0
        self._boot = boot
        self._ports = ports
        self._proposals = Proposals(
            origin=(identity.node_id, boot),
            raft=raft,
            send=ports.network.send,
            clock_ms=ports.clock_ms,
            wake=ports.wake,
            answer_ms_max=settings.answer_ms_max,
        )
        self._writes = Writes(ports.disk, persisted=raft.persisted, send=self._send_all)
        self._applying = Applying(
            machine=machine,
            identity=identity,
            addresses=addresses,
            writes=self._writes,
            snapshots=ports.snapshots,
            members_changed=ports.members_changed,
        )
        self._leading = Leading(
            raft=raft,
            machine=lambda: self.machine,
            clock_ms=ports.clock_ms,
            election_timeout_ms=settings.election_timeout_ms,
            decide=self._decide,
        )
        self._reads = Reads(
            boot=boot,
            raft=raft,
            send=ports.network.send,
            renew=lambda user, session, answer: self._renewals.lead(user, session, answer),
        )
        self._renewals = Renewals(
            raft=raft,
            reads=self._reads,
            machine=lambda: self.machine,
            leadership=lambda: self.leadership,
            decide=self._decide,
        )
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
        self._incoming = Incoming(
            node_id=identity.node_id,
            raft=raft,
            network=ports.network,
            proposals=self._proposals,
            reads=self._reads,
            renewals=self._renewals,
            membership=self._membership,
            snapshots=(self.sending, self.receiving, self.checkpoints),
        )
        self.disk_is_full = False
        registration = RegisterNode(
            identity.node_id,
            identity.instance,
            settings.peer_address,
            settings.client_address,
            settings.http_address,
            settings.version,
        )
        self._proposals.owe(Asked(registration))

    @property
    def node_id(self) -> NodeId:
        return self.identity.node_id

    @property
    def machine(self) -> LockMachine:
        """The applied state. A snapshot that is installed makes it another object."""
        return self._applying.machine

    @property
    def history(self) -> History:
        """What happened to locks lately, as this node has applied it."""
        return self._applying.history

    @property
    def identity(self) -> Identity:
        return self._applying.identity

    @property
    def addresses(self) -> Mapping[NodeId, str]:
        """Where the members are dialled, as far as this node knows."""
        return self._applying.addresses

    @property
    def leadership(self) -> Leadership | None:
        """What this node leads by, from its no-op on; None while it does not lead."""
        return self._leading.now

    @property
    def leader_changes(self) -> int:
        """How many leaders this node has seen."""
        return self._leading.changes

    @property
    def disk_writes(self) -> int:
        """How many there have been."""
        return self._writes.count

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
        elif refusal := self._proposals.calls.objection(
            reads=len(self._reads), waits=isinstance(operation, Acquire) and operation.wait_ms != 0
        ):
            on_outcome(refusal)
        else:
            self._proposals.ask(asked, on_outcome)

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
        self._proposals.connection_gone(connection)

    @property
    def open_calls(self) -> int:
        """Commands of this node and its clients that have no outcome yet, waits included."""
        return len(self._proposals.calls)

    @property
    def open_reads(self) -> int:
        """Reads and renewals of its clients that have no answer yet."""
        return len(self._reads)

    @property
    def calls_refused(self) -> int:
        """How many of clients were refused because too many were open."""
        return self._proposals.calls.refused

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
        self._leading.tick()
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
        self._writes.on_durable(ticket)
        self.turn()

    def on_frame(self, sender: NodeId, frame: frames.Frame) -> None:
        """A peer that has introduced itself, and is bound, sent this. Raises FrameError on nonsense."""
        self._leading.heard(sender)
        self._incoming.take(sender, frame)
        self._ports.wake()

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
        self.raft.found(Configuration(founders))
        self._applying.join(cluster, incarnation, founders=founders, addresses=addresses)

    def bind_peer(self, node: NodeId, instance: InstanceId, on_bound: Callable[[], None]) -> None:
        """Remember durably that this instance is that node; then `on_bound` is called (C8)."""
        write = LogWrite(self._writes.next_ticket(), bindings=((node, instance),))
        self._writes.submit(write, notify=(on_bound,))

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
            if self._leading.notice_change():
                self._proposals.leadership_lost()
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
            ticket = self._writes.next_ticket()
            write = LogWrite(ticket, ready.hard_state, ready.append or None, snapshot=mark)
            self._writes.submit(write, last=last, messages=ready.send_after_durable)
        else:
            self._writes.send_after_all(ready.send_after_durable)
        self._send_all(ready.send_now)
        self._apply(ready.committed)
        self._reads.on_rounds(ready.reads, dropped=ready.reads_dropped)

    def _send_all(self, messages: tuple[Message, ...]) -> None:
        for message in messages:
            if message.receiver == self.node_id:
                self.raft.step(message)
            elif isinstance(message, InstallSnapshot):
                self.sending.begin(message)
            else:
                is_sent = self._ports.network.send(message.receiver, frames.Raft(encode_message(message)))
                if not is_sent and isinstance(message, AppendEntries):
                    self.raft.report_unreachable(message.receiver)

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
                    self._leading.begin()
                    if not self.machine.cluster:
                        self._proposals.found(Asked(CreateCluster(*self._ports.draw_cluster())))
        if run:
            self._reads.on_applied(run.last)

    def _apply_batch(self, index: LogIndex, batch: Batch) -> None:
        completions = self._applying.apply(index, batch)
        if self.leadership is not None:
            self.leadership.book.learn(self.machine.lease_changes, self.leadership.clock_ms)
        self.grants += self._proposals.settle(completions)

    def _apply_change(self, index: LogIndex, payload: bytes) -> None:
        """The state machine's part of a membership change, then Raft's: from here on it is in force (C7)."""
        change = decode_change(payload)
        if change.context:
            self._apply_batch(index, decode_batch(change.context))
        self.raft.apply_change(change)
        self._ports.members_changed()

    # Snapshots.

    def _note_snapshot(self, mark: SnapshotMark, on_durable: Callable[[], None]) -> None:
        write = LogWrite(self._writes.next_ticket(), snapshot=mark)
        self._writes.submit(write, notify=(on_durable,))

    def _install_received(self, message: InstallSnapshot) -> None:
        """At once: Raft goes on from the snapshot, so no read may meet the state of before it (C6)."""
        self.raft.step(message)
        self.turn()

    def _load_snapshot(self, meta: SnapshotMeta) -> None:
        """Go on from a leader's snapshot: its state takes the place of this node's (C9)."""
        self._applying.load(meta, heard=self.raft.leader_id)
        self.checkpoints.installed()
        self._proposals.lose_sight(self.machine.waits_of(self.node_id, self._boot))
        self._reads.on_applied(meta.index)

    def _ask(self, user: str, session: SessionId | None, done: Callable[[Outcome | None], None]) -> None:
        refusal = self._proposals.calls.objection(reads=len(self._reads))
        if refusal is not None:
            done(refusal)
            return
        deadline = self._ports.clock_ms() + self.settings.answer_ms_max
        self._reads.ask(deadline_ms=deadline, user=user, session=session, done=done)
        self._ports.wake()

    def _decide(self, operation: Operation, *, session: str = "", on_outcome: Callback | None = None) -> None:
        """As the leader, log a decision of this term; it is dropped with the leadership."""
        self._proposals.decide(Asked(operation, session=session), on_outcome or (lambda _: None))
