"""A data directory as it lies there, for people: as much as can be read, and where that ends.

It locks nothing and changes nothing, so it may be used while the node runs. Segments are read from
the newest to the oldest: what a running node writes meanwhile looks like a batch under way, never
like damage.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from lockd.disk.errors import DamagedFile, DataDirError, unreachable
from lockd.disk.recovery import LogImage, LogReader, segment_name, segment_number
from lockd.disk.snapshot_file import StoredSnapshot, check_snapshot
from lockd.disk.snapshots import is_unfinished, snapshot_name, snapshot_of
from lockd.disk.stream import StreamState
from lockd.errors import CorruptData
from lockd.ids import Term
from lockd.locks.codec import decode_batch
from lockd.raft.entries import EntryKind, EntryRun
from lockd.raft.membership import decode_change

_REPEATS = 2
"""A node that runs may replace its snapshot while we read. What looks wrong for that is read again."""


@dataclass(frozen=True, slots=True)
class SegmentView:
    """`entries` counts what was written there, also what was replaced later. `use`: "full", "in use",
    "made ahead", "damaged", or "not read" where it comes after damage."""

    file: str
    file_bytes: int
    batches: int
    entries: int
    use: str


@dataclass(frozen=True, slots=True)
class SnapshotView:
    """`stored` is None for an unfinished or damaged file, `in_force` where the log can't be read to
    its end: a later mark may name the file."""

    file: str
    file_bytes: int
    stored: StoredSnapshot | None
    in_force: bool | None


@dataclass(frozen=True, slots=True)
class Damage:
    """Why a node would not start from this directory; `offset` in bytes."""

    file: str
    offset: int
    found: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is there. `stream` and `entries` are as of the log's end, or of the first damage.

    `tail` is where the log ends: file and offset; `torn` tells that an unfinished batch lies there.
    """

    stream: StreamState | None
    entries: EntryRun
    base_term: Term
    segments: tuple[SegmentView, ...]
    snapshots: tuple[SnapshotView, ...]
    tail: tuple[str, int] | None
    torn: bool
    damages: tuple[Damage, ...]


def inspect_data_dir(path: Path) -> Inspection:
    """Read what is in a data directory. Raises DataDirError when it is none, or can't be read."""
    if not path.is_dir():
        what = "not a directory" if path.exists() else "no such directory"
        raise DataDirError(f"{path}: {what}")
    for is_last in (*[False] * _REPEATS, True):
        try:
            found = _inspect(*_read_files(path))
        except OSError as error:
            if is_last or not isinstance(error, FileNotFoundError):
                raise unreachable(str(path), error) from error
        else:
            if is_last or not found.damages:
                return found
    raise AssertionError("unreachable")


def describe_entry(kind: EntryKind, payload: bytes) -> tuple[str, ...]:
    """What an entry asks for, in one word or two for each command."""
    try:
        match kind:
            case EntryKind.NOOP:
                return ()
            case EntryKind.COMMANDS:
                operations = [command.operation for command in decode_batch(payload).commands]
                return tuple(str(operation.__struct_config__.tag) for operation in operations)
            case EntryKind.CONFIGURATION:
                changes = decode_change(payload).changes
                return tuple(f"{change.kind.name.lower()} {change.node}" for change in changes) or (
                    "leave_joint",
                )
    except CorruptData as error:
        return (f"unreadable: {error}",)


def _read_files(path: Path) -> tuple[list[tuple[str, bytes]], list[tuple[str, bytes]]]:
    """Segments in their order, and snapshots."""
    numbers = sorted(filter(None, (segment_number(entry.name) for entry in path.iterdir())), reverse=True)
    newest_first = [(name, (path / name).read_bytes()) for name in map(segment_name, numbers)]
    names = sorted(entry.name for entry in path.iterdir())
    files = [name for name in names if snapshot_of(name) or is_unfinished(name)]
    if not numbers:
        found = (
            "there is a snapshot here and no log" if files else "no data directory of lockd: it holds no log"
        )
        raise DataDirError(f"{path}: {found}")
    return newest_first[::-1], [(name, (path / name).read_bytes()) for name in files]


def _inspect(segments: list[tuple[str, bytes]], snapshots: list[tuple[str, bytes]]) -> Inspection:
    reader = LogReader()
    damages: list[Damage] = []
    views = [_read_segment(reader, name, content, damages) for name, content in segments]
    image = None
    if not damages:
        with _noting(damages):
            image = reader.image()
    so_far = reader.so_far()
    mark = so_far.stream.mark if so_far.stream else None
    in_force = snapshot_name(mark.index, mark.term) if mark else ""
    found = [_read_snapshot(name, content, in_force, damages) for name, content in snapshots]
    if image is None:
        found = [replace(view, in_force=None) for view in found]
    elif in_force and all(view.file != in_force for view in found):
        damages.append(Damage(in_force, 0, "the log rests on this snapshot, and it is missing"))
    return Inspection(
        stream=so_far.stream,
        entries=so_far.entries,
        base_term=so_far.base_term,
        segments=tuple(_with_use(view, image) if image else view for view in views),
        snapshots=tuple(found),
        tail=(image.tail.name, image.tail.offset) if image else None,
        torn=bool(image and image.torn),
        damages=tuple(damages),
    )


def _read_segment(reader: LogReader, name: str, content: bytes, damages: list[Damage]) -> SegmentView:
    batches, entries = reader.batches_read, reader.entries_read
    use = "not read"
    if not damages:
        with _noting(damages):
            reader.read_segment(name, content)
        use = "damaged" if damages else "full"
    return SegmentView(name, len(content), reader.batches_read - batches, reader.entries_read - entries, use)


def _with_use(view: SegmentView, image: LogImage) -> SegmentView:
    if view.file == image.tail.name:
        return replace(view, use="in use")
    return replace(view, use="made ahead") if view.file > image.tail.name else view


def _read_snapshot(name: str, content: bytes, in_force: str, damages: list[Damage]) -> SnapshotView:
    """One that is not in force is a leftover: a start removes it, whatever is in it."""
    stored = None
    if name == in_force:
        with _noting(damages):
            stored = check_snapshot(content, name=name)
    elif not is_unfinished(name):
        with suppress(CorruptData, DataDirError):
            stored = check_snapshot(content, name=name)
    return SnapshotView(name, len(content), stored, name == in_force)


@contextmanager
def _noting(damages: list[Damage]) -> Iterator[None]:
    try:
        yield
    except DamagedFile as damage:
        damages.append(Damage(damage.name, damage.offset, damage.found))
