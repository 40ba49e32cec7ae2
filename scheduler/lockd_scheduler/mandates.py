"""The values that pass between the office's transactions and the workers."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import count
from typing import Any

LOCAL = "local"
"""The source of tokens that were counted beside the database, without a lock service."""
SCHEDULED = "scheduled"
"""The kind of a run that its schedule called for."""
MANUAL = "manual"
"""Somebody asked for it; its fire time is when, its key the request's."""
AFTER = "after"
"""Another job's run has ended; its fire time is that run's, its key that run's id."""
BACKFILL = "backfill"
"""A fire of a past range; its key is the backfill's id."""


@dataclass(frozen=True)
class Mandate:
    """One tenure of the office: whose it is, and the token that guards all it does."""

    scope: str
    source: str
    token: int
    holder: str
    ordinals: Iterator[int] = field(default_factory=lambda: count(1), compare=False, repr=False)
    """Numbers the attempts of this tenure, so that each shuts out all before it (SAFETY R4)."""

    @classmethod
    def asked(cls, scope: str) -> "Mandate":
        """That of somebody who changes schedules without the office: it makes no attempts."""
        return cls(scope, LOCAL, 0, "")

    @property
    def is_office(self) -> bool:
        """Whether it is a tenure, whose attempts somebody will start."""
        return self.token > 0


@dataclass(frozen=True)
class Claimed:
    """An attempt that may be started. (office_token, ordinal) is its fencing token."""

    attempt_id: int
    run_id: int
    job: str
    fire_time: datetime
    number: int
    office_token: int
    ordinal: int
    args: Mapping[str, Any]
    kind: str = SCHEDULED
    key: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON, for a worker in another process."""
        return {**asdict(self), "args": dict(self.args), "fire_time": self.fire_time.isoformat()}

    @classmethod
    def from_json(cls, words: Mapping[str, Any]) -> "Claimed":
        """Read what `to_json` made."""
        return cls(**{**words, "fire_time": datetime.fromisoformat(words["fire_time"])})


@dataclass(frozen=True)
class Batch:
    """What one claim transaction made, and when the next thing is due (None: nothing is)."""

    claimed: tuple[Claimed, ...]
    skipped: int
    next_due: datetime | None
