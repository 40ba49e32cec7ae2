"""A session: a client's liveness with the cluster, what it holds and waits for, what it was told."""

from lockd.locks.answers import SessionAnswers
from lockd.locks.queues import Request


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
        "meta",
        "name",
        "number",
        "requests",
        "silent_ms",
        "ttl_ms",
        "user",
        "waits",
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
        self.waits: dict[tuple[str, str], Request] = {}
        """Those that wait, by (owner, lock name): an owner waits for a lock once (G3)."""
        self.answers = SessionAnswers(answers_kept)

    @property
    def label(self) -> str:
        """What others may see of it: its name, or its public number."""
        return self.name or f"session {self.number}"

    def requests_by_lock(self) -> list[Request]:
        """What it holds and waits for, sorted by lock name, then ticket (G6)."""
        return sorted(self.requests.values(), key=lambda request: (request.lock.name, request.ticket))
