"""What the callers of a node that has no leader, or that wait for long, cost it (SAFETY C10)."""

from collections.abc import Callable

import pytest

from lockd.ids import NO_NODE, LogIndex, NodeId, Term
from lockd.locks.commands import Acquire, Command, Origin, Outcome, Queued, Refused
from lockd.raft.entries import Configuration, EntryRun, HardState
from lockd.raft.log import Log
from lockd.raft.node import RaftConfig, RaftNode
from lockd.server.calls import Call, Calls
from lockd.server.proposals import Asked, Proposals

CONNECTION = 7
ACQUIRE = Acquire("k", 5000, -1, "")


def call(operation: int, outcomes: list[Outcome], *, sent_term: int = 0, deadline_ms: int = 100) -> Call:
    origin = Origin(1, 5, CONNECTION, operation)
    command = Command("u", "s" * 32, "", "", origin, ACQUIRE)
    return Call(command, outcomes.append, deadline_ms, Term(sent_term))


def test_c10_a_connection_that_ends_before_its_commands_left_leaves_nothing_to_withdraw() -> None:
    calls, outcomes = Calls(), list[Outcome]()
    calls.add(call(1, outcomes))
    assert not calls.connection_gone(CONNECTION)


def test_g4_what_is_sent_after_its_connection_ended_is_withdrawn_once_it_waits() -> None:
    calls, outcomes = Calls(), list[Outcome]()
    calls.add(call(1, outcomes))
    calls.connection_gone(CONNECTION)
    assert calls.complete(1, Queued("k", "s" * 32, 3))


@pytest.mark.parametrize("becomes", ["sent", "waiting", "unknown"])
def test_g4_what_the_log_may_have_is_withdrawn_when_its_connection_ends(becomes: str) -> None:
    calls, outcomes = Calls(), list[Outcome]()
    calls.add(call(1, outcomes, sent_term=3))
    if becomes == "waiting":
        calls.complete(1, Queued("k", "s" * 32, 3))
    elif becomes == "unknown":
        calls.fail_overdue(100)
        assert isinstance(outcomes[0], Refused)
        assert outcomes[0].code == "UNKNOWN"
        calls.add(call(2, outcomes))
    assert calls.connection_gone(CONNECTION)


def test_deadlines_pass_in_their_order_and_waits_have_none() -> None:
    calls, outcomes = Calls(), list[Outcome]()
    for operation, deadline_ms in enumerate((100, 100, 200, 200)):
        calls.add(call(operation, outcomes, deadline_ms=deadline_ms))
    calls.complete(0, Queued("k", "s" * 32, 0))
    calls.fail_overdue(150)
    assert [operation in calls for operation in range(4)] == [True, False, True, True]
    calls.fail_overdue(1_000_000)
    assert [operation in calls for operation in range(4)] == [True, False, False, False]
    assert calls.connection_gone(CONNECTION)


def test_c10_commands_that_no_leader_was_there_for_leave_nothing_behind() -> None:
    now_ms = 0
    raft = RaftNode(
        RaftConfig(node_id=NodeId(1)),
        configuration=Configuration((NodeId(1), NodeId(2), NodeId(3))),
        hard_state=HardState(Term(0), NO_NODE, LogIndex(0)),
        log=Log.from_run(EntryRun(LogIndex(1), (), (), ())),
        draw=lambda low, _: low,
    )
    assert raft.leader_id == NO_NODE
    proposals = Proposals(
        origin=(NodeId(1), 5),
        raft=raft,
        send=lambda _, __: False,
        clock_ms=lambda: now_ms,
        wake=lambda: None,
        answer_ms_max=100,
    )
    outcomes: list[Outcome] = []
    told: Callable[[Outcome], None] = outcomes.append
    for _ in range(50):
        for _ in range(20):
            proposals.ask(Asked(ACQUIRE, connection=CONNECTION), told)
        now_ms += 50
        proposals.calls.fail_overdue(now_ms)
        proposals.route()
        assert len(proposals._inbox) <= 40
    assert {outcome.code for outcome in outcomes if isinstance(outcome, Refused)} == {"UNAVAILABLE"}
