"""The callers of this node: who asked for what, and what they may conclude.

A call is held here until a leader is known, then handed to the log, directly or through the
leader. Its outcome comes back with the applied entry. When none comes, the caller is told what
is certain: UNAVAILABLE when nothing has come of it and nothing will, UNKNOWN otherwise.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from lockd.ids import Term
from lockd.locks.commands import Command, Outcome, Queued, Refused

Callback = Callable[[Outcome], None]
NOT_SENT = Term(0)
CALLS_MAX = 100_000
"""Commands, reads and renewals that a node works at, and besides these waits in queues: each of its
connections may have a thousand (SAFETY C10)."""


@dataclass(slots=True)
class Call:
    """One command of a client of this node, or of the node itself."""

    command: Command
    on_outcome: Callback
    deadline_ms: int
    sent_term: Term = NOT_SENT
    """Raft's term when it was handed to the log; 0 while it is held here."""
    forwarded: bool = False
    """It went through another node: even if that one fails, it may have been appended."""
    waiting: bool = False
    """It stands in a lock's queue: what happens next comes through the log, without a deadline."""


@dataclass(slots=True)
class Calls:
    """All open calls, by operation number."""

    refused: int = 0
    """Calls of clients that there was no room for."""
    _open: dict[int, Call] = field(default_factory=dict)
    _due: dict[int, Call] = field(default_factory=dict)
    """Those with a deadline, the earliest first: all are given the same time. Waits have none."""
    _by_connection: dict[int, dict[int, None]] = field(default_factory=dict)
    _gone: set[int] = field(default_factory=set)
    _doubted: int = 0
    """No connection with a higher number has been told UNKNOWN."""

    def __len__(self) -> int:
        return len(self._open)

    def objection(self, *, reads: int, waits: bool = False) -> Refused | None:
        """Why no call of a client is taken on while there are so many, and so many reads and renewals.

        `waits` tells of a call that may stand in a queue for long: these have a limit of their own, so that
        who fills it is in the way of nothing else (P6).
        """
        if waits and len(self._open) - len(self._due) >= CALLS_MAX:
            what = f"{CALLS_MAX:,} waits"
        elif len(self._due) + reads >= CALLS_MAX:
            what = f"{CALLS_MAX:,} commands"
        else:
            return None
        self.refused += 1
        return Refused("UNAVAILABLE", f"this node has {what} open, which is its limit")

    def __contains__(self, operation: int) -> bool:
        return operation in self._open

    def add(self, call: Call) -> None:
        origin = call.command.origin
        self._open[origin.operation] = call
        self._due[origin.operation] = call
        self._by_connection.setdefault(origin.connection, {})[origin.operation] = None

    def get(self, operation: int) -> Call | None:
        return self._open.get(operation)

    def complete(self, operation: int, outcome: Outcome) -> bool:
        """Tell the caller. Returns whether the call now waits for nobody (G4).

        Its connection is gone, or its caller was told UNKNOWN before it came to wait.
        """
        call = self._open.get(operation)
        if call is None:
            return isinstance(outcome, Queued)
        connection = call.command.origin.connection
        abandoned = connection in self._gone
        if isinstance(outcome, Queued):
            call.waiting = True
            self._due.pop(operation, None)
        else:
            if isinstance(outcome, Refused) and outcome.code == "UNKNOWN":
                self._doubted = max(self._doubted, connection)
            abandoned = False
            self._remove(operation, connection)
        call.on_outcome(outcome)
        return abandoned

    def connection_gone(self, connection: int) -> bool:
        """Remember that nobody listens on this connection, for as long as it has open calls.

        Returns whether the log may have any of its calls: else there is nothing to withdraw from it,
        and what is sent later is withdrawn when it is found to wait.
        """
        calls = [self._open[operation] for operation in self._by_connection.get(connection, ())]
        if calls:
            self._gone.add(connection)
        return connection <= self._doubted or any(call.waiting or call.sent_term for call in calls)

    def fail_sent_before(self, term: Term) -> None:
        """An entry of `term` is applied: what an earlier term was handed has come, or never will.

        What this node had in its own log is lost for certain. What went through another node may
        still be on its way to a log.
        """
        for operation, call in list(self._due.items()):
            if not 0 < call.sent_term < term:
                continue
            if call.forwarded:
                refusal = Refused("UNKNOWN", "the leader changed while the command was with it")
            else:
                refusal = Refused("UNAVAILABLE", "the leader changed before the command was committed")
            self.complete(operation, refusal)

    def fail_sent(self, reason: str) -> None:
        """What became of the commands that were sent can't be seen any more: whoever waits asks again."""
        for operation, call in list(self._open.items()):
            if call.sent_term:
                self.complete(operation, Refused("UNKNOWN", reason))

    def fail_overdue(self, now_ms: int) -> None:
        overdue = itertools.takewhile(lambda due: due[1].deadline_ms <= now_ms, self._due.items())
        for operation, call in list(overdue):
            if call.sent_term:
                refusal = Refused("UNKNOWN", "no quorum confirmed the command in time")
            else:
                refusal = Refused("UNAVAILABLE", "no leader is known")
            self.complete(operation, refusal)

    def fail_all(self, reason: str) -> None:
        """The node stops: whoever still waits is told."""
        for operation, call in list(self._open.items()):
            self.complete(operation, Refused("UNKNOWN" if call.sent_term else "UNAVAILABLE", reason))

    def _remove(self, operation: int, connection: int) -> None:
        del self._open[operation]
        self._due.pop(operation, None)
        siblings = self._by_connection[connection]
        del siblings[operation]
        if not siblings:
            del self._by_connection[connection]
            self._gone.discard(connection)
