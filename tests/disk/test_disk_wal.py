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

from lockd.disk.errors import DataDirError, LogClosedError
from lockd.disk.record import LogWrite
from lockd.disk.wal import GROUP_BYTES_MAX, Wal, open_data_dir, open_wal
from lockd.errors import CorruptData
from lockd.ids import NodeId
from tests.disk.memory import MemoryFile, MemoryFiles
from tests.disk.samples import NODE, Model, draw_instance, draw_writes, hard_state, run

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

    def create(self, name: str) -> MemoryFile:
        file = GatedFile(self)
        self._change(lambda names: names.update({name: file}))
        return file


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
    with pytest.raises(DataDirError, match=f"^data directory {tmp_path}/?: Is a directory$"):
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
