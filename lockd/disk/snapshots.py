"""Snapshots: files that stand for all entries up to an index (§7, SAFETY C9).

    preamble   magic, version, length of the header, checksum
    header     MessagePack; checksum
    pieces     length, bytes of the body, checksum; one after the other
    trailer    length 0, length and hash of the whole body, checksum; the file ends here

Each checksum is that of all bytes before it, less the checksums among them, so pieces can't be
lost, doubled or swapped. (With them it would not go on from anything: the CRC of bytes and their
own CRC is the same for all bytes.) A file is written once, under a name that says that it is unfinished. It
gets its own name when it has been synced and read back. So what has the name is whole: if it does
not match its checksums, that is damage.

The same bytes are streamed to followers and saved as backups.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated
from zlib import crc32

import msgspec

from lockd.disk.batch import DamageError
from lockd.disk.errors import DataDirError, damaged, room_needed
from lockd.disk.files import BlockFile, Files
from lockd.errors import CorruptData
from lockd.ids import ClusterId, Incarnation, LogIndex, NodeId, Term
from lockd.raft.entries import Configuration, SnapshotMeta

FORMAT_VERSION = 1
"""SAFETY C11. A later version keeps the layout of the preamble, so that this one can refuse it."""

_MAGIC = b"lkdS"
_PREAMBLE = struct.Struct("<4sHHI")
_CRC = struct.Struct("<I")
_LENGTH = struct.Struct("<I")
_TRAILER = struct.Struct("<Q16s")
_HASH_BYTES = 16

_PREFIX = "snapshot-"
_SUFFIX = ".snap"
_UNFINISHED_SUFFIX = ".new"
_NAME_DIGITS = 16

_ANOTHER_COPY = "A snapshot is used whole or not at all: use another copy, or another backup."
_THROWN_AWAY = "The file is thrown away; it has to be taken or sent again from its beginning."

_Node = Annotated[NodeId, msgspec.Meta(ge=1, le=2**31 - 1)]
_Nodes = tuple[_Node, ...]
_Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


@dataclass(frozen=True, slots=True)
class SnapshotHeader:
    """What a snapshot stands for, and whose it is. `addresses` are where the members are dialled."""

    meta: SnapshotMeta
    cluster: ClusterId
    incarnation: Incarnation
    addresses: tuple[tuple[NodeId, str], ...]
    taken_unix_s: int


@dataclass(frozen=True, slots=True)
class StoredSnapshot:
    """A whole file. `state_hash` is blake2b-16 over the body, 32 hex digits: equal on nodes that
    hold equal states (SAFETY C11)."""

    header: SnapshotHeader
    file_bytes: int
    state_hash: str


class _WireHeader(msgspec.Struct, array_like=True, frozen=True):
    """The header's layout. Fields are only ever appended, with defaults."""

    index: _Number
    term: _Number
    voters: _Nodes
    voters_outgoing: _Nodes
    learners: _Nodes
    learners_next: _Nodes
    auto_leave: bool
    cluster: str
    incarnation: str
    addresses: tuple[tuple[_Node, str], ...]
    taken_unix_s: _Number


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_WireHeader)


def snapshot_name(index: LogIndex, term: Term) -> str:
    return f"{_PREFIX}{index:0{_NAME_DIGITS}}-{term:0{_NAME_DIGITS}}{_SUFFIX}"


def snapshot_of(name: str) -> tuple[LogIndex, Term] | None:
    """The index and term in a snapshot's file name, None for any other file."""
    index, _, term = name.removeprefix(_PREFIX).removesuffix(_SUFFIX).partition("-")
    if not (index.isascii() and index.isdigit() and term.isascii() and term.isdigit()):
        return None
    found = LogIndex(int(index)), Term(int(term))
    return found if name == snapshot_name(*found) else None


def is_unfinished(name: str) -> bool:
    """Tell whether it is the name of a snapshot that was being taken or received."""
    return name.startswith(_PREFIX) and name.endswith(_UNFINISHED_SUFFIX)


def encode_snapshot(header: SnapshotHeader, body: Iterable[bytes]) -> Iterator[bytes]:
    """The file's bytes, piece by piece as `body` has them; each less than 4 GiB."""
    encoded = _encoder.encode(_to_wire(header))
    preamble = _PREAMBLE.pack(_MAGIC, FORMAT_VERSION, 0, len(encoded))
    crc = 0
    for part in (preamble, encoded):
        framed, crc = _with_crc(part, crc)
        yield framed
    body_bytes, digest = 0, blake2b(digest_size=_HASH_BYTES)
    for piece in body:
        if piece:
            body_bytes += len(piece)
            digest.update(piece)
            framed, crc = _with_crc(_LENGTH.pack(len(piece)) + piece, crc)
            yield framed
    yield _with_crc(_LENGTH.pack(0) + _TRAILER.pack(body_bytes, digest.digest()), crc)[0]


def decode_snapshot(data: bytes, *, name: str) -> tuple[StoredSnapshot, bytes]:
    """Read a whole file; `name` is for messages. Returns what it is, and the body.

    Raises CorruptData that says where, and DataDirError if a newer version wrote it.
    """
    try:
        return _decode(data, name)
    except DamageError as damage:
        raise _refusal(name, damage, _ANOTHER_COPY) from damage


def check_snapshot(data: bytes, *, name: str) -> StoredSnapshot:
    """What a whole file of a data directory is. Raises DamagedFile, and DataDirError as above."""
    try:
        return _decode(data, name)[0]
    except DamageError as damage:
        raise damaged(name, damage.offset, damage.found) from damage


class PartialSnapshot:
    """A file being taken or received. A child process that inherited it may append in our stead."""

    def __init__(self, files: Files, name: str) -> None:
        self._files = files
        self._name = name
        with room_needed():
            self._file = files.create(name)
        self.received_bytes = 0
        """What this process has appended."""

    def append(self, data: bytes) -> None:
        """Raises DiskFullError, or another OSError: `discard` it then."""
        with room_needed():
            self._file.write_at(self.received_bytes, data)
        self.received_bytes += len(data)

    def finish(self) -> StoredSnapshot:
        """Sync the file, read all of it back, and give it its name, durably.

        Raises CorruptData, having discarded it, when it is not a whole snapshot; DiskFullError;
        another OSError when it could not be made durable, which ends the node (SAFETY D1).
        """
        with room_needed():
            self._file.sync()
        stored = self._checked()
        meta = stored.header.meta
        with room_needed():
            self._files.rename(self._name, snapshot_name(meta.index, meta.term))
        self._files.sync_directory()
        self._file.close()
        return stored

    def detach(self) -> tuple[StoredSnapshot, "SnapshotReader"]:
        """Read all of it back and take its name away: it lasts until the reader is closed.

        For a backup, on which no log rests. Raises CorruptData, having discarded it, when it is not a
        whole snapshot.
        """
        stored = self._checked()
        self._files.remove(self._name)
        return stored, SnapshotReader(self._file)

    def _checked(self) -> StoredSnapshot:
        try:
            return _Reader(self._file.read_at, self._file.size(), self._name).check()
        except (DamageError, DataDirError) as error:
            self.discard()
            if isinstance(error, DamageError):
                raise _refusal(self._files.path(self._name), error, _THROWN_AWAY) from error
            raise

    def discard(self) -> None:
        """Close and remove it."""
        self._file.close()
        with suppress(FileNotFoundError):
            self._files.remove(self._name)


class SnapshotReader:
    """The bytes of one file, to be streamed; readable also after the file is removed."""

    def __init__(self, file: BlockFile) -> None:
        self._file = file
        self.size = file.size()

    def read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes; fewer only at the end."""
        return self._file.read_at(offset, count)

    def close(self) -> None:
        self._file.close()


class SnapshotStore:
    """The snapshots of one data directory. Calls for different files may come from different threads."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def begin(self, label: str) -> PartialSnapshot:
        """One unfinished file per label, such as "taken" and "received"; replaces the one that was there.

        Raises DiskFullError, or another OSError.
        """
        return PartialSnapshot(self._files, f"{_PREFIX}{label}{_UNFINISHED_SUFFIX}")

    def open(self, index: LogIndex, term: Term) -> SnapshotReader:
        """Raises FileNotFoundError when there is no such snapshot, or a newer one has replaced it."""
        return SnapshotReader(self._files.open(snapshot_name(index, term)))

    def has(self, index: LogIndex, term: Term) -> bool:
        return snapshot_name(index, term) in self._files.names()

    def load(self, index: LogIndex, term: Term) -> tuple[StoredSnapshot, bytes]:
        """Read the snapshot that the log rests on. Raises CorruptData if it is damaged or not there."""
        name = snapshot_name(index, term)
        path = self._files.path(name)
        try:
            file = self._files.open(name)
        except FileNotFoundError as error:
            raise damaged(path, 0, "the log rests on this snapshot, and it is missing") from error
        try:
            stored, body = _Reader(file.read_at, file.size(), path).whole()
        except DamageError as damage:
            raise damaged(path, damage.offset, damage.found) from damage
        finally:
            file.close()
        meta = stored.header.meta
        if (meta.index, meta.term) != (index, term):
            raise damaged(path, 0, f"it is the snapshot of entry {meta.index} of term {meta.term}")
        return stored, body

    def remove_before(self, index: LogIndex) -> None:
        """Remove the snapshots of earlier entries; durable with the next sync of the directory.

        Later ones stay: one may have got its name whose mark is not yet in the log.
        """
        for name in self._files.names():
            found = snapshot_of(name)
            if found is not None and found[0] < index:
                self._files.remove(name)

    def remove_all_but(self, kept: tuple[LogIndex, Term] | None) -> None:
        """At a start: what no mark names, and what is unfinished, belongs to no one."""
        for name in self._files.names():
            found = snapshot_of(name)
            if is_unfinished(name) or (found is not None and found != kept):
                self._files.remove(name)


class _Reader:
    """Checks a file from its beginning to its end; holds one piece at a time."""

    def __init__(self, read: Callable[[int, int], bytes], size: int, name: str) -> None:
        self._read = read
        self._size = size
        self._name = name
        self._at = 0
        self._crc = 0
        self._digest = blake2b(digest_size=_HASH_BYTES)
        self._body_bytes = 0

    def check(self) -> StoredSnapshot:
        """Read all of it and keep nothing. Raises DamageError, DataDirError."""
        header = self.header()
        for _ in self.body():
            pass
        return self.stored(header)

    def whole(self) -> tuple[StoredSnapshot, bytes]:
        """As `check`, and keep the body."""
        header = self.header()
        body = b"".join(self.body())
        return self.stored(header), body

    def header(self) -> SnapshotHeader:
        # Before any checksum: most often somebody has named another file.
        if self._read(0, len(_MAGIC)) != _MAGIC:
            raise DamageError(0, "no snapshot of lockd begins here: it is another file, or damaged")
        _, version, _, header_bytes = _PREAMBLE.unpack(self._take(_PREAMBLE.size))
        if version != FORMAT_VERSION:
            raise DataDirError(
                f"{self._name} was written in format {version}, and this version of lockd reads "
                f"format {FORMAT_VERSION}: use the version that wrote it"
            )
        start = self._at
        encoded = self._take(header_bytes)
        try:
            return _from_wire(_decoder.decode(encoded))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            found = f"a header whose checksum holds makes no sense: {error}"
            raise DamageError(start, found) from error

    def body(self) -> Iterator[bytes]:
        while True:
            start = self._at
            length = _LENGTH.unpack(self._next(_LENGTH.size))[0]
            if length == 0:
                break
            piece = self._checked(self._next(length), start)
            self._digest.update(piece)
            self._body_bytes += length
            yield piece
        claimed = _TRAILER.unpack(self._checked(self._next(_TRAILER.size), start))
        if claimed != (self._body_bytes, self._digest.digest()):
            raise DamageError(start, "the body is not the one that was written")
        if self._at != self._size:
            raise DamageError(self._at, f"the snapshot ends here, and the file at {self._size}")

    def stored(self, header: SnapshotHeader) -> StoredSnapshot:
        """What was read, when `body` has come to its end."""
        return StoredSnapshot(header, self._size, self._digest.hexdigest())

    def _take(self, count: int) -> bytes:
        start = self._at
        return self._checked(self._next(count), start)

    def _next(self, count: int) -> bytes:
        content = self._raw(count)
        self._crc = crc32(content, self._crc)
        return content

    def _raw(self, count: int) -> bytes:
        if self._at + count > self._size:
            raise DamageError(self._at, f"{count} bytes go on beyond the file's end at {self._size}")
        content = self._read(self._at, count)
        self._at += count
        return content

    def _checked(self, content: bytes, start: int) -> bytes:
        if self._raw(_CRC.size) != _CRC.pack(self._crc):
            raise DamageError(start, f"the {len(content)} bytes here do not match their checksum")
        return content


def _decode(data: bytes, name: str) -> tuple[StoredSnapshot, bytes]:
    return _Reader(lambda offset, count: data[offset : offset + count], len(data), name).whole()


def _refusal(name: str, damage: DamageError, what_to_do: str) -> CorruptData:
    return CorruptData(f"{name}: damaged at offset {damage.offset}: {damage.found}. {what_to_do}")


def _with_crc(part: bytes, crc: int) -> tuple[bytes, int]:
    """The part followed by its checksum, which goes on from `crc`; and that checksum."""
    crc = crc32(part, crc)
    return part + _CRC.pack(crc), crc


def _to_wire(header: SnapshotHeader) -> _WireHeader:
    configuration = header.meta.configuration
    return _WireHeader(
        header.meta.index,
        header.meta.term,
        configuration.voters,
        configuration.voters_outgoing,
        configuration.learners,
        configuration.learners_next,
        configuration.auto_leave,
        header.cluster,
        header.incarnation,
        header.addresses,
        header.taken_unix_s,
    )


def _from_wire(wire: _WireHeader) -> SnapshotHeader:
    configuration = Configuration(
        wire.voters, wire.voters_outgoing, wire.learners, wire.learners_next, wire.auto_leave
    )
    return SnapshotHeader(
        SnapshotMeta(LogIndex(wire.index), Term(wire.term), configuration),
        ClusterId(wire.cluster),
        Incarnation(wire.incarnation),
        wire.addresses,
        wire.taken_unix_s,
    )
