"""One batch, there and back, and nowhere but where it belongs (SAFETY D3)."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockd.disk.batch import (
    SECTOR_BYTES,
    Batch,
    DamageError,
    End,
    Place,
    batch_bytes,
    decode_batch,
    encode_batch,
    first_nonzero_sector,
)

PLACE = Place("a1" * 16, 7, 3)


def segment_with(batch: bytes, sector: int = 3) -> bytes:
    return bytes(sector * SECTOR_BYTES) + batch + bytes(4 * SECTOR_BYTES)


@given(st.binary(max_size=3000) | st.integers(0, 200_000).map(bytes))
def test_a_body_comes_back_as_it_was(body: bytes) -> None:
    batch = encode_batch(body, place=PLACE, number=9)
    assert len(batch) == batch_bytes(len(body))
    assert len(batch) % SECTOR_BYTES == 0
    read = decode_batch(segment_with(batch), place=PLACE, number=9)
    assert read == Batch(body, 3 + len(batch) // SECTOR_BYTES, 9)
    assert decode_batch(segment_with(batch), place=PLACE, number=None) == read


def test_unused_space_is_the_end() -> None:
    assert decode_batch(bytes(4096), place=PLACE, number=1) == End(torn=False)


@pytest.mark.parametrize(
    "wrong", [replace(PLACE, instance="b2" * 16), replace(PLACE, segment=8), replace(PLACE, sector=2)]
)
def test_d3_a_whole_batch_of_another_place_is_damage(wrong: Place) -> None:
    batch = encode_batch(b"body", place=wrong, number=9)
    with pytest.raises(DamageError, match=r"offset 1536: .*does not match its checksum"):
        decode_batch(segment_with(batch), place=PLACE, number=9)


def test_d3_a_batch_that_is_not_the_next_is_damage() -> None:
    batch = encode_batch(b"body", place=PLACE, number=9)
    with pytest.raises(DamageError, match="offset 1536: batch 9 stands where batch 8 belongs"):
        decode_batch(segment_with(batch), place=PLACE, number=8)


def test_d3_a_batch_that_goes_on_beyond_the_file_is_damage() -> None:
    batch = encode_batch(bytes(1000), place=PLACE, number=9)
    cut = (bytes(3 * SECTOR_BYTES) + batch)[:-SECTOR_BYTES]
    with pytest.raises(DamageError, match="goes on to offset 3072, and the file ends at 2560"):
        decode_batch(cut, place=PLACE, number=9)


def test_first_nonzero_sector_is_an_offset_or_none() -> None:
    content = bytes(1000) + b"\1" + bytes(1047)
    assert first_nonzero_sector(content) == 512
    assert first_nonzero_sector(content, 1024) is None
    assert first_nonzero_sector(content, 2048) is None
