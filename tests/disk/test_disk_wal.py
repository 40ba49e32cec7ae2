"""The writer thread: what is acknowledged, when, and what happens when the disk fails (SAFETY D1)."""

import errno
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from queue import SimpleQueue

import pytest

import lockd.disk.wal
from lockd.disk.errors import DataDirError, LogClosedError
from lockd.disk.record import Identity, LogWrite
from lockd.disk.recovery import segment_name
from lockd.disk.snapshot_file import encode_snapshot
from lockd.disk.snapshots import snapshot_name
from lockd.disk.wal import GROUP_BYTES_MAX, Wal, create_from_snapshot, open_data_dir, open_wal
from lockd.errors import CorruptData
from lockd.ids import LogIndex, NodeId, Term
from tests.disk.memory import Fault, MemoryFile, MemoryFiles, Operation
from tests.disk.samples import (
    CLUSTER,
    INCARNATION,
    NODE,
    Model,
    draw_instance,
    draw_writes,
    hard_state,
    header,
    mark,
    run,
    store,
)

WAIT_S = 30.0


class GatedFile(MemoryFile):
    """Its syncs wait at the disk's gate."""

    def sync(self) -> None:
        disk = self._disk
        assert isinstance(disk, GatedDisk)
        if disk.gated and threading.current_thread().name == "lockd-wal":
            disk.at_gate.put(None)
            assert disk.gate.acquire(timeout=WAIT_S)
        super().sync()
        disk.syncs += 1


class GatedDisk(MemoryFiles):
    """Once `gated`, the writer's syncs announce themselves at `at_gate` and wait for `gate`."""

    def __init__(self) -> None:
        super().__init__()
        self.gated = False
        self.at_gate: SimpleQueue[None] = SimpleQueue()
        self.gate = threading.Semaphore(0)
        self.syncs = 0

    def new_file(self) -> MemoryFile:
        return GatedFile(self)


class Owner:
    """Takes the callbacks of a log in order."""

    def __init__(self) -> None:
        self.told: SimpleQueue[int | BaseException] = SimpleQueue()
        self.full: SimpleQueue[bool] = SimpleQueue()

    def start(self, wal: Wal) -> None:
        wal.start(self.told.put, self.told.put, self.full.put)

    def next(self) -> int | BaseException:
        return self.told.get(timeout=WAIT_S)


def entry(ticket: int, payload: bytes = b"x") -> LogWrite:
    return LogWrite(ticket, hard_state(1, 1), run(ticket, payload))


def gated() -> tuple[GatedDisk, Wal, Owner]:
    disk, owner = GatedDisk(), Owner()
    _, wal = open_wal(disk, node_id=NODE, draw_instance=draw_instance)
    # Its one worker is through with the next segment once it gets to this.
    wal._ahead.submit(int).result(timeout=WAIT_S)
    disk.gated = True
    owner.start(wal)
    return disk, wal, owner


def test_d1_a_write_is_told_of_only_after_its_sync_returned() -> None:
    disk, wal, owner = gated()
    wal.submit(entry(1))
    disk.at_gate.get(timeout=WAIT_S)
    assert owner.told.empty()
    disk.gate.release()
    assert owner.next() == 1
    disk.lose_power(random.Random(0))
    disk.gated = False
    wal.close()
    assert len(open_wal(disk, node_id=NODE, draw_instance=draw_instance)[0].entries) == 1


def test_group_commit_what_waits_during_a_sync_goes_out_with_one() -> None:
    disk, wal, owner = gated()
    wal.submit(entry(1))
    disk.at_gate.get(timeout=WAIT_S)
    for ticket in range(2, 66):
        wal.submit(entry(ticket))
    before = disk.syncs
    disk.gate.release(2)
    assert owner.next() == 1
    assert owner.next() == 65
    assert disk.syncs - before == 2
    disk.gated = False
    wal.close()


def test_a_group_ends_once_it_is_large() -> None:
    disk, wal, owner = gated()
    wal.submit(entry(1))
    disk.at_gate.get(timeout=WAIT_S)
    for ticket in range(2, 7):
        wal.submit(entry(ticket, bytes(GROUP_BYTES_MAX // 2)))
    disk.gated = False
    disk.gate.release()
    assert [owner.next() for _ in range(4)] == [1, 3, 5, 6]
    wal.close()


def test_d1_after_a_failed_sync_nothing_is_told_of_and_nothing_is_taken() -> None:
    disk, wal, owner = gated()
    wal.submit(entry(1))
    disk.at_gate.get(timeout=WAIT_S)
    wal.submit(entry(2))
    disk.syncs_fail = True
    disk.gate.release()
    failure = owner.next()
    assert isinstance(failure, OSError)
    assert failure.errno == errno.EIO
    disk.syncs_fail = False
    with pytest.raises(LogClosedError):
        wal.submit(entry(3))
    wal.close()
    assert owner.told.empty()


def test_d1_a_real_fdatasync_that_fails_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, wal = open_data_dir(tmp_path, node_id=NODE, draw_instance=draw_instance, segment_bytes=8192)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)
    owner = Owner()
    owner.start(wal)
    wal.submit(entry(1))
    assert isinstance(owner.next(), OSError)
    wal.close()
    assert owner.told.empty()


def test_d4_a_full_disk_keeps_what_was_submitted_and_goes_on_when_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lockd.disk.wal, "FULL_RETRY_S", 0.001)
    disk, owner = MemoryFiles(), Owner()
    _, wal = open_wal(disk, node_id=NODE, draw_instance=draw_instance, segment_bytes=8192)
    wal._ahead.submit(int).result(timeout=WAIT_S)
    owner.start(wal)
    disk.fault = Fault(0, frozenset({Operation.CREATE, Operation.WRITE}), errno.ENOSPC)
    wal.submit(entry(1))
    assert owner.full.get(timeout=WAIT_S) is True
    for ticket in range(2, 30):
        wal.submit(entry(ticket, bytes(900)))
    assert owner.told.empty()
    disk.fault = None
    assert owner.full.get(timeout=WAIT_S) is False
    while owner.next() != 29:
        pass
    wal.close()
    assert owner.full.empty()
    recovered, wal = open_wal(disk, node_id=NODE, draw_instance=draw_instance)
    assert recovered.entries.last == 29
    wal.close()


def test_d4_closing_a_log_on_a_full_disk_acknowledges_nothing() -> None:
    disk, owner = MemoryFiles(), Owner()
    _, wal = open_wal(disk, node_id=NODE, draw_instance=draw_instance, segment_bytes=8192)
    wal._ahead.submit(int).result(timeout=WAIT_S)
    disk.fault = Fault(0, frozenset({Operation.WRITE}), errno.EDQUOT)
    owner.start(wal)
    wal.submit(entry(1))
    assert owner.full.get(timeout=WAIT_S) is True
    wal.close()
    assert owner.told.empty()
    disk.fault = None
    recovered, wal = open_wal(disk, node_id=NODE, draw_instance=draw_instance)
    assert len(recovered.entries) == 0
    wal.close()


def test_d4_a_node_starts_on_a_full_disk_and_writes_while_its_segment_has_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lockd.disk.wal, "FULL_RETRY_S", 0.001)
    disk, owner = MemoryFiles(), Owner()
    open_wal(disk, node_id=NODE, draw_instance=draw_instance, segment_bytes=8192)[1].close()
    disk.remove(segment_name(2))
    disk.is_full = True
    _, wal = open_wal(disk, node_id=NODE, draw_instance=draw_instance, segment_bytes=8192)
    owner.start(wal)
    for ticket in range(1, 9):
        wal.submit(entry(ticket))
        assert owner.next() == ticket
    wal.submit(entry(9, bytes(8192)))
    assert owner.full.get(timeout=WAIT_S) is True
    disk.is_full = False
    assert owner.next() == 9
    wal.close()


def test_d1_no_room_at_a_sync_is_a_failure_of_the_sync() -> None:
    """What was under way is in doubt, whatever the number of the error."""
    disk, wal, owner = gated()
    disk.fault = Fault(0, frozenset({Operation.SYNC}), errno.ENOSPC)
    disk.gated = False
    wal.submit(entry(1))
    assert isinstance(owner.next(), OSError)
    with pytest.raises(LogClosedError):
        wal.submit(entry(2))
    wal.close()


def test_a_data_directory_made_from_a_snapshot_starts_from_it(tmp_path: Path) -> None:
    identity = Identity(NODE, draw_instance(), CLUSTER, INCARNATION, (NODE,))
    data = b"".join(encode_snapshot(header(40, 6), [b"restored"]))
    directory = tmp_path / "new"
    create_from_snapshot(directory, identity=identity, address="one:7421", snapshot=[data[:99], data[99:]])
    with pytest.raises(DataDirError, match="holds a log"):
        create_from_snapshot(directory, identity=identity, address="one:7421", snapshot=[data])
    recovered, wal = open_data_dir(directory, node_id=NODE, draw_instance=draw_instance)
    assert recovered.identity == identity
    assert recovered.state == b"restored"
    owner = Owner()
    owner.start(wal)
    store(wal.snapshots, header(41, 6), b"taken")
    wal.submit(LogWrite(1, append=run(41, b"x", term=6)))
    wal.submit(LogWrite(2, snapshot=mark(41, 6)))
    wal.close()
    assert [name.name for name in directory.iterdir() if name.suffix == ".snap"] == [
        snapshot_name(LogIndex(41), Term(6))
    ]


def test_an_impossible_write_fails_the_log_instead_of_reaching_the_disk() -> None:
    disk, wal, owner = gated()
    disk.gated = False
    wal.submit(entry(5))
    assert isinstance(owner.next(), ValueError)
    wal.close()
    assert len(open_wal(disk, node_id=NODE, draw_instance=draw_instance)[0].entries) == 0


def test_close_writes_what_was_submitted_and_then_refuses() -> None:
    disk, wal, owner = gated()
    disk.gated = False
    for ticket in range(1, 21):
        wal.submit(entry(ticket))
    wal.close()
    wal.close()
    told = []
    while not owner.told.empty():
        told.append(owner.next())
    assert told[-1] == 20
    with pytest.raises(LogClosedError):
        wal.submit(entry(21))


def test_close_without_start_lets_go_of_the_directory(tmp_path: Path) -> None:
    for _ in range(2):
        _, wal = open_data_dir(tmp_path, node_id=NODE, draw_instance=draw_instance, segment_bytes=8192)
        wal.close()


def test_hard_state_alone_and_all_sorts_of_writes_survive_a_restart(tmp_path: Path) -> None:
    rng, model = random.Random(3), Model()
    for life in range(4):
        recovered, wal = open_data_dir(
            tmp_path, node_id=NODE, draw_instance=draw_instance, segment_bytes=8192
        )
        assert model.matches(recovered)
        assert recovered.fresh == (life == 0)
        writes = draw_writes(rng, model, 1, 40)
        writes.append(LogWrite(41, hard_state(model.apply(writes).hard_state.term + 1, 1)))
        Owner().start(wal)
        for write in writes:
            wal.submit(write)
        wal.close()
        model = model.apply(writes)


def test_a_failed_start_unlocks_the_directory_and_names_it(tmp_path: Path) -> None:
    _, wal = open_data_dir(tmp_path, node_id=NODE, draw_instance=draw_instance, segment_bytes=8192)
    with pytest.raises(DataDirError, match=f"{tmp_path} is in use"):
        open_data_dir(tmp_path, node_id=NODE, draw_instance=draw_instance)
    wal.close()
    with pytest.raises(DataDirError, match=f"{tmp_path} holds the data of node 1, and this is node 2"):
        open_data_dir(tmp_path, node_id=NodeId(2), draw_instance=draw_instance)
    log = tmp_path / "0000000000000001.log"
    log.write_bytes(b"\1" + log.read_bytes()[1:])
    for _ in range(2):
        with pytest.raises(CorruptData, match=f"^{log}: damaged at offset 0: "):
            open_data_dir(tmp_path, node_id=NODE, draw_instance=draw_instance)


def test_a_segment_that_cannot_be_read_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "0000000000000001.log").mkdir()
    with pytest.raises(DataDirError, match=f"^{tmp_path}/0000000000000001.log: Is a directory$"):
        open_data_dir(tmp_path, node_id=NODE, draw_instance=draw_instance)


WRITER = """
import sys
from lockd.disk.wal import open_data_dir
from tests.disk.samples import NODE, draw_instance
from tests.disk.test_disk_wal import entry
recovered, wal = open_data_dir(sys.argv[1], node_id=NODE, draw_instance=draw_instance, segment_bytes=65536)
wal.start(*[lambda told: print(told, flush=True)] * 3)
ticket = recovered.entries.last
while True:
    for _ in range(20):
        ticket += 1
        wal.submit(entry(ticket, ticket.to_bytes(8) * 50))
    sys.stdin.readline()
"""


def test_d1_p3_kill_9_of_a_writing_process_loses_nothing_it_told_of(tmp_path: Path) -> None:
    told = 0
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            process.stdin.write("\n" * 200)
            process.stdin.flush()
            goal = told + 1500
            while told < goal:
                told = int(process.stdout.readline())
            process.kill()
            told = max([told, *map(int, process.stdout.read().splitlines()[:-1])])
        recovered, wal = open_data_dir(tmp_path, node_id=NODE, draw_instance=draw_instance)
        wal.close()
        assert recovered.entries.last >= told
        assert recovered.entries.payloads[told - 1] == told.to_bytes(8) * 50
        told = recovered.entries.last
