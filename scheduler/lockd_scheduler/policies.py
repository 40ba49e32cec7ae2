"""What a job asks for beside its trigger: overlap, missed fires, delivery, retries.

Values only. The planner and the run table decide by them; the ledger keeps them as JSON with
the schedule, so that a process which does not know the job's code can still judge its runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, Self, TypeVar

from lockd_scheduler.durations import format_duration, parse_duration
from lockd_scheduler.errors import BadSchedule

RETRIES_MAX = 1000

E = TypeVar("E", bound=StrEnum)


class Overlap(StrEnum):
    """What happens to a fire while an earlier run of the same schedule has not ended."""

    SKIP = "skip"
    ALLOW = "allow"


class CatchUp(StrEnum):
    """Which fires are still run when nobody was there at their time."""

    NONE = "none"
    LATEST = "latest"
    ALL = "all"


class Delivery(StrEnum):
    """What follows when an attempt's outcome is unknown: nothing, or another attempt."""

    AT_MOST_ONCE = "at_most_once"
    AT_LEAST_ONCE = "at_least_once"


@dataclass(frozen=True, slots=True)
class Backoff:
    """Doubling delays between attempts: `first`, then twice that, up to `most`."""

    first: timedelta
    most: timedelta

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "1m..1h", or "1m" for a delay that stays the same. Raises BadSchedule."""
        low, dots, high = text.partition("..")
        first = parse_duration(low)
        most = parse_duration(high) if dots else first
        if most < first:
            raise BadSchedule(f"backoff {text!r}: the longest delay is shorter than the first")
        return cls(first, most)

    def delay(self, attempt_number: int) -> timedelta:
        """The pause after the attempt with that number (1, 2, ...) has ended."""
        assert attempt_number >= 1
        doublings = min(attempt_number - 1, 40)
        seconds = min(self.first.total_seconds() * 2**doublings, self.most.total_seconds())
        return timedelta(seconds=seconds)

    def __str__(self) -> str:
        return f"{format_duration(self.first)}..{format_duration(self.most)}"


@dataclass(frozen=True, slots=True)
class Policy:
    """All of a job's choices. `within` bounds how old a fire may be caught up; None: any age."""

    overlap: Overlap = Overlap.SKIP
    catch_up: CatchUp = CatchUp.NONE
    within: timedelta | None = None
    delivery: Delivery = Delivery.AT_MOST_ONCE
    retries: int = 0
    backoff: Backoff = Backoff(timedelta(seconds=10), timedelta(minutes=10))

    @classmethod
    def from_words(
        cls,
        *,
        overlap: str = "skip",
        catch_up: str = "none",
        within: str | None = None,
        delivery: str = "at_most_once",
        retries: int = 0,
        backoff: str = "10s..10m",
    ) -> Self:
        """Check what a user wrote. Raises BadSchedule that names the option and its choices."""
        policy = cls(
            overlap=_choice(Overlap, "overlap", overlap),
            catch_up=_choice(CatchUp, "catch_up", catch_up),
            within=None if within is None else parse_duration(within),
            delivery=_choice(Delivery, "delivery", delivery),
            retries=retries,
            backoff=Backoff.parse(backoff),
        )
        if policy.within is not None and policy.catch_up is CatchUp.NONE:
            raise BadSchedule('within= bounds what is caught up: it needs catch_up="latest" or "all"')
        if not isinstance(retries, int) or not 0 <= retries <= RETRIES_MAX:
            raise BadSchedule(f"retries={retries!r} is not a whole number from 0 to {RETRIES_MAX}")
        return policy

    def to_json(self) -> dict[str, Any]:
        """The words that `from_words` reads back."""
        return {
            "overlap": self.overlap.value,
            "catch_up": self.catch_up.value,
            "within": None if self.within is None else format_duration(self.within),
            "delivery": self.delivery.value,
            "retries": self.retries,
            "backoff": str(self.backoff),
        }

    @classmethod
    def from_json(cls, words: Mapping[str, Any]) -> Self:
        """Read what `to_json` made. Raises BadSchedule."""
        return cls.from_words(**words)


def _choice(kind: type[E], option: str, word: str) -> E:
    try:
        return kind(word)
    except ValueError:
        choices = ", ".join(member.value for member in kind)
        raise BadSchedule(f"{option}={word!r} is not available; choose from: {choices}") from None
