"""Snapshots of one node: when one is taken, how it travels, and whether the nodes agree on it.

take      after so many bytes of applied log; beside the loop, by a port
send      a leader streams the file to a follower that lags behind the log, chunk by chunk; each
          is acknowledged with what has arrived, so a lost one is sent again and a broken
          connection goes on where it ended
receive   the file is checked as a whole before Raft hears of it (SAFETY C9)
compare   the nodes take their snapshots at the same entries, and tell each other their hashes;
          a node whose state differs from a quorum's stops (SAFETY C11)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from lockd.disk.errors import DiskFullError
from lockd.disk.snapshot_file import SnapshotHeader, StoredSnapshot
from lockd.disk.snapshots import PartialSnapshot
from lockd.ids import LogIndex, NodeId, Term
from lockd.locks.machine import LockMachine
from lockd.raft.codec import decode_message, encode_message
from lockd.raft.entries import SnapshotMeta
from lockd.raft.messages import InstallSnapshot
from lockd.raft.node import RaftNode, Role
from lockd.raft.progress import Pace
from lockd.server import frames
from lockd.server.port import SnapshotReader

CHUNK_BYTES = 256 * 1024
PATIENCE_TIMEOUTS = 20
"""A transfer without progress is given up after so many election timeouts."""


class SnapshotFiles(Protocol):
    """This node's snapshot files. Callbacks come on the owner's loop, maybe before the call returns."""

    def take(
        self,
        header: SnapshotHeader,
        body: Callable[[], Iterator[bytes]],
        on_taken: Callable[[StoredSnapshot | None], None],
    ) -> None:
        """Write the state as it is at this call, without stopping the loop for it. None: it failed."""

    def back_up(
        self,
        header: SnapshotHeader,
        body: Callable[[], Iterator[bytes]],
        on_ready: Callable[[SnapshotReader | None], None],
    ) -> None:
        """As `take`, to a file of no name, which is the caller's to close."""

    def begin(self) -> PartialSnapshot:
        """Begin to receive a file; an unfinished one before it is gone."""

    def no_room(self, error: DiskFullError) -> None:
        """What arrives was thrown away: have the operator hear of it."""

    def finish(self, partial: PartialSnapshot, on_finished: Callable[[StoredSnapshot | None], None]) -> None:
        """Make it durable under its name, checked whole. None: it is not what it should be.

        A file that is whole and whose state can't be read ends the node: sent again it is the same.
        """

    def open(self, index: LogIndex, term: Term) -> SnapshotReader: ...

    def load(self, index: LogIndex, term: Term) -> tuple[StoredSnapshot, LockMachine]:
        """What `finish` has just made durable, and the state in it, which is the caller's: only from
        within `on_finished`."""


@dataclass(slots=True)
class _Outgoing:
    term: Term
    """The one in which this node led and Raft asked for it: no piece speaks in another's (§5.2)."""
    meta: SnapshotMeta
    reader: SnapshotReader
    offset: int
    sent_ms: int
    progress_ms: int


class Sending:
    """The files that a leader streams to its followers, one to each at a time."""

    def __init__(
        self,
        *,
        raft: RaftNode,
        files: SnapshotFiles,
        send: Callable[[NodeId, frames.Frame], bool],
        clock_ms: Callable[[], int],
        node_id: NodeId,
        resend_ms: int,
    ) -> None:
        """`resend_ms` is how long an acknowledgement may take: an election timeout."""
        self._raft = raft
        self._files = files
        self._send = send
        self._clock_ms = clock_ms
        self._node_id = node_id
        self._resend_ms = resend_ms
        self._outgoing: dict[NodeId, _Outgoing] = {}
        self.sent = 0
        """Files that have arrived whole."""

    def begin(self, message: InstallSnapshot) -> None:
        """Raft wants the peer to have this snapshot."""
        peer, meta = message.receiver, message.snapshot
        self._end(peer)
        now_ms = self._clock_ms()
        try:
            reader = self._files.open(meta.index, meta.term)
        except FileNotFoundError:  # a newer one has just replaced it, and Raft is about to hear of that
            self._raft.report_snapshot_failed(peer)
            return
        self._outgoing[peer] = _Outgoing(message.term, meta, reader, 0, now_ms, now_ms)
        self._send_chunk(peer)

    def on_ack(self, peer: NodeId, ack: frames.SnapshotAck) -> None:
        """The peer has so much of it now; send what comes next."""
        outgoing = self._outgoing.get(peer)
        if self._raft.role is not Role.LEADER:
            return  # the next leader sends its own
        if outgoing is None or (ack.index, ack.term) != (outgoing.meta.index, outgoing.meta.term):
            return
        if not 0 <= ack.received_bytes <= outgoing.reader.size or ack.received_bytes == outgoing.offset:
            return
        outgoing.offset = ack.received_bytes
        outgoing.progress_ms = self._clock_ms()
        if outgoing.offset == outgoing.reader.size:
            self.sent += 1
        else:
            self._send_chunk(peer)

    def tick(self) -> None:
        """Send again what was lost; end what has arrived, or does not get on."""
        now_ms = self._clock_ms()
        for peer, outgoing in list(self._outgoing.items()):
            progress = self._raft.progress.get(peer)
            if self._raft.role is not Role.LEADER or progress is None or progress.pace is not Pace.SNAPSHOT:
                self._end(peer)
            elif now_ms - outgoing.progress_ms >= PATIENCE_TIMEOUTS * self._resend_ms:
                self._end(peer)
                self._raft.report_snapshot_failed(peer)
            elif now_ms - outgoing.sent_ms >= self._resend_ms:
                self._send_chunk(peer)

    def close(self) -> None:
        """Let go of all files."""
        for peer in list(self._outgoing):
            self._end(peer)

    def _send_chunk(self, peer: NodeId) -> None:
        """Send the piece at the offset; when all has arrived, an empty one asks how it went."""
        outgoing = self._outgoing[peer]
        outgoing.sent_ms = self._clock_ms()
        message = InstallSnapshot(self._node_id, peer, outgoing.term, outgoing.meta)
        data = outgoing.reader.read(outgoing.offset, CHUNK_BYTES)
        size = outgoing.reader.size
        self._send(peer, frames.SnapshotChunk(encode_message(message), size, outgoing.offset, data))

    def _end(self, peer: NodeId) -> None:
        outgoing = self._outgoing.pop(peer, None)
        if outgoing is not None:
            outgoing.reader.close()


@dataclass(slots=True)
class _Incoming:
    message: InstallSnapshot
    """The newest copy: its term is the leader's present one."""
    file_bytes: int
    partial: PartialSnapshot
    finishing: bool = False
    """Nothing may be begun meanwhile: the file being checked has the name that the next would take."""
    unwanted: bool = False

    def continues(self, message: InstallSnapshot, file_bytes: int) -> bool:
        """The same file of the same node: another one's may differ in the time it was taken."""
        mine = (self.message.sender, self.message.snapshot, self.file_bytes)
        return mine == (message.sender, message.snapshot, file_bytes)


class Receiving:
    """The one file that this node is being sent."""

    def __init__(
        self,
        *,
        raft: RaftNode,
        files: SnapshotFiles,
        send: Callable[[NodeId, frames.Frame], bool],
        node_id: NodeId,
        install: Callable[[InstallSnapshot], None],
    ) -> None:
        """`install` steps the message: the file is there, whole and checked."""
        self._raft = raft
        self._files = files
        self._send = send
        self._node_id = node_id
        self._install = install
        self._incoming: _Incoming | None = None
        self.received = 0

    def on_chunk(self, sender: NodeId, chunk: frames.SnapshotChunk) -> None:
        """Take a piece, if it is the next one, and say what is there. Raises FrameError on nonsense."""
        message = _checked_message(sender, chunk)
        if message.receiver != self._node_id:
            raise frames.FrameError(f"node {sender} sent this node a snapshot of node {message.receiver}")
        meta = message.snapshot
        if message.term < self._raft.term or meta.index <= self._raft.commit_index:
            self._install(message)  # Raft has an answer to it that needs no file
            return
        if self._incoming is not None and self._incoming.finishing:
            if self._incoming.continues(message, chunk.file_bytes):
                self._incoming.message = message
            return
        try:
            partial = self._continued(message, chunk.file_bytes)
            if chunk.offset == partial.received_bytes and chunk.data:
                partial.append(chunk.data)
        except DiskFullError as error:  # the leader sends it again, until there is room (D4)
            self.discard()
            self._files.no_room(error)
            return
        self._send(sender, frames.SnapshotAck(meta.index, meta.term, partial.received_bytes))
        if self._incoming is not None and partial.received_bytes >= chunk.file_bytes:
            self._incoming.finishing = True
            self._files.finish(partial, self._on_finished)

    def _continued(self, message: InstallSnapshot, file_bytes: int) -> PartialSnapshot:
        """The file that is being received, begun anew when this piece is of another."""
        incoming = self._incoming
        if incoming is None or not incoming.continues(message, file_bytes):
            self.discard()
            incoming = self._incoming = _Incoming(message, file_bytes, self._files.begin())
        incoming.message = message
        return incoming.partial

    def discard(self) -> None:
        """Forget what has arrived so far. What is being finished is in others' hands until it is told."""
        incoming = self._incoming
        if incoming is None:
            return
        if incoming.finishing:
            incoming.unwanted = True
        else:
            incoming.partial.discard()
            self._incoming = None

    def _on_finished(self, stored: StoredSnapshot | None) -> None:
        incoming, self._incoming = self._incoming, None
        if incoming is None or incoming.unwanted:
            return
        message = incoming.message
        meta = message.snapshot
        if stored is None or stored.header.meta != meta:
            self._send(message.sender, frames.SnapshotAck(meta.index, meta.term, 0))  # from the start again
            return
        self.received += 1
        self._install(message)


def _checked_message(sender: NodeId, chunk: frames.SnapshotChunk) -> InstallSnapshot:
    try:
        message = decode_message(chunk.message)
    except ValueError as error:
        raise frames.FrameError(str(error)) from error
    if not isinstance(message, InstallSnapshot) or message.sender != sender:
        raise frames.FrameError(f"node {sender} sent a snapshot that isn't its own")
    if not 0 <= chunk.offset <= chunk.file_bytes or chunk.offset + len(chunk.data) > chunk.file_bytes:
        raise frames.FrameError(f"node {sender} sent a piece of a snapshot beyond its end")
    return message
