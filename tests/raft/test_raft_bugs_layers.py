"""Bugs of other systems below and above Raft: disk, apply, locks. `test_raft_bugs` lists all of them."""

import random

import pytest

from lockd.disk.record import LogWrite, SnapshotMark
from lockd.disk.snapshot_file import SnapshotHeader
from lockd.errors import CorruptData
from lockd.ids import ClusterId, Incarnation, InstanceId, LogIndex, NodeId, Term
from lockd.locks.codec import decode_batch, encode_batch
from lockd.locks.fingerprint import fingerprint
from lockd.locks.machine import LockMachine
from lockd.locks.restore import Clients, restored_state
from lockd.raft.entries import Configuration, EntryKind, EntryRun, HardState, SnapshotMeta
from lockd.raft.log import Log
from lockd.raft.node import RaftConfig, RaftNode
from tests.disk.memory import SimulatedLog
from tests.disk.samples import Model, draw_writes, store
from tests.locks.cluster_state import ClusterState
from tests.locks.random_commands import RandomLog
from tests.raft.single import latest

INSTANCE = InstanceId("a1" * 16)


def simulated_log() -> SimulatedLog:
    return SimulatedLog(NodeId(1), lambda: INSTANCE, segment_bytes=4096)


@pytest.mark.parametrize("seed", range(8))
def test_bug_26_etcd_13766_the_applied_index_and_the_state_are_one(seed: int) -> None:
    """etcd 3.5 saved the applied index apart from the state: after a crash entries were applied
    twice or never. Here a start has a snapshot that carries its own index, and the entries after it;
    wherever the power goes, the state is that of a node which never stopped."""
    draw = random.Random(seed)
    log, source = simulated_log(), RandomLog(seed)
    running = LockMachine()
    expected = {0: fingerprint(running.state)}
    for applied in range(1, 61):
        batch = source.next_batch(running.state)
        running.apply(LogIndex(applied), batch)
        expected[applied] = fingerprint(running.state)
        run = EntryRun(LogIndex(applied), (Term(1),), (EntryKind.COMMANDS,), (encode_batch(batch),))
        hard_state = HardState(Term(1), NodeId(1), LogIndex(applied - 1))
        log.submit(LogWrite(applied, hard_state, run))
        log.sync()
        if draw.random() < 0.15:
            meta = SnapshotMeta(LogIndex(applied), Term(1), Configuration((NodeId(1),)))
            header = SnapshotHeader(meta, ClusterId("c0" * 16), Incarnation("1234abcd"), (), 0)
            store(log.snapshots, header, *running.snapshot())
            log.submit(LogWrite(applied, snapshot=SnapshotMark(meta.index, meta.term, resets=False)))
        if draw.random() < 0.3:
            recovered = log.crash(draw)
            snapshot = recovered.snapshot
            running = LockMachine.from_snapshot(recovered.state) if snapshot else LockMachine()
            start = snapshot.header.meta.index if snapshot else LogIndex(0)
            assert fingerprint(running.state) == expected[start]
            for offset, payload in enumerate(recovered.entries.payloads):
                index = LogIndex(recovered.entries.first + offset)
                if index > start:
                    running.apply(index, decode_batch(payload))
            assert recovered.entries.last == applied, "what was synced is there"
            assert fingerprint(running.state) == expected[applied]


@pytest.mark.parametrize("seed", range(8))
def test_bug_28_pysyncobj_197_no_crash_leaves_a_commit_index_past_the_log(seed: int) -> None:
    """The commit index was on disk before the entries, and the next start waited for them for ever.
    They are one write here; and a start that finds it so says what is wrong instead of waiting."""
    draw = random.Random(seed)
    log, model = simulated_log(), Model()
    ticket = 0
    for _ in range(30):
        writes = draw_writes(draw, model, ticket, draw.randint(1, 4))
        for write in writes:
            log.submit(write)
        ticket += len(writes)
        if draw.random() < 0.5:
            log.sync()
            model = model.apply(writes)
            continue
        recovered = log.crash(draw)
        last = recovered.entries.last
        assert recovered.hard_state.commit <= last
        break
    with pytest.raises(CorruptData, match="was committed and the log ends at"):
        RaftNode(
            RaftConfig(NodeId(1)),
            configuration=Configuration((NodeId(1),)),
            hard_state=HardState(Term(1), NodeId(1), LogIndex(5)),
            log=Log(),
            draw=latest,
        )


def test_bug_30_jepsen_etcd_343_tokens_grow_over_restarts_and_restores() -> None:
    """A lease gives no mutual exclusion over a pause; what does is a token that storage compares,
    which is worth something if it grows whatever happens (SAFETY P2, G1, G2)."""
    cluster = ClusterState()
    tokens: list[int] = []

    def grant(lock: str, session: str) -> None:
        cluster.open(session)
        granted = cluster.acquire(lock, session).granted
        assert not tokens or granted.token > max(tokens), "a token came back"
        tokens.append(granted.token)
        cluster.release(lock, granted.token, session)

    for number in range(5):
        grant("orders", f"before {number}")
    backup = b"".join(cluster.machine.snapshot())
    for number in range(5):
        grant("orders", f"lost {number}")  # Of these the backup knows nothing.
    cluster.machine = LockMachine.from_snapshot(b"".join(cluster.machine.snapshot()))
    grant("orders", "after a restart")
    for life in range(1, 3):
        state = restored_state(
            backup,
            now_unix_s=1_700_000_000 + life,
            taken_unix_s=1_700_000_000,
            incarnation=f"{life:08x}",
            node=1,
            instance="b2" * 16,
            peer_address="h:1",
            clients=Clients.ARE_STOPPED,
        )
        cluster.machine = LockMachine.from_snapshot(b"".join(state))
        cluster.stamp_ms = cluster.machine.state.clock_ms
        cluster.index = cluster.machine.state.applied
        for number in range(3):
            grant("orders", f"life {life}, {number}")
