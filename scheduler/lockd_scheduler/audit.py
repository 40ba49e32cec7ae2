"""Was everything done? Every nominal fire of the past, and what became of it.

The fires are computed again, from the revisions that say which trigger a schedule had at which time and
when it was parked or paused; then each is looked up in the ledger. A fire without a row is a real miss,
unless something explains it: the schedule was paused or parked, its past was forgotten on purpose
(`keep`), or the fire is so new that the active process may still be about to write it. That the rows are
not trusted to be complete is the point: one that was deleted is found.

One schedule at a time, its rows as a stream: memory does not grow with the range. Of a long stretch that
one row covers, or none, the first FIRES_MAX fires are counted and the rest is passed over; then the
count is a floor.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Engine, select

from lockd_scheduler.dialects import among
from lockd_scheduler.engines import reading
from lockd_scheduler.mandates import SCHEDULED
from lockd_scheduler.officer import POLL_SECONDS
from lockd_scheduler.planner import LATE
from lockd_scheduler.policies import Policy
from lockd_scheduler.runs import State
from lockd_scheduler.tables import AnyRow, run, schedule, schedule_revision
from lockd_scheduler.triggers import AfterTrigger, Trigger, trigger_from_json

SCHEDULES_AT_ONCE = 200
ROWS_AT_ONCE = 1_000
FIRES_MAX = 10_000
"""So many fires in a row with the same answer are counted one by one."""
MISSES_LISTED_MAX = 100
"""Stretches of missed fires that are listed for one schedule."""
PENDING = LATE + timedelta(seconds=POLL_SECONDS)
"""The newest fires may still get their rows."""

_TICK = timedelta(microseconds=1)


class Verdict(StrEnum):
    """What became of a nominal fire."""

    ON_TIME = "on_time"
    LATE = "late"
    """It succeeded, and began over `alert_if_late`, or a minute, after its time and its jitter."""
    SKIPPED = "skipped"
    PENDING = "pending"
    RUNNING = "running"
    FAILED = "failed"
    """Or timed out."""
    LOST = "lost"
    CANCELLED = "cancelled"
    PAUSED = "paused"
    """It fell into a pause or a time without its job, and has no row."""
    PRUNED = "pruned"
    """Its row was forgotten, as the job's `keep` asks."""
    REAL_MISS = "real_miss"


_OF_STATE = {
    State.SKIPPED: Verdict.SKIPPED,
    State.CLAIMED: Verdict.PENDING,
    State.RUNNING: Verdict.RUNNING,
    State.FAILED: Verdict.FAILED,
    State.TIMED_OUT: Verdict.FAILED,
    State.LOST: Verdict.LOST,
    State.CANCELLED: Verdict.CANCELLED,
}


@dataclass
class Miss:
    """Fires in a row that nothing explains. Moments are UTC."""

    first: datetime
    last: datetime
    count: int


@dataclass
class JobAudit:
    """One schedule: how many fires came to which end."""

    scheduler: str
    job: str
    counts: Counter[Verdict] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    """Of those that were skipped."""
    misses: list[Miss] = field(default_factory=list)
    """At most MISSES_LISTED_MAX."""
    is_floor: bool = False
    """There are more fires than were counted."""

    def to_json(self) -> dict[str, Any]:
        """As JSON: moments in ISO 8601."""
        return {
            "scheduler": self.scheduler,
            "job": self.job,
            "counts": {verdict.value: self.counts[verdict] for verdict in Verdict if self.counts[verdict]},
            "skipped": dict(sorted(self.reasons.items())),
            "misses": [
                {"first": miss.first.isoformat(), "last": miss.last.isoformat(), "count": miss.count}
                for miss in self.misses
            ],
            "is_floor": self.is_floor,
        }


def audit(
    engine: Engine, *, since: datetime, now: datetime, scope: str | None = None, job: str | None = None
) -> Iterator[JobAudit]:
    """Judge the fires from `since` to `now`, schedule by schedule, of one scheduler or of all.

    `now` is the database's time. Nothing is yielded for schedules that had no fire.
    """
    after_id = 0
    while True:
        query = select(schedule).where(schedule.c.id > after_id).order_by(schedule.c.id)
        wanted = {schedule.c.scope: scope, schedule.c.name: job}
        query = query.where(*(column == value for column, value in wanted.items() if value is not None))
        with reading(engine) as connection:
            rows = connection.execute(query.limit(SCHEDULES_AT_ONCE)).all()
            found = list(_audit_some(connection, rows, since, now))
        yield from (one for one in found if one.counts)
        if len(rows) < SCHEDULES_AT_ONCE:
            return
        after_id = rows[-1].id


def _audit_some(
    connection: Connection, schedules: Sequence[AnyRow], since: datetime, now: datetime
) -> Iterator[JobAudit]:
    ids = [row.id for row in schedules]
    revisions: dict[int, list[AnyRow]] = {}
    for revision in connection.execute(
        select(schedule_revision)
        .where(among(connection, schedule_revision.c.schedule_id, ids))
        .order_by(schedule_revision.c.schedule_id, schedule_revision.c.revision)
    ):
        revisions.setdefault(revision.schedule_id, []).append(revision)
    columns = (run.c.schedule_id, run.c.fire_time, run.c.skipped_until, run.c.state, run.c.reason)
    runs = connection.execution_options(yield_per=ROWS_AT_ONCE).execute(
        select(*columns, run.c.started_at)
        .where(among(connection, run.c.schedule_id, ids), run.c.kind == SCHEDULED, run.c.fire_time <= now)
        .where((run.c.fire_time >= since) | (run.c.skipped_until > since))
        .order_by(run.c.schedule_id, run.c.fire_time)
    )
    streams = groupby(runs, key=lambda row: row.schedule_id)
    stream = next(streams, None)
    for row in schedules:
        own: Iterable[AnyRow] = ()
        if stream is not None and stream[0] == row.id:
            own = stream[1]
        history = _history(revisions.get(row.id, []), now)
        judge = _Judge(JobAudit(row.scope, row.name), _Rows(own), history, row.pruned_until, now)
        judge.judge(since)
        if own:
            judge.rows.exhaust()
            stream = next(streams, None)
        yield judge.found


@dataclass(frozen=True)
class _Epoch:
    """A trigger and the time in which it held; both ends count, rows are made up to a change."""

    trigger: Trigger
    policy: Policy
    start: datetime
    end: datetime


@dataclass(frozen=True)
class _History:
    epochs: Sequence[_Epoch]
    idle: Sequence[tuple[datetime, datetime]]
    """When it was parked or paused."""

    def is_idle(self, fire: datetime) -> bool:
        """Whether no row was owed for a fire at that moment, or not yet."""
        return any(start <= fire < end for start, end in self.idle)

    def idle_end(self, fire: datetime) -> datetime:
        """When that is over."""
        return next(end for start, end in self.idle if start <= fire < end)


_FOREVER = datetime.max.replace(tzinfo=UTC)


def _history(revisions: Sequence[AnyRow], now: datetime) -> _History:
    epochs: list[_Epoch] = []
    idle: list[tuple[datetime, datetime]] = []
    began: dict[str, datetime] = {}
    definition: dict[str, Any] | None = None
    start = now

    def close(end: datetime) -> None:
        if definition is not None:
            trigger = trigger_from_json(definition["trigger"])
            epochs.append(_Epoch(trigger, Policy.from_json(definition["policy"]), start, end))

    for row in revisions:
        if definition is None or row.definition["trigger"] != definition["trigger"]:
            close(row.changed_at)
            start = row.changed_at
            definition = row.definition
        elif row.definition != definition:
            definition = row.definition  # the same fires, judged by the newest choices
        if row.change == "parked":
            began.setdefault("parked", row.changed_at)
        elif row.change == "paused":
            began.setdefault("paused", row.changed_at)
        elif row.change in ("resumed", "changed") and "parked" in began:
            idle.append((began.pop("parked"), row.changed_at))
        elif row.change == "unpaused" and "paused" in began:
            idle.append((began.pop("paused"), row.changed_at))
    close(now)
    idle += [(moment, _FOREVER) for moment in began.values()]
    return _History(epochs, idle)


class _Rows:
    """The rows of one schedule in the order of their fire times, looked at once, forwards."""

    def __init__(self, rows: Iterable[AnyRow]) -> None:
        self._rows = iter(rows)
        self._head = next(self._rows, None)
        self._range: AnyRow | None = None

    def at(self, fire: datetime) -> AnyRow | None:
        """The row for a fire, or the range that covers it. Fires are asked for in rising order."""
        while self._head is not None and self._head.fire_time < fire:
            self._pass()
        if self._head is not None and self._head.fire_time == fire:
            return self._head
        covers = self._range is not None and fire < self._range.skipped_until
        return self._range if covers else None

    def next_fire(self) -> datetime | None:
        """The fire time of the first row that was not passed yet."""
        return None if self._head is None else self._head.fire_time

    def exhaust(self) -> None:
        """Read to the end, so that the next schedule's rows may be read."""
        for _ in self._rows:
            pass

    def _pass(self) -> None:
        row = self._head
        assert row is not None
        longer = self._range is None or (row.skipped_until or row.fire_time) > self._range.skipped_until
        if row.skipped_until is not None and longer:
            self._range = row
        self._head = next(self._rows, None)


@dataclass
class _Judge:
    """Walks the fires of one schedule beside its rows."""

    found: JobAudit
    rows: _Rows
    history: _History
    pruned_until: datetime | None
    now: datetime
    _stretch: tuple[Any, int] = (None, 0)
    """What the last fires have in common, and how many they are."""
    _last: datetime | None = None

    def judge(self, since: datetime) -> None:
        """Count every fire from `since` on."""
        for epoch in self.history.epochs:
            if epoch.end < since or isinstance(epoch.trigger, AfterTrigger):
                continue
            fire = epoch.trigger.first(max(epoch.start, since))
            while fire is not None and fire <= epoch.end:
                if fire >= since and (self._last is None or fire > self._last):
                    self._last = fire
                    jump = self._judge_one(fire, epoch)
                    if jump is not None:
                        self.found.is_floor = True
                        fire = epoch.trigger.next_after(max(jump - _TICK, fire))
                        continue
                fire = epoch.trigger.next_after(fire)

    def _judge_one(self, fire: datetime, epoch: _Epoch) -> datetime | None:
        """Count one fire; where to go on if the stretch that it is in has been counted long enough."""
        row = self.rows.at(fire)
        if row is not None:
            verdict = _verdict_of(row, epoch.policy)
            if verdict is Verdict.SKIPPED:
                self.found.reasons[row.reason] += 1
            until = row.skipped_until
        else:
            verdict, until = self._unwritten(fire)
        self.found.counts[verdict] += 1
        sign = (verdict, until)
        count = self._stretch[1] + 1 if self._stretch[0] == sign else 1
        if verdict is Verdict.REAL_MISS:
            self._note_miss(fire, is_further=count > 1)
        self._stretch = (sign, count)
        return until if count >= FIRES_MAX and until is not None else None

    def _unwritten(self, fire: datetime) -> tuple[Verdict, datetime]:
        """Why there is no row for a fire, and until when that holds."""
        ahead = min(self.rows.next_fire() or self.now, self.now)
        if self.pruned_until is not None and fire <= self.pruned_until:
            return Verdict.PRUNED, min(self.pruned_until, ahead)
        if self.history.is_idle(fire):
            return Verdict.PAUSED, min(self.history.idle_end(fire), ahead)
        if fire > self.now - PENDING:
            return Verdict.PENDING, ahead
        idle = [start for start, _ in self.history.idle if start > fire]
        return Verdict.REAL_MISS, min([ahead, *idle, self.now - PENDING + _TICK])

    def _note_miss(self, fire: datetime, *, is_further: bool) -> None:
        misses = self.found.misses
        if is_further and misses:
            misses[-1].last = fire
            misses[-1].count += 1
        elif len(misses) < MISSES_LISTED_MAX:
            misses.append(Miss(fire, fire, 1))


def _verdict_of(row: AnyRow, policy: Policy) -> Verdict:
    state = State(row.state)
    if state is not State.SUCCEEDED:
        return _OF_STATE[state]
    allowed = (policy.alert_if_late or LATE) + (policy.jitter or timedelta())
    is_late = row.started_at is not None and row.started_at - row.fire_time > allowed
    return Verdict.LATE if is_late else Verdict.ON_TIME
