"""What becomes of the clients of a node that is removed (SAFETY C7, G4)."""

from lockd.ids import LogIndex
from lockd.locks.commands import (
    WAIT_FOREVER,
    Acquire,
    AddMember,
    Batch,
    Command,
    OpenSession,
    Operation,
    Origin,
    Refused,
    RemoveMember,
)
from lockd.locks.machine import LockMachine


def test_g4_a_request_that_a_removed_node_passed_on_late_does_not_wait_for_ever() -> None:
    machine = LockMachine()

    def apply(index: int, node: int, session: str, operation: Operation) -> object:
        command = Command("ann", session, "", 1, Origin(node, 1, 1, index), operation)
        (completion,) = machine.apply(LogIndex(index), Batch(Batch.VERSION, 0, (command,)))
        return completion.outcome

    apply(1, 1, "", AddMember(4, "node4:7421", wants_vote=True))
    apply(2, 1, "s", OpenSession(4_000, "s", ""))
    apply(3, 1, "t", OpenSession(4_000, "t", ""))
    apply(4, 1, "s", Acquire("lock", 0, WAIT_FOREVER, ""))
    apply(5, 1, "", RemoveMember(4))
    outcome = apply(6, 4, "t", Acquire("lock", 0, WAIT_FOREVER, ""))
    assert isinstance(outcome, Refused)
    assert outcome.code == "UNAVAILABLE"
    assert machine.stats.waiters == 0
