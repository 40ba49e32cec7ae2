"""A node's disk through named stories, each with what it must hold at every moment of them.

A story is told as a function of a `Life`. Played once it takes a number of steps (creations,
writes, syncs, changes of names); played again, the power goes or the disk fails at one of them.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from lockd.disk.errors import DataDirError, DiskFullError
from lockd.disk.record import Identity, LogWrite
from lockd.disk.recovery import Recovered, segment_number
from lockd.disk.segments import SegmentLog, create_log, open_log
from lockd.disk.snapshot_file import encode_snapshot
from lockd.ids import LogIndex
from lockd.raft.entries import EntryRun
from tests.disk.memory import Inline, MemoryFiles, Tear
from tests.disk.samples import (
    CLUSTER,
    INCARNATION,
    INSTANCE,
    NODE,
    Model,
    draw_instance,
    hard_state,
    header,
    mark,
    run,
    state_at,
    store,
)

T = TypeVar("T")

SEGMENT_BYTES = 2048
RESTORED_AT = 40


class Life:
    """A disk, and the models of what was acknowledged and of what was under way besides."""

    def __init__(self, *, waits_for_room: bool = True) -> None:
        self.disk = MemoryFiles()
        self.acknowledged = self.under_way = Model()
        self.waits_for_room = waits_for_room
        self._log: SegmentLog | None = None

    @property
    def log(self) -> SegmentLog:
        assert self._log is not None, "not started"
        return self._log

    def start(self) -> Recovered:
        """Start, and hold what is found to what it may be."""
        recovered, self._log = self._when_there_is_room(lambda: open_small(self.disk))
        if self.under_way.matches(recovered):
            self.acknowledged = self.under_way
        assert self.acknowledged.matches(recovered), "neither what was acknowledged nor with one batch more"
        return recovered

    def write(self, *writes: LogWrite) -> None:
        self.under_way = self.acknowledged.apply(writes)
        self._when_there_is_room(lambda: self.log.write(writes))
        self.acknowledged = self.under_way

    def append(self, first: int, *payloads: bytes, term: int = 1) -> None:
        self.write(LogWrite(first, hard_state(term, 1), run(first, *payloads, term=term)))

    def fill(self, first: int, last: int, term: int = 1) -> None:
        """One entry a write; three or four of them fill a segment."""
        for index in range(first, last + 1):
            self.append(index, b"%d" % index * 130, term=term)

    def take_snapshot(self, index: int, term: int = 1) -> None:
        self._store(index, term, label="taken")
        self.write(LogWrite(1, snapshot=mark(index, term)))

    def install_snapshot(self, index: int, term: int, append: EntryRun | None = None) -> None:
        self._store(index, term, label="received")
        self.write(LogWrite(1, hard_state(term), append, snapshot=mark(index, term, resets=True)))

    def restore(self) -> None:
        """As `lockd snapshot restore` does; again, if an earlier one was cut short."""
        identity = Identity(NODE, INSTANCE, CLUSTER, INCARNATION, (NODE,))
        rests_on_it = LogWrite(1, hard_state(1, 0, RESTORED_AT), snapshot=mark(RESTORED_AT, resets=True))
        self.under_way = Model(identity=identity, addresses={NODE: "one:1"}).apply([rests_on_it])

        def create() -> None:
            file = encode_snapshot(header(RESTORED_AT), [state_at(RESTORED_AT)])
            create_log(self.disk, identity=identity, address="one:1", snapshot=file)

        self._when_there_is_room(create)
        self.acknowledged = self.under_way

    def _store(self, index: int, term: int, *, label: str) -> None:
        body = state_at(index)
        self._when_there_is_room(
            lambda: store(self.log.snapshots, header(index, term), body[:4], body[4:], label=label)
        )

    def _when_there_is_room(self, action: Callable[[], T]) -> T:
        """As the writer thread does (SAFETY D4): wait, and do the same again."""
        try:
            return action()
        except DiskFullError:
            if not self.waits_for_room:
                raise
            self.disk.fault = None
            return action()


def open_small(disk: MemoryFiles, *, segment_bytes: int = SEGMENT_BYTES) -> tuple[Recovered, SegmentLog]:
    return open_log(
        disk, node_id=NODE, draw_instance=draw_instance, ahead=Inline(), segment_bytes=segment_bytes
    )


def first_start(life: Life) -> None:
    life.start()
    life.append(1, b"first")


def rotation(life: Life) -> None:
    life.start()
    life.fill(1, 8)
    life.append(9, b"larger than a segment" * 150)
    life.fill(10, 12)


def snapshot_taken(life: Life) -> None:
    life.start()
    life.fill(1, 5)
    life.take_snapshot(4)
    life.fill(6, 9)
    life.take_snapshot(9)
    life.append(10, b"after it")


def snapshot_installed(life: Life) -> None:
    life.start()
    life.fill(1, 5)
    life.install_snapshot(30, 3, run(31, b"in the same write", term=3))
    life.fill(32, 36, term=3)
    life.install_snapshot(33, 4)
    life.append(34, b"in place of the fifth", term=4)


def compaction(life: Life) -> None:
    """With entries replaced that stood in a segment which is removed."""
    life.start()
    life.fill(1, 13)
    life.append(9, *[b"replaced"] * 6, term=2)
    life.take_snapshot(13, 2)
    life.fill(15, 18, term=2)
    life.start()
    life.take_snapshot(17, 2)
    life.append(19, b"after it", term=2)


def restore(life: Life) -> None:
    life.restore()
    life.start()
    life.append(RESTORED_AT + 1, b"goes on")


STORIES: dict[str, Callable[[Life], None]] = {
    "first start": first_start,
    "rotation": rotation,
    "snapshot taken": snapshot_taken,
    "snapshot installed": snapshot_installed,
    "compaction": compaction,
    "restore": restore,
}


class Always(random.Random):
    """Keeps, or loses, everything that was pending."""

    def __init__(self, tear: Tear) -> None:
        super().__init__(0)
        self._tear = tear

    def random(self) -> float:
        return 0.0 if self._tear is Tear.KEPT else 1.0

    def choice(self, seq: Sequence[T]) -> T:  # type: ignore[override]
        assert self._tear in seq
        return next(each for each in seq if each is self._tear)


def outcomes(seeds: int, of: str) -> Iterable[random.Random]:
    """What a power cut may do to what was pending: keep all, lose all, and so many mixtures."""
    yield Always(Tear.KEPT)
    yield Always(Tear.LOST)
    yield from (random.Random(f"{of}/{seed}") for seed in range(seeds))


def start_again(life: Life) -> None:
    """After a cut: a start finds what it must; a restore that was cut is refused, then done again."""
    has_log = any(segment_number(name) for name in life.disk.names())
    is_restore = life.under_way.snapshot == mark(RESTORED_AT)
    if is_restore and not has_log:
        if life.disk.names():
            refused = False
            try:
                open_small(life.disk)
            except DataDirError as refusal:
                refused = "restore again" in str(refusal)
            assert refused, "a restore that was cut short must not start as an empty node"
        assert life.acknowledged == Model(), "an acknowledged restore is gone"
        life.restore()
    life.start()
    last = LogIndex(len(life.acknowledged.entries))
    life.append(last + 1, b"goes on", term=life.acknowledged.hard_state.term + 1)
