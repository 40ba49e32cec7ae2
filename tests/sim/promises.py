"""What a node may promise to others: only what its disk has (SAFETY C2, D1).

Counted from what was handed to the disk and what the disk has synced, past the driver, which does the same.
"""

from collections import deque

from lockd.disk.record import LogWrite
from lockd.disk.recovery import Recovered
from lockd.ids import LogIndex
from lockd.raft.codec import decode_message
from lockd.raft.messages import AppendEntriesReply, RequestVoteReply
from lockd.raft.node import RaftNode
from lockd.server import frames


class Promises:
    """Of one life of one node."""

    def __init__(self, recovered: Recovered) -> None:
        self._hard_state = recovered.hard_state
        self._last_index = recovered.entries.last
        self._writing: deque[LogWrite] = deque()

    def submitted(self, write: LogWrite) -> None:
        self._writing.append(write)

    def synced(self, ticket: int) -> None:
        """The disk has everything up to this ticket."""
        while self._writing and self._writing[0].ticket <= ticket:
            write = self._writing.popleft()
            self._hard_state = write.hard_state or self._hard_state
            if write.snapshot is not None and write.snapshot.resets:
                self._last_index = write.snapshot.index
            if write.append:
                self._last_index = write.append.last

    @property
    def are_open(self) -> bool:
        """There is something to write."""
        return bool(self._writing)

    def check_log(self, raft: RaftNode) -> None:
        """The core counts and applies no more of its own log than the disk has."""
        # A snapshot that a leader sent stands in the log before its mark is on the disk.
        believed, durable = raft.log.persisted_index, max(self._durable_index, raft.log.base)
        assert believed <= durable, (
            f"D1: node {raft.node_id} takes entry {believed} for durable; its disk has {durable}"
        )

    def check_sent(self, raft: RaftNode, frame: frames.Raft) -> None:
        """A vote and an acknowledgement of the present term are on the disk before they leave."""
        message = decode_message(frame.message)
        if message.term != raft.term:
            return  # it was true in its term
        match message:
            case AppendEntriesReply(success=True, match_index=match_index):
                assert match_index <= self._durable_index, (
                    f"C2: node {raft.node_id} acknowledges entry {match_index}, which its disk does not have"
                )
            case RequestVoteReply(granted=True, pre_vote=False, receiver=candidate):
                on_disk = self._hard_state.term, self._hard_state.voted_for
                assert on_disk == (message.term, candidate), (
                    f"C2: node {raft.node_id} votes for {candidate} in term {message.term}, on disk {on_disk}"
                )

    @property
    def _durable_index(self) -> LogIndex:
        """What the disk has, less what writes that it was given will replace."""
        replaced = [write.append.first for write in self._writing if write.append]
        return min([self._last_index, *(LogIndex(first - 1) for first in replaced)])
