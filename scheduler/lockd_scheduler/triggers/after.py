"""Whenever a run of another job has ended."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from lockd_scheduler.errors import BadSchedule
from lockd_scheduler.triggers.base import Trigger


class After(StrEnum):
    """Which ends of the other run count."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """Failed, timed out or lost, with nothing more to follow."""
    ENDED = "ended"
    """Any, cancelled runs too; a skipped fire never ran."""


class AfterTrigger(Trigger):
    """No time of its own: the ledger makes the run in the transaction that ends the other one."""

    def __init__(self, job: str, on: str = After.SUCCEEDED.value) -> None:
        """Raises BadSchedule for a choice that is not there."""
        try:
            self.on = After(on)
        except ValueError:
            raise BadSchedule(f"on={on!r} is not available; choose from: {', '.join(After)}") from None
        self.job = job

    def next_after(self, moment: datetime) -> datetime | None:  # noqa: ARG002
        return None

    def to_json(self) -> dict[str, Any]:
        return {"type": "after", "job": self.job, "on": self.on.value}
