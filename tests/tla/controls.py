"""Runs that must be refused: recordings with one thing falsified, and recordings of a core with a bug."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lockd.ids import LogIndex, NodeId, Term
from lockd.raft.messages import AppendEntries, AppendEntriesReply, RequestVote, RequestVoteReply
from lockd.raft.node import Role
from tests.mutations.catalogue import MUTATIONS
from tests.mutations.mutation import Mutation
from tests.mutations.trial import Copy, CopyError
from tests.tla.events import Action, DiskState, Event, NodeState, Recording

Events = tuple[Event, ...]
MUTANT_SECONDS = 120

MUTANTS = {
    "votes leave before the disk has them": 0,
    "append acks leave before the disk has the entries": 0,
    "a candidate asks for votes before its disk has its term": 0,
    "the leader counts its own copy before its disk has it": 0,
    "entries of an earlier term are committed by counting (Figure 8)": 30,
    "one voter's answer counts each time it arrives": 90,
    "a second candidate gets a vote in the same term": 0,
    "a step-down in the same term forgets the vote": 0,
    "a candidate with an older log is voted for": 0,
    "match_index goes back with a late ack": 10,
    "a late append truncates entries that match": 0,
    "acks of learners count towards the quorum": 60,
}
"""Mutations of tests/mutations whose runs the specification does not allow, and the seed to begin with."""


@dataclass(frozen=True, slots=True)
class Falsification:
    """`change` gives one event's false version, or several in its place, or None if it does not fit there."""

    name: str
    change: Callable[[Event], Events | None]

    def of(self, recordings: Sequence[Recording]) -> Recording | None:
        """Falsify one event of the first recording that has one that fits.

        Late, so that there is something to stand on, and not at the end: what is left out shows later.
        """
        for recording in recordings:
            late = len(recording.events) * 3 // 4
            for place in (*reversed(range(late)), *range(late, len(recording.events))):
                false = self.change(recording.events[place])
                if false is not None:
                    events = (*recording.events[:place], *false, *recording.events[place + 1 :])
                    return replace(recording, name=f"{self.name} ({recording.name})", events=events)
        return None


def falsifications() -> tuple[Falsification, ...]:
    return (
        Falsification("a commit index 5 too far", lambda e: _state(e, lambda s: {"commit": s.commit + 5})),
        Falsification("a term that goes back", lambda e: _state(e, lambda s: {"term": s.term - 1})),
        Falsification("a vote for another", _vote_for_another),
        Falsification("a second vote in a term", _second_vote),
        Falsification("a refused vote is granted", _granted_after_all),
        Falsification("a leader nobody elected", _unelected),
        Falsification("a log cut short", _cut_short),
        Falsification("an entry of another term", _other_term),
        Falsification("an entry the leader does not have", _invented_entry),
        Falsification("a refused append is taken", _accepted_after_all),
        Falsification("an ack of more than there is", _acknowledged_more),
        Falsification("a message nobody sent", _unsent),
        Falsification("a message taken in twice", lambda e: (e, e) if _is_own_ack(e) else None),
        Falsification("an append that is taken in unsaid", lambda e: () if _is_received_append(e) else None),
        Falsification("a message before the disk has it", _without_write),
        Falsification("a disk without the vote", _disk_without_vote),
        Falsification("a restart that forgets an entry", _forgetful),
        Falsification("a match index too far", _match_too_far),
        Falsification("members that nobody applied", _other_voters),
        Falsification("a proposal of a follower", _follower_proposes),
    )


def mutants() -> Iterator[tuple[Mutation, int]]:
    """The mutations, each with the first seed to try."""
    by_name = {mutation.name: mutation for mutation in MUTATIONS}
    for name, seed in MUTANTS.items():
        yield by_name[name], seed


def record_mutant(mutation: Mutation, copy: Copy, seeds: range, events_max: int) -> list[Recording]:
    """Record seeds with a bug in the core, in a copy of the tree. Raises CopyError when it does not run."""
    file = copy.root / "recordings.pickle"
    options = ("--record", str(file), "--seeds", f"{seeds[0]}-{seeds[-1]}", "--events", str(events_max))
    with copy._mutated(mutation):
        said = copy._python("-m", "tests.tla", *options, seconds=MUTANT_SECONDS)
    if not file.is_file():
        raise CopyError(f"{mutation.name}: nothing was recorded:\n{said}")
    recordings: list[Recording] = pickle.loads(file.read_bytes())
    file.unlink()
    return [replace(recording, name=f"{mutation.name} ({recording.name})") for recording in recordings]


def save(recordings: Sequence[Recording], file: Path) -> None:
    file.write_bytes(pickle.dumps(list(recordings)))


def _state(event: Event, change: Callable[[NodeState], dict[str, Any]]) -> Events | None:
    if event.state is None:
        return None
    return (replace(event, state=replace(event.state, **change(event.state))),)


def _vote_for_another(event: Event) -> Events | None:
    if event.state is None or not event.state.vote:
        return None
    return _state(event, lambda s: {"vote": NodeId(s.vote % 3 + 1)})


def _second_vote(event: Event) -> Events | None:
    message, reply, state = event.message, event.reply, event.state
    if not isinstance(message, RequestVote) or not isinstance(reply, RequestVoteReply) or state is None:
        return None
    if reply.granted or reply.term != message.term or state.vote in {0, message.sender}:
        return None
    false = replace(event, reply=replace(reply, granted=True), state=replace(state, vote=message.sender))
    return (false,)


def _granted_after_all(event: Event) -> Events | None:
    reply = event.reply
    if not isinstance(reply, RequestVoteReply) or reply.granted:
        return None
    return (replace(event, reply=replace(reply, granted=True)),)


def _unelected(event: Event) -> Events | None:
    if event.action is not Action.TIMEOUT:
        return None
    return event, Event(Action.BECOME_LEADER, event.node)


def _cut_short(event: Event) -> Events | None:
    if event.state is None or len(event.state.terms) < 2:
        return None
    *before, (term, last) = event.state.terms
    return _state(event, lambda _: {"terms": (*before, (term, LogIndex(last - 1)))})


def _other_term(event: Event) -> Events | None:
    if event.state is None or len(event.state.terms) < 2:
        return None
    *before, (term, last) = event.state.terms
    return _state(event, lambda _: {"terms": (*before, (Term(term + 1), last))})


def _invented_entry(event: Event) -> Events | None:
    message = event.message
    if event.action is not Action.APPEND_ENTRIES or not isinstance(message, AppendEntries):
        return None
    if not message.entries.terms:
        return None
    terms = (*message.entries.terms[:-1], Term(message.entries.terms[-1] + 1))
    return (replace(event, message=replace(message, entries=replace(message.entries, terms=terms))),)


def _accepted_after_all(event: Event) -> Events | None:
    reply = event.reply
    if not isinstance(reply, AppendEntriesReply) or reply.success:
        return None
    return (replace(event, reply=replace(reply, success=True)),)


def _acknowledged_more(event: Event) -> Events | None:
    reply = event.reply
    if not isinstance(reply, AppendEntriesReply) or not reply.success:
        return None
    return (replace(event, reply=replace(reply, match_index=LogIndex(reply.match_index + 1))),)


def _unsent(event: Event) -> Events | None:
    message = event.message
    if event.action is not Action.RECEIVE or not isinstance(message, RequestVoteReply):
        return None
    return (replace(event, message=replace(message, sender=NodeId(message.sender % 3 + 1), granted=True)),)


def _is_received_append(event: Event) -> bool:
    message = event.message
    return event.action is Action.RECEIVE and isinstance(message, AppendEntries) and len(message.entries) > 0


def _is_own_ack(event: Event) -> bool:
    """A message of which there are never two alike."""
    message = event.message
    return (
        event.action is Action.RECEIVE
        and isinstance(message, AppendEntriesReply)
        and message.sender == message.receiver
    )


def _without_write(event: Event) -> Events | None:
    if event.action is not Action.READY or event.state is None:
        return None
    return () if event.state.role is Role.CANDIDATE else None


def _disk_without_vote(event: Event) -> Events | None:
    disk: DiskState | None = event.disk
    if disk is None or not disk.vote:
        return None
    return (replace(event, disk=replace(disk, vote=NodeId(0))),)


def _forgetful(event: Event) -> Events | None:
    return _cut_short(event) if event.action is Action.RESTART else None


def _match_too_far(event: Event) -> Events | None:
    if event.state is None or len(event.state.match) < 2:
        return None
    *before, (peer, index) = event.state.match
    return _state(event, lambda _: {"match": (*before, (peer, LogIndex(index + 1)))})


def _other_voters(event: Event) -> Events | None:
    if event.state is None or len(event.state.voters) < 2:
        return None
    return _state(event, lambda s: {"voters": s.voters[:-1]})


def _follower_proposes(event: Event) -> Events | None:
    if event.action is not Action.RECEIVE or event.state is None or event.state.role is not Role.FOLLOWER:
        return None
    return event, Event(Action.CLIENT_REQUEST, event.node, value=0)
