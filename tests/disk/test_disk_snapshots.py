"""Snapshot files: whole or not at all (SAFETY C9, C11, D3)."""

import errno
import os
import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockd.disk.errors import DataDirError, DiskFullError
from lockd.disk.files import OsFiles
from lockd.disk.snapshot_file import decode_snapshot, encode_snapshot
from lockd.disk.snapshots import SnapshotStore, snapshot_name, snapshot_of
from lockd.errors import CorruptData
from lockd.ids import ClusterId, Incarnation, LogIndex, NodeId, Term
from lockd.raft.entries import Configuration, SnapshotMeta
from tests.disk.memory import MemoryFiles
from tests.disk.samples import NODE, header, store

AT_7 = LogIndex(7), Term(2)
BODY = (b"alpha" * 30, b"beta", b"gamma" * 20)


def encoded(*body: bytes) -> bytes:
    return b"".join(encode_snapshot(header(7, 2), body))


@given(st.lists(st.binary(max_size=200), max_size=6))
def test_header_and_body_come_back_as_they_were(body: list[bytes]) -> None:
    data = encoded(*body)
    stored, found = decode_snapshot(data, name="x.snap")
    assert found == b"".join(body)
    assert stored.header == header(7, 2)
    assert stored.file_bytes == len(data)


def test_c11_equal_states_have_equal_hashes_however_they_were_cut() -> None:
    one, _ = decode_snapshot(encoded(b"same", b"state"), name="x")
    two, _ = decode_snapshot(encoded(b"samestat", b"", b"e"), name="x")
    other, _ = decode_snapshot(encoded(b"same", b"statE"), name="x")
    assert one.state_hash == two.state_hash != other.state_hash
    assert len(one.state_hash) == 32


def test_c9_every_flipped_bit_and_every_shorter_or_longer_file_is_refused() -> None:
    whole = encoded(*BODY)
    for at in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            with pytest.raises(CorruptData, match=r"^x\.snap: damaged at offset \d+: .*another backup\.$"):
                decode_snapshot(bytes(damaged), name="x.snap")
        with pytest.raises(CorruptData, match="damaged at offset"):
            decode_snapshot(whole[:at], name="x.snap")
    with pytest.raises(CorruptData, match=f"damaged at offset {len(whole)}"):
        decode_snapshot(whole + b"\0", name="x.snap")


def test_c9_pieces_that_changed_places_are_refused_where_they_stand() -> None:
    """Each checksum goes on from the one before: the trailer's hash is not the first to see it."""
    parts = list(encode_snapshot(header(7, 2), (b"one", b"two")))
    swapped = b"".join([*parts[:2], parts[3], parts[2], parts[4]])
    with pytest.raises(CorruptData, match=f"offset {len(parts[0] + parts[1])}:"):
        decode_snapshot(swapped, name="x.snap")


def test_c11_a_newer_format_is_refused_as_such() -> None:
    whole = bytearray(encoded(*BODY))
    struct.pack_into("<H", whole, 4, 2)
    struct.pack_into("<I", whole, 12, crc32(whole[:12]))
    with pytest.raises(DataDirError, match="format 2"):
        decode_snapshot(bytes(whole), name="x.snap")


@pytest.mark.parametrize(
    "change",
    [
        {"cluster": ClusterId("C0" * 16)},
        {"incarnation": Incarnation("")},
        {"taken_unix_s": 2**40},
        {"meta": SnapshotMeta(LogIndex(0), Term(1), Configuration((NODE,)))},
        {"meta": SnapshotMeta(LogIndex(1), Term(0), Configuration((NODE,)))},
        {"meta": SnapshotMeta(LogIndex(1), Term(1), Configuration((NodeId(2), NODE)))},
        {"meta": SnapshotMeta(LogIndex(1), Term(1), Configuration((NODE,), learners=(NODE, NODE)))},
        {"meta": SnapshotMeta(LogIndex(1), Term(1), Configuration(()))},
    ],
)
def test_c9_a_header_that_no_node_writes_is_refused_although_its_checksum_holds(
    change: dict[str, Any],
) -> None:
    """A node would install it, and break on it later."""
    whole = b"".join(encode_snapshot(replace(header(7, 2), **change), BODY))
    with pytest.raises(CorruptData, match=r"^x\.snap: damaged at offset 16: a header whose checksum holds"):
        decode_snapshot(whole, name="x.snap")


def test_what_is_only_read_need_not_be_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk of a last survivor may be there to be read alone, and its state is saved all the same."""
    files = OsFiles(tmp_path)
    snapshots = SnapshotStore(files)
    stored = store(snapshots, header(7, 2), *BODY)
    opens = os.open

    def read_only_file_system(name: str, flags: int, *mode: int, dir_fd: int) -> int:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opens(name, flags, *mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", read_only_file_system)
    assert snapshots.load(*AT_7) == (stored, b"".join(BODY))
    snapshots.open(*AT_7).close()
    files.close()


def test_a_file_gets_its_name_when_it_is_whole_and_durable() -> None:
    for seed in range(20):
        disk = MemoryFiles()
        snapshots = SnapshotStore(disk)
        stored = store(snapshots, header(7, 2), *BODY)
        disk.lose_power(random.Random(seed))
        assert disk.names() == [snapshot_name(*AT_7)]
        assert snapshots.load(*AT_7) == (stored, b"".join(BODY))


def test_c9_what_is_not_whole_is_thrown_away_and_never_gets_a_name() -> None:
    disk = MemoryFiles()
    partial = SnapshotStore(disk).begin("received")
    partial.append(encoded(*BODY)[:-1])
    with pytest.raises(CorruptData, match=r"^memory/snapshot-received\.new: damaged at .*thrown away"):
        partial.finish()
    assert disk.names() == []


def test_begin_replaces_what_was_unfinished_under_the_label() -> None:
    disk = MemoryFiles()
    snapshots = SnapshotStore(disk)
    snapshots.begin("received").append(encoded(b"of another leader", *BODY))
    partial = snapshots.begin("received")
    snapshots.begin("taken").append(b"at the same time")
    whole = encoded(*BODY)
    for at in range(0, len(whole), 50):
        assert partial.received_bytes == at
        partial.append(whole[at : at + 50])
    assert partial.finish().file_bytes == len(whole)
    assert disk.names() == [snapshot_name(*AT_7), "snapshot-taken.new"]


def test_d4_a_full_disk_is_told_from_other_errors_and_leaves_nothing() -> None:
    disk = MemoryFiles()
    partial = SnapshotStore(disk).begin("taken")
    disk.is_full = True
    with pytest.raises(DiskFullError):
        partial.append(b"no room")
    partial.discard()
    assert disk.names() == []


def test_a_reader_goes_on_after_the_file_is_removed(tmp_path: Path) -> None:
    files = OsFiles(tmp_path)
    for one in (files, MemoryFiles()):
        snapshots = SnapshotStore(one)
        store(snapshots, header(7, 2), *BODY)
        reader = snapshots.open(*AT_7)
        snapshots.remove_before(LogIndex(8))
        assert not snapshots.has(*AT_7)
        assert reader.size == len(encoded(*BODY))
        content = b"".join(reader.read(at, 100) for at in range(0, reader.size, 100))
        assert content == encoded(*BODY)
        assert reader.read(reader.size, 10) == b""
        reader.close()
        with pytest.raises(FileNotFoundError):
            snapshots.open(*AT_7)
    files.close()


def test_snapshot_names_are_read_back_and_others_are_none() -> None:
    assert snapshot_of(snapshot_name(*AT_7)) == AT_7
    assert snapshot_name(*AT_7) == "snapshot-0000000000000007-0000000000000002.snap"
    for name in ("snapshot-7-2.snap", "snapshot-taken.new", f"{snapshot_name(*AT_7)}.new", "1.log"):
        assert snapshot_of(name) is None


def test_a_backup_has_no_name_and_lasts_until_it_is_closed() -> None:
    disk = MemoryFiles()
    partial = SnapshotStore(disk).begin("backup")
    partial.append(encoded(*BODY))
    stored, reader = partial.detach()
    assert disk.names() == []
    assert stored.header == header(7, 2)
    assert reader.read(0, reader.size) == encoded(*BODY)
    reader.close()
