"""Every fault at every place, counted: `python -m tests.disk.faults` (SAFETY D1-D4, C9).

Each campaign yields one count per state that it tried and that came out as it must: the log
recovers to exactly what was acknowledged, or that plus the one batch under way; or it refuses to
start with a message that says where and what to do. Anything else raises.
"""

import errno
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache

from lockd.disk.batch import SECTOR_BYTES
from lockd.disk.errors import DiskFullError
from lockd.disk.record import LogWrite
from lockd.disk.recovery import Recovered, read_log
from lockd.disk.snapshot_file import encode_snapshot
from lockd.disk.snapshots import SnapshotStore
from lockd.errors import CorruptData
from tests.disk.lives import STORIES, Life, open_small, outcomes, start_again
from tests.disk.memory import Fault, MemoryFiles, Operation, PowerLossError
from tests.disk.samples import header, run, segments_of

SYNCS = frozenset({Operation.SYNC, Operation.SYNC_DIRECTORY})
TAKES_ROOM = frozenset({Operation.CREATE, Operation.WRITE, Operation.RENAME})
WHERE_AND_WHAT_TO_DO = re.compile(r"^memory/\S+: damaged at offset \d+: .*new id")


def power_cuts() -> Iterator[str]:
    """Between every two steps of every story; then the start after it is cut too, at any step."""
    for story, play in STORIES.items():
        for cut in range(_steps(play) + 1):
            for rng in outcomes(3, f"{story}/{cut}"):
                life = Life()
                life.disk.power_lasts = cut
                with suppress(PowerLossError):
                    play(life)
                life.disk.lose_power(rng)
                life.disk.power_lasts = random.Random(f"{story}/{cut}/again").randrange(12)
                with suppress(PowerLossError):
                    start_again(life)
                life.disk.lose_power(rng)
                start_again(life)
                yield f"power cut: {story}"


def failing_syncs() -> Iterator[str]:
    """EIO at each sync: what it was for is never acknowledged, and the log takes nothing more (D1)."""
    for play in STORIES.values():
        for at, operation in enumerate(_history(play)):
            if operation not in SYNCS:
                continue
            for power_goes in (False, True):
                life = Life()
                life.disk.fault = Fault(at, frozenset({operation}), errno.EIO)
                failure = _failure(play, life)
                assert failure is None or failure.errno == errno.EIO, failure
                life.disk.fault = None
                if power_goes:
                    life.disk.lose_power(random.Random(at))
                start_again(life)
                # What is done ahead is heard of by the write that needs it; the story may end before.
                heard = "heard of later" if failure is None else "the log ends"
                yield f"EIO on {operation.name.lower().replace('_', ' ')}: {heard}"


def full_disks() -> Iterator[str]:
    """No room from each creation, write (done by half) or renaming on: it goes on when there is (D4)."""
    for error in (errno.ENOSPC, errno.EDQUOT):
        for play in STORIES.values():
            for at, operation in enumerate(_history(play)):
                if operation not in TAKES_ROOM:
                    continue
                life = Life()
                life.disk.fault = Fault(at, TAKES_ROOM, error)
                play(life)
                life.disk.fault = None
                life.disk.lose_power(random.Random(at))
                start_again(life)
                yield f"{errno.errorcode[error]}, at a {operation.name.lower()}, then room"


def full_disks_and_power_cuts() -> Iterator[str]:
    """No room, and before there is any the power goes."""
    for play in STORIES.values():
        for at, operation in enumerate(_history(play)):
            if operation not in TAKES_ROOM:
                continue
            for rng in outcomes(1, str(at)):
                life = Life(waits_for_room=False)
                life.disk.fault = Fault(at, TAKES_ROOM, errno.ENOSPC)
                failure = _failure(play, life)
                assert failure is None or isinstance(failure, DiskFullError), failure
                life.disk.fault = None
                life.disk.lose_power(rng)
                start_again(life)
                yield f"ENOSPC, at a {operation.name.lower()}, then a power cut"


def torn_tails() -> Iterator[str]:
    """The last batch of a log behind a snapshot, cut at every byte, also with its first sector lost;
    and each single sector of it lost."""
    disk = _compacted()
    before, log = open_small(disk, segment_bytes=8192)
    while read_log(segments_of(disk)).tail_segment_bytes < 8192:
        log.write([LogWrite(1, append=run(before.entries.last + 1, b"x" * 500, term=2))])
        before = open_small(disk, segment_bytes=8192)[0]
    untouched = read_log(segments_of(disk)).tail
    name, start = untouched.name, untouched.offset
    log.write([LogWrite(1, append=run(before.entries.last + 1, bytes(900), b"the tail" * 90, term=2))])
    end = read_log(segments_of(disk)).tail.offset
    written = disk.read(name)
    assert end - start == 4 * SECTOR_BYTES
    for cut in range(start, end):
        torn = written[:cut] + bytes(len(written) - cut)
        headless = torn[:start] + bytes(SECTOR_BYTES) + torn[start + SECTOR_BYTES :]
        for content in (torn, headless) if cut % 4 == 0 else (torn,):
            assert _start_with(disk, name, content) == before, f"cut at {cut}"
            yield "tail cut at a byte"
    for at in range(start, end, SECTOR_BYTES):
        holed = written[:at] + bytes(SECTOR_BYTES) + written[at + SECTOR_BYTES :]
        assert _start_with(disk, name, holed) == before, f"sector at {at} lost"
        yield "sector of the tail lost"


def flipped_bits() -> Iterator[str]:
    """A bit of every byte of every file; every bit of the snapshot and of the tail's first batch."""
    disk = _compacted()
    sound = open_small(disk)[0]
    image = read_log(segments_of(disk))
    for name in disk.names():
        content = disk.read(name)
        all_bits = name.endswith(".snap")
        for at in range(len(content)):
            for bit in range(8) if all_bits or at < SECTOR_BYTES // 4 else (at * 5 % 8,):
                changed = bytearray(content)
                changed[at] ^= 1 << bit
                unused = name > image.tail.name or (name == image.tail.name and at >= image.tail.offset)
                _hold_to_damage(disk, name, bytes(changed), sound if unused and not all_bits else None)
                yield f"bit flipped in {_kind(name)}{', unused space' if unused and not all_bits else ''}"


def damaged_arrivals() -> Iterator[str]:
    """A snapshot that arrives cut at every byte, or with a flipped bit in every byte, gets no name."""
    whole = b"".join(encode_snapshot(header(30, 3), [b"a piece" * 9, b"another"]))
    for at in range(len(whole)):
        flipped = whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]
        for kind, content in (("cut short", whole[:at]), ("with a flipped bit", flipped)):
            disk = MemoryFiles()
            partial = SnapshotStore(disk).begin("received")
            partial.append(content[:100])
            partial.append(content[100:])
            refused = False
            try:
                partial.finish()
            except CorruptData:
                refused = True
            assert refused, f"{kind} at {at}: accepted"
            assert not disk.names(), f"{kind} at {at}: left {disk.names()}"
            yield f"snapshot received {kind}"


def lost_sectors() -> Iterator[str]:
    """Every sector that was synced, zeroed or gone with all after it, but for the last batch's."""
    disk = _compacted()
    image = read_log(segments_of(disk))
    last, _ = image.last_batch
    for name in disk.names():
        content = disk.read(name)
        for at in range(0, len(content), SECTOR_BYTES):
            if (name, at) >= (last.name, last.offset) and not name.endswith(".snap"):
                break
            zeroed = content[:at] + bytes(len(content[at : at + SECTOR_BYTES])) + content[at + SECTOR_BYTES :]
            for damaged in (zeroed, content[:at]):
                if damaged != content:
                    _hold_to_damage(disk, name, damaged, None)
                    yield f"sectors lost in {_kind(name)}"


CAMPAIGNS: tuple[Callable[[], Iterator[str]], ...] = (
    power_cuts,
    failing_syncs,
    full_disks,
    full_disks_and_power_cuts,
    torn_tails,
    flipped_bits,
    lost_sectors,
    damaged_arrivals,
)


@cache
def tally(campaign: Callable[[], Iterator[str]]) -> Counter[str]:
    return Counter(campaign())


def main() -> int:
    total: Counter[str] = Counter()
    for campaign in CAMPAIGNS:
        total += tally(campaign)
    for kind, count in sorted(total.items()):
        print(f"{count:7}  {kind}")
    print(f"{total.total():7}  fault states tried, and all came out as they must")
    return 0


def _history(play: Callable[[Life], None]) -> list[Operation]:
    life = Life()
    play(life)
    return life.disk.history


def _steps(play: Callable[[Life], None]) -> int:
    return len(_history(play))


def _failure(play: Callable[[Life], None], life: Life) -> OSError | None:
    try:
        play(life)
    except OSError as error:
        return error
    return None


def _compacted() -> MemoryFiles:
    """A disk with a snapshot, segments from number 5 on, a tail with some batches, and one made ahead."""
    life = Life()
    STORIES["compaction"](life)
    life.fill(20, 21, term=2)
    assert read_log(segments_of(life.disk)).tail.segment > len(segments_of(life.disk))
    return life.disk


def _kind(name: str) -> str:
    return "a snapshot" if name.endswith(".snap") else "a segment"


def _start_with(disk: MemoryFiles, name: str, content: bytes) -> Recovered:
    """A start on the same files, one of them with other content."""
    other = MemoryFiles()
    for each in disk.names():
        file = other.create(each)
        file.write_at(0, content if each == name else disk.read(each))
    other.sync_directory()
    return open_small(other)[0]


def _hold_to_damage(disk: MemoryFiles, name: str, content: bytes, sound: Recovered | None) -> None:
    """It refuses and names the file; or, where that is given, it starts with that state."""
    refused = ""
    recovered = None
    try:
        recovered = _start_with(disk, name, content)
    except CorruptData as refusal:
        refused = str(refusal)
    if recovered is None:
        assert WHERE_AND_WHAT_TO_DO.match(refused), refused
        assert name in refused, refused
    else:
        assert recovered == sound, f"{name}: started with damage"


if __name__ == "__main__":
    sys.exit(main())
