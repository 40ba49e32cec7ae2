"""What a node knows from the applied log: the state machine, whose cluster this is, where the nodes are.

The cluster's identity and the addresses go to the data directory as well once they are applied, where
a start finds them before the log is applied again (SAFETY C8).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from lockd.disk.record import Identity, LogWrite
from lockd.ids import ClusterId, Incarnation, LogIndex, NodeId
from lockd.locks.commands import AddMember, Batch, Completion, CreateCluster, RegisterNode
from lockd.locks.machine import LockMachine
from lockd.raft.entries import SnapshotMeta
from lockd.server.history import History
from lockd.server.snapshots import SnapshotFiles
from lockd.server.writes import Writes


class Applying:
    """The applied state of one node, and what it keeps of it beside the log."""

    def __init__(
        self,
        *,
        machine: LockMachine,
        identity: Identity,
        addresses: Mapping[NodeId, str],
        writes: Writes,
        snapshots: SnapshotFiles,
        members_changed: Callable[[], None],
    ) -> None:
        """`members_changed` is called when an address is new, or the members may be others."""
        self.machine = machine
        self.history = History(machine.revision)
        self.identity = identity
        self.addresses = dict(addresses)
        self._writes = writes
        self._snapshots = snapshots
        self._members_changed = members_changed

    def join(
        self,
        cluster: ClusterId,
        incarnation: Incarnation,
        *,
        founders: tuple[NodeId, ...],
        addresses: Mapping[NodeId, str],
    ) -> None:
        """Keep what an empty node was told of the cluster that it joins: whose it is, and where (C8)."""
        self.identity = replace(self.identity, cluster=cluster, incarnation=incarnation, founders=founders)
        self.addresses |= addresses
        self._writes.submit(
            LogWrite(
                self._writes.next_ticket(),
                cluster=(cluster, incarnation),
                founders=founders,
                addresses=tuple(sorted(addresses.items())),
            )
        )

    def apply(self, index: LogIndex, batch: Batch) -> list[Completion]:
        """Apply the commands of one entry; return what came of them, and of those that waited."""
        completions = self.machine.apply(index, batch)
        for command in batch.commands:
            match command.operation:
                case CreateCluster():
                    self._learn_cluster()
                case RegisterNode(node=node, peer_address=address) if node in self.machine.nodes:
                    self._learn_address(NodeId(node), address)
                case AddMember(node=node, peer_address=address) if node in self.machine.members:
                    self._learn_address(NodeId(node), address)
        self.history.record(self.machine.events)
        return completions

    def load(self, meta: SnapshotMeta, *, heard: NodeId) -> None:
        """Go on from a snapshot whose file is there: its state takes the place of this node's (C9).

        `heard` is whom it came from.
        """
        stored, self.machine = self._snapshots.load(meta.index, meta.term)
        self.history.restart(self.machine.revision)
        self._learn_cluster()
        for node, address in stored.header.addresses:
            # The leader is heard from where we dial it, and has sent this on our word from there. The
            # snapshot may be from before it moved; then nothing after it would ever be acknowledged.
            if node != heard:
                self._learn_address(node, address)
        self._members_changed()

    def _learn_cluster(self) -> None:
        learnt = self.machine.cluster, self.machine.incarnation
        if (self.identity.cluster, self.identity.incarnation) != learnt:
            self.identity = replace(self.identity, cluster=learnt[0], incarnation=learnt[1])
            self._writes.submit(LogWrite(self._writes.next_ticket(), cluster=learnt))

    def _learn_address(self, node: NodeId, address: str) -> None:
        if self.addresses.get(node) != address:
            self.addresses[node] = address
            self._writes.submit(LogWrite(self._writes.next_ticket(), addresses=((node, address),)))
            self._members_changed()
