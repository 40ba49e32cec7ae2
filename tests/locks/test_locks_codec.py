"""C11, P6: the log's bytes keep their meaning, and foreign bytes are told as such."""

import random

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lockd.errors import CorruptData
from lockd.locks.codec import decode_batch, encode_batch
from lockd.locks.commands import (
    WAIT_FOREVER,
    Acquire,
    AddMember,
    Batch,
    Cancel,
    ClearSilent,
    CloseSession,
    Command,
    CreateCluster,
    ExpireSessions,
    MarkSilent,
    OpenSession,
    Operation,
    Origin,
    OriginGone,
    PromoteMember,
    RegisterNode,
    Release,
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
)
EVERYTHING = Batch(
    Batch.VERSION,
    123_456,
    tuple(Command("ann", "s1", "t1", 7 + n, ORIGIN, operation) for n, operation in enumerate(OPERATIONS)),
)
GOLDEN = (
    "9301ce0001e2409c96a3616e6ea27331a2743107940102030493ae6372656174655f636c7573746572a26331a2693196a361"
    "6e6ea27331a2743108940102030497ad72656769737465725f6e6f646501a26630a3683a31a3683a32a3683a33a5302e312e"
    "3096a3616e6ea27331a2743109940102030494ac6f70656e5f73657373696f6ecd2710a762696c6c696e67a87b2261223a20"
    "317d96a3616e6ea27331a274310a940102030491ad636c6f73655f73657373696f6e96a3616e6ea27331a274310b94010203"
    "0492af6578706972655f73657373696f6e7392a27331a2733296a3616e6ea27331a274310c940102030492ab6d61726b5f73"
    "696c656e749192a27331cd177096a3616e6ea27331a274310d940102030491ac636c6561725f73696c656e7496a3616e6ea2"
    "7331a274310e940102030496a761637175697265aa696e766f6963653a343200ffa0c396a3616e6ea27331a274310f940102"
    "030492a663616e63656caa696e766f6963653a343296a3616e6ea27331a2743110940102030493a772656c65617365aa696e"
    "766f6963653a3432cf001fffffffffffff96a3616e6ea27331a2743111940102030496ab6f726967696e5f676f6e65020900"
    "c30096a3616e6ea27331a2743112940102030493b0726571756573745f6f727068616e6564aa696e766f6963653a343203"
)
"""What a released log may hold. A change of these bytes is a new version of the format: never edit
them to make this test pass."""
MEMBERS: tuple[Operation, ...] = (AddMember(4, "h:1", True), PromoteMember(4), RemoveMember(4))
MEMBERS_GOLDEN = (
    "9301ce0001e2409396a3616e6ea0a000940102030494aa6164645f6d656d62657204a3683a31c396a3616e6ea0a000940102"
    "030492ae70726f6d6f74655f6d656d6265720496a3616e6ea0a000940102030492ad72656d6f76655f6d656d62657204"
)
"""The same for the commands that came after; they only ever follow."""


def test_c11_the_format_is_frozen() -> None:
    assert encode_batch(EVERYTHING).hex() == GOLDEN
    assert decode_batch(bytes.fromhex(GOLDEN)) == EVERYTHING
    members = Batch(1, 123_456, tuple(Command("ann", "", "", 0, ORIGIN, change) for change in MEMBERS))
    assert encode_batch(members).hex() == MEMBERS_GOLDEN
    assert decode_batch(bytes.fromhex(MEMBERS_GOLDEN)) == members


def test_the_frozen_batch_has_every_operation() -> None:
    assert {type(operation) for operation in (*OPERATIONS, *MEMBERS)} == set(ALL_KINDS)


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
