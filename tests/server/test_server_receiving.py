"""The one file that a node is being sent, while its disk takes its time (SAFETY C9)."""

from collections.abc import Callable

from lockd.disk.snapshot_file import encode_snapshot
from lockd.disk.snapshots import SnapshotStore, snapshot_name
from lockd.ids import NO_NODE, LogIndex, NodeId, Term
from lockd.raft.codec import encode_message
from lockd.raft.entries import Configuration, EntryRun, HardState
from lockd.raft.log import Log
from lockd.raft.messages import InstallSnapshot
from lockd.raft.node import RaftConfig, RaftNode
from lockd.server import frames
from lockd.server.snapshots import Receiving
from tests.disk.memory import MemoryFiles
from tests.disk.samples import header
from tests.server.snapshots import DirectSnapshots

LEADER, NODE = NodeId(1), NodeId(3)
HEADER = header(7, 2)
FILE = b"".join(encode_snapshot(HEADER, (b"the state",)))
MESSAGE = InstallSnapshot(LEADER, NODE, Term(2), HEADER.meta)


class Receiver:
    """Node 3, whose disk finishes a file when `finish` is called."""

    def __init__(self) -> None:
        self.disk = MemoryFiles()
        self.under_way: list[Callable[[], None]] = []
        self.acknowledged: list[int] = []
        self.installed: list[InstallSnapshot] = []
        self.files = DirectSnapshots(lambda: SnapshotStore(self.disk), self.under_way.append)
        raft = RaftNode(
            RaftConfig(node_id=NODE, election_ticks=10, heartbeat_ticks=1),
            configuration=Configuration((LEADER, NODE)),
            hard_state=HardState(Term(1), NO_NODE, LogIndex(0)),
            log=Log.from_run(EntryRun(LogIndex(1), (), (), ()), base_term=Term(0)),
            draw=lambda low, _: low,
        )
        self.receiving = Receiving(
            raft=raft,
            files=self.files,
            send=self._send,
            node_id=NODE,
            install=self.installed.append,
        )

    def gets(self, offset: int, data: bytes) -> None:
        chunk = frames.SnapshotChunk(encode_message(MESSAGE), len(FILE), offset, data)
        self.receiving.on_chunk(LEADER, chunk)

    def finish(self) -> None:
        (step,) = self.under_way
        self.under_way.clear()
        step()

    def _send(self, node: NodeId, frame: frames.Frame) -> bool:
        assert node == LEADER
        assert isinstance(frame, frames.SnapshotAck)
        self.acknowledged.append(frame.received_bytes)
        return True


def test_c9_a_file_is_installed_when_its_disk_has_it_whole() -> None:
    node = Receiver()
    node.gets(0, FILE[:100])
    node.gets(100, FILE[100:])
    assert node.acknowledged == [100, len(FILE)]
    assert node.installed == []
    node.finish()
    assert node.installed == [MESSAGE]
    assert node.disk.names() == [snapshot_name(HEADER.meta.index, HEADER.meta.term)]


def test_c9_while_a_file_is_checked_no_other_is_begun_in_its_place() -> None:
    """Not even by a node that is stopping: what gets the snapshot's name must be what was checked."""
    node = Receiver()
    node.gets(0, FILE)
    node.receiving.discard()
    node.gets(0, FILE[:100])
    assert node.acknowledged == [len(FILE)]
    node.finish()
    assert node.installed == [], "the node that wanted it is stopping"
    assert node.disk.read(node.disk.names()[0]) == FILE
    node.gets(0, FILE[:100])
    assert node.acknowledged == [len(FILE), 100]


def test_d4_without_room_what_arrived_is_thrown_away_and_told_of_and_begun_anew_with_room() -> None:
    node = Receiver()
    node.gets(0, FILE[:100])
    node.disk.is_full = True
    node.gets(100, FILE[100:])
    assert node.disk.names() == []
    node.gets(100, FILE[100:])
    assert (node.acknowledged, len(node.files.found_no_room)) == ([100], 2)
    node.disk.is_full = False
    node.gets(100, FILE[100:])  # as the leader does whose piece was not acknowledged
    assert node.acknowledged == [100, 0]
    node.gets(0, FILE)
    node.finish()
    assert node.installed == [MESSAGE]
