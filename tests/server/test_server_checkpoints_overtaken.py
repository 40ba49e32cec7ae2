"""SAFETY C9: a node's own snapshot that a leader's has overtaken takes nothing back."""

from collections.abc import Callable

import pytest

from lockd.disk.record import Identity, SnapshotMark
from lockd.ids import ClusterId, Incarnation, InstanceId, NodeId
from lockd.locks.machine import LockMachine
from lockd.server.checkpoints import Checkpoints
from tests.disk.memory import SimulatedLog
from tests.raft.single import append_from, make_node, settle, snapshot_from, step
from tests.server.snapshots import DirectSnapshots

IDENTITY = Identity(NodeId(1), InstanceId("a" * 32), ClusterId("c" * 32), Incarnation("1" * 8), ())


@pytest.mark.parametrize("overtaken", ["while it is written", "while its mark is written"])
def test_c9_a_snapshot_that_was_overtaken_takes_the_log_back_to_nothing(overtaken: str) -> None:
    disk = SimulatedLog(IDENTITY.node_id, lambda: IDENTITY.instance)
    being_written: list[Callable[[], None]] = []
    marks: list[tuple[SnapshotMark, Callable[[], None]]] = []
    raft = make_node()
    checkpoints = Checkpoints(
        raft=raft,
        files=DirectSnapshots(lambda: disk.snapshots, being_written.append),
        state=lambda: (LockMachine(), IDENTITY, {}),
        write=lambda mark, on_durable: marks.append((mark, on_durable)),
        send=lambda _node, _frame: True,
        unix_s=lambda: 0,
        log_bytes=1,
    )
    step(raft, append_from(2, 1, terms=[1, 1, 1], commit=3))
    checkpoints.applied(1)
    (finish,) = being_written
    if overtaken == "while its mark is written":
        finish()
        assert [mark.index for mark, _ in marks] == [3]
    raft.step(snapshot_from(2, 1, (9, 1)))
    settle(raft)
    if overtaken == "while it is written":
        finish()
        assert marks == []
    for _, on_durable in marks:
        on_durable()
    assert raft.snapshot is not None
    assert (raft.snapshot.index, raft.log.base) == (9, 9)
    raft.check_invariants()
