"""C11, P6: the log's bytes keep their meaning, and foreign bytes are told as such."""

import random

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lockd.errors import CorruptData
from lockd.locks.codec import decode_batch, encode_batch
from lockd.locks.commands import (
    SHARED,
    WAIT_FOREVER,
    AcknowledgeNotices,
    Acquire,
    AcquireAll,
    AddMember,
    Batch,
    Break,
    Cancel,
    ChangeMeta,
    ClearSilent,
    CloseSession,
    Command,
    CreateCluster,
    ExpireSessions,
    FreeRevoked,
    MarkSilent,
    OpenSession,
    Operation,
    Origin,
    OriginGone,
    PromoteMember,
    RegisterNode,
    Release,
    ReleaseAll,
    RemoveMember,
    RequestOrphaned,
)
from tests.locks.random_commands import ALL_KINDS

ORIGIN = Origin(node=1, boot=2, connection=3, operation=4)
OPERATIONS: tuple[Operation, ...] = (
    CreateCluster("c1", "i1"),
    RegisterNode(1, "f0", "h:1", "h:2", "h:3", "0.1.0"),
    OpenSession(10_000, "billing", '{"a": 1}'),
    CloseSession(),
    ExpireSessions(("s1", "s2")),
    MarkSilent((("s1", 6_000),)),
    ClearSilent(),
    Acquire("invoice:42", 0, WAIT_FOREVER, "", notify=True),
    Cancel("invoice:42"),
    Release("invoice:42", 2**53 - 1),
    OriginGone(2, 9, 0, boot_is_alive=True),
    RequestOrphaned("invoice:42", 3),
    AddMember(4, "h:1", True),
    PromoteMember(4),
    RemoveMember(4),
    Acquire("pool", 5_000, 0, "{}", mode=SHARED, limit=9, weight=2, max_hold_ms=60_000, delay_ms=15_000),
    AcquireAll(("a", "b"), 500, "{}", notify=True),
    ReleaseAll(7),
    ChangeMeta("invoice:42", 7, "{}"),
    Break("invoice:42", 7, "stuck", now=True),
    AcknowledgeNotices(3),
    FreeRevoked((7, 8)),
)
EVERYTHING = Batch(
    Batch.VERSION,
    123_456,
    tuple(Command("ann", "s1", "t1", 7 + n, ORIGIN, operation) for n, operation in enumerate(OPERATIONS)),
)
GOLDEN = (
    "9301ce0001e240dc001696a3616e6ea27331a2743107940102030493ae6372656174655f636c7573746572a26331a2693196"
    "a3616e6ea27331a2743108940102030497ad72656769737465725f6e6f646501a26630a3683a31a3683a32a3683a33a5302e"
    "312e3096a3616e6ea27331a2743109940102030494ac6f70656e5f73657373696f6ecd2710a762696c6c696e67a87b226122"
    "3a20317d96a3616e6ea27331a274310a940102030491ad636c6f73655f73657373696f6e96a3616e6ea27331a274310b9401"
    "02030492af6578706972655f73657373696f6e7392a27331a2733296a3616e6ea27331a274310c940102030492ab6d61726b"
    "5f73696c656e749192a27331cd177096a3616e6ea27331a274310d940102030491ac636c6561725f73696c656e7496a3616e"
    "6ea27331a274310e94010203049ba761637175697265aa696e766f6963653a343200ffa0c3a96578636c7573697665000100"
    "0096a3616e6ea27331a274310f940102030492a663616e63656caa696e766f6963653a343296a3616e6ea27331a274311094"
    "0102030493a772656c65617365aa696e766f6963653a3432cf001fffffffffffff96a3616e6ea27331a27431119401020304"
    "96ab6f726967696e5f676f6e65020900c30096a3616e6ea27331a2743112940102030493b0726571756573745f6f72706861"
    "6e6564aa696e766f6963653a34320396a3616e6ea27331a2743113940102030494aa6164645f6d656d62657204a3683a31c3"
    "96a3616e6ea27331a2743114940102030492ae70726f6d6f74655f6d656d6265720496a3616e6ea27331a274311594010203"
    "0492ad72656d6f76655f6d656d6265720496a3616e6ea27331a274311694010203049ba761637175697265a4706f6f6ccd13"
    "8800a27b7dc2a67368617265640902cdea60cd3a9896a3616e6ea27331a2743117940102030495ab616371756972655f616c"
    "6c92a161a162cd01f4a27b7dc396a3616e6ea27331a2743118940102030492ab72656c656173655f616c6c0796a3616e6ea2"
    "7331a2743119940102030494ab6368616e67655f6d657461aa696e766f6963653a343207a27b7d96a3616e6ea27331a27431"
    "1a940102030495a5627265616baa696e766f6963653a343207a5737475636bc396a3616e6ea27331a274311b940102030492"
    "b361636b6e6f776c656467655f6e6f74696365730396a3616e6ea27331a274311c940102030492ac667265655f7265766f6b"
    "6564920708"
)
"""What a released log may hold. A change of these bytes is a new version of the format: never edit
them to make this test pass."""


def test_c11_the_format_is_frozen() -> None:
    assert encode_batch(EVERYTHING).hex() == GOLDEN
    assert decode_batch(bytes.fromhex(GOLDEN)) == EVERYTHING


def test_the_frozen_batch_has_every_operation() -> None:
    assert {type(operation) for operation in OPERATIONS} == set(ALL_KINDS)


def test_a_uuid_stays_a_text_and_a_number_a_number() -> None:
    for request in (0, 7, 2**64 - 1, "", "7", "8e0a7a3c"):
        command = Command("", "", "", request, ORIGIN, ClearSilent())
        (again,) = decode_batch(encode_batch(Batch(Batch.VERSION, 0, (command,)))).commands
        assert again.request == request
        assert type(again.request) is type(request)


def test_c11_another_version_is_named_with_what_to_do() -> None:
    newer = msgspec.msgpack.encode([Batch.VERSION + 1, {"another": "layout"}])
    with pytest.raises(CorruptData, match=r"version 2.*reads version 1.*run the release"):
        decode_batch(newer)
    with pytest.raises(CorruptData, match="version 2"):
        decode_batch(encode_batch(Batch(2, 0, ())))


def test_an_operation_of_a_later_release_is_refused_not_skipped() -> None:
    command = ["ann", "s1", "", 1, [1, 2, 3, 4], ["acquire_many", "a", "b"]]
    with pytest.raises(CorruptData, match="does not decode"):
        decode_batch(msgspec.msgpack.encode([Batch.VERSION, 0, [command]]))


@pytest.mark.parametrize("stamp_ms", [-1, 2**53 + 1, 2**64 - 1])
def test_a_stamp_out_of_range_is_refused(stamp_ms: int) -> None:
    with pytest.raises(CorruptData, match="stamped"):
        decode_batch(msgspec.msgpack.encode([Batch.VERSION, stamp_ms, []]))


@given(st.binary(max_size=200))
@example(b"")
@example(b"\x93\x01\x00")
@example(b"\x94\x01\x00\x90" + b"\x91" * 100_000)
@example(b"\x91" * 100_000)
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xdf\xff\xff\xff\xff")
def test_p6_garbage_is_corrupt_data_or_a_batch(data: bytes) -> None:
    _decode_or_refuse(data)


def test_p6_a_damaged_batch_is_corrupt_data_or_a_batch() -> None:
    draw = random.Random(3)
    whole = encode_batch(EVERYTHING)
    for cut in range(len(whole)):
        with pytest.raises(CorruptData):
            decode_batch(whole[:cut])
    for _ in range(20_000):
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        _decode_or_refuse(bytes(data))


def test_bytes_after_the_batch_are_refused() -> None:
    with pytest.raises(CorruptData):
        decode_batch(encode_batch(EVERYTHING) + b"\x00")


def _decode_or_refuse(data: bytes) -> None:
    try:
        batch = decode_batch(data)
    except CorruptData:
        return
    assert decode_batch(encode_batch(batch)) == batch
