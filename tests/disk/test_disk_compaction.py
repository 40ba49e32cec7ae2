"""A log that rests on a snapshot: what is kept, what is removed, what a start finds (SAFETY C9, D3)."""

import errno
import random

import pytest

from lockd.disk.errors import DataDirError
from lockd.disk.record import Identity, LogWrite
from lockd.disk.recovery import Recovered, read_log, recover, segment_name
from lockd.disk.segments import SegmentLog, create_log, open_log
from lockd.disk.snapshot_file import encode_snapshot
from lockd.disk.snapshots import SnapshotStore, snapshot_name
from lockd.errors import CorruptData
from lockd.ids import ClusterId, LogIndex, NodeId, Term
from tests.disk.memory import Fault, Inline, MemoryFiles, Operation
from tests.disk.samples import (
    CLUSTER,
    INCARNATION,
    INSTANCE,
    NODE,
    draw_instance,
    hard_state,
    header,
    mark,
    run,
    segments_of,
    store,
)


def open_small(disk: MemoryFiles) -> tuple[Recovered, SegmentLog]:
    return open_log(disk, node_id=NODE, draw_instance=draw_instance, ahead=Inline(), segment_bytes=4096)


def filled(entries: int) -> tuple[MemoryFiles, SegmentLog]:
    """A log of entries of 700 bytes, about four a segment."""
    disk = MemoryFiles()
    _, log = open_small(disk)
    for index in range(1, entries + 1):
        log.write([LogWrite(index, hard_state(1, 1, index - 1), run(index, b"x" * 700))])
    return disk, log


def names(disk: MemoryFiles) -> list[str]:
    return [name for name, _ in segments_of(disk)]


def take(log: SegmentLog, index: int, term: int = 1, *, resets: bool = False) -> None:
    store(log.snapshots, header(index, term), b"state at %d" % index)
    log.write([LogWrite(900 + index, snapshot=mark(index, term, resets=resets))])


def test_a_snapshot_is_what_a_start_begins_with_and_the_log_goes_on() -> None:
    disk, log = filled(20)
    take(log, 13)
    log.write([LogWrite(1, append=run(21, b"after"))])
    recovered, _ = open_small(disk)
    assert recovered.snapshot is not None
    assert recovered.snapshot.header == header(13)
    assert recovered.state == b"state at 13"
    assert recovered.entries.first - 1 <= 13
    assert recovered.entries.last == 21
    assert recovered.base_term == 1
    assert not recovered.fresh


def test_segments_that_the_snapshot_stands_for_are_removed_and_no_others() -> None:
    disk, log = filled(20)
    before = names(disk)
    take(log, 13)
    first = recover(segments_of(disk)).entries.first
    assert names(disk) == [name for name in before if name >= names(disk)[0]]
    assert len(before) - len(names(disk)) == 4
    assert first == 13
    # The segment after the first one kept begins beyond the mark, so the first is needed.
    with pytest.raises(CorruptData, match=f"{names(disk)[1]}: damaged at offset 0: segment 5 is missing"):
        recover(segments_of(disk)[1:])


@pytest.mark.parametrize("kind", [Operation.REMOVE, Operation.SYNC_DIRECTORY])
def test_d1_a_removal_that_fails_is_heard_of_and_made_up_for_by_the_next_start(kind: Operation) -> None:
    disk, log = filled(20)
    store(log.snapshots, header(13), b"state at 13")
    before = names(disk)
    disk.fault = Fault(0, frozenset({kind}), errno.EIO)
    log.write([LogWrite(1, snapshot=mark(13))])
    with pytest.raises(OSError, match="Input/output"):
        log.write([LogWrite(2, append=run(21, b"x"))])
    disk.fault = None
    assert names(disk) in (before, before[1:])
    recovered, _ = open_small(disk)
    assert (recovered.state, recovered.entries.last) == (b"state at 13", 20)
    assert names(disk) == before[4:]


def test_an_older_snapshot_goes_with_the_mark_of_a_newer_one_and_a_newer_file_stays() -> None:
    disk, log = filled(20)
    take(log, 5)
    store(log.snapshots, header(18), b"not yet in force")
    take(log, 13)
    assert [name for name in disk.names() if name.endswith(".snap")] == [
        snapshot_name(LogIndex(13), Term(1)),
        snapshot_name(LogIndex(18), Term(1)),
    ]
    recovered, _ = open_small(disk)
    assert recovered.state == b"state at 13"
    assert [name for name in disk.names() if name.endswith(".snap")] == [snapshot_name(LogIndex(13), Term(1))]


@pytest.mark.parametrize("index", [5, 20, 50])
def test_c9_an_installed_snapshot_leaves_nothing_of_the_old_log(index: int) -> None:
    disk, log = filled(20)
    in_use = read_log(segments_of(disk)).tail.name
    take(log, index, 3, resets=True)
    assert names(disk)[0] == in_use
    log.write([LogWrite(1, hard_state(3), run(index + 1, b"new", b"newer", term=3))])
    for _ in range(2):
        recovered, log = open_small(disk)
        assert recovered.entries == run(index + 1, b"new", b"newer", term=3)
        assert recovered.base_term == 3
    # The next segment's start is all that is needed of what was before the installed snapshot.
    for entry in range(index + 3, index + 23):
        log.write([LogWrite(entry, append=run(entry, b"x" * 700, term=3))])
    take(log, index + 1, 3)
    assert recover(segments_of(disk)).entries.first == index + 1


def test_a_mark_and_what_follows_it_are_one_write() -> None:
    disk, log = filled(3)
    store(log.snapshots, header(9, 2), b"installed")
    log.write([LogWrite(1, hard_state(2, 0, 9), run(10, b"next", term=2), snapshot=mark(9, 2, resets=True))])
    recovered, _ = open_small(disk)
    assert recovered.entries == run(10, b"next", term=2)
    assert recovered.hard_state == hard_state(2, 0, 9)


def test_entries_that_replace_some_of_a_removed_segment_are_read_from_what_is_left() -> None:
    """§5.3 after compaction: the kept segments replace entries which only removed ones had."""
    disk, log = filled(14)
    *full, (current, content), _ = segments_of(disk)
    began_after = recover([*full, (current, bytes(len(content)))]).entries.last
    assert began_after == 12
    log.write([LogWrite(1, hard_state(2), run(8, b"eight", b"nine", *[b"y"] * 5, term=2))])
    take(log, began_after, 2)
    assert names(disk)[0] == current
    recovered, _ = open_small(disk)
    assert (recovered.entries.first, recovered.base_term) == (9, 2)
    assert recovered.entries.payloads == (b"nine", *[b"y"] * 5)


def test_impossible_marks_and_entries_are_refused_and_nothing_is_written() -> None:
    disk, log = filled(20)
    take(log, 13)
    for write, problem in (
        (LogWrite(1, append=run(13, b"x")), "the snapshot has them"),
        (LogWrite(1, snapshot=mark(12)), "a snapshot of entry 12 follows one of entry 13"),
        (LogWrite(1, snapshot=mark(21)), "a snapshot of entry 21 is beyond entry 20"),
        (LogWrite(1, snapshot=mark(15)), r"snapshot-0+15-0+1.snap is not there"),
    ):
        with pytest.raises(ValueError, match=problem):
            log.write([write])
    log.write([LogWrite(1, append=run(14, b"goes on"))])
    assert open_small(disk)[0].entries.last == 14


def test_d3_a_snapshot_that_is_missing_or_damaged_or_of_another_cluster_refuses() -> None:
    disk, log = filled(20)
    log.write([LogWrite(1, cluster=(CLUSTER, INCARNATION))])
    take(log, 13)
    name = snapshot_name(LogIndex(13), Term(1))
    content = disk.read(name)
    for damage, problem in (
        (content[:-9] + b"\0" + content[-8:], r"damaged at offset \d+: .* do not match their checksum"),
        (content[:30], "beyond the file's end"),
        (b"".join(encode_snapshot(header(14), ())), "the snapshot of entry 14"),
        (b"".join(encode_snapshot(header(13, cluster=ClusterId("d0" * 16)), ())), "of cluster d0d0"),
    ):
        file = disk.create(name)
        file.write_at(0, damage)
        with pytest.raises(CorruptData, match=f"^memory/{name}: .*{problem}.*new id"):
            open_small(disk)
    disk.remove(name)
    with pytest.raises(CorruptData, match=f"^memory/{name}: .*missing"):
        open_small(disk)


def test_d3_a_mark_whose_entry_has_another_term_refuses() -> None:
    disk, log = filled(20)
    take(log, 13, 9)
    with pytest.raises(CorruptData, match="of entry 13 of term 9, and that entry has term 1"):
        open_small(disk)


def test_d3_a_lost_first_segment_refuses_without_a_snapshot_for_it() -> None:
    disk, _ = filled(20)
    with pytest.raises(CorruptData, match=f"{segment_name(3)}: damaged at offset 0: segment 2 is missing"):
        recover(segments_of(disk)[2:])


def identity(cluster: ClusterId = CLUSTER) -> Identity:
    return Identity(NodeId(4), INSTANCE, cluster, INCARNATION, (NodeId(4),))


def test_a_log_created_from_a_snapshot_rests_on_it() -> None:
    disk = MemoryFiles()
    create_log(
        disk, identity=identity(), address="four:7421", snapshot=encode_snapshot(header(40, 6), [b"restored"])
    )
    for seed in range(10):
        disk.lose_power(random.Random(seed))
        recovered, _ = open_log(disk, node_id=NodeId(4), draw_instance=draw_instance, ahead=Inline())
        assert not recovered.fresh
        assert recovered.identity == identity()
        assert recovered.addresses == {NodeId(4): "four:7421"}
        assert recovered.hard_state == hard_state(6, 0, 40)
        assert (recovered.entries, recovered.base_term) == (run(41), 6)
        assert recovered.state == b"restored"


def test_a_restore_goes_into_a_directory_without_a_log_only() -> None:
    disk, _ = filled(1)
    with pytest.raises(DataDirError, match="holds a log"):
        create_log(disk, identity=identity(), address="x:1", snapshot=encode_snapshot(header(40), []))


def test_a_snapshot_without_a_log_is_no_empty_directory() -> None:
    """A restore that was cut short, or a lost log, does not start as a new and empty node (P2)."""
    disk = MemoryFiles()
    store(SnapshotStore(disk), header(40), b"restored")
    with pytest.raises(DataDirError, match=r"there is a snapshot here and no log.*restore again"):
        open_small(disk)
    disk.rename(snapshot_name(LogIndex(40), Term(1)), "snapshot-restored.new")
    with pytest.raises(DataDirError, match=r"memory/snapshot-restored\.new: there is a snapshot here"):
        open_small(disk)
    create_log(disk, identity=identity(), address="x:1", snapshot=encode_snapshot(header(40), [b"restored"]))
