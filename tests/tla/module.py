"""Recordings as a TLA+ module, in the words of LockdTrace.tla."""

from collections.abc import Iterable, Sequence

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
from lockd.raft.node import Role
from tests.tla.events import DiskState, Event, Members, NodeState, Recording

NAME = "Traces"
CONFIGURATION = """\
INIT TraceInit
NEXT TraceNext
CONSTANTS
    Nil = 0
    ValueEntry = "value"
    ConfigEntry = "config"
    Follower = "follower"
    Candidate = "candidate"
    Leader = "leader"
    RequestVoteRequest = "vote request"
    RequestVoteResponse = "vote response"
    AppendEntriesRequest = "append request"
    AppendEntriesResponse = "append response"
    InitServerVars <- TraceInitServerVars
    InitLogVars <- TraceInitLogVars
    PersistState <- TracePersistState
    Server <- RecordedServers
    InitServer <- RecordedFounders
    Traces <- RecordedTraces
    SendsAtOnce <- RecordedSendsAtOnce
"""
"""TLC's configuration for the module."""

_ROLES = {Role.FOLLOWER: "Follower", Role.CANDIDATE: "Candidate", Role.LEADER: "Leader"}


def module_of(recordings: Sequence[Recording]) -> str:
    """Return the module named NAME with these recordings, which have the same founders.

    Who is in one recording alone stays without a part in the others.
    """
    (founders,) = {recording.founders for recording in recordings}
    servers = {server for recording in recordings for server in recording.servers}
    at_once = _sequence(_boolean(holds=recording.sends_at_once) for recording in recordings)
    traces = _sequence((_trace(recording) for recording in recordings), separator=",\n\n")
    return (
        f"---- MODULE {NAME} ----\nEXTENDS LockdTrace\n\n"
        f"RecordedServers == {_set(servers)}\n"
        f"RecordedFounders == {_set(range(1, founders + 1))}\n"
        f"RecordedSendsAtOnce == {at_once}\n"
        f"RecordedTraces == {traces}\n"
        "====\n"
    )


def _trace(recording: Recording) -> str:
    return _sequence((_event(event, recording) for event in recording.events), separator=",\n")


def _event(event: Event, recording: Recording) -> str:
    fields = [f'does |-> "{event.action.value}"', f"node |-> {event.node}"]
    if event.message is not None:
        fields.append(f"message |-> {_message(event.message, recording)}")
    if event.reply is not None:
        fields.append(f"reply |-> {_message(event.reply, recording)}")
    if event.peer is not None:
        fields.append(f"peer |-> {event.peer}")
    if event.value is not None:
        fields.append(f"value |-> {event.value}")
    if event.disk is not None:
        fields.append(f"disk |-> {_disk(event.disk)}")
    if event.state is not None:
        fields.append(f"state |-> {_state(event.state)}")
    return f"[{', '.join(fields)}]"


def _message(message: Message, recording: Recording) -> str:
    head = f"{message.term}, {message.sender}, {message.receiver}"
    match message:
        case RequestVote():
            return f"VoteRequest({head}, {message.last_log_index}, {message.last_log_term})"
        case RequestVoteReply():
            return f"VoteReply({head}, {_boolean(holds=message.granted)})"
        case AppendEntries():
            # A follower commits no further than to the append's own last entry; there that is in the message.
            commit = min(message.commit_index, message.prev_log_index + len(message.entries))
            entries = _entries(message.entries, recording)
            return f"Entries({head}, {message.prev_log_index}, {message.prev_log_term}, {entries}, {commit})"
        case AppendEntriesReply():
            return f"EntriesReply({head}, {_boolean(holds=message.success)}, {message.match_index})"
        case Heartbeat():
            return f"Beat({head}, {message.commit_index})"
        case HeartbeatReply():
            return f"BeatReply({head})"
        case _:
            raise ValueError(f"the specification has no such message: {message}")


def _entries(run: EntryRun, recording: Recording) -> str:
    described = zip(run.terms, run.kinds, run.payloads, strict=True)
    return _sequence(
        _entry(LogIndex(run.first + offset), entry, recording) for offset, entry in enumerate(described)
    )


def _entry(index: LogIndex, entry: tuple[Term, EntryKind, bytes], recording: Recording) -> str:
    term, kind, payload = entry
    if kind is EntryKind.CONFIGURATION:
        return f"Change({term}, {_members(recording.changes[index, term])})"
    return f"Value({term}, {int(payload or b'0')})"


def _members(members: Members) -> str:
    return f"{_set(members.voters)}, {_set(members.learners)}"


def _disk(disk: DiskState) -> str:
    return f"[term |-> {disk.term}, vote |-> {disk.vote}, last |-> {disk.last}, commit |-> {disk.commit}]"


def _state(state: NodeState) -> str:
    terms = _sequence(_sequence(map(str, run)) for run in state.terms)
    match = _sequence(_sequence(map(str, pair)) for pair in state.match)
    return (
        f"State({state.term}, {state.vote}, {state.commit}, {_ROLES[state.role]}, {terms}, "
        f"{_set(state.voters)}, {_set(state.learners)}, {match})"
    )


def _sequence(items: Iterable[str], *, separator: str = ", ") -> str:
    return f"<<{separator.join(items)}>>"


def _set(members: Iterable[NodeId] | Iterable[int]) -> str:
    return f"{{{', '.join(map(str, sorted(members)))}}}"


def _boolean(*, holds: bool) -> str:
    return "TRUE" if holds else "FALSE"
