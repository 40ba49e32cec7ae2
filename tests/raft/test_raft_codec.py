"""The wire form of Raft's messages (SAFETY C11, P6)."""

import dataclasses
import random
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockd.ids import LogIndex, NodeId, Term
from lockd.raft.codec import decode_message, encode_message
from lockd.raft.entries import Configuration, EntryKind, EntryRun, SnapshotMeta
from lockd.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
)

nodes = st.integers(1, 2**31 - 1).map(NodeId)
terms = st.integers(0, 2**63 - 1).map(Term)
indexes = st.integers(0, 2**63 - 1).map(LogIndex)
sequences = st.integers(0, 2**63 - 1)


@st.composite
def appends(draw: st.DrawFn) -> AppendEntries:
    prev_log_term, *entry_terms, term = sorted(draw(st.lists(terms, min_size=2, max_size=6)))
    prev = LogIndex(draw(st.integers(0, 2**62)))
    count = len(entry_terms)
    kinds = draw(st.lists(st.sampled_from(EntryKind), min_size=count, max_size=count))
    payloads = draw(st.lists(st.binary(max_size=20), min_size=count, max_size=count))
    run = EntryRun(LogIndex(prev + 1), tuple(entry_terms), tuple(kinds), tuple(payloads))
    return AppendEntries(draw(nodes), draw(nodes), term, prev, prev_log_term, run, draw(indexes))


@st.composite
def snapshots(draw: st.DrawFn) -> InstallSnapshot:
    index_term, term = sorted(draw(st.lists(terms, min_size=2, max_size=2)))
    role = st.frozensets(nodes, max_size=4).map(lambda ids: tuple(sorted(ids)))
    voters = draw(st.frozensets(nodes, min_size=1, max_size=4).map(lambda ids: tuple(sorted(ids))))
    members = Configuration(voters, draw(role), draw(role), draw(role), draw(st.booleans()))
    return InstallSnapshot(draw(nodes), draw(nodes), term, SnapshotMeta(draw(indexes), index_term, members))


messages = st.one_of(
    st.builds(RequestVote, nodes, nodes, terms, indexes, terms, st.booleans(), st.booleans(), indexes, terms),
    st.builds(RequestVoteReply, nodes, nodes, terms, st.booleans(), st.booleans(), indexes, terms),
    appends(),
    st.builds(AppendEntriesReply, nodes, nodes, terms, st.booleans(), indexes, indexes, indexes, terms),
    st.builds(Heartbeat, nodes, nodes, terms, indexes, sequences),
    st.builds(HeartbeatReply, nodes, nodes, terms, sequences),
    snapshots(),
    st.builds(TimeoutNow, nodes, nodes, terms),
)

SAMPLE = AppendEntries(
    NodeId(1),
    NodeId(2),
    Term(3),
    LogIndex(7),
    Term(2),
    EntryRun(LogIndex(8), (Term(3),), (EntryKind.COMMANDS,), (b"body",)),
    LogIndex(6),
)


@settings(deadline=None)
@given(messages)
def test_every_message_comes_back_equal(message: Message) -> None:
    decoded = decode_message(encode_message(message))
    assert decoded == message
    assert type(decoded) is type(message)
    if isinstance(decoded, AppendEntries):
        assert all(isinstance(kind, EntryKind) for kind in decoded.entries.kinds)


def test_every_kind_of_message_is_covered() -> None:
    assert len(get_args(Message)) == 8
    for kind in get_args(Message):
        assert [field.name for field in dataclasses.fields(kind)][:3] == ["sender", "receiver", "term"], (
            "C4: every message and so every reply carries its term"
        )


def test_c11_the_bytes_of_version_1_stay_as_they_are() -> None:
    """A node of another version must read them, so a change of this test is a new version."""
    assert encode_message(SAMPLE).hex() == "019a0301020307020691039101" + "91c404" + b"body".hex()
    assert encode_message(HeartbeatReply(NodeId(2), NodeId(1), Term(3), 4)).hex() == "01950602010304"


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x02" + encode_message(SAMPLE)[1:], b"\xff\xff"])
def test_c11_another_version_is_refused_by_its_number(data: bytes) -> None:
    with pytest.raises(ValueError, match="expected 1"):
        decode_message(data)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ([3, 1, 2, 3, 7, 2, 6, [3, 3], [1], [b"x"]], "unequal numbers"),
        ([3, 1, 2, 3, 7, 2, 6, [3, 2], [1, 1], [b"x", b"y"]], "terms go back"),
        ([3, 1, 2, 3, 7, 2, 6, [4], [1], [b"x"]], "terms go back"),
        ([3, 1, 2, 3, 7, 4, 6, [], [], []], "terms go back"),
        ([3, 1, 2, 3, 7, 2, 6, [3], [9], [b"x"]], "not a raft message"),
        ([3, 1, 2, 3, 7, 2, 6, [3], [1], ["text"]], "not a raft message"),
        ([6, 0, 2, 3, 4], "not a raft message"),
        ([6, 1, 2**31, 3, 4], "not a raft message"),
        ([6, 1, 2, -1, 4], "not a raft message"),
        ([6, 1, 2, 2**63, 4], "not a raft message"),
        ([6, 1, 2, 3], "not a raft message"),
        ([6, 1, 2, 3, 4, 5], "not a raft message"),
        ([6, 1, 2, 3.5, 4], "not a raft message"),
        ([6, 1, 2, True, 4], "not a raft message"),
        ([99, 1, 2, 3, 4], "not a raft message"),
        ([], "not a raft message"),
        ({"sender": 1}, "not a raft message"),
    ],
)
def test_p6_a_malformed_message_is_refused(fields: object, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        decode_message(b"\x01" + msgspec.msgpack.encode(fields))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_p6_garbage_is_refused(data: bytes) -> None:
    for candidate in (data, b"\x01" + data):
        try:
            decode_message(candidate)
        except ValueError:
            continue


def test_p6_damaged_messages_are_refused_or_are_other_messages() -> None:
    source = random.Random(5)
    whole = encode_message(SAMPLE)
    refused = 0
    for _ in range(3000):
        damaged = bytearray(whole)
        for _ in range(source.randint(1, 3)):
            damaged[source.randrange(len(damaged))] = source.randrange(256)
        try:
            decode_message(bytes(damaged))
        except ValueError:
            refused += 1
    assert refused > 500
    for length in range(len(whole)):
        with pytest.raises(ValueError, match=r"message|version"):
            decode_message(whole[:length])


def test_p6_deep_nesting_is_refused() -> None:
    with pytest.raises(ValueError, match="not a raft message"):
        decode_message(b"\x01" + b"\x91" * 100_000)
