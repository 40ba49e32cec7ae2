"""SAFETY D3, exhaustively on one small log: what is torn is cut, what is damaged refuses to start."""

from collections.abc import Iterator
from itertools import combinations

import pytest

from lockd.disk.batch import SECTOR_BYTES
from lockd.disk.record import LogWrite
from lockd.disk.recovery import Recovered, read_log, recover
from lockd.disk.segments import SegmentLog, open_log
from lockd.errors import CorruptData
from tests.disk.memory import Inline, MemoryFiles
from tests.disk.samples import NODE, draw_instance, hard_state, run, segments_of

Segments = list[tuple[str, bytes]]
LOG = "0000000000000001.log"
LAST_WRITE = LogWrite(3, hard_state(3, 1), run(3, bytes(1300), b"\0\0end", bytes(700), term=3))
"""Four sectors and a bit; two of them hold only zeros as payload."""


def open_small(disk: MemoryFiles) -> tuple[Recovered, SegmentLog]:
    return open_log(disk, node_id=NODE, draw_instance=draw_instance, ahead=Inline(), segment_bytes=8192)


class Sample:
    """A log of four batches (state, two writes, LAST_WRITE) before and after the last."""

    def __init__(self) -> None:
        disk = MemoryFiles()
        _, log = open_small(disk)
        log.write([LogWrite(1, hard_state(1, 1), run(1, b"first" * 120))])
        log.write([LogWrite(2, hard_state(2, 1), run(2, b"second"))])
        self.before = disk.read(LOG)
        self.before_state = recover(segments_of(disk))
        self.start = read_log(segments_of(disk)).tail.offset
        log.write([LAST_WRITE])
        self.after = disk.read(LOG)
        self.after_state = recover(segments_of(disk))
        self.end = read_log(segments_of(disk)).tail.offset
        self.others = [(name, content) for name, content in segments_of(disk) if name != LOG]

    def recover(self, content: bytes) -> Recovered:
        return recover([(LOG, content), *self.others])

    @property
    def last_sectors(self) -> range:
        return range(self.start, self.end, SECTOR_BYTES)


@pytest.fixture(scope="module")
def sample() -> Sample:
    return Sample()


def flipped(content: bytes, at: int, bit: int) -> bytes:
    changed = bytearray(content)
    changed[at] ^= 1 << bit
    return bytes(changed)


def flips(content: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    return ((at, flipped(content, at, bit)) for at in range(start, end) for bit in range(8))


def outcome(sample: Sample, content: bytes) -> Recovered | str:
    """The state, or the file that the refusal names."""
    try:
        return sample.recover(content)
    except CorruptData as refusal:
        return str(refusal).partition(":")[0]


def test_d3_write_cut_at_any_byte_recovers_the_state_before_it(sample: Sample) -> None:
    assert (sample.end - sample.start) // SECTOR_BYTES == 5
    for cut in range(sample.start, sample.end):
        torn = sample.after[:cut] + bytes(len(sample.after) - cut)
        assert sample.recover(torn) == sample.before_state, f"cut at {cut}"
    assert sample.recover(sample.after) == sample.after_state != sample.before_state


def test_d3_any_subset_of_sectors_recovers_the_state_before_it(sample: Sample) -> None:
    """Sectors of one write land in any order; also the header's may be the one that is missing."""
    sectors = list(sample.last_sectors)
    subsets = [kept for count in range(len(sectors)) for kept in combinations(sectors, count)]
    assert len(subsets) == 31
    for kept in subsets:
        torn = bytearray(sample.before)
        for at in kept:
            torn[at : at + SECTOR_BYTES] = sample.after[at : at + SECTOR_BYTES]
        assert sample.recover(bytes(torn)) == sample.before_state, f"only {kept} landed"


def test_d3_every_sector_on_disk_is_marked_also_where_the_payload_is_zeros(sample: Sample) -> None:
    for at in range(0, sample.end, SECTOR_BYTES):
        assert sample.after[at + SECTOR_BYTES - 1] != 0


def test_d3_every_flipped_bit_of_a_complete_batch_refuses_with_file_and_offset(sample: Sample) -> None:
    """Header, body, padding and trailer, of the first batch, those between, and the last."""
    for at, damaged in flips(sample.after, 0, sample.end):
        with pytest.raises(CorruptData, match=rf"{LOG}: damaged at offset \d+: .*new id"):
            sample.recover(damaged)
        assert at < sample.end


def test_d3_damage_of_the_last_batch_names_its_offset(sample: Sample) -> None:
    for at in (sample.start, sample.start + 40, sample.end - 1):
        with pytest.raises(CorruptData, match=f"{LOG}: damaged at offset {sample.start}:"):
            sample.recover(flipped(sample.after, at, 3))


def test_d3_flipped_bits_in_unused_space_never_change_the_state(sample: Sample) -> None:
    for at, changed in flips(sample.after, sample.end, sample.end + 2 * SECTOR_BYTES):
        assert outcome(sample, changed) in (sample.after_state, LOG), at


def test_d3_a_lost_sector_of_an_earlier_batch_refuses(sample: Sample) -> None:
    """It was synced before the next batch was written, so it is not a torn write."""
    for at in range(0, sample.start, SECTOR_BYTES):
        damaged = bytearray(sample.after)
        damaged[at : at + SECTOR_BYTES] = bytes(SECTOR_BYTES)
        with pytest.raises(CorruptData, match=LOG):
            sample.recover(bytes(damaged))


def test_d3_an_earlier_batch_that_is_lost_as_a_whole_refuses(sample: Sample) -> None:
    lost = sample.after[: sample.start - SECTOR_BYTES] + bytes(SECTOR_BYTES) + sample.after[sample.start :]
    with pytest.raises(CorruptData, match=f"offset {sample.start - SECTOR_BYTES}"):
        sample.recover(lost)


def test_d3_a_batch_in_another_place_is_not_accepted(sample: Sample) -> None:
    """Each checksum goes on from its place: blocks that the disk swapped or wrote twice are seen."""
    batch = sample.after[sample.start : sample.end]
    for at in (sample.start - SECTOR_BYTES, sample.start + SECTOR_BYTES):
        moved = bytearray(sample.before)
        moved[at : at + len(batch)] = batch
        with pytest.raises(CorruptData, match=LOG):
            sample.recover(bytes(moved))


def test_d3_a_batch_of_another_directory_is_not_accepted(sample: Sample) -> None:
    disk = MemoryFiles()
    other = type(draw_instance())("b2" * 16)
    _, log = open_log(disk, node_id=NODE, draw_instance=lambda: other, ahead=Inline(), segment_bytes=8192)
    log.write([LogWrite(1, hard_state(1, 1), run(1, b"first" * 120))])
    with pytest.raises(CorruptData, match=f"{LOG}: damaged at offset {SECTOR_BYTES}:"):
        sample.recover(sample.after[:SECTOR_BYTES] + disk.read(LOG)[SECTOR_BYTES:])


def test_d3_a_file_cut_short_refuses(sample: Sample) -> None:
    for length in (0, 100, SECTOR_BYTES, sample.end - 1, sample.end - SECTOR_BYTES, sample.end):
        with pytest.raises(CorruptData, match=LOG):
            sample.recover(sample.after[:length])
