"""The committed log as one machine applies it, and what clients were told: the two must agree.

Each entry is replayed once, in its order, by a machine of the observer's own. From that it is
known which grant was live from which entry to which. Clients report what reached them, in true
time. An answer that came before a question was asked must stand before it in the log (P1 to P3,
C6); in a state machine that is all there is to linearizability.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lockd.ids import LogIndex
from lockd.locks.codec import decode_batch
from lockd.locks.commands import ExpireSessions, Granted, Outcome
from lockd.locks.machine import LockMachine
from lockd.raft.entries import EntryKind
from lockd.raft.membership import decode_change
from tests.sim.clock import CLOCK_RATE_SPREAD, MILLISECOND, Schedule


@dataclass
class Grant:
    """One grant by the log: live from the entry that made it to the one that ended it."""

    lock: str
    session: str
    ended: bool = False


class History:
    """What is committed, and what was acknowledged of it so far."""

    def __init__(self, schedule: Schedule, met: Counter[str]) -> None:
        self._schedule = schedule
        self._met = met
        self._machine = LockMachine()
        self._grants: dict[int, Grant] = {}
        self._live: set[int] = set()
        self._token_max = 0
        self._released: dict[str, int] = {}
        self.acknowledged = LogIndex(0)
        """No question that is asked from now on may be answered from before this entry."""

    def commit(self, index: LogIndex, kind: EntryKind, payload: bytes) -> None:
        """The next entry of the log, whichever node shows it first."""
        if kind is EntryKind.CONFIGURATION:
            payload = decode_change(payload).context
        if kind is not EntryKind.NOOP and payload:
            self._apply(index, payload)

    def _apply(self, index: LogIndex, payload: bytes) -> None:
        machine = self._machine
        batch = decode_batch(payload)
        completions = machine.apply(index, batch)
        expired = [each.operation for each in batch.commands if isinstance(each.operation, ExpireSessions)]
        self._met["expiries"] += sum(len(operation.sessions) for operation in expired)
        true_ms = self._schedule.now / MILLISECOND
        assert machine.clock_ms <= true_ms * (1 + CLOCK_RATE_SPREAD) + 1, "T1: the state's clock has jumped"
        outcomes = [completion.outcome for completion in completions]
        made = {answer.token: answer for answer in outcomes if isinstance(answer, Granted)}
        grants = {token: Grant(answer.lock, answer.session) for token, answer in made.items()}
        live = list(machine.state.grants.values())
        grants |= {holder.token: Grant(holder.lock.name, holder.session) for holder in live}
        new = grants.keys() - self._grants.keys()
        assert min(new, default=self._token_max + 1) > self._token_max, "P2: tokens grow over all grants"
        self._token_max = max(new, default=self._token_max)
        self._grants |= {token: grants[token] for token in new}
        still_live = {holder.token for holder in live}
        for token in (self._live | new) - still_live:
            self._grants[token].ended = True
        self._live = still_live

    @property
    def removed(self) -> Mapping[int, str]:
        """The ids that were members', and are used up (C8)."""
        return self._machine.removed

    @property
    def added(self) -> Collection[int]:
        """The members that were not founders."""
        return self._machine.members.keys()

    # What clients say.

    def released_before(self, lock: str) -> int:
        """The highest token of the lock whose end somebody knows of: later grants are above it."""
        return self._released.get(lock, 0)

    def on_answer(self, outcome: Outcome, index: LogIndex, *, above: int) -> None:
        """An answer of entry `index` reached a client; a grant of it must have a token over `above`."""
        self.acknowledged = max(self.acknowledged, index)
        if isinstance(outcome, Granted):
            grant = self._grants.get(outcome.token)
            assert grant is not None, f"P3: token {outcome.token} was acknowledged and is not in the log"
            assert (grant.lock, grant.session) == (outcome.lock, outcome.session), (
                f"P2: token {outcome.token} was granted to another session or for another lock"
            )
            assert outcome.token > above, f"P2: {outcome.lock!r} was granted anew with an earlier token"

    def on_released(self, lock: str, token: int) -> None:
        """A client was told that its grant has ended."""
        assert self._grants[token].ended, f"P3: the release of token {token} was acknowledged and is undone"
        self._released[lock] = max(self.released_before(lock), token)
