"""Negative controls of the simulator: with a rule taken out of the code, some seed must break, and say which.

What is patched is looked up when it is called, so one process tries them all; others are in tests/mutations.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest.mock import patch

import pytest

from lockd.ids import LogIndex, NodeId
from lockd.locks.leases import LeaseBook
from lockd.locks.state import LockState
from lockd.raft import quorum, replication
from lockd.raft.log import Log
from lockd.server.driver import Driver
from lockd.server.reads import Reads
from lockd.server.writes import Writes
from tests.sim.run import simulate

SEEDS_MAX = 40

_choose_expired = LeaseBook.choose_expired
_granted = LockState.granted
_on_durable = Writes.on_durable


def _told_with_the_write_before(writes: Writes, ticket: int) -> None:
    _on_durable(writes, ticket + 1)


def _one_ack_less(voters: Sequence[NodeId], acknowledged: Mapping[NodeId, int]) -> int:
    if not voters:
        return quorum.UNBOUNDED
    enough = min((len(voters) + 1) // 2, len(voters) - 1)
    return sorted(acknowledged.get(voter, 0) for voter in voters)[enough]


def _whoever_asks(_log: Log, _index: int, _term: int) -> bool:
    return True


def _without_a_round(reads: Reads, confirmed: Callable[[LogIndex | None], None]) -> None:
    confirmed(reads._raft.last_applied)


def _half_a_second_early(book: LeaseBook, now_ms: int, at_most: int) -> tuple[Any, ...]:
    return _choose_expired(book, now_ms + 500, at_most)


def _forgotten(_driver: Driver, _connection: int) -> None:
    pass


def _counting_past_the_log(counter: Iterator[int]) -> Callable[..., Any]:
    """Each node counts on by what it has applied itself, not by what the state says."""

    def granted(state: LockState, *arguments: Any, **more: Any) -> Any:
        state.revision += next(counter) % 5 == 0
        return _granted(state, *arguments, **more)

    return granted


CONTROLS: dict[str, tuple[object, str, Callable[..., Any], str]] = {
    "what waits for a write leaves with the one before (C2)": (
        Writes,
        "on_durable",
        _told_with_the_write_before,
        r"C2: node \d votes|C2: node \d acknowledges|D1: ",
    ),
    "one ack too few commits (§5.3)": (
        quorum,
        "_majority_number",
        _one_ack_less,
        "log matching|leader completeness|C6: |contradicts the committed|lost entries",
    ),
    "a candidate with a shorter log is voted for (§5.4.1)": (
        Log,
        "is_up_to_date",
        _whoever_asks,
        "leader completeness|log matching|contradicts the committed|lost entries",
    ),
    "reads without a round (C6)": (Reads, "lead_round", _without_a_round, "C6: |P1: |T2: "),
    "leases end before their time (T2)": (
        LeaseBook,
        "choose_expired",
        _half_a_second_early,
        "T2: |P1: ",
    ),
    "nobody withdraws the waits of a connection that is gone (G4)": (
        Driver,
        "connection_gone",
        _forgotten,
        "G4: ",
    ),
    "nodes differ in what they apply (C11)": (
        LockState,
        "granted",
        _counting_past_the_log(itertools.count()),
        "state machine safety|differs from that of nodes",
    ),
    "a leader leaves followers that are behind alone": (
        replication,
        "_send_snapshot",
        lambda *_: False,
        "a change of members never ends|nodes do not catch up|nobody leads|nobody gets a lock",
    ),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_a_rule_that_is_taken_out_breaks_a_seed_by_its_name(name: str) -> None:
    owner, attribute, faulty, told = CONTROLS[name]
    with patch.object(owner, attribute, faulty):
        for seed in range(SEEDS_MAX):
            try:
                simulate(seed)
            except AssertionError as error:
                found = str(error)
                break
        else:
            pytest.fail(f"{SEEDS_MAX} seeds noticed nothing")
    assert re.search(told, found), found
