"""What the state tells others: those who watch locks, and the leader's lease book.

Never in the log: every node makes its own when it applies an entry.
"""

import enum
from typing import NamedTuple

from lockd.ids import SessionId


class EventKind(enum.StrEnum):
    """What happened to one grant of one lock."""

    ACQUIRED = "acquired"
    RELEASED = "released"
    """Its holder gave it back, its session was closed, or nobody knew of the grant."""
    EXPIRED = "expired"
    """Its session expired."""
    BREAKING = "breaking"
    """It was revoked, by BREAK or because it was held too long; the lock is not passed on yet (P1)."""
    BROKEN = "broken"
    """A revoked grant has ended."""
    META = "meta"
    """Its metadata was changed: an election's value."""


class LockEvent(NamedTuple):
    """One event. `revision` counts all events of all locks, without gaps."""

    revision: int
    kind: EventKind
    lock: str
    token: int
    mode: str
    session: int
    """The holder's public number."""
    name: str
    """The holder's session name, "" for none."""
    owner: str
    meta: str
    """The holder's metadata, after the event."""
    reason: str
    """Of BREAKING and BROKEN."""


class LeaseEvent(enum.Enum):
    """What the state tells the leader's lease book."""

    BEGAN = "began"
    """A session was opened, or a private one has its grant: its lease runs from now."""
    CLEARED = "cleared"
    """It is no longer marked silent (T2)."""
    ENDED = "ended"
    """The session is gone, whatever ended it."""
    REVOKED = "revoked"
    """A grant of it was revoked: it may be passed on a TTL from now (P1)."""
    PASSED_ON = "passed on"
    """A revoked grant of it has ended."""


class LeaseChange(NamedTuple):
    """One event of one session's lease."""

    event: LeaseEvent
    session: SessionId
    ttl_ms: int
    token: int = 0
    """Of the grant, for the last two."""
