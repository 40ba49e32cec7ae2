"""What happens to locks, as those who watch are told of it. Never in the log: every node makes its own."""

import enum
from typing import NamedTuple


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
