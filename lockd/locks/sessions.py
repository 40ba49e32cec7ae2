"""A session: a client's liveness with the cluster, what it holds and waits for, what it was told."""

import heapq
import itertools

from lockd.locks.answers import SessionAnswers
from lockd.locks.commands import Notice
from lockd.locks.queues import Lock, Phase, Request


class Session:
    """One session in the replicated state.

    A private session is made for one request with a TTL and ends with it; its lease starts at the
    grant, so while the request waits nothing but its connection keeps it alive.
    """

    __slots__ = (
        "answers",
        "id",
        "is_private",
        "lease_running",
        "locks",
        "meta",
        "name",
        "noticed",
        "notices",
        "number",
        "owners",
        "past_notices",
        "requests",
        "silent_ms",
        "stands",
        "ttl_ms",
        "user",
        "waiting",
        "with_max_hold",
    )

    def __init__(
        self, *, session_id: str, number: int, user: str, ttl_ms: int, name: str, meta: str, answers_kept: int
    ) -> None:
        self.id = session_id
        self.number = number
        """Public: 1, 2, 3, ... The id is a secret of the user (PRODUCT)."""
        self.user = user
        self.ttl_ms = ttl_ms
        self.name = name
        self.meta = meta
        self.is_private = False
        self.lease_running = True
        self.silent_ms = 0
        """How long the leader had not heard of it when it last said so (T2)."""
        self.requests: dict[int, Request] = {}
        """Those that wait or hold, by ticket."""
        self.waiting = 0
        """How many of them wait."""
        self.stands: dict[tuple[str, str], dict[int, Request]] = {}
        """The same by (owner, lock name), then ticket: an owner waits for a lock once (G3)."""
        self.owners: dict[str, dict[int, Request]] = {}
        """The same by owner, then ticket, of those that have an owner (G8)."""
        self.notices: dict[int, Notice] = {}
        """What it has not acknowledged, by number (K7)."""
        self.past_notices: list[int] = []
        """The numbers of those whose grants have ended, as a heap: the oldest is forgotten first."""
        self.locks = 0
        """How many locks its requests hold and wait for, a lock once for each of them."""
        self.with_max_hold = 0
        """How many of its requests have a MAXHOLD."""
        self.noticed = 0
        """The number of its last notice."""
        self.answers = SessionAnswers(answers_kept)

    @property
    def label(self) -> str:
        """What others may see of it: its name, or its public number."""
        return self.name or f"session {self.number}"

    def requests_by_lock(self) -> list[Request]:
        """What it holds and waits for, sorted by the first lock's name, then ticket (G6)."""
        return sorted(self.requests.values(), key=lambda request: (request.lock.name, request.ticket))

    @property
    def revoked(self) -> int:
        """How many grants of it are revoked and not passed on yet: their notices can't be forgotten."""
        return len(self.notices) - len(self.past_notices)

    def notice_is_past(self, number: int) -> None:
        """The grant of that notice has ended; if it is not acknowledged yet, it may be forgotten."""
        if number in self.notices:
            heapq.heappush(self.past_notices, number)

    def forget_notices(self, kept: int) -> None:
        """Keep so many notices, or one for each revoked grant that has not ended, if those are more."""
        while len(self.notices) > kept and self.past_notices:
            del self.notices[heapq.heappop(self.past_notices)]

    def acknowledge(self, number: int) -> list[Notice]:
        """Drop the notices up to that number, and return them."""
        while self.past_notices and self.past_notices[0] <= number:
            heapq.heappop(self.past_notices)
        dropped = list(itertools.takewhile(lambda notice: notice.number <= number, self.notices.values()))
        for notice in dropped:
            del self.notices[notice.number]
        return dropped

    def add(self, request: Request) -> None:
        """Enter a request that was taken in."""
        self.requests[request.ticket] = request
        self.locks += len(request.locks)
        self.with_max_hold += bool(request.max_hold_ms)
        for lock in request.locks:
            self.stands.setdefault((request.owner, lock.name), {})[request.ticket] = request
        if request.owner:
            self.owners.setdefault(request.owner, {})[request.ticket] = request

    def remove(self, request: Request) -> None:
        """Take out a request that is over."""
        del self.requests[request.ticket]
        self.with_max_hold -= bool(request.max_hold_ms)
        for lock in request.locks:
            self.leave(request, lock)
        if request.owner:
            own = self.owners[request.owner]
            del own[request.ticket]
            if not own:
                del self.owners[request.owner]

    def leave(self, request: Request, lock: Lock) -> None:
        """One of the request's locks is no longer its."""
        self.locks -= 1
        key = (request.owner, lock.name)
        standing = self.stands[key]
        del standing[request.ticket]
        if not standing:
            del self.stands[key]

    def wait_of(self, owner: str, lock_name: str) -> Request | None:
        """The owner's wait for that lock: there is one at most (G3)."""
        last = next(reversed(self.stands.get((owner, lock_name), {}).values()), None)
        # Whatever was asked for later has ended the wait.
        return last if last is not None and last.phase is Phase.WAITING else None

    def newest_id(self, owner: str, lock_name: str) -> int:
        """The highest id of the owner's requests that wait for or hold that lock, 0 for none.

        Ids grow with tickets, for a lower one is refused.
        """
        for request in reversed(self.stands.get((owner, lock_name), {}).values()):
            if isinstance(request.id, int) and request.id:
                return request.id
        return 0
