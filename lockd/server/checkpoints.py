"""When this node takes a snapshot, what becomes of the log then, and whether the nodes agree.

A snapshot is due after so many bytes of applied log: the same entries on every node, so that the
hashes of their states can be compared (SAFETY C11). It is written beside the loop; when it is on
disk the log there begins with it, and then the one in memory is cut. A backup is a snapshot that
somebody asked for.
"""

from collections import deque
from collections.abc import Callable, Mapping

from lockd.disk.record import Identity, SnapshotMark
from lockd.disk.snapshot_file import SnapshotHeader, StoredSnapshot
from lockd.errors import CorruptData
from lockd.ids import LogIndex, NodeId
from lockd.locks.commands import Refused
from lockd.locks.machine import LockMachine
from lockd.raft.entries import SnapshotMeta
from lockd.raft.node import RaftNode
from lockd.server import frames
from lockd.server.port import Backup, SnapshotReader
from lockd.server.snapshots import SnapshotFiles

ENTRY_OVERHEAD_BYTES = 64
"""What an entry counts for besides its payload when the log's growth is measured."""
HASHES_KEPT = 4


class Checkpoints:
    """The snapshots that this node takes of its own state."""

    def __init__(
        self,
        *,
        raft: RaftNode,
        files: SnapshotFiles,
        state: Callable[[], tuple[LockMachine, Identity, Mapping[NodeId, str]]],
        write: Callable[[SnapshotMark, Callable[[], None]], None],
        send: Callable[[NodeId, frames.Frame], bool],
        unix_s: Callable[[], int],
        log_bytes: int,
    ) -> None:
        """`state` gives what is applied now, and where the members are; `write` has the disk note a
        snapshot, and calls back when that is durable. `log_bytes` of applied log make one due."""
        self._raft = raft
        self._files = files
        self._state = state
        self._write = write
        self._send = send
        self._unix_s = unix_s
        self._log_bytes = log_bytes
        self._grown = 0
        self._taking = False
        self._backups: deque[Callable[[Backup | Refused], None]] = deque()
        self._hashes: dict[int, dict[NodeId, str]] = {}
        self.taken = 0

    def applied(self, payload_bytes: int) -> None:
        """Another entry is applied. Takes a snapshot if one is due right after it."""
        self._grown += payload_bytes + ENTRY_OVERHEAD_BYTES
        if self._grown >= self._log_bytes:
            self._grown = 0
            if not self._taking:
                self._taking = True
                machine, _, _ = self._state()
                self._files.take(self._header(), machine.snapshot, self._on_taken)

    def installed(self) -> None:
        """The state is a leader's snapshot now: the next is due so many bytes after it."""
        self._grown = 0

    def backup(self, on_ready: Callable[[Backup | Refused], None]) -> None:
        """Give a snapshot that has at least everything applied now; the reader is the caller's."""
        _, identity, _ = self._state()
        if not identity.cluster:  # a leader is known before its first command, the cluster's id (C8)
            on_ready(Refused("UNAVAILABLE", "the cluster is being founded: there is nothing to save yet"))
            return
        self._backups.append(on_ready)
        self._serve_backups()

    def _header(self) -> SnapshotHeader:
        """Of the state as it is now."""
        _, identity, addresses = self._state()
        index = self._raft.last_applied
        return SnapshotHeader(
            SnapshotMeta(index, self._raft.log.term_at(index), self._raft.configuration),
            identity.cluster,
            identity.incarnation,
            tuple(sorted(addresses.items())),
            self._unix_s(),
        )

    def _on_taken(self, stored: StoredSnapshot | None) -> None:
        """The file is there: have the log on disk begin with it. If it failed, the log goes on growing."""
        self._taking = False
        if stored is not None and not self._is_overtaken(stored.header.meta):
            meta = stored.header.meta
            self.taken += 1
            self._write(SnapshotMark(meta.index, meta.term, resets=False), lambda: self._compact(meta))
            self.compare(self._raft.node_id, meta.index, stored.state_hash)
            for peer in self._raft.configuration.members:
                if peer != self._raft.node_id:
                    self._send(peer, frames.StateHash(meta.index, stored.state_hash))
        self._serve_backups()

    def _is_overtaken(self, meta: SnapshotMeta) -> bool:
        """A leader's snapshot of a later entry was installed while this one was written."""
        newest = self._raft.snapshot
        return newest is not None and newest.index >= meta.index

    def _compact(self, meta: SnapshotMeta) -> None:
        """In memory half a snapshot's worth of log is kept, for who lags behind by less."""
        if not self._is_overtaken(meta):
            self._raft.snapshot_taken(meta)
            kept_bytes = self._log_bytes // 2
            self._raft.compact(self._raft.log.index_leaving(kept_bytes, before=meta.index))

    def _serve_backups(self) -> None:
        """One at a time. A backup is a file of its own: the log goes on resting on what all nodes take."""
        if not self._backups or self._taking:
            return
        self._taking = True
        on_ready = self._backups.popleft()
        header = self._header()

        def done(reader: SnapshotReader | None) -> None:
            self._taking = False
            if reader is None:
                reason = "the snapshot could not be written; the node's log says why"
                on_ready(Refused("UNAVAILABLE", reason))
            else:
                on_ready(Backup(header.meta.index, header.meta.term, reader))
            self._serve_backups()

        machine, _, _ = self._state()
        self._files.back_up(header, machine.snapshot, done)

    def compare(self, node: NodeId, index: LogIndex, state_hash: str) -> None:
        """Note what a node's state hashed to. Raises CorruptData when a majority of the voters have
        another hash than this node at the same entry (SAFETY C11)."""
        hashes = self._hashes.setdefault(index, {})
        hashes[node] = state_hash
        while len(self._hashes) > HASHES_KEPT:
            del self._hashes[min(self._hashes)]
        ours = hashes.get(self._raft.node_id)
        voters = self._raft.configuration.voters
        for theirs in sorted({*hashes.values()} - {ours}):
            agreed = [voter for voter in voters if hashes.get(voter) == theirs]
            if ours is not None and len(agreed) > len(voters) // 2:
                names = ", ".join(map(str, agreed))
                raise CorruptData(
                    f"the state of this node differs from that of nodes {names} at entry {index}: "
                    f"{ours} instead of {theirs}. This node stops, and must not be started again with "
                    "this data directory: remove it from the cluster and join a new node under a new id"
                )
