"""Messages as bytes: one version byte, then MessagePack (SAFETY C11).

Each message is an array whose first element says which it is. Decoding checks types, ranges
and the shape of entry runs, so that what comes out is a message the core can take.
"""

from typing import Annotated, Final, assert_never

import msgspec
from msgspec import Meta

from lockd.ids import LogIndex, NodeId, Term
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

WIRE_VERSION: Final = 1

_NodeId = Annotated[NodeId, Meta(ge=1, le=2**31 - 1)]
_Term = Annotated[Term, Meta(ge=0, le=2**63 - 1)]
_Index = Annotated[LogIndex, Meta(ge=0, le=2**63 - 1)]
_Sequence = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class _Frame(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    sender: _NodeId
    receiver: _NodeId
    term: _Term


class _RequestVote(_Frame, tag=1):
    last_log_index: _Index
    last_log_term: _Term
    pre_vote: bool
    transfer: bool
    commit_index: _Index
    commit_term: _Term

    def message(self) -> RequestVote:
        return RequestVote(
            self.sender,
            self.receiver,
            self.term,
            self.last_log_index,
            self.last_log_term,
            self.pre_vote,
            self.transfer,
            self.commit_index,
            self.commit_term,
        )


class _RequestVoteReply(_Frame, tag=2):
    granted: bool
    pre_vote: bool
    commit_index: _Index
    commit_term: _Term

    def message(self) -> RequestVoteReply:
        return RequestVoteReply(
            self.sender,
            self.receiver,
            self.term,
            self.granted,
            self.pre_vote,
            self.commit_index,
            self.commit_term,
        )


class _AppendEntries(_Frame, tag=3):
    prev_log_index: _Index
    prev_log_term: _Term
    commit_index: _Index
    terms: tuple[_Term, ...]
    kinds: tuple[EntryKind, ...]
    payloads: tuple[bytes, ...]

    def message(self) -> AppendEntries:
        return AppendEntries(
            self.sender,
            self.receiver,
            self.term,
            self.prev_log_index,
            self.prev_log_term,
            self._entries(),
            self.commit_index,
        )

    def _entries(self) -> EntryRun:
        if not len(self.terms) == len(self.kinds) == len(self.payloads):
            raise ValueError("the entries of an append have terms, kinds and payloads in unequal numbers")
        terms = [self.prev_log_term, *self.terms, self.term]
        if terms != sorted(terms):
            raise ValueError("terms go back within an append")
        return EntryRun(LogIndex(self.prev_log_index + 1), self.terms, self.kinds, self.payloads)


class _AppendEntriesReply(_Frame, tag=4):
    success: bool
    match_index: _Index
    rejected_index: _Index
    hint_index: _Index
    hint_term: _Term

    def message(self) -> AppendEntriesReply:
        return AppendEntriesReply(
            self.sender,
            self.receiver,
            self.term,
            self.success,
            self.match_index,
            self.rejected_index,
            self.hint_index,
            self.hint_term,
        )


class _Heartbeat(_Frame, tag=5):
    commit_index: _Index
    read_sequence: _Sequence

    def message(self) -> Heartbeat:
        return Heartbeat(self.sender, self.receiver, self.term, self.commit_index, self.read_sequence)


class _HeartbeatReply(_Frame, tag=6):
    read_sequence: _Sequence

    def message(self) -> HeartbeatReply:
        return HeartbeatReply(self.sender, self.receiver, self.term, self.read_sequence)


class _InstallSnapshot(_Frame, tag=7):
    index: _Index
    index_term: _Term
    voters: tuple[_NodeId, ...]
    voters_outgoing: tuple[_NodeId, ...]
    learners: tuple[_NodeId, ...]
    learners_next: tuple[_NodeId, ...]
    auto_leave: bool

    def message(self) -> InstallSnapshot:
        configuration = Configuration(
            self.voters, self.voters_outgoing, self.learners, self.learners_next, self.auto_leave
        )
        if any(list(ids) != sorted({*ids}) for ids in self._roles()) or not self.voters:
            raise ValueError("the configuration of a snapshot is not in order")
        if self.index_term > self.term:
            raise ValueError("a snapshot is of a later term than its leader's")
        meta = SnapshotMeta(self.index, self.index_term, configuration)
        return InstallSnapshot(self.sender, self.receiver, self.term, meta)

    def _roles(self) -> tuple[tuple[NodeId, ...], ...]:
        return self.voters, self.voters_outgoing, self.learners, self.learners_next


class _TimeoutNow(_Frame, tag=8):
    def message(self) -> TimeoutNow:
        return TimeoutNow(self.sender, self.receiver, self.term)


_Wire = (
    _RequestVote
    | _RequestVoteReply
    | _AppendEntries
    | _AppendEntriesReply
    | _Heartbeat
    | _HeartbeatReply
    | _InstallSnapshot
    | _TimeoutNow
)
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[_Wire] = msgspec.msgpack.Decoder(_Wire)


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
    return wire.message()


def _to_wire(m: Message) -> _Wire:
    match m:
        case AppendEntries():
            run = m.entries
            return _AppendEntries(
                m.sender,
                m.receiver,
                m.term,
                m.prev_log_index,
                m.prev_log_term,
                m.commit_index,
                run.terms,
                run.kinds,
                run.payloads,
            )
        case AppendEntriesReply():
            return _AppendEntriesReply(
                m.sender,
                m.receiver,
                m.term,
                m.success,
                m.match_index,
                m.rejected_index,
                m.hint_index,
                m.hint_term,
            )
        case Heartbeat():
            return _Heartbeat(m.sender, m.receiver, m.term, m.commit_index, m.read_sequence)
        case HeartbeatReply():
            return _HeartbeatReply(m.sender, m.receiver, m.term, m.read_sequence)
        case RequestVote():
            return _RequestVote(
                m.sender,
                m.receiver,
                m.term,
                m.last_log_index,
                m.last_log_term,
                m.pre_vote,
                m.transfer,
                m.commit_index,
                m.commit_term,
            )
        case RequestVoteReply():
            return _RequestVoteReply(
                m.sender, m.receiver, m.term, m.granted, m.pre_vote, m.commit_index, m.commit_term
            )
        case InstallSnapshot(snapshot=meta):
            members = meta.configuration
            return _InstallSnapshot(
                m.sender,
                m.receiver,
                m.term,
                meta.index,
                meta.term,
                members.voters,
                members.voters_outgoing,
                members.learners,
                members.learners_next,
                members.auto_leave,
            )
        case TimeoutNow():
            return _TimeoutNow(m.sender, m.receiver, m.term)
        case _:
            assert_never(m)
