"""One session with the cluster: what is held in it, and what its keepalives mean. Pure.

All leases of a client share one session, one keepalive and so one deadline. The session ends in
one of three ways: the cluster says that it is gone, the deadline passes on our own clock, or the
client closes it. Then all its leases are over at once, and a new acquisition opens another
session; nothing is carried over (SAFETY K3).

A keepalive's answer may also tell that single grants were revoked (K7). Their leases are lost at
once; the notice is acknowledged when their holders have left them, and only then may the cluster
pass the locks on before a TTL has run: first the work stops, then the lock goes (K6).
"""

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable

from lockd.client.demand import Demand, LockMode
from lockd.client.lease import RENEWALS_PER_TTL, Grant, Trust
from lockd.client.queries import EndedNotice
from lockd.errors import NotHeld, OutcomeUnknown
from lockd.ids import Fence, SessionId

ATTEMPTS_PER_TTL = 4
"""One attempt to get an answer takes at most TTL/4: under TTL/3, so that one silent node costs
less than a renewal (SAFETY K2)."""
UNSEEN_MAX = 1024
"""How many revoked tokens are remembered whose grants have not arrived."""

Tell = list[Callable[[], None]]
"""Who wants to know of a loss: the caller calls each, whatever the others do."""


class Session:
    """One session of this client with one cluster."""

    def __init__(self, session_id: SessionId, *, sent_at: float, ttl: float) -> None:
        self.id = session_id
        self.trust = Trust(sent_at=sent_at, ttl=ttl)
        self.is_over = False
        self._sent_at = sent_at
        self._last_request = 0
        self._grants: dict[int, Grant] = {}
        self._of_lock: defaultdict[str, dict[int, Grant]] = defaultdict(dict)
        self._notices: dict[int, tuple[int, weakref.ref[Grant] | None]] = {}
        """By number, those that are not acknowledged: the token, and who has it in hand, if anybody."""
        self._acknowledged = 0
        self._revoked_unseen: dict[int, str] = {}
        """Why those tokens have ended which nobody here held when that was told: a grant may be on
        its way still, in a push behind the keepalive's answer or an answer not looked at yet."""

    def renew_at(self) -> float:
        """When the next keepalive is due: a third of the TTL after the last answered one was sent."""
        return self._sent_at + self.trust.ttl / RENEWALS_PER_TTL

    def renewed(self, *, sent_at: float, ttl: float, now: float) -> bool:
        """A keepalive that was sent at `sent_at` has been answered. False: it came too late."""
        if not self.trust.renewed(sent_at=sent_at, ttl=ttl, now=now):
            return False
        self._sent_at = max(self._sent_at, sent_at)
        return True

    def suspend(self) -> None:
        """The connection is gone: what is held stays held until the deadline (K2)."""
        self.trust.is_suspended = True

    def may_be_relied_on(self, now: float) -> bool:
        return not self.is_over and self.trust.remaining(now) > 0.0

    def next_request(self) -> int:
        """A request id: they grow within a session (SAFETY G3)."""
        self._last_request += 1
        return self._last_request

    # Grants.

    def granted(self, demand: Demand, *, owner: str, fence: Fence) -> tuple[Grant, Tell]:
        """What was demanded was granted in this session.

        The grant starts no deadline of its own: the answer may have waited for long, or be a
        repeat. It can be relied on for as long as the session (K1). Tokens grow (P2): a lease here
        that it can't be held beside is over, even if its notice has not come yet.

        Raises NotHeld when it was revoked before it arrived, OutcomeUnknown when it contradicts a
        later grant; nothing is held then.
        """
        because = self._revoked_unseen.get(fence.token)
        if because is not None:
            raise NotHeld(f"lock {demand.lock!r}: the grant with token {fence.token} is over: {because}")
        conflicting = self._in_conflict(demand)
        latest = max((other.token for other in conflicting), default=0)
        if latest >= fence.token or fence.token in self._grants:
            text = f"it was granted under token {fence.token}, which is another grant's or before one's"
            raise OutcomeUnknown(f"lock {demand.lock!r}: {text}")
        because = f"the cluster has granted the lock again, under token {fence.token}"
        tell = [callback for other in conflicting for callback in self.lose(other, because)]
        grant = Grant(demand, owner=owner, fence=fence, session=self.id, trust=self.trust)
        self._grants[fence.token] = grant
        for lock in grant.locks:
            self._of_lock[lock][fence.token] = grant
        return grant, tell

    def released(self, grant: Grant) -> None:
        """The holder gave the grant back, or is about to."""
        if self._grants.get(grant.token) is grant:
            del self._grants[grant.token]
            for lock in grant.locks:
                del self._of_lock[lock][grant.token]
                if not self._of_lock[lock]:
                    del self._of_lock[lock]

    def lose(self, grant: Grant, because: str) -> Tell:
        """The cluster says that this one has ended."""
        self.released(grant)
        return grant.lose(because)

    def _in_conflict(self, demand: Demand) -> list[Grant]:
        """The grants here that can't be held beside this demand."""
        others = [grant for lock in demand.locks for grant in self._of_lock.get(lock, {}).values()]
        if demand.mode is LockMode.EXCLUSIVE:
            return others
        return [other for other in others if other.demand.mode is not demand.mode]

    # What the cluster has revoked.

    def revoked(self, notices: Iterable[EndedNotice]) -> Tell:
        """A keepalive's answer told of these. Their leases are lost now."""
        tell: Tell = []
        for notice in notices:
            if notice.number <= self._acknowledged or notice.number in self._notices:
                continue
            grant = self._grants.get(notice.token)
            if grant is None:
                self._notices[notice.number] = (notice.token, None)
                self._remember_unseen(notice)
            else:
                self._notices[notice.number] = (notice.token, weakref.ref(grant))
                tell += self.lose(grant, notice.reason)
        return tell

    def to_acknowledge(self) -> int:
        """The number up to which no work goes on under what was revoked; 0: nothing is new.

        A lease that was dropped without being released is left as well: nobody can look at it.
        """
        number = 0
        for each in sorted(self._notices):
            _, reference = self._notices[each]
            grant = None if reference is None else reference()
            if grant is not None and not grant.is_left:
                break
            number = each
        return number

    def waits_to_acknowledge(self, grant: Grant) -> bool:
        """Whether its end can't be acknowledged yet, for work goes on under one that was revoked before."""
        reached = self.to_acknowledge()
        return any(token == grant.token and each > reached for each, (token, _) in self._notices.items())

    def acknowledged(self, number: int) -> None:
        """The cluster has answered a keepalive that acknowledged up to there."""
        self._acknowledged = max(self._acknowledged, number)
        for each in [each for each in self._notices if each <= number]:
            del self._notices[each]

    def _remember_unseen(self, notice: EndedNotice) -> None:
        self._revoked_unseen[notice.token] = notice.reason
        if len(self._revoked_unseen) > UNSEEN_MAX:
            del self._revoked_unseen[next(iter(self._revoked_unseen))]

    def end(self, because: str) -> Tell:
        """The session is over, and all its leases are lost. Later calls change nothing."""
        self.trust.end(because)
        self.is_over = True
        tell = [callback for grant in self._grants.values() for callback in grant.lose()]
        self._grants.clear()
        self._of_lock.clear()
        return tell

    def check_invariants(self) -> None:
        """A session that is over holds nothing; every grant trusts this session and no other; no two
        of its grants are of one lock unless both share it."""
        assert not (self.is_over and self._grants), "leases outlive their session"
        assert all(grant.trust is self.trust for grant in self._grants.values()), "a grant of another session"
        for token, grant in self._grants.items():
            assert token == grant.token, "a grant under a wrong token"
            assert self._in_conflict(grant.demand) in ([], [grant] * len(grant.locks)), "two in one lock"
        indexed = {token for grants in self._of_lock.values() for token in grants}
        assert indexed == set(self._grants), "the index by lock is out of step"
