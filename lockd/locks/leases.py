"""The leader's own deadlines of sessions: never in the log, gone with its leadership.

The leader counts every session's TTL on its own monotonic clock, which is handed in. A lease is a
lower bound (SAFETY T2): the book may let one run longer, never shorter than any client was told.
What comes of a deadline is a command, ExpireSessions, and only that ends a session (T1).

    book = LeaseBook(now, machine.lease_sessions(), machine.revoked())   once the leader's no-op is applied
    book.learn(machine.lease_changes, now)              after every entry from then on
    book.renew                                          for each keepalive
    ExpireSessions(book.choose_expired(now, n))         at most n at a time (T4)
    FreeRevoked(book.choose_freed(now, n))              grants that were taken from their holders (P1)
    MarkSilent(book.silent(now))                        so that elections can't stretch dead ones

A session that is marked silent has its next deadline, at the next leader, cut by that silence. So
a renewal of it is answered only after ClearSilent is applied. It counts as marked from the moment
that `silent` has named it: the entry with the mark may be on its way, and the state doesn't show it.
"""

import enum
import heapq
from collections.abc import Iterable

from lockd.ids import SessionId
from lockd.locks.events import LeaseChange, LeaseEvent
from lockd.locks.views import SessionView


class RenewalVerdict(enum.Enum):
    """What comes of a keepalive. It is answered after a quorum confirmed the leader (T3)."""

    RENEWED = "renewed"
    """The TTL runs anew from `now_ms`."""
    RENEWED_MARKED = "renewed, but marked silent"
    """As RENEWED, but answer it with the outcome of a ClearSilent that is proposed now (T2)."""
    EXPIRING = "expiring"
    """Chosen for expiry: not renewed (T3). Answer it when the choice is applied, or void with the book."""
    UNKNOWN = "unknown"
    """Not a session with a running lease."""


class _Lease:
    __slots__ = ("clearing", "heard_ms", "is_chosen", "marked_ms", "ttl_ms")

    def __init__(self, *, heard_ms: int, ttl_ms: int, marked_ms: int) -> None:
        self.heard_ms = heard_ms
        self.ttl_ms = ttl_ms
        self.marked_ms = marked_ms
        """The silence that the log has of it, or will have; 0 for none."""
        self.clearing = 0
        """So many ClearSilent are on their way: a mark between two would be taken for cleared."""
        self.is_chosen = False

    @property
    def deadline_ms(self) -> int:
        return self.heard_ms + self.ttl_ms

    @property
    def next_mark_ms(self) -> int:
        """Half of what the next leader would still give, at least an eighth of the TTL: 3 marks."""
        step = max((self.ttl_ms - self.marked_ms) // 2, self.ttl_ms // 8, 1)
        return self.heard_ms + self.marked_ms + step


class LeaseBook:
    """When which session expires, on the leader's monotonic clock in ms.

    All calls cost O(log n) for each session they touch: renewing moves nothing in the heaps, whose
    entries are put right when they come up.
    """

    def __init__(
        self, now_ms: int, sessions: Iterable[SessionView], revoked: Iterable[LeaseChange] = ()
    ) -> None:
        """A new leader's book: every running lease has its full TTL from now, less its logged
        silence (T2). Private sessions that still wait come in with `opened`, at their grant. The
        TTL of a revoked grant begins anew: nobody knows when the last keepalive was answered.
        """
        self._leases: dict[SessionId, _Lease] = {}
        self._deadlines: list[tuple[int, SessionId]] = []
        self._marks: list[tuple[int, SessionId]] = []
        self._revoked: dict[int, int] = {}
        """The TTL of each revoked grant, by token."""
        self._freed: list[tuple[int, int]] = []
        """When each of them may be passed on, and its token."""
        self.learn(revoked, now_ms)
        for session in sessions:
            if session.lease_running:
                heard_ms = now_ms - session.silent_ms
                self._add(session.id, heard_ms=heard_ms, ttl_ms=session.ttl_ms, marked_ms=session.silent_ms)

    def _add(self, session: SessionId, *, heard_ms: int, ttl_ms: int, marked_ms: int) -> None:
        lease = _Lease(heard_ms=heard_ms, ttl_ms=ttl_ms, marked_ms=marked_ms)
        self._leases[session] = lease
        heapq.heappush(self._deadlines, (lease.deadline_ms, session))
        heapq.heappush(self._marks, (lease.next_mark_ms, session))

    def learn(self, changes: Iterable[LeaseChange], now_ms: int) -> None:
        """Take in what an entry did to leases."""
        for event, session, ttl_ms, token in changes:
            match event:
                case LeaseEvent.BEGAN:
                    self.opened(session, ttl_ms, now_ms)
                case LeaseEvent.CLEARED:
                    self.cleared(session)
                case LeaseEvent.ENDED:
                    self.ended(session)
                case LeaseEvent.REVOKED:
                    self._revoked[token] = ttl_ms
                    heapq.heappush(self._freed, (now_ms + ttl_ms, token))
                case LeaseEvent.PASSED_ON:
                    self._revoked.pop(token, None)

    def opened(self, session: SessionId, ttl_ms: int, now_ms: int) -> None:
        """A lease began to run: a session was opened, or a private one has its grant."""
        known = self._leases.get(session)
        if known is None:
            self._add(session, heard_ms=now_ms, ttl_ms=ttl_ms, marked_ms=0)
        else:  # a book made from the state that already has it
            known.heard_ms = max(known.heard_ms, now_ms)

    def ended(self, session: SessionId) -> None:
        """The session is gone from the state, whatever ended it. Unknown ones are let pass."""
        if self._leases.pop(session, None) is not None:
            self._deadlines = self._without_dead(self._deadlines)
            self._marks = self._without_dead(self._marks)

    def _without_dead(self, heap: list[tuple[int, SessionId]]) -> list[tuple[int, SessionId]]:
        """The heap, rebuilt when more than half of it belongs to sessions that have ended."""
        if len(heap) <= 2 * len(self._leases) + 64:
            return heap
        living = [entry for entry in heap if entry[1] in self._leases]
        heapq.heapify(living)
        return living

    def renew(self, session: SessionId, now_ms: int) -> RenewalVerdict:
        """A keepalive arrived."""
        lease = self._leases.get(session)
        if lease is None:
            return RenewalVerdict.UNKNOWN
        if lease.is_chosen:
            return RenewalVerdict.EXPIRING
        lease.heard_ms = max(lease.heard_ms, now_ms)
        if lease.marked_ms == 0:
            return RenewalVerdict.RENEWED
        lease.clearing += 1
        return RenewalVerdict.RENEWED_MARKED

    def cleared(self, session: SessionId) -> None:
        """A ClearSilent of this session is applied: renewals are answered at once again."""
        lease = self._leases.get(session)
        if lease is not None:
            lease.marked_ms = 0
            lease.clearing = max(lease.clearing - 1, 0)

    def choose_expired(self, now_ms: int, at_most: int) -> tuple[SessionId, ...]:
        """Sessions whose deadline has passed, the longest overdue first; chosen from now on (T3)."""
        chosen: list[SessionId] = []
        while len(chosen) < at_most and self._deadlines and self._deadlines[0][0] <= now_ms:
            _, session = heapq.heappop(self._deadlines)
            lease = self._leases.get(session)
            if lease is None or lease.is_chosen:
                continue
            if lease.deadline_ms > now_ms:
                heapq.heappush(self._deadlines, (lease.deadline_ms, session))
                continue
            lease.is_chosen = True
            chosen.append(session)
        return tuple(chosen)

    def choose_freed(self, now_ms: int, at_most: int) -> tuple[int, ...]:
        """Tokens of revoked grants whose session's TTL has run since this book learnt of it (P1).

        A choice that did not get into the log is made again an eighth of a TTL later.
        """
        chosen: list[int] = []
        while len(chosen) < at_most and self._freed and self._freed[0][0] <= now_ms:
            _, token = heapq.heappop(self._freed)
            ttl_ms = self._revoked.get(token)
            if ttl_ms is not None:
                heapq.heappush(self._freed, (now_ms + ttl_ms // 8 + 1, token))
                chosen.append(token)
        return tuple(chosen)

    def silent(self, now_ms: int, at_most: int = 1_000) -> tuple[tuple[SessionId, int], ...]:
        """Sessions not heard of for over half their TTL, with that silence in ms, sorted (T2).

        A session is named again when half of what is left has passed, so that a row of short
        leaderships adds up. One whose mark is being cleared is left out: the mark would come after
        its clearing in the log, and stay.
        """
        found: list[tuple[SessionId, int]] = []
        while len(found) < at_most and self._marks and self._marks[0][0] <= now_ms:
            _, session = heapq.heappop(self._marks)
            lease = self._leases.get(session)
            if lease is None:
                continue
            silence_ms = min(now_ms - lease.heard_ms, lease.ttl_ms)
            may_mark = not lease.is_chosen and not lease.clearing and silence_ms > lease.marked_ms
            if may_mark and lease.next_mark_ms <= now_ms:
                lease.marked_ms = silence_ms
                found.append((session, silence_ms))
            later_ms = lease.next_mark_ms
            if later_ms <= now_ms:
                later_ms = now_ms + lease.ttl_ms // 8 + 1
            heapq.heappush(self._marks, (later_ms, session))
        return tuple(sorted(found))
