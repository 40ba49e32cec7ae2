"""A child process writes the snapshot: what it leaves behind, and what is said when it fails (C9, D4)."""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from lockd.disk.errors import DiskFullError
from lockd.disk.files import OsFiles
from lockd.disk.snapshot_file import StoredSnapshot, encode_snapshot
from lockd.disk.snapshots import SnapshotStore, snapshot_name
from lockd.locks.commands import CreateCluster
from lockd.locks.machine import LockMachine
from lockd.server.forking import ForkingSnapshots
from tests.disk.samples import header
from tests.locks.cluster_state import ClusterState

HEADER = header(7, 2)
NAME = snapshot_name(HEADER.meta.index, HEADER.meta.term)


class Node:
    """The snapshot files of a directory, and what its owner was told."""

    def __init__(self, directory: Path) -> None:
        self.files = OsFiles(directory)
        self.snapshots = ForkingSnapshots(SnapshotStore(self.files))
        self.told: list[StoredSnapshot | None] = []
        self.loaded: list[tuple[StoredSnapshot, LockMachine]] = []
        self._heard = asyncio.Event()
        self._open_before = descriptors()
        self._children_before = children()

    def take(self, body: Callable[[], Iterator[bytes]] = lambda: iter((b"the state",))) -> None:
        self.snapshots.take(HEADER, body, self._on_taken)

    async def hears(self) -> StoredSnapshot | None:
        await asyncio.wait_for(self._heard.wait(), 30)
        self._heard.clear()
        return self.told[-1]

    def _on_taken(self, stored: StoredSnapshot | None) -> None:
        self.told.append(stored)
        self._heard.set()

    def on_finished(self, stored: StoredSnapshot | None) -> None:
        """As a node that installs what arrives."""
        if stored is not None:
            meta = stored.header.meta
            self.loaded.append(self.snapshots.load(meta.index, meta.term))
        self._on_taken(stored)

    def assert_nothing_left(self, *names: str) -> None:
        """No other file, no descriptor, no child, not even its status."""
        assert self.files.names() == list(names)
        assert descriptors() == self._open_before
        assert children() == self._children_before


def children() -> list[str]:
    """The processes that are this one's to wait for. Other tests' servers may be among them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended, and been waited for
            pid, parent = stat.parent.name, stat.read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                found.append(pid)
    return sorted(found)


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - numbers, not paths


def on_a_loop(directory: Path, story: Callable[[Node], Awaitable[None]]) -> None:
    async def play() -> None:
        await asyncio.to_thread(lambda: None)  # its thread stays
        node = Node(directory)
        try:
            await asyncio.wait_for(story(node), 60)
        finally:
            await node.snapshots.stop()
            node.files.close()

    asyncio.run(play())


def never_ends() -> Iterator[bytes]:
    yield b"the state"
    reading, _ = os.pipe()
    os.read(reading, 1)


def hold_up_until_children_are_gone(*, seconds: float) -> None:
    """The loop can't hear of their end meanwhile. A child whose status nobody asked for is not gone."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    deadline = time.monotonic() + seconds
    while children.read_text() and time.monotonic() < deadline:
        pass


def test_a_snapshot_is_written_by_a_child_of_which_nothing_is_left(tmp_path: Path) -> None:
    async def story(node: Node) -> None:
        node.take()
        stored = await node.hears()
        assert stored is not None
        assert stored.header == HEADER
        assert SnapshotStore(node.files).load(HEADER.meta.index, HEADER.meta.term) == (stored, b"the state")
        node.assert_nothing_left(NAME)

    on_a_loop(tmp_path, story)


def test_why_a_writer_failed_is_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> Iterator[bytes]:
        yield b"the state"
        raise RuntimeError("a lock that nobody holds" + "!" * 100_000)

    async def story(node: Node) -> None:
        node.take(fails)
        assert await node.hears() is None
        node.assert_nothing_left()

    on_a_loop(tmp_path, story)
    assert "its writer has failed: RuntimeError: a lock that nobody holds!" in caplog.text


def test_a_writer_that_could_not_say_why_is_told_of_by_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def is_killed() -> Iterator[bytes]:
        os.kill(os.getpid(), 9)
        yield b""

    async def story(node: Node) -> None:
        node.take(is_killed)
        assert await node.hears() is None
        node.assert_nothing_left()
        node.take()  # it costs that one snapshot
        assert await node.hears() is not None

    on_a_loop(tmp_path, story)
    assert "its writer was ended by signal 9" in caplog.text


def test_c10_a_child_that_cannot_be_had_leaves_no_file_and_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_process() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    async def story(node: Node) -> None:
        monkeypatch.setattr(os, "fork", no_process)
        node.take()
        assert node.told == [None]
        node.assert_nothing_left()

    on_a_loop(tmp_path, story)
    assert "no process for it: [Errno 11] Resource temporarily unavailable" in caplog.text


@pytest.mark.parametrize("call", ["fdatasync", "rename"])
def test_d4_a_disk_that_is_full_only_at_the_end_gets_its_room_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    """Room is promised late by some file systems. What was written must not keep the disk full."""

    def no_room(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def story(node: Node) -> None:
        monkeypatch.setattr(os, call, no_room)
        node.take()
        assert await node.hears() is None
        node.assert_nothing_left()

    on_a_loop(tmp_path, story)
    assert "No space left on device" in caplog.text


def test_what_is_being_written_is_given_up_at_a_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At once, also when nothing has run since it began; without a word of trouble; and nothing new."""

    async def story(node: Node) -> None:
        def takes_another(taken: StoredSnapshot | None) -> None:
            node.told.append(taken)
            node.take()

        node.snapshots.take(HEADER, never_ends, takes_another)
        await node.snapshots.stop()
        assert node.told == [None, None]
        node.assert_nothing_left()

    on_a_loop(tmp_path, story)
    assert [record.message for record in caplog.records if record.levelno > logging.INFO] == []


def test_a_writer_that_has_just_ended_is_no_trouble_at_a_stop(tmp_path: Path) -> None:
    """Its number must not be given free, to whoever is started next, before `stop` knows."""

    async def story(node: Node) -> None:
        node.take()
        await asyncio.sleep(0)
        hold_up_until_children_are_gone(seconds=0.3)
        await node.snapshots.stop()
        assert node.told != [None]
        node.assert_nothing_left(NAME)

    on_a_loop(tmp_path, story)


def arrive(node: Node, state: bytes) -> None:
    """A snapshot with this state has been received to its last byte."""
    partial = node.snapshots.begin()
    for piece in encode_snapshot(HEADER, (state,)):
        partial.append(piece)
    node.snapshots.finish(partial, node.on_finished)


def state_of_cluster() -> bytes:
    cluster = ClusterState()
    cluster.send(CreateCluster(HEADER.cluster, HEADER.incarnation), user="")
    return b"".join(cluster.machine.snapshot())


def test_c9_a_state_that_has_arrived_is_decoded_beside_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state of many locks takes seconds: a node that is silent for so long is elected away."""
    decoded_in: list[threading.Thread] = []
    decode = LockMachine.from_snapshot

    def watched(data: bytes) -> LockMachine:
        decoded_in.append(threading.current_thread())
        return decode(data)

    async def story(node: Node) -> None:
        monkeypatch.setattr(LockMachine, "from_snapshot", watched)
        arrive(node, state_of_cluster())
        stored = await node.hears()
        assert stored is not None
        assert [(loaded, machine.cluster) for loaded, machine in node.loaded] == [(stored, HEADER.cluster)]
        assert threading.main_thread() not in decoded_in
        assert gc.isenabled()
        node.assert_nothing_left(NAME)

    on_a_loop(tmp_path, story)
    assert len(decoded_in) == 1


def test_c9_a_state_that_arrives_whole_and_cannot_be_read_ends_the_node(tmp_path: Path) -> None:
    """Sent again it would be the same: the node must not ask for it for ever, and not in silence."""
    reports: list[dict[str, object]] = []

    async def story(node: Node) -> None:
        failed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_error(_: asyncio.AbstractEventLoop, report: dict[str, object]) -> None:
            reports.append(report)
            failed.set()

        loop.set_exception_handler(on_error)
        arrive(node, b"the state of a later release")
        await asyncio.wait_for(failed.wait(), 30)
        assert node.told == []
        assert gc.isenabled()

    on_a_loop(tmp_path, story)
    (report,) = reports
    assert str(report["exception"]) == "the snapshot of entry 7 of term 2: these bytes are no lock state"


def test_c9_what_arrives_damaged_is_thrown_away_and_costs_no_more(tmp_path: Path) -> None:
    async def story(node: Node) -> None:
        partial = node.snapshots.begin()
        partial.append(b"".join(encode_snapshot(HEADER, (state_of_cluster(),)))[:-1])
        node.snapshots.finish(partial, node.on_finished)
        assert await node.hears() is None
        assert node.loaded == []
        node.assert_nothing_left()

    on_a_loop(tmp_path, story)


def test_d4_no_room_for_what_arrives_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The leader sends it several times a second, for as long as the disk is full."""
    no_room = DiskFullError(errno.ENOSPC, os.strerror(errno.ENOSPC), "snapshot-received.new")

    async def story(node: Node) -> None:
        for _ in range(3):
            node.snapshots.no_room(no_room)
        arrive(node, state_of_cluster())
        assert await node.hears() is not None
        node.snapshots.no_room(no_room)

    on_a_loop(tmp_path, story)
    told = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert len(told) == 2
    assert "this node stays behind: [Errno 28] No space left on device" in told[0]


def test_a_backup_has_no_name_and_its_reader_is_all_that_is_left_of_it(tmp_path: Path) -> None:
    async def story(node: Node) -> None:
        heard = asyncio.get_running_loop().create_future()
        node.snapshots.back_up(HEADER, lambda: iter((b"the state",)), heard.set_result)
        reader = await asyncio.wait_for(heard, 30)
        assert node.files.names() == []
        assert reader.read(0, 4) == b"lkdS"
        reader.close()
        node.assert_nothing_left()

    on_a_loop(tmp_path, story)
