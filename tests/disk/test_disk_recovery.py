"""Logs of several segments: what must be there is missed when it is not (SAFETY D2, D3, C8, C11)."""

import random
import struct
from dataclasses import replace
from itertools import product
from zlib import crc32

import pytest

from lockd.disk.batch import FORMAT_VERSION, SECTOR_BYTES, Place, encode_batch
from lockd.disk.errors import DataDirError
from lockd.disk.record import LogWrite, encode_records
from lockd.disk.recovery import read_log, recover, segment_name, segment_number
from lockd.disk.segments import open_log
from lockd.errors import CorruptData
from lockd.ids import Term
from tests.disk.memory import Inline, MemoryFiles
from tests.disk.samples import NODE, Model, draw_instance, draw_writes, hard_state, run, segments_of

Segments = list[tuple[str, bytes]]


@pytest.fixture
def segments() -> Segments:
    """Three full segments, the one in use, and the one made ahead."""
    disk = MemoryFiles()
    _, log = open_log(disk, node_id=NODE, draw_instance=draw_instance, ahead=Inline(), segment_bytes=8192)
    for ticket in range(1, 29):
        log.write([LogWrite(ticket, hard_state(ticket), run(ticket, b"x" * 700, term=ticket))])
    found = segments_of(disk)
    assert len(found) == 5
    return found


def test_all_segments_are_replayed_in_order(segments: Segments) -> None:
    recovered = recover(segments)
    assert recovered.entries.terms == tuple(range(1, 29))
    assert recovered.hard_state == hard_state(28)


def test_random_writes_come_back_as_the_model_has_them() -> None:
    rng = random.Random(5)
    disk, model = MemoryFiles(), Model()
    _, log = open_log(disk, node_id=NODE, draw_instance=draw_instance, ahead=Inline(), segment_bytes=4096)
    for group in range(300):
        writes = draw_writes(rng, model, group * 10, rng.randint(1, 6))
        log.write(writes)
        model = model.apply(writes)
        if group % 20 == 0:
            assert model.matches(recover(segments_of(disk)))
    assert model.matches(recover(segments_of(disk)))
    assert model.identity.cluster
    assert model.bindings
    assert len(segments_of(disk)) > 20


def test_every_segment_starts_with_the_full_state_so_that_earlier_ones_can_be_dropped(
    segments: Segments,
) -> None:
    first_batch = segments[3][1][:SECTOR_BYTES]
    number = struct.unpack_from("<Q", first_batch, 12)[0]
    before = read_log(segments).stream
    state = before.at_segment(4, 8192)
    assert number > 1
    assert len(encode_batch(encode_records([state]), place=Place("", 4, 0), number=number)) == SECTOR_BYTES


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_d3_a_missing_segment_refuses(segments: Segments, lost: int) -> None:
    with pytest.raises(CorruptData, match=f"segment {lost + 1} is missing"):
        recover(segments[:lost] + segments[lost + 1 :])


def test_d3_the_missing_last_segment_is_noticed(segments: Segments) -> None:
    """The seal of the segment before it names it: the log never goes back to a shorter one."""
    with pytest.raises(
        CorruptData, match=rf"{segments[2][0]}: damaged at offset \d+: segment 4, .* is missing"
    ):
        recover(segments[:3])


@pytest.mark.parametrize("emptied", [0, 1, 2, 3])
def test_d3_a_segment_that_became_zeros_refuses(segments: Segments, emptied: int) -> None:
    name, content = segments[emptied]
    segments[emptied] = (name, bytes(len(content)))
    with pytest.raises(CorruptData, match=name):
        recover(segments)


@pytest.mark.parametrize(
    ("shortened", "length"), [*product([0, 1, 2, 3], [0, 511, 512, 4096]), *product([4], [0, 511])]
)
def test_d3_a_segment_cut_short_refuses(segments: Segments, shortened: int, length: int) -> None:
    name, content = segments[shortened]
    segments[shortened] = (name, content[:length])
    with pytest.raises(CorruptData, match=name):
        recover(segments)


def test_d3_segments_that_changed_places_refuse(segments: Segments) -> None:
    (one, first), (two, second) = segments[1:3]
    with pytest.raises(CorruptData, match=one):
        recover([segments[0], (one, second), (two, first), *segments[3:]])


def test_d3_data_after_the_end_of_the_log_refuses(segments: Segments) -> None:
    ahead, content = segments[4]
    for at in (0, 600, len(content) - 1):
        written = bytearray(content)
        written[at] = 1
        with pytest.raises(CorruptData, match=f"{ahead}: damaged at offset {at // 512 * 512}"):
            recover([*segments[:4], (ahead, bytes(written))])


def test_d3_data_after_a_seal_refuses() -> None:
    disk = MemoryFiles()
    _, log = open_log(disk, node_id=NODE, draw_instance=draw_instance, ahead=Inline(), segment_bytes=8192)
    log.write([LogWrite(1, append=run(1, bytes(9000)))])
    (name, content), *others = segments_of(disk)
    assert recover([(name, content), *others]).entries.last == 1
    with pytest.raises(CorruptData, match=f"{name}: damaged at offset {8192 - 512}"):
        recover([(name, content[:-1] + b"\1"), *others])


def test_d3_a_rotation_that_got_no_further_than_its_seal_recovers(segments: Segments) -> None:
    name, content = segments[3]
    image = read_log([*segments[:3], (name, bytes(len(content)))])
    assert (image.tail.segment, image.tail.offset) == (4, 0)
    with pytest.raises(CorruptData, match=f"{name}: .* 4096 bytes long instead of 8192"):
        recover([*segments[:3], (name, bytes(4096))])


def test_d3_a_log_that_became_zeros_refuses() -> None:
    with pytest.raises(
        CorruptData, match=f"{segment_name(1)}: damaged at offset 0: .*first batch is missing"
    ):
        recover([(segment_name(1), bytes(8192))])


def test_d2_a_segment_that_starts_with_another_state_than_the_log_has_refuses(segments: Segments) -> None:
    name, content = segments[1]
    image = read_log([segments[0], (name, bytes(len(content)))])
    right = image.stream.at_segment(2, len(content))
    for state, problem in (
        (replace(right, hard_state=hard_state(1)), "differs from the log"),
        (replace(right, last_term=Term(1)), "differs from the log"),
        (replace(right, segment=3), "segment 3 of 8192 bytes starts here"),
    ):
        batch = encode_batch(encode_records([state]), place=Place("", 2, 0), number=image.batches + 1)
        with pytest.raises(CorruptData, match=f"{name}: damaged at offset 0: .*{problem}"):
            recover([segments[0], (name, batch + content[len(batch) :]), *segments[2:]])


def test_a_term_never_goes_back() -> None:
    disk = MemoryFiles()
    _, log = open_log(disk, node_id=NODE, draw_instance=draw_instance, ahead=Inline(), segment_bytes=8192)
    log.write([LogWrite(1, hard_state(5))])
    with pytest.raises(ValueError, match="term 4 follows term 5"):
        log.write([LogWrite(2, hard_state(4))])
    assert recover(segments_of(disk)).hard_state == hard_state(5)


def test_d3_a_gap_between_entries_refuses_although_checksums_hold() -> None:
    disk = MemoryFiles()
    _, log = open_log(disk, node_id=NODE, draw_instance=draw_instance, ahead=Inline(), segment_bytes=8192)
    with pytest.raises(ValueError, match="do not follow entry 0"):
        log.write([LogWrite(1, append=run(2, b"gap"))])
    body = encode_records([run(2, b"gap")])
    batch = encode_batch(body, place=Place(draw_instance(), 1, 1), number=2)
    content = disk.read(segment_name(1))
    forged = content[:SECTOR_BYTES] + batch + content[SECTOR_BYTES + len(batch) :]
    with pytest.raises(CorruptData, match=r"offset 512: .*entries from 2 on do not follow entry 0"):
        recover([(segment_name(1), forged)])


def test_c11_a_newer_format_is_refused_as_such_and_not_as_damage(segments: Segments) -> None:
    name, content = segments[0]
    header = bytearray(content[:28])
    struct.pack_into("<H", header, 4, FORMAT_VERSION + 1)
    struct.pack_into("<I", header, 24, crc32(bytes(header[:24]), Place("", 1, 0).crc_seed()))
    with pytest.raises(DataDirError, match=f"^{name}: written in format {FORMAT_VERSION + 1}"):
        recover([(name, bytes(header) + content[28:])])


def test_segment_names_are_read_back_and_others_are_none() -> None:
    assert segment_number(segment_name(7)) == 7
    assert segment_number("some/folder/" + segment_name(12345678901234567)) == 12345678901234567
    for name in (
        "1.log",
        "0000000000000000.log",
        "0000000000000001.log.new",
        "\u0660" * 15 + "\u0661.log",
        "x",
    ):
        assert segment_number(name) is None
