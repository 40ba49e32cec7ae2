"""From what the disk, or a peer, has given to a state machine: what no start believes (SAFETY C9, C11)."""

from dataclasses import replace

import pytest

from lockd.disk.snapshot_file import SnapshotHeader, StoredSnapshot
from lockd.errors import CorruptData
from lockd.ids import ClusterId, Incarnation, LogIndex
from lockd.locks.commands import CreateCluster
from lockd.server.recovering import machine_of
from tests.disk.samples import header
from tests.locks.cluster_state import ClusterState

HEADER = header(7, 2)


def state(*, applied: int = 7) -> bytes:
    """Of the header's cluster, after so many entries."""
    cluster = ClusterState()
    cluster.send(CreateCluster(HEADER.cluster, HEADER.incarnation), user="")
    while cluster.machine.state.applied < applied:
        cluster.send(CreateCluster("d" * 32, "2" * 8), user="")
    return b"".join(cluster.machine.snapshot())


def stored(of: SnapshotHeader) -> StoredSnapshot:
    return StoredSnapshot(of, 0, "")


def test_a_snapshot_may_end_with_entries_that_change_no_lock() -> None:
    """The state counts the last one that did; the header has the last of all."""
    for applied in (1, 6, 7):
        assert machine_of(stored(HEADER), state(applied=applied)).state.applied == applied


@pytest.mark.parametrize(
    ("of", "body", "says"),
    [
        (replace(HEADER, cluster=ClusterId("d" * 32)), state(), "another cluster or incarnation"),
        (replace(HEADER, incarnation=Incarnation("d" * 8)), state(), "another cluster or incarnation"),
        (replace(HEADER, meta=replace(HEADER.meta, index=LogIndex(6))), state(), "has entry 7 applied"),
        (HEADER, state()[:-1], "does not match its checksum"),
        (HEADER, b"", "cut short"),
    ],
)
def test_c9_a_state_that_is_not_the_one_that_its_header_tells_of(
    of: SnapshotHeader, body: bytes, says: str
) -> None:
    """To apply the next entry to it would be to apply it to another state, or twice."""
    where = f"the snapshot of entry {of.meta.index} of term 2: .*{says}"
    with pytest.raises(CorruptData, match=where):
        machine_of(stored(of), body)
