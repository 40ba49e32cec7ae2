"""A batch: what one write puts on disk, in sectors that can tell torn from damaged (SAFETY D3).

    sector     0 .. 503 payload | 504 .. 507 the batch's first sector | 508 .. 509 segment
               | 510 which sector of the batch | 511 mark
    payload    header (28 bytes), body, zeros up to the end of the last sector
    header     magic, version, body length, batch number, checksum of the rest, checksum of the header

A batch starts on a sector and is written by one call, then synced, before the next one starts.
So at most one batch, the last, can be incomplete, and what it left behind is decidable:

- No sector that was written is all zero, whatever the payload: its last byte is a mark. A zero
  sector inside a batch was never written. The mark of the last sector is the trailer; a write
  that was cut at any byte leaves it zero.
- Torn means that the trailer or a whole sector is zero. Otherwise the batch was written whole and
  has to match its checksums: if not, it is damaged, also when it is the last.
- Sectors of one write may land in any order. Where the header's sector is missing, each later
  sector that did land says of which batch it is, and which of it. If it is this batch's, here, the
  batch is torn; if not, something was written after this batch was synced, so it is damaged.
- Both checksums go on from the instance of the data directory, the segment's number and the
  sector, so that a block of another place, segment or directory does not pass. They cover every
  byte of every sector.
"""

import struct
from dataclasses import dataclass
from zlib import crc32

from lockd.disk.errors import DataDirError

SECTOR_BYTES = 512
FORMAT_VERSION = 1
"""SAFETY C11. A later version keeps the layout of the header, so that this one can refuse it."""

_PAYLOAD_BYTES = 504
_HEADER = struct.Struct("<4sHxxIQII")
_HEADER_CRC_BYTES = 4
_FOOTER = struct.Struct("<IHBB")
_ORDINAL_AT = 510
_MAGIC = b"lkdB"
_MARK_INNER = 0xA5
_MARK_LAST = 0x5A
_ZERO_SECTOR = bytes(SECTOR_BYTES)


class DamageError(Exception):
    """Bytes at `offset` of the segment were written whole, or must be there, and are wrong."""

    def __init__(self, offset: int, found: str) -> None:
        super().__init__(f"offset {offset}: {found}")
        self.offset = offset
        self.found = found


@dataclass(frozen=True, slots=True)
class Place:
    """Where a batch is; its checksums hold nowhere else.

    `instance` is that of the data directory, "" for the first batch of a segment, which is the
    one that tells it. `segment` counts from 1, `sector` from 0 in the segment.
    """

    instance: str
    segment: int
    sector: int

    def crc_seed(self) -> int:
        return crc32(struct.pack("<QI", self.segment, self.sector), crc32(self.instance.encode()))

    def footer(self, ordinal: int, mark: int) -> bytes:
        """The last 8 bytes of the batch's sector number `ordinal`, counted from 0."""
        return _FOOTER.pack(self.sector, self.segment & 0xFFFF, ordinal & 0xFF, mark)


@dataclass(frozen=True, slots=True)
class Batch:
    """A complete batch: its body, the sector after its last, and its number in the whole log."""

    body: bytes
    end_sector: int
    number: int


@dataclass(frozen=True, slots=True)
class End:
    """No complete batch here, and no trace of a later one. `torn`: some bytes of one were written."""

    torn: bool


def batch_bytes(body_bytes: int) -> int:
    """How many bytes, in whole sectors, a batch with a body of that length takes."""
    return -(-(_HEADER.size + body_bytes) // _PAYLOAD_BYTES) * SECTOR_BYTES


def encode_batch(body: bytes, *, place: Place, number: int) -> bytes:
    """The bytes to write at `place`. `number` counts the batches of the whole log, from 1."""
    sectors = batch_bytes(len(body)) // SECTOR_BYTES
    payload = bytes(_HEADER.size) + body
    payload += bytes(sectors * _PAYLOAD_BYTES - len(payload))
    chunks = [payload[at : at + _PAYLOAD_BYTES] for at in range(0, len(payload), _PAYLOAD_BYTES)]
    framed = bytearray(place.footer(0, _MARK_INNER).join(chunks) + place.footer(0, _MARK_LAST))
    framed[_ORDINAL_AT::SECTOR_BYTES] = (bytes(range(256)) * (sectors // 256 + 1))[:sectors]

    seed = place.crc_seed()
    body_crc = crc32(memoryview(framed)[_HEADER.size :], seed)
    header = _HEADER.pack(_MAGIC, FORMAT_VERSION, len(body), number, body_crc, 0)[:-_HEADER_CRC_BYTES]
    framed[: _HEADER.size] = header + struct.pack("<I", crc32(header, seed))
    return bytes(framed)


def decode_batch(segment: bytes, *, place: Place, number: int | None) -> Batch | End:
    """Read the batch at `place` of a whole segment, where `number` is the one due; None: any.

    Raises DamageError, and DataDirError if a newer version wrote it.
    """
    start = place.sector * SECTOR_BYTES
    seed = place.crc_seed()
    header = segment[start : start + _HEADER.size]
    magic, version, body_bytes, found_number, body_crc, header_crc = _HEADER.unpack(header)
    if magic != _MAGIC or crc32(header[:-_HEADER_CRC_BYTES], seed) != header_crc:
        return _end_without_header(segment, place)
    if version != FORMAT_VERSION:
        raise DataDirError(
            f"written in format {version}, and this version of lockd reads format {FORMAT_VERSION}: "
            "start the version that wrote it"
        )
    if number is not None and found_number != number:
        raise DamageError(start, f"batch {found_number} stands where batch {number} belongs")

    end = start + batch_bytes(body_bytes)
    if end > len(segment):
        raise DamageError(start, f"the batch goes on to offset {end}, and the file ends at {len(segment)}")
    found_crc = crc32(memoryview(segment)[start + _HEADER.size : end], seed)
    if found_crc != body_crc:
        return _end_with_header(segment, start, end, f"checksum {found_crc:08x} instead of {body_crc:08x}")

    payload = b"".join(segment[at : at + _PAYLOAD_BYTES] for at in range(start, end, SECTOR_BYTES))
    return Batch(payload[_HEADER.size : _HEADER.size + body_bytes], end // SECTOR_BYTES, found_number)


def first_nonzero_sector(segment: bytes, start: int = 0) -> int | None:
    """Offset of the first sector at or after `start` that is not all zero."""
    if segment[start:] == bytes(len(segment) - start):
        return None
    return next(at for at in range(start, len(segment), SECTOR_BYTES) if not _is_zero_sector(segment, at))


def _end_with_header(segment: bytes, start: int, end: int, mismatch: str) -> End:
    """The header is right, so the extent is known; the rest of the batch does not match."""
    unwritten = any(_is_zero_sector(segment, at) for at in range(start, end, SECTOR_BYTES))
    if segment[end - 1] != 0 and not unwritten:
        raise DamageError(start, f"a batch of {end - start} bytes was written whole and has {mismatch}")
    beyond = first_nonzero_sector(segment, end)
    if beyond is not None:
        raise DamageError(start, f"sectors of a batch are zero, and offset {beyond} has data of a later one")
    return End(torn=True)


def _end_without_header(segment: bytes, place: Place) -> End:
    """No header that matches: unused space, a batch whose first sector is missing, or damage."""
    start = place.sector * SECTOR_BYTES
    if segment[start + SECTOR_BYTES - 1] != 0:
        raise DamageError(
            start, "a whole sector was written, and its batch header does not match its checksum"
        )
    at = first_nonzero_sector(segment, start)
    if at is None:
        return End(torn=False)
    # Every sector that was written whole must be of this same batch; one that was not, of a write that
    # was cut within it, has no mark, and is the first or has nothing after it.
    for ordinal, other in enumerate(range(start, len(segment), SECTOR_BYTES)):
        footer = segment[other + _PAYLOAD_BYTES : other + SECTOR_BYTES]
        if footer in (place.footer(ordinal, _MARK_INNER), place.footer(ordinal, _MARK_LAST)):
            continue
        is_end = ordinal == 0 or first_nonzero_sector(segment, other + SECTOR_BYTES) is None
        if not _is_zero_sector(segment, other) and (footer[-1] != 0 or not is_end):
            raise DamageError(start, f"no batch starts here, and offset {other} has data of another one")
    return End(torn=True)


def _is_zero_sector(segment: bytes, at: int) -> bool:
    return segment[at : at + SECTOR_BYTES] == _ZERO_SECTOR
