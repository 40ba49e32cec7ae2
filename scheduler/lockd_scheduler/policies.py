"""What a job asks for beside its trigger: overlap, missed fires, delivery, retries, bounds.

Values only. The planner and the run table decide by them; the ledger keeps them as JSON with
the schedule, so that a process which does not know the job's code can still judge its runs.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Self, TypedDict, TypeVar

from lockd.ids import LOCK_NAME_BYTES_MAX
from lockd_scheduler.durations import format_duration, parse_duration
from lockd_scheduler.errors import BadSchedule

RETRIES_MAX = 1000

E = TypeVar("E", bound=StrEnum)


class Overlap(StrEnum):
    """What happens to a fire while an earlier run of the same schedule has not ended."""

    SKIP = "skip"
    QUEUE_ONE = "queue_one"
    """It waits for the earlier run; while one waits, further fires are skipped."""
    QUEUE_ALL = "queue_all"
    REPLACE = "replace"
    """The earlier run is cancelled, and this one starts once that has ended (SAFETY R5)."""
    ALLOW = "allow"


class Notice(StrEnum):
    """What may have happened to a run that somebody should know."""

    FAILED = "failed"
    """Its last attempt has failed or timed out."""
    LOST = "lost"
    LATE = "late"


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
class Keep:
    """How much of a schedule's past the ledger keeps; None: all of it. Runs that live are kept."""

    runs: int | None = None
    days: int | None = None

    @classmethod
    def of(cls, words: Mapping[str, int] | None) -> Self:
        """Read `{"runs": 500, "days": 90}`, either of them or none. Raises BadSchedule."""
        if not isinstance(words, Mapping | None):
            raise BadSchedule(f'keep={words!r}: write it like {{"runs": 500, "days": 90}}')
        given = dict(words or {})
        keep = cls(given.pop("runs", None), given.pop("days", None))
        for bound in (keep.runs, keep.days):
            if bound is not None and (not isinstance(bound, int) or bound < 1):
                raise BadSchedule(f"keep={words!r}: both are whole numbers from 1")
        if given:
            raise BadSchedule(f'keep={words!r}: it knows "runs" and "days" alone')
        return keep

    def to_json(self) -> dict[str, int]:
        """What `of` reads back."""
        words = {"runs": self.runs, "days": self.days}
        return {name: bound for name, bound in words.items() if bound is not None}


class Choices(TypedDict, total=False):
    """What a user may write about a job beside its trigger. See `lockd_scheduler.Cron.job`."""

    overlap: str
    catch_up: str
    within: str | None
    delivery: str
    retries: int
    backoff: str
    timeout: str | None
    jitter: str | None
    lock: str | None
    keep: Mapping[str, int] | None
    alert_if_late: str | None
    notify: Iterable[str]


@dataclass(frozen=True, slots=True)
class Policy:
    """All of a job's choices. Moments and lengths that are None: no bound."""

    overlap: Overlap = Overlap.SKIP
    catch_up: CatchUp = CatchUp.NONE
    within: timedelta | None = None
    """How old a fire may be and still be caught up."""
    delivery: Delivery = Delivery.AT_MOST_ONCE
    retries: int = 0
    backoff: Backoff = Backoff(timedelta(seconds=10), timedelta(minutes=10))
    timeout: timedelta | None = None
    """How long an attempt may run."""
    jitter: timedelta | None = None
    """Runs start up to so much later than their fire time: each by its own, always the same, delay."""
    lock: str | None = None
    """A lock of lockd that each attempt holds while it runs."""
    keep: Keep = Keep()
    alert_if_late: timedelta | None = None
    """How long after its time a run that has not begun counts as late."""
    notify: frozenset[Notice] = frozenset()
    """What is told to whoever listens outside (SAFETY R7)."""

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
        timeout: str | None = None,
        jitter: str | None = None,
        lock: str | None = None,
        keep: Mapping[str, int] | None = None,
        alert_if_late: str | None = None,
        notify: Iterable[str] = (),
    ) -> Self:
        """Check what a user wrote. Raises BadSchedule that names the option and its choices."""
        if isinstance(notify, str) or not isinstance(notify, Iterable):
            raise BadSchedule(f'notify={notify!r}: a list, like ["failed", "lost"]')
        policy = cls(
            overlap=_choice(Overlap, "overlap", overlap),
            catch_up=_choice(CatchUp, "catch_up", catch_up),
            within=_length("within", within),
            delivery=_choice(Delivery, "delivery", delivery),
            retries=retries,
            backoff=Backoff.parse(backoff),
            timeout=_length("timeout", timeout),
            jitter=_length("jitter", jitter),
            lock=lock,
            keep=Keep.of(keep),
            alert_if_late=_length("alert_if_late", alert_if_late),
            notify=frozenset(_choice(Notice, "notify", word) for word in notify),
        )
        if policy.within is not None and policy.catch_up is CatchUp.NONE:
            raise BadSchedule('within= bounds what is caught up: it needs catch_up="latest" or "all"')
        if not isinstance(retries, int) or not 0 <= retries <= RETRIES_MAX:
            raise BadSchedule(f"retries={retries!r} is not a whole number from 0 to {RETRIES_MAX}")
        if lock is not None and not 1 <= len(lock.encode()) <= LOCK_NAME_BYTES_MAX:
            raise BadSchedule(f"lock={lock[:40]!r}: a lock's name has 1 to {LOCK_NAME_BYTES_MAX} bytes")
        return policy

    def tells_late(self, fire_time: datetime, now: datetime) -> bool:
        """Whether somebody should know that a run of that time has not begun before now."""
        if self.alert_if_late is None or Notice.LATE not in self.notify:
            return False
        return now - fire_time > self.alert_if_late

    def to_json(self) -> dict[str, Any]:
        """The words that `from_words` reads back; choices that were left alone are left out."""
        words = {
            "overlap": self.overlap.value,
            "catch_up": self.catch_up.value,
            "within": _words(self.within),
            "delivery": self.delivery.value,
            "retries": self.retries,
            "backoff": str(self.backoff),
        }
        later = {
            "timeout": _words(self.timeout),
            "jitter": _words(self.jitter),
            "lock": self.lock,
            "keep": self.keep.to_json() or None,
            "alert_if_late": _words(self.alert_if_late),
            "notify": sorted(self.notify) or None,
        }
        # So that the definitions of before stay as they are: a new word is not a change of a schedule.
        return words | {name: word for name, word in later.items() if word is not None}

    @classmethod
    def from_json(cls, words: Mapping[str, Any]) -> Self:
        """Read what `to_json` made. Raises BadSchedule."""
        return cls.from_words(**words)


def jitter_of(policy: Policy, key: str) -> timedelta:
    """The delay of the run with that key, from 0 up to the policy's jitter, in whole milliseconds.

    It is added to a start and never to a fire time, so it can't feed back into the series (R6).
    """
    if policy.jitter is None:
        return timedelta()
    span = policy.jitter // _MILLISECOND + 1
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % span * _MILLISECOND


_MILLISECOND = timedelta(milliseconds=1)


def _length(option: str, text: str | None) -> timedelta | None:
    if text is None:
        return None
    length = parse_duration(text)
    if not length:
        raise BadSchedule(f"{option}={text!r}: it must be longer than nothing")
    return length


def _words(length: timedelta | None) -> str | None:
    return None if length is None else format_duration(length)


def _choice(kind: type[E], option: str, word: str) -> E:
    try:
        return kind(word)
    except ValueError:
        choices = ", ".join(member.value for member in kind)
        raise BadSchedule(f"{option}={word!r} is not available; choose from: {choices}") from None
