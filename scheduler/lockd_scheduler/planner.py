"""From a schedule and a moment to rows: which due fires are run, which are skipped, what is next.

`plan` is a function of its arguments. It is called inside the claim transaction, and what it returns
is all that the transaction writes: nothing that is due goes without a row (SAFETY P5).

A fire that is claimed within LATE of its time counts as on time. That covers a change of the
active process, so a failover by itself never makes a fire "missed".
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from lockd_scheduler.policies import CatchUp, Overlap, Policy
from lockd_scheduler.runs import SkipReason

LATE = timedelta(seconds=60)
FIRES_AT_ONCE_MAX = 100
"""So many fires of one schedule go into one transaction; what is left is planned in the next."""


class Trigger(Protocol):
    """When a schedule fires: a fixed, possibly endless, rising series of UTC moments."""

    def next_after(self, moment: datetime) -> datetime | None:
        """The first fire later than `moment`, which need not be a fire; None if there is none."""


@dataclass(frozen=True, slots=True)
class Fire:
    """One row to be written. `skipped` None: run it. `until`: the row stands for [time, until)."""

    time: datetime
    skipped: SkipReason | None = None
    until: datetime | None = None
    waits: bool = False
    """It is run once the schedule's earlier runs have ended."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The rows for one schedule, and where it stands afterwards (None: it never fires again)."""

    fires: tuple[Fire, ...]
    next_fire_at: datetime | None
    replaces: bool = False
    """The runs of before are to be cancelled, those that wait as well as those that run."""


def plan(
    trigger: Trigger,
    policy: Policy,
    *,
    next_fire_at: datetime,
    now: datetime,
    running: bool,
    waiting: bool = False,
    paused_until: datetime | None = None,
) -> Plan:
    """Decide the fires from `next_fire_at` to `now`, both nominal UTC moments.

    `running`: whether an earlier run of the schedule has not ended; `waiting`: whether one waits for
    it. Fires before `paused_until` fell into a pause. The plan's next fire may still be due when
    there is more than one transaction's worth.
    """
    assert next_fire_at <= now
    paused: list[Fire] = []
    start: datetime | None = next_fire_at
    if paused_until is not None and next_fire_at < paused_until:
        paused, start = _skip(trigger, next_fire_at, paused_until, SkipReason.PAUSED)
    skipped, due = ([], start) if start is None or start > now else _catch_up(trigger, policy, start, now)
    fires = paused + list(skipped)
    replaces = False
    upcoming: datetime | None = due
    while upcoming is not None and upcoming <= now and len(fires) < FIRES_AT_ONCE_MAX:
        following = trigger.next_after(upcoming)
        if policy.overlap is Overlap.REPLACE and following is not None and following <= now:
            fires.append(Fire(upcoming, SkipReason.REPLACED))
            upcoming = following
            continue
        if not running or policy.overlap is Overlap.ALLOW:
            fires.append(Fire(upcoming))
        elif policy.overlap is Overlap.REPLACE:
            replaces = True
            fires.append(Fire(upcoming, waits=True))
        elif policy.overlap is Overlap.QUEUE_ALL or (policy.overlap is Overlap.QUEUE_ONE and not waiting):
            fires.append(Fire(upcoming, waits=True))
            waiting = True
        else:
            fires.append(Fire(upcoming, SkipReason.OVERLAP))
        running = True
        upcoming = following
    return Plan(tuple(fires), upcoming, replaces)


def _catch_up(
    trigger: Trigger, policy: Policy, first: datetime, now: datetime
) -> tuple[list[Fire], datetime | None]:
    """The skipped ranges from `first` on, and the first fire after them."""
    on_time = now - LATE
    if first >= on_time:
        return [], first
    if policy.catch_up is CatchUp.NONE:
        return _skip(trigger, first, on_time, SkipReason.MISSED)
    skipped: list[Fire] = []
    start: datetime | None = first
    if policy.within is not None and first < now - policy.within:
        skipped, start = _skip(trigger, first, now - policy.within, SkipReason.WINDOW)
    if policy.catch_up is CatchUp.LATEST and start is not None and start < on_time:
        kept = _first_kept(trigger, start, on_time, now)
        missed, start = _skip(trigger, start, kept, SkipReason.MISSED)
        skipped += missed
    return skipped, start


def _first_kept(trigger: Trigger, start: datetime, on_time: datetime, now: datetime) -> datetime:
    """For `latest`: the first fire that is on time, or if none is, the newest before that."""
    fresh = trigger.next_after(on_time - _TICK)
    if fresh is not None and fresh <= now:
        return fresh
    return _newest(trigger, start, on_time)


def _newest(trigger: Trigger, first: datetime, end: datetime) -> datetime:
    """The last fire in [first, end), where `first` is one; found without walking all of them."""
    fire = first
    span = timedelta(minutes=1)
    while end - span > first:
        later = trigger.next_after(end - span)
        if later is not None and later < end:
            fire = later
            break
        span *= 2
    following = trigger.next_after(fire)
    while following is not None and following < end:
        fire, following = following, trigger.next_after(following)
    return fire


def _skip(
    trigger: Trigger, first: datetime, end: datetime, reason: SkipReason
) -> tuple[list[Fire], datetime | None]:
    """One row for the fires in [first, end), and the first fire at or after `end`."""
    if first >= end:
        return [], first
    following = trigger.next_after(end - _TICK)
    alone = trigger.next_after(first) == following
    return [Fire(first, reason, until=None if alone else end)], following


_TICK = timedelta(microseconds=1)
