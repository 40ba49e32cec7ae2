"""`lockd snapshot`: what is written, what is refused with which status, and G2 with real nodes."""

import asyncio
import errno
import json
import os
import stat
import struct
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import hiredis
import pytest

import lockd
from lockd.cli import main
from lockd.disk.record import LogWrite
from lockd.disk.snapshot_file import SnapshotHeader, decode_snapshot, encode_snapshot
from lockd.ids import ClusterId, Incarnation, LogIndex, NodeId, Term
from lockd.protocol.resp import Reply
from lockd.raft.entries import Configuration, EntryKind, EntryRun, SnapshotMeta
from lockd.testing.ports import free_port
from tests.client.peer import HANG_UP, Error, Peer
from tests.disk.memory import SimulatedLog
from tests.disk.samples import NODE, draw_instance, run
from tests.locks.test_locks_snapshot import busy_cluster
from tests.processes import (
    LockdProcess,
    NodePorts,
    eventually,
    run_lockd,
    running_cluster,
    running_node,
)


def sample(directory: Path, *, taken_unix_s: int = 1_700_000_000) -> Path:
    """A backup of a cluster whose node 5 was removed."""
    machine = busy_cluster().machine
    header = SnapshotHeader(
        SnapshotMeta(LogIndex(machine.applied), Term(7), Configuration((NodeId(1), NodeId(2), NodeId(3)))),
        ClusterId(machine.cluster),
        Incarnation(machine.incarnation),
        ((NodeId(1), "h:1"), (NodeId(2), "g:1")),
        taken_unix_s,
    )
    file = directory / "sample.snap"
    file.write_bytes(b"".join(encode_snapshot(header, machine.snapshot())))
    return file


class Lockd:
    """`lockd snapshot` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Exit status, standard output, and the one line of the error."""
        status = main(["snapshot", *map(str, arguments)])
        shown = self._capsys.readouterr()
        assert len(shown.err.splitlines()) <= 1, shown.err
        return status, shown.out, shown.err

    def json(self, *arguments: object) -> Any:
        status, out, err = self(*arguments, "--json")
        assert status == 0, err
        return json.loads(out)


@pytest.fixture
def snapshot(capsys: pytest.CaptureFixture[str]) -> Lockd:
    return Lockd(capsys)


def test_inspect_shows_what_a_file_holds(snapshot: Lockd, tmp_path: Path) -> None:
    file = sample(tmp_path)
    found = snapshot.json("inspect", file)
    assert found["voters"] == [1, 2, 3]
    assert found["removed"] == [5]
    machine = busy_cluster().machine
    assert (found["index"], found["term"], found["tokens_up_to"]) == (machine.applied, 7, machine.token)
    assert (found["locks"], found["waiters"]) == (machine.stats.locks, machine.stats.waiters)
    assert found["waiters"] > 0
    assert found["bytes"] == file.stat().st_size
    status, out, _ = snapshot("inspect", file)
    assert status == 0
    assert "2023-11-14 22:13:20 UTC" in out
    assert "addresses      1=h:1, 2=g:1" in out


def test_a_damaged_file_is_status_1_wherever_it_is(snapshot: Lockd, tmp_path: Path) -> None:
    """C9: whole or not at all, and nothing is made of it."""
    whole = sample(tmp_path).read_bytes()
    file, directory = tmp_path / "damaged.snap", tmp_path / "data"
    for at in range(0, len(whole), 37):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        for command in (("inspect", file), ("restore", file, "--data-dir", directory)):
            status, out, err = snapshot(*command)
            assert status == 1, err
            assert not out
            assert str(file) in err
        file.write_bytes(whole[:at])
        assert snapshot("inspect", file)[0] == 1
    assert not directory.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"cluster": ClusterId("d" * 32)},
        {"cluster": ClusterId("")},
        {"incarnation": Incarnation("none")},
        {"taken_unix_s": 2**62},
        {"meta": SnapshotMeta(LogIndex(3), Term(7), Configuration((NodeId(1),)))},
        {"meta": SnapshotMeta(LogIndex(0), Term(7), Configuration((NodeId(1),)))},
        {"meta": SnapshotMeta(LogIndex(2**40), Term(7), Configuration(()))},
    ],
)
def test_c9_a_file_that_contradicts_itself_is_damaged_although_its_checksums_hold(
    snapshot: Lockd, tmp_path: Path, change: dict[str, Any]
) -> None:
    """Nothing is made of it: not a directory with half of a restore in it, and no traceback."""
    machine = busy_cluster().machine
    header = replace(decode_snapshot(sample(tmp_path).read_bytes(), name="")[0].header, **change)
    file = tmp_path / "contradicts.snap"
    file.write_bytes(b"".join(encode_snapshot(header, machine.snapshot())))
    for command in (("inspect", file), ("restore", file, "--data-dir", tmp_path / "data")):
        status, out, err = snapshot(*command)
        assert (status, out) == (1, ""), err
        assert err.startswith(f"lockd snapshot: {file}: ")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("content", [b"", b"text\n", b"a text of more bytes than a snapshot's preamble\n"])
def test_another_file_is_called_another_file(snapshot: Lockd, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    status, out, err = snapshot("inspect", file)
    assert (status, out) == (1, "")
    assert "no snapshot of lockd begins here" in err


def test_what_is_asked_wrongly_is_status_2(snapshot: Lockd, tmp_path: Path) -> None:
    file, empty = sample(tmp_path), tmp_path / "empty"
    empty.mkdir()
    for arguments, says in (
        (("inspect", tmp_path / "none"), "No such file"),
        (("inspect",), "Missing argument"),
        (("restore", file), "--data-dir"),
        (("restore", file, "--data-dir", tmp_path / "d", "--node-id", 0), "node-id"),
        (("restore", file, "--data-dir", tmp_path / "d", "--node-id", 5), "node 5 was removed"),
        (("restore", file, "--data-dir", tmp_path / "d", "--advertise-peer", "0.0.0.0:1"), "every address"),
        (("save", tmp_path / "f", "--data-dir", tmp_path / "none"), "there is none"),
        (("save", tmp_path / "f", "--data-dir", empty), "no log"),
        (("save", tmp_path / "f", "--data-dir", empty, "--endpoints", "h:1"), "give one"),
        (("save", file, "--data-dir", empty), "exists"),
        (("save", tmp_path / "no" / "f", "--endpoints", "h:1"), "No such file or directory"),
        (("save", tmp_path / "f", "--endpoints", "h:x"), "h:x"),
    ):
        status, out, err = snapshot(*arguments)
        assert (status, out) == (2, ""), (arguments, err)
        assert says in err
    assert not (tmp_path / "d").exists()
    assert [*empty.iterdir()] == []


def test_g2_a_clock_before_the_backup_is_refused(snapshot: Lockd, tmp_path: Path) -> None:
    file = sample(tmp_path, taken_unix_s=int(time.time()) + 500)
    status, _, err = snapshot("restore", file, "--data-dir", tmp_path / "data")
    assert status == 2
    assert "earlier than the backup's" in err
    assert not (tmp_path / "data").exists()


def test_what_is_wrong_with_a_directory_is_said_with_its_name(snapshot: Lockd, tmp_path: Path) -> None:
    """Whatever it is; several lie on the screen of whoever looks for the best survivor."""
    for entry, status, says in (
        (run(1, b"no batch"), 1, "entry 1 can't be applied"),
        (EntryRun(LogIndex(1), (Term(1),), (EntryKind.NOOP,), (b"",)), 2, "its log has no cluster yet"),
    ):
        directory = tmp_path / str(status)
        log = SimulatedLog(NODE, draw_instance)
        log.submit(LogWrite(1, append=entry))
        log.sync()
        directory.mkdir()
        for name in log.disk.names():
            (directory / name).write_bytes(log.disk.read(name))
        ended, _, err = snapshot("save", tmp_path / "f", "--data-dir", directory)
        assert ended == status, err
        assert err.startswith(f"lockd snapshot: data directory {directory}: {says}")


def test_a_directory_with_a_log_is_not_restored_into(snapshot: Lockd, tmp_path: Path) -> None:
    file = sample(tmp_path)
    first = snapshot.json("restore", file, "--data-dir", tmp_path / "data")
    status, _, err = snapshot("restore", file, "--data-dir", tmp_path / "data")
    assert status == 2
    assert "holds a log" in err
    again = snapshot.json("save", tmp_path / "again.snap", "--data-dir", tmp_path / "data")
    assert again["incarnation"] == first["incarnation"]


def test_a_saved_file_is_for_its_owner_and_overwrites_only_when_told(snapshot: Lockd, tmp_path: Path) -> None:
    """It holds the ids of sessions, which are secrets."""
    snapshot.json("restore", sample(tmp_path), "--data-dir", tmp_path / "data", "--clients-stopped")
    file = tmp_path / "saved.snap"
    save = ("save", file, "--data-dir", tmp_path / "data")
    assert snapshot.json(*save)["file"] == str(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_bytes(b"mine")
    assert snapshot(*save)[0] == 2
    assert file.read_bytes() == b"mine"
    assert snapshot.json(*save, "--force")
    assert snapshot.json("inspect", file)["quiet_ms"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "sample.snap", "saved.snap"]


def no_links(*_: object, **__: object) -> None:
    """A file system that has no hard links."""
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_a_file_is_saved_where_there_are_no_hard_links(
    snapshot: Lockd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on the stick that somebody takes a backup away on; and still nothing is overwritten."""

    snapshot.json("restore", sample(tmp_path), "--data-dir", tmp_path / "data")
    file = tmp_path / "saved.snap"
    monkeypatch.setattr(os, "link", no_links)
    assert snapshot.json("save", file, "--data-dir", tmp_path / "data")["file"] == str(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert snapshot.json("inspect", file)["quiet_ms"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "sample.snap", "saved.snap"]


def test_a_file_that_appears_while_another_is_saved_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content, file = sample(tmp_path).read_bytes(), tmp_path / "saved.snap"

    def with_somebody_else(_: list[str]) -> bytes:
        file.write_bytes(b"mine")
        return content

    for has_links in (True, False):
        if not has_links:
            monkeypatch.setattr(os, "link", no_links)
        peer = Peer()
        peer.script("CLUSTER.SNAPSHOT", copy_of(content), with_somebody_else)
        assert saved_from(peer, file) == 2
        assert "File exists" in capsys.readouterr().err
        assert file.read_bytes() == b"mine"
        file.unlink()


def test_no_node_to_ask_is_status_3(snapshot: Lockd, tmp_path: Path) -> None:
    status, _, err = snapshot("save", tmp_path / "f", "--endpoints", f"127.0.0.1:{free_port()}")
    assert status == 3, err
    assert [*tmp_path.iterdir()] == []


def saved_from(peer: Peer, file: Path) -> int:
    """Exit status of a save from a node that does what the test has told it."""

    async def play() -> int:
        async with peer:
            arguments = ["snapshot", "save", str(file), "--endpoints", peer.endpoint]
            return await asyncio.to_thread(main, arguments)

    return asyncio.run(play())


def copy_of(content: bytes) -> dict[str, Reply]:
    return {"id": "a" * 16, "index": 1, "term": 1, "bytes": len(content)}


def test_a_connection_that_is_lost_while_a_copy_is_read_is_status_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The copy is gone with it. Asking again helps; wrong usage, as the node's words sound, would not."""
    content, peer = sample(tmp_path).read_bytes(), Peer()
    gone = Error(f"ERR no snapshot '{'a' * 16}' was made over this connection, or a later one was")
    peer.script("CLUSTER.SNAPSHOT", copy_of(content), content[:500], HANG_UP, gone)
    assert saved_from(peer, tmp_path / "saved.snap") == 3
    assert "save again" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["sample.snap"]


def test_c11_a_copy_from_a_node_of_a_later_version_is_refused_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later = bytearray(sample(tmp_path).read_bytes())
    struct.pack_into("<H", later, 4, 2)
    struct.pack_into("<I", later, 12, crc32(later[:12]))
    peer = Peer()
    peer.script("CLUSTER.SNAPSHOT", copy_of(bytes(later)), bytes(later))
    assert saved_from(peer, tmp_path / "saved.snap") == 2
    assert "was written in format 2" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["sample.snap"]


def test_c9_a_copy_that_arrives_damaged_or_short_gets_no_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = sample(tmp_path).read_bytes()
    for parts in ((content[:-1] + b"\0",), (content[:500], b"")):
        peer = Peer()
        peer.script("CLUSTER.SNAPSHOT", copy_of(content), *parts)
        assert saved_from(peer, tmp_path / "saved.snap") == 1
        assert len(capsys.readouterr().err.splitlines()) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["sample.snap"]


@pytest.mark.process
def test_a_backup_of_a_running_node_is_that_of_its_directory(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        for lock in ("a", "b", "ü"):
            node.ask("LOCK.ACQUIRE", lock, "TTL", 60_000)
        live = _lockd("save", tmp_path / "live.snap", "--endpoints", node.endpoint)
        in_use = run_lockd("snapshot", "save", tmp_path / "x", "--data-dir", node.data_dir)
        assert in_use.returncode == 2
        assert "in use" in in_use.stderr
        node.kill()
        stopped = _lockd("save", tmp_path / "stopped.snap", "--data-dir", node.data_dir)
        assert stopped["state_hash"] == live["state_hash"]
        assert _lockd("inspect", tmp_path / "live.snap")["locks"] == 3
        node.start().await_ready()
        assert node.ask("LOCK.INSPECT", "a")["status"] == "held"


@pytest.mark.process
def test_g2_the_same_backup_restored_twice(tmp_path: Path) -> None:
    """Each time another incarnation and higher tokens, though the first restore has issued some."""
    with running_node(tmp_path) as node:
        tokens = [node.ask("LOCK.ACQUIRE", name, "TTL", 60_000)["token"] for name in "abc"]
        incarnations = [node.status()["incarnation"]]
        node.kill()
        _lockd("save", tmp_path / "backup.snap", "--data-dir", node.data_dir)
        for number in (1, 2):
            began_s = int(time.time())
            _await_second_after(began_s)
            restored = _restored(tmp_path, number, node.ports, "--clients-stopped")
            try:
                restored.start().await_ready()
                granted = [restored.ask("LOCK.ACQUIRE", name, "TTL", 5_000)["token"] for name in "abc"]
                incarnations.append(restored.status()["incarnation"])
            finally:
                restored.stop()
            assert granted[0] > max(tokens)
            assert granted[0] > max(2**32, began_s * 2**20)
            tokens += granted
        assert len(set(incarnations)) == 3


@pytest.mark.process
def test_g2_a_restored_node_grants_nothing_at_first_and_knows_no_client_of_before(tmp_path: Path) -> None:
    with running_node(tmp_path) as node, lockd.Client(node.endpoint, ttl=2) as client:
        lease = client.acquire("held")
        session = node.ask("SESSION.OPEN", 60_000)["session"]
        node.kill()
        _lockd("save", tmp_path / "backup.snap", "--data-dir", node.data_dir)
        restored = _restored(tmp_path, 1, node.ports)
        try:
            restored.start().await_ready()
            assert str(restored.ask("SESSION.KEEPALIVE", session)).startswith("NOSESSION")
            for name in ("held", "free"):
                at_once = restored.ask("LOCK.ACQUIRE", name, "TTL", 5_000)
                waiting = restored.ask("LOCK.ACQUIRE", name, "TTL", 5_000, "WAIT", 200)
                assert str(at_once).startswith("UNAVAILABLE the cluster was restored")
                assert str(waiting).startswith("TIMEOUT")
                assert restored.ask("LOCK.INSPECT", name)["status"] == "free"
            eventually(lambda: lease.lost, "the lease of before ends by its client's clock")
        finally:
            restored.stop()


@pytest.mark.process
def test_g2_c8_the_last_survivor_of_three_begins_anew(tmp_path: Path) -> None:
    """Its directory is enough; the ids of the other two are used up, and new nodes join under others."""
    with running_cluster(tmp_path) as cluster:
        survivor = cluster.followers()[0]
        token = cluster.leader().ask("LOCK.ACQUIRE", "k", "TTL", 60_000)["token"]
        eventually(lambda: survivor.status()["last_applied"] > 1, "the survivor follows")
        cluster.kill()
        saved = _lockd("save", tmp_path / "backup.snap", "--data-dir", survivor.data_dir)
        assert saved["voters"] == [1, 2, 3]
        restored = _restored(
            tmp_path, 1, NodePorts.draw(), "--clients-stopped", f"--node-id={survivor.node_id}"
        )
        restored.node_id = survivor.node_id
        try:
            restored.start().await_ready()
            assert restored.ask("LOCK.ACQUIRE", "k", "TTL", 5_000)["token"] > token + 2**32
            others = sorted({1, 2, 3} - {survivor.node_id})
            assert restored.ask("CLUSTER.MEMBERS")["removed"] == others
            refusal = restored.ask("CLUSTER.ADD", others[0], "127.0.0.1:9", "FORCE")
            assert isinstance(refusal, hiredis.ReplyError)
            assert "was removed" in str(refusal)
            restored.kill()
            restored.start().await_ready()
            joining = [f"--join=127.0.0.1:{restored.ports.peer}"]
            fourth = LockdProcess(tmp_path / "fourth", node_id=4, flags=joining)
            try:
                assert restored.ask("CLUSTER.ADD", 4, f"127.0.0.1:{fourth.ports.peer}") == 1
                fourth.start().await_ready()
                assert fourth.ask("LOCK.INSPECT", "k")["granted_last"] > token + 2**32
                assert fourth.status()["incarnation"] == restored.status()["incarnation"]
            finally:
                fourth.stop()
        finally:
            restored.stop()


def _lockd(*arguments: object) -> Any:
    done = run_lockd("snapshot", *arguments, "--json")
    assert done.returncode == 0, done
    return json.loads(done.stdout)


def _restored(directory: Path, number: int, ports: NodePorts, *flags: str) -> LockdProcess:
    """A node whose directory is made from the backup."""
    node = LockdProcess(directory / f"restored-{number}", ports=ports)
    _lockd("restore", directory / "backup.snap", "--data-dir", node.data_dir, *flags)
    return node


def _await_second_after(second: int) -> None:
    eventually(lambda: int(time.time()) > second, "the clock's next second")
