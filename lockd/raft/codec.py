"""Messages as bytes: one version byte, then MessagePack (SAFETY C11).

Each message is an array whose first element says which it is. Decoding checks types, ranges
and the shape of entry runs, so that what comes out is a message the core can take.
"""

from typing import Annotated, Final, assert_never

import msgspec
from msgspec import Meta

from lockd.ids import LogIndex, NodeId, Term
from lockd.raft.entries import EntryKind, EntryRun
from lockd.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    RequestVote,
    RequestVoteReply,
)

WIRE_VERSION: Final = 1

_Node = Annotated[int, Meta(ge=1, le=2**31 - 1)]
_Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class _Frame(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    sender: _Node
    receiver: _Node
    term: _Number


class _RequestVote(_Frame, tag=1):
    last_log_index: _Number
    last_log_term: _Number
    pre_vote: bool
    transfer: bool


class _RequestVoteReply(_Frame, tag=2):
    granted: bool
    pre_vote: bool


class _AppendEntries(_Frame, tag=3):
    prev_log_index: _Number
    prev_log_term: _Number
    commit_index: _Number
    terms: tuple[_Number, ...]
    kinds: tuple[EntryKind, ...]
    payloads: tuple[bytes, ...]


class _AppendEntriesReply(_Frame, tag=4):
    success: bool
    match_index: _Number
    rejected_index: _Number
    hint_index: _Number
    hint_term: _Number


class _Heartbeat(_Frame, tag=5):
    commit_index: _Number
    read_sequence: _Number


class _HeartbeatReply(_Frame, tag=6):
    read_sequence: _Number


_Wire = _RequestVote | _RequestVoteReply | _AppendEntries | _AppendEntriesReply | _Heartbeat | _HeartbeatReply
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Wire)


def encode_message(message: Message) -> bytes:
    """Return the wire form, which `decode_message` reads back to an equal message."""
    return bytes((WIRE_VERSION,)) + _encoder.encode(_to_wire(message))


def decode_message(data: bytes) -> Message:
    """Read a message. Raises ValueError that says what is wrong with the bytes."""
    if data[:1] != bytes((WIRE_VERSION,)):
        raise ValueError(f"raft message of version {data[0] if data else None}, expected {WIRE_VERSION}")
    try:
        wire = _decoder.decode(memoryview(data)[1:])
    except msgspec.DecodeError as error:
        raise ValueError(f"not a raft message: {error}") from error
    return _from_wire(wire)


def _to_wire(message: Message) -> _Wire:
    match message:
        case RequestVote(sender, receiver, term, last_log_index, last_log_term, pre_vote, transfer):
            return _RequestVote(sender, receiver, term, last_log_index, last_log_term, pre_vote, transfer)
        case RequestVoteReply(sender, receiver, term, granted, pre_vote):
            return _RequestVoteReply(sender, receiver, term, granted, pre_vote)
        case AppendEntries(sender, receiver, term, prev_index, prev_term, run, commit_index):
            return _AppendEntries(
                sender,
                receiver,
                term,
                prev_index,
                prev_term,
                commit_index,
                run.terms,
                run.kinds,
                run.payloads,
            )
        case AppendEntriesReply(
            sender, receiver, term, success, match_index, rejected_index, index, hint_term
        ):
            return _AppendEntriesReply(
                sender, receiver, term, success, match_index, rejected_index, index, hint_term
            )
        case Heartbeat(sender, receiver, term, commit_index, read_sequence):
            return _Heartbeat(sender, receiver, term, commit_index, read_sequence)
        case HeartbeatReply(sender, receiver, term, read_sequence):
            return _HeartbeatReply(sender, receiver, term, read_sequence)
        case _:
            assert_never(message)


def _from_wire(wire: _Wire) -> Message:
    sender, receiver, term = NodeId(wire.sender), NodeId(wire.receiver), Term(wire.term)
    match wire:
        case _RequestVote():
            return RequestVote(
                sender,
                receiver,
                term,
                LogIndex(wire.last_log_index),
                Term(wire.last_log_term),
                wire.pre_vote,
                wire.transfer,
            )
        case _RequestVoteReply():
            return RequestVoteReply(sender, receiver, term, wire.granted, wire.pre_vote)
        case _AppendEntries():
            return AppendEntries(
                sender,
                receiver,
                term,
                LogIndex(wire.prev_log_index),
                Term(wire.prev_log_term),
                _entry_run(wire),
                LogIndex(wire.commit_index),
            )
        case _AppendEntriesReply():
            return AppendEntriesReply(
                sender,
                receiver,
                term,
                wire.success,
                LogIndex(wire.match_index),
                LogIndex(wire.rejected_index),
                LogIndex(wire.hint_index),
                Term(wire.hint_term),
            )
        case _Heartbeat():
            return Heartbeat(sender, receiver, term, LogIndex(wire.commit_index), wire.read_sequence)
        case _HeartbeatReply():
            return HeartbeatReply(sender, receiver, term, wire.read_sequence)
        case _:
            assert_never(wire)


def _entry_run(wire: _AppendEntries) -> EntryRun:
    if not len(wire.terms) == len(wire.kinds) == len(wire.payloads):
        raise ValueError("the entries of an append have terms, kinds and payloads in unequal numbers")
    terms = [wire.prev_log_term, *wire.terms, wire.term]
    if terms != sorted(terms):
        raise ValueError("terms go back within an append")
    return EntryRun(
        LogIndex(wire.prev_log_index + 1), tuple(map(Term, wire.terms)), wire.kinds, wire.payloads
    )
