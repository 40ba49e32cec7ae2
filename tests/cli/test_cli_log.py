"""`lockd log inspect`: a data directory as it lies there (SAFETY D3)."""

import json
import struct
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from zlib import crc32

import pytest

from lockd.cli import main
from lockd.disk.files import OsFiles
from lockd.disk.record import LogWrite
from lockd.disk.recovery import segment_name
from lockd.disk.segments import open_log
from lockd.disk.wal import Wal, open_data_dir
from lockd.ids import LogIndex, NodeId, Term
from lockd.locks.codec import encode_batch
from lockd.locks.commands import Batch, CloseSession, Command, Origin, Release
from lockd.raft.entries import EntryKind, EntryRun
from lockd.raft.membership import Change, ChangeKind, ConfigurationChange, encode_change
from tests.disk.memory import Inline
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
    store,
)

SNAPSHOT = "snapshot-0000000000000013-0000000000000001.snap"
COMMANDS = encode_batch(
    Batch(
        1,
        500,
        tuple(
            Command("ada", "", "", 0, Origin(1, 1, 1, 1), operation)
            for operation in (Release("build", 7), CloseSession())
        ),
    )
)
CHANGE = encode_change(
    ConfigurationChange((Change(ChangeKind.ADD_LEARNER, NodeId(4)), Change(ChangeKind.REMOVE, NodeId(2))))
)


def write_all(wal: Wal, *writes: LogWrite) -> None:
    """Each as a batch of its own."""
    told: SimpleQueue[int | BaseException] = SimpleQueue()
    wal.start(told.put, told.put, told.put)
    for write in writes:
        wal.submit(write)
        assert told.get(timeout=30) == write.ticket
    wal.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Twenty entries of which a snapshot has the first thirteen; then commands, a change and a no-op."""
    path = tmp_path / "data"
    founding = {NODE: "one:7421", NodeId(2): "two:7421"}
    _, wal = open_data_dir(
        path, node_id=NODE, draw_instance=draw_instance, founding=founding, segment_bytes=4096
    )
    store(wal.snapshots, header(13), b"the state")
    kinds = (EntryKind.COMMANDS, EntryKind.CONFIGURATION, EntryKind.NOOP)
    write_all(
        wal,
        LogWrite(1, cluster=(CLUSTER, INCARNATION), bindings=((NodeId(2), INSTANCE),)),
        *(LogWrite(n, append=run(n, b"x" * 700)) for n in range(1, 21)),
        LogWrite(40, snapshot=mark(13)),
        LogWrite(
            41, hard_state(3, 2, 20), EntryRun(LogIndex(21), (Term(3),) * 3, kinds, (COMMANDS, CHANGE, b""))
        ),
    )
    return path


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.log"))


def in_use(directory: Path) -> Path:
    """The segment that the log ends in; the one after it is made ahead."""
    return segments(directory)[-2]


def damage(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def document(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, Any]:
    assert main(["log", "inspect", *arguments, "--json"]) == status
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_json_tells_whose_log_it_is_and_what_it_rests_on(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = document(capsys, str(directory))
    assert (found["node"], found["instance"]) == (1, INSTANCE)
    assert (found["cluster"], found["incarnation"], found["founders"]) == (CLUSTER, INCARNATION, [1, 2])
    assert (found["term"], found["voted_for"], found["commit"]) == (3, 2, 20)
    assert found["snapshot"] == {"index": 13, "term": 1}
    assert found["bindings"] == {"2": INSTANCE}
    assert found["addresses"] == {"1": "one:7421", "2": "two:7421"}
    assert found["log"]["last"] == 23
    assert 1 < found["log"]["first"] <= 14
    assert found["log"]["base_term"] == 1
    assert found["log"]["end"]["file"] == in_use(directory).name
    assert not found["log"]["end"]["torn"]
    [snapshot] = found["snapshots"]
    assert (snapshot["file"], snapshot["in_force"]) == (SNAPSHOT, True)
    assert snapshot["header"]["meta"]["configuration"]["voters"] == [1, 2]
    assert found["damage"] == []
    assert "entries" not in found


def test_json_tells_of_each_segment(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    views = document(capsys, str(directory))["segments"]
    assert [view["file"] for view in views] == [file.name for file in segments(directory)]
    uses = [view["use"] for view in views]
    assert uses == ["full"] * (len(uses) - 2) + ["in use", "made ahead"]
    # Its state and its seal besides.
    assert all(view["batches"] == view["entries"] + 2 == 5 for view in views[:-2])
    assert views[-1] == {
        "file": segments(directory)[-1].name,
        "file_bytes": 4096,
        "batches": 0,
        "entries": 0,
        "use": "made ahead",
    }


def test_entries_are_shown_with_what_they_ask_for(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *_, commands, change, noop = document(capsys, str(directory), "--entries")["entries"]
    assert commands == {
        "index": 21,
        "term": 3,
        "kind": "commands",
        "bytes": len(COMMANDS),
        "commands": ["release", "close_session"],
    }
    assert (change["kind"], change["commands"]) == ("configuration", ["add_learner 4", "remove 2"])
    assert (noop["index"], noop["kind"], noop["commands"]) == (23, "noop", [])


def test_text_has_one_entry_a_line(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", "inspect", str(directory), "--entries"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["node", "1", "(instance", f"{INSTANCE})"]
    assert ["snapshot", "entry", "13", "of", "term", "1"] in [line.split() for line in lines]
    assert lines[-1].split() == ["23", "3", "noop", "0"]
    assert lines[-3].split() == ["21", "3", "commands", str(len(COMMANDS)), "release,", "close_session"]
    # Commands that do not decode are said so, and end nothing.
    [twentieth] = [line.split() for line in lines if line.startswith("20 ")]
    assert twentieth[:6] == ["20", "1", "commands", "700", "unreadable:", "a"]


def test_it_changes_nothing_and_leaves_a_running_node_alone(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, wal = open_data_dir(directory, node_id=NODE, draw_instance=draw_instance, segment_bytes=4096)
    (directory / "snapshot-taken.new").write_bytes(b"half of")
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in directory.iterdir()}
    found = document(capsys, str(directory))
    assert [(view["file"], view["in_force"]) for view in found["snapshots"]] == [
        (SNAPSHOT, True),
        ("snapshot-taken.new", False),
    ]
    assert before == {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in directory.iterdir()}
    write_all(wal, LogWrite(1, append=run(24, b"on it goes", term=3)))
    assert document(capsys, str(directory))["log"]["last"] == 24


def test_a_torn_tail_is_no_damage(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    end = document(capsys, str(directory))["log"]["end"]
    with in_use(directory).open("r+b") as file:
        file.seek(end["offset"])
        file.write(b"lkdB half of a header")
    assert document(capsys, str(directory))["log"]["end"] == end | {"torn": True}
    assert main(["log", "inspect", str(directory)]) == 0
    assert "never acknowledged" in capsys.readouterr().out


def test_d3_damage_is_status_1_after_what_can_be_read(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = segments(directory)[1]
    damage(second, 600)
    found = document(capsys, str(directory), status=1)
    [told] = found["damage"]
    assert (told["file"], told["offset"]) == (second.name, 512)
    assert "checksum" in told["found"]
    assert [view["use"] for view in found["segments"]][:3] == ["full", "damaged", "not read"]
    assert found["node"] == 1
    assert found["log"]["last"] > found["log"]["first"]
    assert found["log"]["end"] is None
    assert [view["in_force"] for view in found["snapshots"]] == [None]
    assert main(["log", "inspect", str(directory)]) == 1
    assert f"damaged: {second.name} at offset 512: " in capsys.readouterr().out.splitlines()[-1]


def test_d3_a_log_whose_first_batch_is_damaged_is_shown_as_far_as_that(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(segments(directory)[0], 0)
    found = document(capsys, str(directory), status=1)
    assert found["node"] is found["term"] is found["snapshot"] is None
    assert found["damage"][0]["offset"] == 0
    assert main(["log", "inspect", str(directory), "--entries"]) == 1
    assert "not readable" in capsys.readouterr().out


def test_c9_a_damaged_or_missing_snapshot_is_damage(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(directory / SNAPSHOT, 40)
    [told] = document(capsys, str(directory), status=1)["damage"]
    assert (told["file"], told["offset"]) == (SNAPSHOT, 16)
    (directory / SNAPSHOT).unlink()
    [told] = document(capsys, str(directory), status=1)["damage"]
    assert (told["file"], told["found"]) == (SNAPSHOT, "the log rests on this snapshot, and it is missing")


def test_c11_a_snapshot_of_a_later_version_that_is_left_over_is_no_trouble(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A start removes it unread. The one that the log rests on is another matter."""
    later = bytearray((directory / SNAPSHOT).read_bytes())
    struct.pack_into("<H", later, 4, 2)
    struct.pack_into("<I", later, 12, crc32(later[:12]))
    left_over = directory / "snapshot-0000000000000001-0000000000000001.snap"
    left_over.write_bytes(later)
    found = document(capsys, str(directory))
    assert [(view["file"], view["in_force"]) for view in found["snapshots"]] == [
        (left_over.name, False),
        (SNAPSHOT, True),
    ]
    (directory / SNAPSHOT).write_bytes(later)
    assert main(["log", "inspect", str(directory)]) == 2
    assert "was written in format 2" in capsys.readouterr().err


def test_d3_a_missing_segment_is_damage(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    segments(directory)[1].unlink()
    [told] = document(capsys, str(directory), status=1)["damage"]
    assert "is missing before it" in told["found"]


@pytest.mark.parametrize("kind", ["missing", "empty", "foreign", "file"])
def test_what_is_no_data_directory_is_one_line_and_status_2(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "it"
    if kind == "file":
        path.write_text("text")
    elif kind != "missing":
        path.mkdir()
    if kind == "foreign":
        (path / "notes.txt").write_text("text")
    before = list(tmp_path.rglob("*"))
    assert main(["log", "inspect", str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    problem = {"missing": "no such directory", "file": "not a directory"}.get(kind, "it holds no log")
    assert said.err.startswith(f"lockd log: {path}: ")
    assert said.err.endswith(f"{problem}\n")
    assert list(tmp_path.rglob("*")) == before


def test_a_directory_that_has_lost_its_log_is_no_empty_one(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for segment in segments(directory):
        segment.unlink()
    assert main(["log", "inspect", str(directory)]) == 2
    assert capsys.readouterr().err == f"lockd log: {directory}: there is a snapshot here and no log\n"


def test_an_unreadable_segment_is_one_line(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / segment_name(99)).mkdir()
    assert main(["log", "inspect", str(directory)]) == 2
    assert capsys.readouterr().err == f"lockd log: {directory / segment_name(99)}: Is a directory\n"


@pytest.mark.parametrize(("every", "behind"), [(5, 0), (6, 4)])
def test_d3_what_a_running_node_writes_meanwhile_is_never_taken_for_damage(
    every: int,
    behind: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between any two files that are read, segments are sealed, begun and removed."""
    _, log = open_log(
        OsFiles(tmp_path), node_id=NODE, draw_instance=draw_instance, ahead=Inline(), segment_bytes=4096
    )
    tickets = count(1)
    read_bytes = Path.read_bytes

    def read_after_a_write(path: Path) -> bytes:
        ticket = next(tickets)
        log.write([LogWrite(ticket, append=run(ticket, b"x" * 300))])
        if ticket % every == 0:
            store(log.snapshots, header(ticket - behind), b"the state")
            log.write([LogWrite(ticket, snapshot=mark(ticket - behind))])
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read_after_a_write)
    for _ in range(25):
        document(capsys, str(tmp_path))
    assert next(tickets) > 100
    log.close()


def test_c9_a_snapshot_that_is_replaced_meanwhile_is_not_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last segment has been read with the old mark in it, and the first one stays."""
    _, log = open_log(
        OsFiles(tmp_path), node_id=NODE, draw_instance=draw_instance, ahead=Inline(), segment_bytes=4096
    )
    for index in range(1, 7):
        log.write([LogWrite(index, append=run(index, b"x" * 900))])
    read_bytes = Path.read_bytes
    snapshots = iter((1, 2))

    def take_snapshot() -> None:
        for index in snapshots:
            store(log.snapshots, header(index), b"the state")
            log.write([LogWrite(9, snapshot=mark(index))])
            break

    def read_after_a_snapshot(path: Path) -> bytes:
        if path.name == segment_name(1):
            take_snapshot()
        return read_bytes(path)

    take_snapshot()
    monkeypatch.setattr(Path, "read_bytes", read_after_a_snapshot)
    assert document(capsys, str(tmp_path))["snapshot"] == {"index": 2, "term": 1}
    log.close()
