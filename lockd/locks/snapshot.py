"""The lock state as bytes, and back: the body of a snapshot (SAFETY C9, C11, G1).

Layout, integers big-endian:

    6 bytes  "lockst"      2 bytes  version
    frames:  4 bytes length, then so many bytes: a MessagePack array of records
    4 bytes  zero: the end
    16 bytes BLAKE2b of all before

The records stand in one order: the head; nodes, members and tombstones by id; sessions by id, each
with its answers by number; answers to TTL requests by age; locks by name; requests, be it that they
hold or wait, by ticket. So equal states have equal bytes, whatever happened to the dicts and
heaps that hold them. What follows from the records is not written: indexes, counts, the heap.

Everything that decides a later outcome is there: the token counter, the floors and answers, who
listens for which wait, the timers with their numbers, the silence marks.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator

import msgspec

from lockd.errors import CorruptData
from lockd.locks.rebuilding import state_of
from lockd.locks.records import Record, records_of
from lockd.locks.state import LockState

VERSION = 1

_MAGIC = b"lockst"
_START = struct.Struct(">6sH")
_LENGTH = struct.Struct(">I")
_DIGEST_BYTES = 16
_FRAME_BYTES = 65_536
"""A frame ends with the record that reaches this size."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Record])


def encode_state(state: LockState) -> Iterator[bytes]:
    """The state's bytes, in pieces of about 64 KiB; equal states have equal bytes.

    The state must not change until the last piece is taken.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for piece in _pieces(state):
        digest.update(piece)
        yield piece
    yield digest.digest()


def decode_state(data: bytes) -> LockState:
    """The state that was encoded: equal in all that decides a later outcome.

    Raises CorruptData, whose text tells a newer version from damage. That all of it fits together is
    for `invariants.check`, which costs as much again.
    """
    if len(data) < _START.size:
        raise CorruptData(f"a lock state of {len(data)} bytes is cut short")
    magic, version = _START.unpack_from(data)
    if magic != _MAGIC:
        raise CorruptData("these bytes are no lock state")
    body = memoryview(data)[:-_DIGEST_BYTES]
    is_whole = hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() == data[-_DIGEST_BYTES:]
    if version != VERSION and is_whole:
        raise CorruptData(
            f"a lock state has version {version}, and this node reads version {VERSION}: "
            "run the release that wrote this snapshot, or a later one"
        )
    if not is_whole:
        raise CorruptData(f"a lock state of {len(data)} bytes does not match its checksum")
    return state_of(_read_records(body))


def _pieces(state: LockState) -> Iterator[bytes]:
    yield _START.pack(_MAGIC, VERSION)
    for frame in _frames(map(_encoder.encode, records_of(state))):
        yield _LENGTH.pack(len(frame)) + frame
    yield _LENGTH.pack(0)


def _frames(records: Iterable[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    for record in records:
        held.append(record)
        size += len(record)
        if size >= _FRAME_BYTES:
            yield _array(held)
            held, size = [], 0
    yield _array(held)


def _array(items: list[bytes]) -> bytes:
    """A MessagePack array of items that are encoded already."""
    return b"".join((b"\xdd", _LENGTH.pack(len(items)), *items))


def _read_records(body: memoryview) -> Iterator[Record]:
    at = _START.size
    while True:
        if at + _LENGTH.size > len(body):
            raise CorruptData(f"a lock state has no end at byte {at}")
        (length,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size
        if length == 0:
            break
        if at + length > len(body):
            raise CorruptData(f"a lock state is cut short in the frame at byte {at}")
        try:
            records = _decoder.decode(body[at : at + length])
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise CorruptData(f"a lock state does not decode at byte {at}: {error}") from error
        yield from records
        at += length
    if at != len(body):
        raise CorruptData(f"a lock state goes on after its end at byte {at}")
