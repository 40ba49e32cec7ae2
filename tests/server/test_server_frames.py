"""The frames between nodes: there and back, and what is not one of ours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockd.ids import ClusterId, InstanceId
from lockd.locks.commands import Acquire, AddMember, Changed, Command, Origin, Refused, RemoveMember
from lockd.server import frames

CLUSTER = ClusterId("0123456789abcdef" * 2)
INSTANCE = InstanceId("fedcba9876543210" * 2)
COMMAND = Command("u", "s", "o", 7, Origin(1, 2, 3, 4), Acquire("lock", 0, 100, "{}"))

EVERY_KIND: list[frames.Frame] = [
    frames.Hello(1, 2, "abcdef01", 77, (1, 2, 3), "0.1.0", "a:7421"),
    frames.Welcome(1, "abcdef01", ((1, "a:7421"), (2, "b:7421"))),
    frames.Refusal("why", frames.Verdict.REPLACED),
    frames.Raft(b"\x00message"),
    frames.Forward((COMMAND,)),
    frames.ForwardRefused((COMMAND.origin,)),
    frames.ReadRequest(5),
    frames.ReadReply(5, -1),
    frames.KeepaliveRequest(5, "u", "s"),
    frames.KeepaliveReply(5, Refused("NOSESSION", "gone")),
    frames.KeepaliveReply(6, None),
    frames.SnapshotChunk(b"\x00install", 70, 20, b"chunk"),
    frames.SnapshotAck(9, 2, 25),
    frames.StateHash(9, "ab" * 16),
    frames.OperatorRequest(5, "u", frames.ChangeMembers(AddMember(4, "d:7421", wants_vote=True), force=True)),
    frames.OperatorRequest(6, "u", frames.ChangeMembers(RemoveMember(4), force=False)),
    frames.OperatorRequest(7, "u", frames.Transfer(3)),
    frames.OperatorReply(5, Changed(1)),
    frames.OperatorReply(6, None),
]


def decode(data: bytes) -> frames.Frame:
    header = frames.decode_header(data[: frames.HEADER.size])
    assert (header.cluster, header.instance) == (CLUSTER, INSTANCE)
    return frames.decode_body(header, data[frames.HEADER.size :])


@pytest.mark.parametrize("frame", EVERY_KIND, ids=lambda frame: str(frame.KIND.name))
def test_every_kind_comes_back_as_it_was(frame: frames.Frame) -> None:
    assert decode(frames.encode(frame, cluster=CLUSTER, instance=INSTANCE)) == frame


def test_every_kind_is_covered_above() -> None:
    assert {frame.KIND for frame in EVERY_KIND} == set(frames.Kind)


def test_an_unknown_cluster_is_empty_again() -> None:
    data = frames.encode(frames.Welcome(1), cluster=ClusterId(""), instance=INSTANCE)
    assert frames.decode_header(data[: frames.HEADER.size]).cluster == ""


def test_c11_another_version_is_told_by_the_first_bytes() -> None:
    data = bytearray(frames.encode(frames.Welcome(1), cluster=CLUSTER, instance=INSTANCE))
    data[2] = frames.VERSION + 1
    with pytest.raises(frames.FrameError, match="version"):
        frames.decode_header(bytes(data[: frames.HEADER.size]))


def decode_all(data: bytes) -> frames.Frame:
    """What a receiver makes of these bytes, if no more follow."""
    header = frames.decode_header(data[: frames.HEADER.size])
    if header.length != len(data) - frames.HEADER.size:
        raise frames.FrameError("it waits for more bytes, or takes too few and then fails the checksum")
    return frames.decode_body(header, data[frames.HEADER.size :])


@given(st.data())
def test_a_flipped_bit_never_passes_for_a_frame(data: st.DataObject) -> None:
    frame = data.draw(st.sampled_from(EVERY_KIND))
    encoded = bytearray(frames.encode(frame, cluster=CLUSTER, instance=INSTANCE))
    bit = data.draw(st.integers(min_value=0, max_value=len(encoded) * 8 - 1))
    encoded[bit // 8] ^= 1 << bit % 8
    with pytest.raises(frames.FrameError):
        decode_all(bytes(encoded))


@given(st.binary(max_size=200))
def test_garbage_is_refused_by_an_error_of_ours(garbage: bytes) -> None:
    for kind in frames.Kind:
        header = frames.Header(kind, len(garbage), 0, 0, CLUSTER, INSTANCE)
        with pytest.raises(frames.FrameError):
            frames.decode_body(header, garbage + b"\x00")
