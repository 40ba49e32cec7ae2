"""Locks and sessions as anybody may see them: who holds, who waits, what happens to a lock.

Commands as values, like those of `queries`; breaking somebody else's grant is among them, since it
begins with a look. What is seen is past by the time it is read, and nobody's leave to write
(SAFETY G9). A revision in a reply counts the events of all locks: a watch from there misses nothing.
"""

import json
from typing import Any, Final

import msgspec

from lockd.client.queries import Query, Words, reading

LIST_PAGE: Final = 1000
"""How many locks, sessions or waiters one reply may have."""


class HolderInfo(msgspec.Struct, frozen=True):
    """Who holds a lock. `token` tells grants apart; it is nobody's leave to write (SAFETY G9)."""

    session: int
    """The session's public number."""
    name: str
    """The session's name, "" when it has none."""
    owner: str
    token: int
    held_ms: int
    meta: str = ""
    """JSON text as its holder sent it, or ""."""
    revision: int = 0
    mode: str = "exclusive"
    """"exclusive", "shared" or "semaphore"."""
    weight: int = 1
    """How much of a semaphore's limit it takes."""
    ending: str = ""
    """Why the grant was revoked while the lock is not passed on yet: "broken: ..." or "max_hold"."""


class LockInfo(msgspec.Struct, frozen=True):
    """A lock as the cluster sees it."""

    lock: str
    status: str
    """"free" or "held"."""
    mode: str
    holders: tuple[HolderInfo, ...]
    queue_length: int
    held_ms: int
    granted_last: int
    """Token of the last grant while the lock is held; 0 when nothing is known."""
    revision: int
    limit: int = 0
    """A semaphore's size; 0 for a lock that is none."""
    used: int = 0
    """How much of the limit is taken."""
    delay_ms: int = 0
    """For how long it will not be granted yet, after a holder that ended badly."""


class LockPage(msgspec.Struct, frozen=True):
    """Some locks in the order of their names; `next` is None after the last."""

    locks: tuple[LockInfo, ...]
    revision: int
    next: str | None = None


class WaiterInfo(msgspec.Struct, frozen=True):
    """Who waits for a lock."""

    position: int
    """0 is next."""
    session: int
    """The session's public number."""
    name: str
    """The session's name, "" when it has none."""
    owner: str
    mode: str
    weight: int
    waiting_ms: int
    meta: str = ""
    """JSON text as the waiter sent it, or ""."""
    locks: tuple[str, ...] = ()
    """All that it asks for in one; more than one for LOCK.ACQUIREALL alone."""


class QueueInfo(msgspec.Struct, frozen=True):
    """The queue of one lock, its first `LIST_PAGE` waiters in their order."""

    lock: str
    revision: int
    queue_length: int
    waiters: tuple[WaiterInfo, ...]


class SessionInfo(msgspec.Struct, frozen=True):
    """A session by its public number; its id is its user's secret."""

    session: int
    name: str
    user: str
    ttl_ms: int
    held: int
    waiting: int
    meta: str = ""
    private: int = 0
    """1: it was made for one request with a TTL, and ends with it."""


class SessionPage(msgspec.Struct, frozen=True):
    """Some sessions in the order of their numbers; `next` is None after the last."""

    sessions: tuple[SessionInfo, ...]
    next: int | None = None


class LockEvent(msgspec.Struct, frozen=True):
    """What happened to one grant of one lock."""

    revision: int
    """Counts all events of all locks: every event has its own, and they only grow."""
    event: str
    """acquired, released, expired (its session ended), breaking (revoked, the lock is not passed on
    yet), broken (a revoked grant has ended), meta (its metadata was changed). More may follow."""
    lock: str
    token: int
    mode: str
    session: int
    """The holder's public number."""
    name: str
    """The holder's session name, "" when it has none."""
    owner: str
    meta: str = ""
    """The holder's metadata after the event: JSON text, or ""."""
    reason: str = ""
    """Of breaking and broken."""


class WatchReply(msgspec.Struct, frozen=True):
    """A watch has begun: without a revision of our own, with the events after this one."""

    prefix: str
    revision: int


def parsed(meta: str) -> Any:
    """Metadata as the JSON that it is; None for none, and for what is not JSON after all."""
    try:
        return json.loads(meta) if meta else None
    except ValueError:
        return None


def inspect(lock: str) -> Query[LockInfo]:
    """Who holds the lock and how many wait, as of now for the whole cluster."""
    return Query(("LOCK.INSPECT", lock), reading(LockInfo), changes=False)


def list_locks(*, prefix: str = "", after: str = "", count: int = LIST_PAGE) -> Query[LockPage]:
    """One page of the locks that are held or waited for."""
    page: Words = ("PREFIX", prefix) if prefix else ()
    if after:
        page = (*page, "AFTER", after)
    return Query(("LOCK.LIST", *page, "COUNT", count), reading(LockPage), changes=False)


def list_queue(lock: str, *, count: int = LIST_PAGE) -> Query[QueueInfo]:
    """Who waits for the lock, the next one first."""
    return Query(("LOCK.QUEUE", lock, "COUNT", count), reading(QueueInfo), changes=False)


def list_sessions(*, after: int = 0, count: int = LIST_PAGE) -> Query[SessionPage]:
    """One page of the sessions that live."""
    page: Words = ("AFTER", after) if after else ()
    return Query(("SESSION.LIST", *page, "COUNT", count), reading(SessionPage), changes=False)


def validate(lock: str, token: int) -> Query[str]:
    """ "current", "superseded" or "free", as of now for the whole cluster."""
    return Query(("LOCK.VALIDATE", lock, token), reading(str), changes=False)


def break_grant(lock: str, token: int, *, reason: str, now: bool) -> Query[int]:
    """1: that grant is revoked; 0: it was not held."""
    at_once: Words = ("NOW",) if now else ()
    return Query(("LOCK.BREAK", lock, token, "REASON", reason, *at_once), reading(int))


def change_meta(lock: str, *, token: int, session: str, meta: str) -> Query[int]:
    """1: others see this metadata from now on; 0: that grant is not held."""
    return Query(("LOCK.META", lock, token, "SESSION", session, meta), reading(int))


def watch(prefix: str, revision: int | None) -> Query[WatchReply]:
    """Have the events after that revision pushed, or those after the reply's."""
    start: Words = () if revision is None else ("FROM", revision)
    return Query(("LOCK.WATCH", prefix, *start), reading(WatchReply), changes=False)
