"""One session with the cluster: what is held in it, and what its keepalives mean. Pure.

All leases of a client share one session, one keepalive and so one deadline. The session ends in
one of three ways: the cluster says that it is gone, the deadline passes on our own clock, or the
client closes it. Then all its leases are over at once, and a new acquisition opens another
session; nothing is carried over (SAFETY K3).
"""

from collections.abc import Callable

from lockd.client.lease import RENEWALS_PER_TTL, Grant, Trust
from lockd.ids import Fence, SessionId

ATTEMPTS_PER_TTL = 4
"""One attempt to get an answer takes at most TTL/4: under TTL/3, so that one silent node costs
less than a renewal (SAFETY K2)."""


class Session:
    """One session of this client with one cluster."""

    def __init__(self, session_id: SessionId, *, sent_at: float, ttl: float) -> None:
        self.id = session_id
        self.trust = Trust(sent_at=sent_at, ttl=ttl)
        self.is_over = False
        self._sent_at = sent_at
        self._last_request = 0
        self._grants: dict[int, Grant] = {}

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

    def granted(self, *, lock: str, owner: str, fence: Fence) -> Grant:
        """A lock was granted in this session.

        The grant starts no deadline of its own: the answer may have waited for long, or be a
        repeat. It can be relied on for as long as the session (K1).
        """
        grant = Grant(lock=lock, owner=owner, fence=fence, session=self.id, trust=self.trust)
        self._grants[fence.token] = grant
        return grant

    def released(self, grant: Grant) -> None:
        """The holder gave the grant back, or is about to."""
        self._grants.pop(grant.token, None)

    def end(self, because: str) -> list[Callable[[], None]]:
        """The session is over, and all its leases are lost.

        Returns whom to tell: the caller calls each, whatever the others do. Later calls change nothing.
        """
        self.trust.end(because)
        self.is_over = True
        tell = [callback for grant in self._grants.values() for callback in grant.lose()]
        self._grants.clear()
        return tell

    def check_invariants(self) -> None:
        """A session that is over holds nothing; every grant trusts this session and no other."""
        assert not (self.is_over and self._grants), "leases outlive their session"
        assert all(grant.trust is self.trust for grant in self._grants.values()), "a grant of another session"
        assert all(token == grant.token for token, grant in self._grants.items()), (
            "a grant under a wrong token"
        )
