"""Once."""

from datetime import UTC, datetime
from typing import Any

from lockd_scheduler.errors import BadSchedule
from lockd_scheduler.triggers.base import Trigger


class AtTrigger(Trigger):
    """Once, at `moment`; a moment that has passed is due at once, and then the policy decides."""

    def __init__(self, moment: datetime) -> None:
        """Raises BadSchedule for what is no datetime, or one without a zone."""
        if not isinstance(moment, datetime):
            raise BadSchedule(f"{moment!r} is no datetime: one-shots need an exact moment, with a time zone")
        if moment.tzinfo is None:
            raise BadSchedule(f"{moment.isoformat()} has no time zone: one-shots need an exact moment")
        self.moment = moment.astimezone(UTC)

    def next_after(self, moment: datetime) -> datetime | None:
        return self.moment if self.moment > moment else None

    def first(self, now: datetime) -> datetime | None:  # noqa: ARG002 - a past one-shot gets its row too
        return self.moment

    def to_json(self) -> dict[str, Any]:
        return {"type": "at", "moment": self.moment.isoformat()}
