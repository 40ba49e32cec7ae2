"""The records of a batch's body, there and back."""

import struct
from contextlib import suppress
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockd.disk.errors import DataDirError
from lockd.disk.record import (
    Addresses,
    Bindings,
    ClusterLearnt,
    Founders,
    Identity,
    LogWrite,
    Record,
    Seal,
    SegmentState,
    SnapshotMark,
    decode_records,
    encode_records,
    records_of,
)
from lockd.ids import ClusterId, Incarnation, InstanceId, LogIndex, NodeId, Term
from lockd.raft.entries import EntryKind, EntryRun, HardState
from tests.disk.samples import CLUSTER, INCARNATION, INSTANCE, run

numbers = st.integers(min_value=0, max_value=2**64 - 1)
nodes = st.integers(min_value=0, max_value=2**31 - 1).map(NodeId)
instances = st.binary(min_size=16, max_size=16).map(lambda drawn: InstanceId(drawn.hex()))
hard_states = st.builds(HardState, numbers.map(Term), nodes, numbers.map(LogIndex))
bound = st.lists(st.tuples(nodes, instances), max_size=4).map(tuple)
founders = st.lists(nodes, max_size=3).map(tuple)
known = st.lists(st.tuples(nodes, st.text(max_size=20)), max_size=3).map(tuple)
clusters = st.just((ClusterId(""), Incarnation(""))) | st.tuples(
    st.binary(min_size=16, max_size=16).map(lambda drawn: ClusterId(drawn.hex())),
    st.binary(min_size=4, max_size=4).map(lambda drawn: Incarnation(drawn.hex())),
)


@st.composite
def runs(draw: st.DrawFn) -> EntryRun:
    entries = draw(
        st.lists(
            st.tuples(numbers, st.sampled_from(EntryKind), st.binary(max_size=40)), min_size=1, max_size=5
        )
    )
    terms, kinds, payloads = zip(*entries, strict=True)
    return EntryRun(LogIndex(draw(numbers)), terms, kinds, payloads)


@st.composite
def states(draw: st.DrawFn) -> SegmentState:
    return SegmentState(
        identity=Identity(draw(nodes), draw(instances), *draw(clusters), draw(founders)),
        segment=draw(numbers),
        segment_bytes=draw(numbers),
        hard_state=draw(hard_states),
        last_index=LogIndex(draw(numbers)),
        last_term=Term(draw(numbers)),
        bindings=draw(bound),
        addresses=draw(known),
    )


records: st.SearchStrategy[Record] = st.one_of(
    runs(),
    states(),
    hard_states,
    bound.map(Bindings),
    known.map(Addresses),
    st.builds(SnapshotMark, numbers.map(LogIndex), numbers.map(Term), st.booleans()),
    clusters.map(lambda drawn: ClusterLearnt(*drawn)),
    st.lists(nodes, max_size=4).map(lambda drawn: Founders(tuple(drawn))),
    st.builds(Seal, numbers, numbers),
)


@given(st.lists(records, max_size=6))
def test_every_record_comes_back_as_it_was(drawn: list[Record]) -> None:
    assert list(decode_records(encode_records(drawn))) == drawn


@given(st.lists(records, min_size=1, max_size=3), st.data())
def test_a_body_that_ends_early_is_refused(drawn: list[Record], data: st.DataObject) -> None:
    body = encode_records(drawn)
    cut = data.draw(st.integers(min_value=1, max_value=len(body) - 1))
    read: list[Record] = []
    with suppress(ValueError, struct.error):
        read.extend(decode_records(body[:cut]))
    assert read == drawn[: len(read)]
    assert len(read) < len(drawn)


def test_a_write_becomes_records_in_the_order_of_replay() -> None:
    write = LogWrite(
        ticket=9,
        hard_state=HardState(Term(2), NodeId(1), LogIndex(0)),
        append=run(1, b"entry"),
        bindings=((NodeId(2), INSTANCE),),
        cluster=(CLUSTER, INCARNATION),
        addresses=((NodeId(2), "node2:7421"),),
        founders=(NodeId(1), NodeId(2)),
        snapshot=SnapshotMark(LogIndex(0), Term(0), resets=True),
    )
    assert all(getattr(write, field.name) for field in fields(write))
    kinds = [type(record) for record in records_of(write)]
    assert kinds == [ClusterLearnt, Founders, Bindings, Addresses, SnapshotMark, EntryRun, HardState]


def test_a_write_of_nothing_and_an_empty_run_have_no_records() -> None:
    assert list(records_of(LogWrite(1))) == []
    assert list(records_of(LogWrite(1, append=run(5)))) == []


def test_c11_unknown_kinds_ask_for_the_version_that_wrote_them() -> None:
    with pytest.raises(DataDirError, match="unknown kind 99"):
        list(decode_records(struct.pack("<BI", 99, 0)))
    body = bytearray(encode_records([run(1, b"")]))
    body[5 + 12 + 8] = 77
    with pytest.raises(DataDirError, match="entry of unknown kind 77"):
        list(decode_records(bytes(body)))


def test_an_id_of_another_length_is_refused_instead_of_padded_or_cut() -> None:
    for record in (
        Bindings(((NodeId(2), InstanceId("ab" * 15)),)),
        Bindings(((NodeId(2), InstanceId("ab" * 17)),)),
        ClusterLearnt(CLUSTER, Incarnation("")),
        ClusterLearnt(ClusterId("C0" * 16), INCARNATION),
    ):
        with pytest.raises(ValueError, match="hex digits"):
            encode_records([record])
