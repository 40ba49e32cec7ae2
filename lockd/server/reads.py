"""Reads and keepalives: what a leader may answer without an entry in the log.

Both wait for a ReadIndex round that begins at the leader after they arrived there, confirmed by
a quorum in the same term (SAFETY C6, T3). A node that is not the leader asks it, and holds the
question until a leader is known.
"""

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from lockd.ids import NO_NODE, LogIndex, NodeId, SessionId, Term
from lockd.locks.commands import Outcome, Refused
from lockd.raft.node import RaftNode, ReadReady, Role
from lockd.server import frames

NOT_LEADER = -1
NOT_ASKED = Term(0)


@dataclass(slots=True)
class _Question:
    """A read, or the keepalive of `session`, of a client of this node."""

    deadline_ms: int
    user: str
    session: SessionId | None
    done: Callable[[Outcome | None], None]
    """Called once: a keepalive's outcome, a refusal, or None when the applied state may be read."""
    asked: Term = NOT_ASKED
    """The term whose leader it was sent to, while it is with another node."""


class Reads:
    """The open questions of this node's clients, and the rounds that this node leads."""

    def __init__(
        self,
        *,
        boot: int,
        raft: RaftNode,
        send: Callable[[NodeId, frames.Frame], bool],
        renew: Callable[[str, SessionId, Callable[[Outcome | None], None]], None],
    ) -> None:
        """`renew(user, session, answer)` renews at the leader; None as answer: not the leader."""
        self._raft = raft
        self._send = send
        self._renew = renew
        # From a number drawn for this boot: a late answer to an earlier one must find no question.
        self._numbers = itertools.count(boot)
        self._open: dict[int, _Question] = {}
        self._unrouted: deque[int] = deque()
        self._refused: list[int] = []
        self._rounds: dict[int, list[Callable[[LogIndex | None], None]]] = {}
        self._awaiting_index: list[tuple[LogIndex, Callable[[], None]]] = []

    # Questions of this node's clients.

    def __len__(self) -> int:
        return len(self._open)

    def ask(
        self,
        *,
        deadline_ms: int,
        user: str,
        session: SessionId | None,
        done: Callable[[Outcome | None], None],
    ) -> None:
        number = next(self._numbers)
        self._open[number] = _Question(deadline_ms, user, session, done)
        self._unrouted.append(number)

    def route(self) -> None:
        """Begin the rounds, or ask the leader, for whatever could not be routed before."""
        while self._unrouted and self._route(self._unrouted[0]):
            self._unrouted.popleft()

    def _route(self, number: int) -> bool:
        question = self._open.get(number)
        if question is None:
            return True
        if self._raft.role is Role.LEADER:
            if not self._raft.is_leader_ready:
                return False
            if question.session is None:
                self.lead_round(lambda index: self._settle_read(number, index))
            else:
                self._renew(question.user, question.session, lambda outcome: self._settle(number, outcome))
            return True
        leader = self._raft.leader_id
        request: frames.Frame = frames.ReadRequest(number)
        if question.session is not None:
            request = frames.KeepaliveRequest(number, question.user, question.session)
        if leader == NO_NODE or not self._send(leader, request):
            return False
        question.asked = self._raft.term
        return True

    def tick(self, now_ms: int) -> None:
        """Route anew what the asked node refused, or leads no more; give up what is overdue."""
        self._unrouted.extend(self._refused)
        self._refused.clear()
        for number, question in list(self._open.items()):
            if now_ms >= question.deadline_ms:
                self._finish(number, Refused("UNAVAILABLE", "no leader answered in time"))
            elif question.asked not in (NOT_ASKED, self._raft.term):
                question.asked = NOT_ASKED
                self._unrouted.append(number)

    def fail_all(self, reason: str) -> None:
        for number in list(self._open):
            self._finish(number, Refused("UNAVAILABLE", reason))

    def on_read_reply(self, number: int, index: int) -> None:
        self._settle_read(number, None if index == NOT_LEADER else LogIndex(index))

    def on_keepalive_reply(self, number: int, outcome: Outcome | None) -> None:
        self._settle(number, outcome)

    def _settle_read(self, number: int, index: LogIndex | None) -> None:
        if number not in self._open:
            return
        if index is None:
            self._refused.append(number)
        else:
            self.when_applied(index, lambda: self._finish(number, None))

    def _settle(self, number: int, outcome: Outcome | None) -> None:
        if outcome is None and number in self._open:
            self._refused.append(number)
        else:
            self._finish(number, outcome)

    def _finish(self, number: int, outcome: Outcome | None) -> None:
        question = self._open.pop(number, None)
        if question is not None:
            question.done(outcome)

    # Rounds that this node leads, for its own clients and for its peers.

    def lead_round(self, confirmed: Callable[[LogIndex | None], None]) -> None:
        """Begin a round; `confirmed` gets the index to wait for, or None if this isn't the leader."""
        if not self._raft.is_leader_ready:
            confirmed(None)
        else:
            self._rounds.setdefault(self._raft.read_index(), []).append(confirmed)

    def on_rounds(self, reads: tuple[ReadReady, ...], *, dropped: bool) -> None:
        """Raft says which rounds a quorum has confirmed, or that none will be any more."""
        for read in reads:
            for sequence in [number for number in self._rounds if number <= read.sequence]:
                for confirmed in self._rounds.pop(sequence):
                    confirmed(read.index)
        if dropped:
            rounds, self._rounds = self._rounds, {}
            for waiting in rounds.values():
                for confirmed in waiting:
                    confirmed(None)

    def when_applied(self, index: LogIndex, then: Callable[[], None]) -> None:
        """Call `then` once the state machine has everything up to `index`."""
        if self._raft.last_applied >= index:
            then()
        else:
            self._awaiting_index.append((index, then))

    def on_applied(self, index: LogIndex) -> None:
        if not self._awaiting_index:
            return
        due = [then for wanted, then in self._awaiting_index if wanted <= index]
        self._awaiting_index = [pair for pair in self._awaiting_index if pair[0] > index]
        for then in due:
            then()
