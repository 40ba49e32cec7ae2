"""The scripts' vocabulary, played on nodes of the shipped core; messages wait until they are delivered.

One method a command. What etcd prints as an error is noted in `errors`, with the other things
that happened and leave no trace in a node's state.
"""

from collections.abc import Callable, Iterable
from typing import Final

from lockd.ids import NO_NODE, LogIndex, NodeId
from lockd.raft.entries import Configuration, EntryKind
from lockd.raft.membership import ConfigurationChange, Transition, encode_change
from lockd.raft.messages import AppendEntriesReply, HeartbeatReply, InstallSnapshot, RequestVoteReply
from lockd.raft.node import ChangeRefused, NotLeader, RaftConfig, Role
from tests.conformance.datadriven import Command, Directive, parse_command
from tests.conformance.member import (
    AppendDone,
    ApplyDone,
    Forwarded,
    Member,
    Parcel,
    Proposal,
    Transfer,
    is_of_type,
)
from tests.conformance.wording import changes_of

ELECTION_TICKS: Final = 3
HEARTBEAT_TICKS: Final = 1
IDLE: Final = frozenset({"no messages", "no append work to perform", "no apply work to perform"})
DROPPED: Final = "raft proposal dropped"
STRANGER: Final = "raft: cannot step as peer not found"
_UNLIMITED: Final = 2**62
_TRANSITIONS: Final = {
    "auto": Transition.AUTO,
    "implicit": Transition.IMPLICIT,
    "explicit": Transition.EXPLICIT,
}
_STEPS_MAX: Final = 1000


class Cluster:
    """All nodes of one script, by id from 1, and what is on the way between them."""

    def __init__(self) -> None:
        self.members: dict[NodeId, Member] = {}
        self.on_the_way: list[Parcel] = []
        self.errors: list[str] = []
        self.strangers: set[NodeId] = set()
        """Who was sent an answer by a node that is not in its configuration."""
        self.refused_changes: set[NodeId] = set()
        """Who put an empty entry in the place of a change that can't be made now."""
        self._commands: dict[str, Callable[[Command], None]] = {
            "_breakpoint": lambda _: None,
            "log-level": lambda _: None,
            "raft-state": lambda _: None,
            "raft-log": lambda _: None,
            "status": lambda _: None,
            "add-nodes": self._add_nodes,
            "campaign": lambda command: self._one(command).raft.campaign(),
            "compact": self._compact,
            "deliver-msgs": self._deliver_messages,
            "forget-leader": self._forget_leader,
            "process-append-thread": self._process_append_thread,
            "process-apply-thread": self._process_apply_thread,
            "process-ready": self._process_ready,
            "propose": self._propose,
            "report-unreachable": self._report_unreachable,
            "send-snapshot": self._send_snapshot,
            "set-randomized-election-timeout": self._set_election_timeout,
            "stabilize": self._stabilize,
            "tick-election": lambda command: self._tick(command, ELECTION_TICKS),
            "tick-heartbeat": lambda command: self._tick(command, HEARTBEAT_TICKS),
            "transfer-leadership": self._transfer_leadership,
        }

    def play(self, directive: Directive) -> None:
        """Do what the directive says. Raises ValueError for a command that is not known."""
        self.errors.clear()
        self.strangers.clear()
        self.refused_changes.clear()
        if directive.command.name == "propose-conf-change":
            self._propose_change(directive.command, directive.input)
            return
        # The input of any other command is more commands.
        for command in (directive.command, *map(parse_command, directive.input.splitlines())):
            if command.name not in self._commands:
                raise ValueError(f"unknown command {command.name!r}")
            self._commands[command.name](command)

    def _add_nodes(self, command: Command) -> None:
        index = LogIndex(int(command.value("index") or 0))
        configuration = Configuration(_ids(command, "voters"), learners=_ids(command, "learners"))
        if (
            index <= 1
            and command.arguments[1:]
            and (configuration.members or index or command.value("content"))
        ):
            self.errors.append("index must be specified as > 1 due to bootstrap")
            return
        for _ in range(int(command.plain[0])):
            node_id = NodeId(len(self.members) + 1)
            self.members[node_id] = Member(
                _config(node_id, command),
                configuration=configuration,
                index=index,
                threads=_flag(command, "async-storage-writes"),
                validates_changes=not _flag(command, "disable-conf-change-validation"),
                may_forget_leader=command.value("read-only") != "lease-based",
            )

    def _compact(self, command: Command) -> None:
        member, index = self._one(command), LogIndex(int(command.plain[1]))
        member.raft.compact(index)
        member.disk.compact(index)

    def _deliver_messages(self, command: Command) -> None:
        only = command.value("type")
        dropping = tuple(NodeId(int(value)) for value in command.values("drop") or ())
        recipients = [NodeId(int(value)) for value in command.plain]
        handled = sum(self._deliver(recipient, only) for recipient in recipients)
        for recipient in dropping:
            handled += len(self._take_messages(recipient, only, with_local=False))
        if not handled:
            self.errors.append("no messages")

    def _forget_leader(self, command: Command) -> None:
        member = self._one(command)
        if member.may_forget_leader:
            member.raft.forget_leader()

    def _process_ready(self, command: Command) -> None:
        for member in self._some(command):
            self.on_the_way += member.process_ready() or ()

    def _process_append_thread(self, command: Command) -> None:
        for member in self._some(command):
            if member.has_append_work:
                self.on_the_way += member.process_append()
            else:
                self.errors.append("no append work to perform")

    def _process_apply_thread(self, command: Command) -> None:
        for member in self._some(command):
            if member.has_apply_work:
                self.on_the_way += member.process_apply()
            else:
                self.errors.append("no apply work to perform")

    def _propose(self, command: Command) -> None:
        payload = command.plain[1].encode() if len(command.plain) > 1 else b""
        self._request(self._one(command), Proposal(payload))

    def _propose_change(self, command: Command, text: str) -> None:
        transition = _TRANSITIONS[command.value("transition") or "auto"]
        changes = changes_of(text)
        if command.value("v1") == "true" and (len(changes) > 1 or transition is not Transition.AUTO):
            self.errors.append("v1 conf change can only have one operation and no transition")
            return
        self._request(self._one(command), ConfigurationChange(changes, transition))

    def _report_unreachable(self, command: Command) -> None:
        reporter, peer = self._some(command)
        reporter.raft.report_unreachable(peer.node_id)

    def _send_snapshot(self, command: Command) -> None:
        sender, receiver = self._some(command)
        self.on_the_way.append(
            InstallSnapshot(sender.node_id, receiver.node_id, sender.raft.term, sender.history[-1])
        )

    def _set_election_timeout(self, command: Command) -> None:
        # The one thing that is set from outside: what randomness has drawn.
        self._one(command).raft._state.election_timeout = int(command.value("timeout") or 0)

    def _stabilize(self, command: Command) -> None:
        members = self._some(command) or list(self.members.values())
        for _ in range(_STEPS_MAX):
            if not self._step_all(members):
                return
        raise AssertionError(f"not stable after {_STEPS_MAX} rounds")

    def _tick(self, command: Command, ticks: int) -> None:
        member = self._one(command)
        for _ in range(ticks):
            member.raft.tick()

    def _transfer_leadership(self, command: Command) -> None:
        member = self.members[NodeId(int(command.value("from") or 0))]
        self._request(member, Transfer(NodeId(int(command.value("to") or 0))))

    def _step_all(self, members: Iterable[Member]) -> bool:
        busy = False
        for member in members:
            if (sent := member.process_ready()) is not None:
                self.on_the_way += sent
                busy = True
        for member in members:
            busy |= self._deliver(member.node_id, None) > 0
        for member in members:
            while member.has_append_work:
                self.on_the_way += member.process_append()
                busy = True
        for member in members:
            while member.has_apply_work:
                self.on_the_way += member.process_apply()
                busy = True
        return busy

    def _deliver(self, recipient: NodeId, only: str | None) -> int:
        parcels = self._take_messages(recipient, only, with_local=True)
        for parcel in parcels:
            member = self.members[recipient]
            if isinstance(parcel, Forwarded):
                self._request(member, parcel.request)
                continue
            if (
                isinstance(parcel, RequestVoteReply | AppendEntriesReply | HeartbeatReply)
                and parcel.sender not in member.raft.configuration.members
            ):
                self.strangers.add(recipient)
            member.take(parcel)
        return len(parcels)

    def _take_messages(self, recipient: NodeId, only: str | None, *, with_local: bool) -> list[Parcel]:
        def is_meant(parcel: Parcel) -> bool:
            return (
                parcel.receiver == recipient
                and (with_local or not _is_local(parcel))
                and (only is None or is_of_type(parcel, only))
            )

        taken = [parcel for parcel in self.on_the_way if is_meant(parcel)]
        self.on_the_way = [parcel for parcel in self.on_the_way if not is_meant(parcel)]
        return taken

    def _request(self, member: Member, request: Proposal | ConfigurationChange | Transfer) -> None:
        """Have the leader do it: etcd's followers pass on what ours refuse with NotLeader."""
        raft = member.raft
        try:
            match request:
                case Proposal(payload):
                    raft.propose(EntryKind.COMMANDS, payload)
                case Transfer(to):
                    raft.transfer_leadership(to)
                case _:
                    self._change(member, request)
            member.offer_appends()
        except NotLeader:
            if raft.role is Role.FOLLOWER and raft.leader_id != NO_NODE:
                member.outbox.append(Forwarded(member.node_id, raft.leader_id, request))
            elif not isinstance(request, Transfer):
                self.errors.append(DROPPED)

    def _change(self, member: Member, change: ConfigurationChange) -> None:
        raft = member.raft
        if not member.validates_changes:
            raft.propose(EntryKind.CONFIGURATION, encode_change(change))
            return
        try:
            raft.propose_change(change)
        except ChangeRefused:
            if raft.is_leader_ready or not _etcd_would_take(member, change):
                # etcd lets an empty entry take the place of what can't be proposed now.
                self.refused_changes.add(member.node_id)
                raft.propose(EntryKind.COMMANDS, b"")
            else:
                # SAFETY C7 is stricter: nothing before the leader's first entry is committed.
                raft.propose(EntryKind.CONFIGURATION, encode_change(change))

    def _one(self, command: Command) -> Member:
        return self.members[NodeId(int(command.plain[0]))]

    def _some(self, command: Command) -> list[Member]:
        return [self.members[NodeId(int(value))] for value in command.plain]


def _etcd_would_take(member: Member, change: ConfigurationChange) -> bool:
    """etcd's rule: nothing that may be a change is unapplied, and only leaving ends a joint mode."""
    state = member.raft._state
    return state.pending_change_index <= state.last_applied and state.configuration.is_joint == (
        not change.changes
    )


def _is_local(parcel: Parcel) -> bool:
    return isinstance(parcel, AppendDone | ApplyDone) or parcel.sender == parcel.receiver


def _config(node_id: NodeId, command: Command) -> RaftConfig:
    return RaftConfig(
        node_id,
        election_ticks=ELECTION_TICKS,
        heartbeat_ticks=HEARTBEAT_TICKS,
        inflight_appends_max=int(command.value("inflight") or _UNLIMITED),
        inflight_bytes_max=_UNLIMITED,
        append_bytes_max=_UNLIMITED,
        uncommitted_bytes_max=_UNLIMITED,
        apply_bytes_max=int(command.value("max-committed-size-per-ready") or _UNLIMITED),
        pre_vote=_flag(command, "prevote"),
        check_quorum=_flag(command, "checkquorum"),
        step_down_on_removal=_flag(command, "step-down-on-removal"),
    )


def _flag(command: Command, key: str) -> bool:
    return command.value(key) == "true"


def _ids(command: Command, key: str) -> tuple[NodeId, ...]:
    return tuple(sorted(NodeId(int(value)) for value in command.values(key) or ()))
