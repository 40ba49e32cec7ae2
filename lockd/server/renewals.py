"""How a leader renews a session: after a ReadIndex round, from its lease book (SAFETY T2, T3).

A keepalive is answered only by a leader that a quorum has confirmed in a round that began after
it arrived, and that has applied what was committed by then, all in one term.
"""

from collections.abc import Callable
from typing import Protocol

from lockd.ids import LogIndex, SessionId
from lockd.locks.commands import ClearSilent, Operation, Outcome, Refused, SessionOpened
from lockd.locks.leases import RenewalVerdict
from lockd.locks.machine import LockMachine
from lockd.locks.views import SessionView
from lockd.raft.node import RaftNode
from lockd.server.calls import Callback
from lockd.server.leadership import Leadership
from lockd.server.reads import Reads

Answer = Callable[[Outcome | None], None]
"""Gets the outcome, or None when this node does not lead, or not any more: ask again."""


class Decide(Protocol):
    def __call__(self, operation: Operation, *, session: str, on_outcome: Callback) -> None:
        """As the leader, log a decision of this term."""


class Renewals:
    """The keepalives that one node answers while it leads."""

    def __init__(
        self,
        *,
        raft: RaftNode,
        reads: Reads,
        machine: Callable[[], LockMachine],
        leadership: Callable[[], Leadership | None],
        decide: Decide,
    ) -> None:
        self._raft = raft
        self._reads = reads
        self._machine = machine
        self._leadership = leadership
        self._decide = decide

    def lead(self, user: str, session: SessionId, answer: Answer) -> None:
        """Renew after a round that begins now (T3); `answer` is called once, maybe at once."""
        term = self._raft.term

        def confirmed(index: LogIndex | None) -> None:
            if index is None:
                answer(None)
            else:
                self._reads.when_applied(index, renew)

        def renew() -> None:
            leadership = self._leadership()
            view = self._machine().session(session)
            if leadership is None or leadership.term != term:
                answer(None)
            elif view is None or view.user != user:
                answer(Refused("NOSESSION", "no such session: it has expired or was closed"))
            else:
                self._answer(leadership, view, answer)

        self._reads.lead_round(confirmed)

    def _answer(self, leadership: Leadership, view: SessionView, answer: Answer) -> None:
        match leadership.book.renew(view.id, leadership.clock_ms):
            case RenewalVerdict.RENEWED:
                # What was taken from it is told by the leader that answers: a node that passes the answer
                # on may not have applied it yet, and its client would go on trusting the lease (K7, P1).
                answer(SessionOpened(view.id, view.ttl_ms, self._machine().notices(view.id)))
            case RenewalVerdict.RENEWED_MARKED:
                # The log says it was silent: take that back first, or the next leader cuts its TTL (T2).
                self._decide(ClearSilent(), session=view.id, on_outcome=answer)
            case RenewalVerdict.EXPIRING:
                answer(None)  # asked again until the choice is applied, or void with this leadership
            case RenewalVerdict.UNKNOWN:
                answer(Refused("NOSESSION", "its lease has not begun: its request still waits"))
