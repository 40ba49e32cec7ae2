"""Batches as bytes: the payload of a COMMANDS entry (SAFETY C11).

A batch is a MessagePack array whose first element is the version of the layout. Within a version
fields are only appended, with defaults, and are used once the feature level allows it.
"""

import msgspec

from lockd.errors import CorruptData
from lockd.locks.commands import Batch
from lockd.locks.limits import CLOCK_MS_MAX


class _Versioned(msgspec.Struct, array_like=True, frozen=True):
    """What a batch of any version begins with."""

    version: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Batch)
_version_decoder = msgspec.msgpack.Decoder(_Versioned)


def encode_batch(batch: Batch) -> bytes:
    """The batch's bytes; equal batches have equal bytes."""
    return _encoder.encode(batch)


def decode_batch(data: bytes) -> Batch:
    """Read a batch. Raises CorruptData, whose text tells a newer version from damage."""
    try:
        batch = _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        newer = _version_of(data)
        if newer is not None and newer != Batch.VERSION:
            raise _unknown_version(newer) from error
        raise CorruptData(f"a batch of {len(data)} bytes does not decode: {error}") from error
    if batch.version != Batch.VERSION:
        raise _unknown_version(batch.version)
    if not 0 <= batch.stamp_ms <= CLOCK_MS_MAX:
        raise CorruptData(f"a batch is stamped {batch.stamp_ms} ms, outside of 0 to 2**53")
    return batch


def _version_of(data: bytes) -> int | None:
    try:
        return _version_decoder.decode(data).version
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def _unknown_version(version: int) -> CorruptData:
    return CorruptData(
        f"a batch has version {version}, and this node reads version {Batch.VERSION}: "
        "run the release that wrote this log, or a later one"
    )
