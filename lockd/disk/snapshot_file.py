"""A snapshot's file, from its first byte to its last (§7, SAFETY C9). Pure.

    preamble   magic, version, length of the header, checksum
    header     MessagePack; checksum
    pieces     length, bytes of the body, checksum; one after the other
    trailer    length 0, length and hash of the whole body, checksum; the file ends here

Each checksum is that of all bytes before it, less the checksums among them, so pieces can't be
lost, doubled or swapped. (With them it would not go on from anything: the CRC of bytes and their
own CRC is the same for all bytes.)

The same bytes lie in data directories, are streamed to followers and saved as backups.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated
from zlib import crc32

import msgspec

from lockd.disk.batch import DamageError
from lockd.disk.errors import DataDirError, damaged, unusable
from lockd.ids import ClusterId, Incarnation, LogIndex, NodeId, Term, is_hex_id
from lockd.raft.entries import Configuration, SnapshotMeta

FORMAT_VERSION = 1
"""SAFETY C11. A later version keeps the layout of the preamble, so that this one can refuse it."""

_MAGIC = b"lkdS"
_PREAMBLE = struct.Struct("<4sHHI")
_CRC = struct.Struct("<I")
_LENGTH = struct.Struct("<I")
_TRAILER = struct.Struct("<Q16s")
_HASH_BYTES = 16

_ANOTHER_COPY = "A snapshot is used whole or not at all: use another copy, or another backup."

_Node = Annotated[NodeId, msgspec.Meta(ge=1, le=2**31 - 1)]
_Nodes = tuple[_Node, ...]
_Number = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
_UnixSeconds = Annotated[int, msgspec.Meta(ge=0, le=2**37)]
"""To the year 6325."""


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
    taken_unix_s: _UnixSeconds


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_WireHeader)


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
        raise unusable(name, damage.offset, damage.found, _ANOTHER_COPY) from damage


def check_snapshot(data: bytes, *, name: str) -> StoredSnapshot:
    """What a whole file of a data directory is. Raises DamagedFile, and DataDirError as above."""
    try:
        return _decode(data, name)[0]
    except DamageError as damage:
        raise damaged(name, damage.offset, damage.found) from damage


class SnapshotFileReader:
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
        except (ValueError, msgspec.DecodeError) as error:
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
    return SnapshotFileReader(lambda offset, count: data[offset : offset + count], len(data), name).whole()


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
    """Raises ValueError where no node can have written it."""
    if not (is_hex_id(wire.cluster, 32) and is_hex_id(wire.incarnation, 8)):
        raise ValueError(
            f"{wire.cluster[:40]!r} and {wire.incarnation[:40]!r} are no cluster and incarnation"
        )
    roles = (wire.voters, wire.voters_outgoing, wire.learners, wire.learners_next)
    if not wire.voters or any(list(ids) != sorted({*ids}) for ids in roles):
        raise ValueError("its configuration is not in order")
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
