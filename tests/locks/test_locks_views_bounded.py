"""C10: what is shown of locks is bounded, however many share them."""

import pytest

from lockd.ids import LogIndex
from lockd.locks.commands import SHARED, Acquire, Batch, Command, OpenSession, Operation, Origin
from lockd.locks.machine import LockMachine
from lockd.locks.views import HOLDERS_SHOWN_MAX


@pytest.fixture(name="shared", scope="module")
def locks_that_many_share() -> LockMachine:
    """Locks a, b and c, each shared by more than are shown."""
    machine = LockMachine()
    operations: list[Operation] = [
        OpenSession(60_000, "", ""),
        *(Acquire(lock, 0, 0, "", mode=SHARED) for lock in "abc" for _ in range(HOLDERS_SHOWN_MAX + 5)),
    ]
    commands = (
        Command("ann", "s", "", 0, Origin(1, 1, 1, at), operation) for at, operation in enumerate(operations)
    )
    machine.apply(LogIndex(1), Batch(1, 0, tuple(commands)))
    return machine


def test_a_lock_shows_its_oldest_holders(shared: LockMachine) -> None:
    tokens = [holder.token for holder in shared.inspect("a").holders]
    assert tokens == list(range(1, HOLDERS_SHOWN_MAX + 1))


@pytest.mark.parametrize("of_session", [False, True])
def test_a_page_shows_so_many_in_all_and_one_of_each_lock(
    shared: LockMachine,
    of_session: bool,
) -> None:
    session = next(iter(shared.lease_sessions())).id
    page = shared.locks_of(session, "", "", 100) if of_session else shared.locks()
    assert [len(view.holders) for view in page] == [HOLDERS_SHOWN_MAX, 1, 1]
    assert page[1].holders[0].token == HOLDERS_SHOWN_MAX + 6
