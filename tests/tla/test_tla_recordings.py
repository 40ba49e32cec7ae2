"""The recordings that TLC is given, as far as they can be checked without it."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from lockd.ids import LogIndex, NodeId, Term
from lockd.raft.entries import EntryKind, EntryRun
from lockd.raft.messages import AppendEntries, Message, RequestVote, RequestVoteReply
from lockd.raft.node import Role
from tests.mutations.catalogue import MUTATIONS
from tests.tla.checker import JAR_VARIABLE, SPECIFICATION, Tlc, TlcMissing
from tests.tla.controls import MUTANTS, falsifications
from tests.tla.events import Action, Event, Members, NodeState, Recording
from tests.tla.module import module_of
from tests.tla.scenario import Scenario

SPECIFICATION_VARIABLE = "LOCKD_TLA_SPEC"
EVENTS_MAX = 300
SENDS = {Action.REQUEST_VOTE, Action.APPEND_ENTRIES, Action.APPEND_TO_SELF, Action.HEARTBEAT}


@pytest.fixture(scope="module")
def recordings() -> list[Recording]:
    return [Scenario(seed).record(EVENTS_MAX) for seed in range(12)]


def test_a_seed_gives_the_same_recording_each_time() -> None:
    assert Scenario(4).record(EVENTS_MAX) == Scenario(4).record(EVENTS_MAX)


def test_what_is_recorded_is_worth_checking(recordings: list[Recording]) -> None:
    """A recording in which nothing happens proves nothing."""
    assert not any(recording.failed for recording in recordings)
    assert all(len(recording.events) >= EVENTS_MAX for recording in recordings), "one ended early"
    met = Counter(event.action for recording in recordings for event in recording.events)
    assert met[Action.NOTHING] == 0
    assert set(Action) - set(met) == {Action.NOTHING}
    assert {recording.founders for recording in recordings} == {1, 3, 5}
    commits = [event.state.commit for r in recordings for event in r.events if event.state is not None]
    assert max(commits) > 20


def test_each_call_into_a_node_ends_with_its_state(recordings: list[Recording]) -> None:
    """What a node did may be told in several events; the last of them is held against the node."""
    for recording in recordings:
        for event, following in zip(recording.events, recording.events[1:], strict=False):
            if event.node != following.node and event.action not in {Action.DROP, Action.DUPLICATE}:
                assert event.state is not None, event


def test_a_message_is_taken_in_as_often_as_it_was_sent(recordings: list[Recording]) -> None:
    """C2: and only after the write that it waited for, if it was one to wait."""
    for recording in recordings:
        waiting: dict[NodeId, Counter[Message]] = {node: Counter() for node in recording.servers}
        under_way: Counter[Message] = Counter()
        for event in recording.events:
            if event.action in SENDS:
                assert event.message is not None
                waiting[event.node][event.message] += 1
            elif event.action is Action.SEND_NOW:
                assert waiting[event.node][_message(event)] > 0, event
                waiting[event.node][_message(event)] -= 1
                under_way[_message(event)] += 1
            elif event.action is Action.READY:
                under_way += waiting[event.node]
                waiting[event.node].clear()
            elif event.action is Action.RESTART:
                waiting[event.node].clear()
            elif event.action is Action.DUPLICATE:
                under_way[_message(event)] += 1
            elif event.action in {Action.RECEIVE, Action.DROP}:
                assert under_way[_message(event)] > 0, event
                under_way[_message(event)] -= 1
            if event.reply is not None:
                waiting[event.node][event.reply] += 1


def test_the_words_of_the_module() -> None:
    state = NodeState(
        Term(3),
        NodeId(1),
        LogIndex(2),
        Role.LEADER,
        ((Term(1), LogIndex(1)), (Term(3), LogIndex(4))),
        (NodeId(1), NodeId(2)),
        (NodeId(3),),
        ((NodeId(1), LogIndex(4)), (NodeId(2), LogIndex(0)), (NodeId(3), LogIndex(0))),
    )
    run = EntryRun(
        LogIndex(2),
        (Term(3), Term(3), Term(3)),
        (EntryKind.NOOP, EntryKind.COMMANDS, EntryKind.CONFIGURATION),
        (b"", b"17", b"..."),
    )
    append = AppendEntries(NodeId(1), NodeId(2), Term(3), LogIndex(1), Term(1), run, LogIndex(9))
    vote = RequestVote(NodeId(2), NodeId(1), Term(2), LogIndex(1), Term(1), pre_vote=False)
    refusal = RequestVoteReply(NodeId(1), NodeId(2), Term(3), granted=False, pre_vote=False)
    events = (
        Event(Action.RECEIVE, NodeId(1), vote, refusal),
        Event(Action.APPEND_ENTRIES, NodeId(1), append, state=state),
    )
    members = Members(frozenset({NodeId(1), NodeId(2)}), frozenset({NodeId(3)}))
    recording = Recording(
        "small", 2, False, (NodeId(1), NodeId(2), NodeId(3)), events, {(LogIndex(4), Term(3)): members}, ""
    )
    assert module_of([recording]) == (
        "---- MODULE Traces ----\n"
        "EXTENDS LockdTrace\n"
        "\n"
        "RecordedServers == {1, 2, 3}\n"
        "RecordedFounders == {1, 2}\n"
        "RecordedSendsAtOnce == <<FALSE>>\n"
        'RecordedTraces == <<<<[does |-> "Receive", node |-> 1, message |-> VoteRequest(2, 2, 1, 1, 1), '
        "reply |-> VoteReply(3, 1, 2, FALSE)],\n"
        '[does |-> "AppendEntries", node |-> 1, '
        "message |-> Entries(3, 1, 2, 1, 1, <<Value(3, 0), Value(3, 17), Change(3, {1, 2}, {3})>>, 4), "
        "state |-> State(3, 1, 2, Leader, <<<<1, 1>>, <<3, 4>>>>, {1, 2}, {3}, "
        "<<<<1, 4>>, <<2, 0>>, <<3, 0>>>>)]>>>>\n"
        "====\n"
    )


def test_every_falsification_finds_a_place(recordings: list[Recording]) -> None:
    for falsification in falsifications():
        false = falsification.of(recordings)
        assert false is not None, falsification.name
        assert false.events not in [recording.events for recording in recordings]


def test_the_mutants_are_mutations_of_the_catalogue() -> None:
    assert set(MUTANTS) <= {mutation.name for mutation in MUTATIONS}


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TlcMissing, match="no java on the PATH"):
        Tlc.find(tmp_path)
    java = tmp_path / "java"
    java.touch(mode=0o755)
    monkeypatch.setenv(JAR_VARIABLE, str(tmp_path / "none.jar"))
    with pytest.raises(TlcMissing, match=r"names no file: .*none\.jar"):
        Tlc.find(tmp_path)
    monkeypatch.setenv(JAR_VARIABLE, str(java))
    with pytest.raises(TlcMissing, match=f"no {SPECIFICATION} in"):
        Tlc.find(tmp_path)


def test_tlc_accepts_what_happened_and_refuses_what_did_not(recordings: list[Recording]) -> None:
    """C3, C4: with TLC and the specification at hand; `make tla` does much more."""
    folder = os.environ.get(SPECIFICATION_VARIABLE)
    if folder is None:
        pytest.skip(
            f"NO TLA+: {SPECIFICATION_VARIABLE} names no folder with {SPECIFICATION}: nothing was run"
        )
    try:
        tlc = Tlc.find(Path(folder))
    except TlcMissing as missing:
        pytest.skip(f"NO TLA+: {missing}: nothing was run")
    true = [recording for recording in recordings if recording.founders == 3]
    false = replace(true[0], events=(*true[0].events[:100], *true[0].events[101:]))
    verdicts = tlc.check([*true, false], seconds=100)
    assert [verdict.accepted for verdict in verdicts] == [True] * len(true) + [False]
    assert verdicts[-1].position >= 101


def _message(event: Event) -> Message:
    assert event.message is not None
    return event.message
