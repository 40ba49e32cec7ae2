"""What applying files would change in the ledger, and the change itself, in one transaction.

A plan is computed from rows and specs, so the one that is shown and the one that is carried out are the
same code. Jobs that have vanished from the files are parked, never deleted; a name that the code keeps is
refused.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Engine, select

from lockd_scheduler.engines import reading
from lockd_scheduler.errors import BadSchedule
from lockd_scheduler.jobs import JobSpec
from lockd_scheduler.mandates import Mandate
from lockd_scheduler.schedules import CODE, keep_schedules
from lockd_scheduler.tables import AnyRow, office, schedule
from lockd_scheduler.triggers import AfterTrigger, CalendarTrigger, CronTrigger, Trigger
from lockd_scheduler.triggers.zones import offset_in, zone_named

FILE = "file"
"""Who keeps the schedules that come from files."""
FIRES_SHOWN = 5


class Step(StrEnum):
    """What becomes of a schedule."""

    CREATED = "created"
    CHANGED = "changed"
    RESUMED = "resumed"
    """It was parked, and is there again."""
    PARKED = "parked"
    UNCHANGED = "unchanged"


@dataclass(frozen=True)
class Difference:
    """A field of a definition, like `policy.overlap`, before and after; None where it is not there."""

    field: str
    before: Any
    after: Any


@dataclass(frozen=True)
class PlannedFire:
    """A coming fire, in UTC and as the clocks of the schedule's zone show it."""

    moment: datetime
    local: datetime
    is_change_day: bool
    """The zone's clocks are changed on that day."""


@dataclass(frozen=True)
class Change:
    """One schedule of the plan."""

    job: str
    step: Step
    differences: tuple[Difference, ...] = ()
    fires: tuple[PlannedFire, ...] = ()
    """The next ones, of a schedule that is made, changed or resumed."""

    def to_json(self) -> dict[str, Any]:
        """As JSON: moments in ISO 8601."""
        return {
            "job": self.job,
            "step": self.step.value,
            "differences": [
                {"field": one.field, "before": one.before, "after": one.after} for one in self.differences
            ],
            "fires": [
                {
                    "utc": fire.moment.isoformat().replace("+00:00", "Z"),
                    "local": fire.local.isoformat(),
                    "is_change_day": fire.is_change_day,
                }
                for fire in self.fires
            ],
        }


def make_plan(engine: Engine, scope: str, specs: Mapping[str, JobSpec], *, now: datetime) -> list[Change]:
    """What `apply_plan` would do now; nothing is changed. Raises BadSchedule for a name of the code's."""
    with reading(engine) as connection:
        return _plan(_rows(connection, scope), specs, now)


def apply_plan(
    engine: Engine, scope: str, specs: Mapping[str, JobSpec], *, now: datetime, by: str
) -> list[Change]:
    """Make the ledger's schedules that come from files those of `specs`; returns what was changed.

    One transaction, which no transaction of the office runs beside: it holds the fence row, and moves
    nothing there. It needs no service; one that serves finds the new rows at its next turn. Raises
    BadSchedule, with nothing changed.
    """
    with engine.begin() as connection:
        connection.execute(select(office.c.token).where(office.c.scope == scope).with_for_update())
        changes = _plan(_rows(connection, scope), specs, now)
        keep_schedules(connection, Mandate.asked(scope), specs, now=now, kept_by=FILE, by=by)
        return changes


def _rows(connection: Connection, scope: str) -> dict[str, AnyRow]:
    columns = (schedule.c.name, schedule.c.definition, schedule.c.parked_at, schedule.c.kept_by)
    query = select(*columns).where(schedule.c.scope == scope)
    return {row.name: row for row in connection.execute(query)}


def _plan(rows: Mapping[str, AnyRow], specs: Mapping[str, JobSpec], now: datetime) -> list[Change]:
    foreign = [name for name in specs if name in rows and (rows[name].kept_by or CODE) != FILE]
    if foreign:
        names = ", ".join(repr(name) for name in foreign[:10])
        raise BadSchedule(
            f"the code keeps {names}: give the file's job another name, or take it out of the code"
        )
    changes = [_change(rows.get(name), spec, now) for name, spec in sorted(specs.items())]
    gone = [name for name, row in rows.items() if row.kept_by == FILE and name not in specs]
    parked = [Change(name, Step.PARKED) for name in sorted(gone) if rows[name].parked_at is None]
    return changes + parked


def _change(row: AnyRow | None, spec: JobSpec, now: datetime) -> Change:
    if row is None:
        return Change(spec.name, Step.CREATED, fires=next_fires(spec.trigger, now))
    differences = tuple(differing(row.definition, spec.to_json()))
    if differences:
        return Change(spec.name, Step.CHANGED, differences, next_fires(spec.trigger, now))
    if row.parked_at is not None:
        return Change(spec.name, Step.RESUMED, fires=next_fires(spec.trigger, now))
    return Change(spec.name, Step.UNCHANGED)


def differing(before: Mapping[str, Any], after: Mapping[str, Any], place: str = "") -> Iterable[Difference]:
    """The fields in which two definitions differ, in order, with dots between levels."""
    for name in sorted({*before, *after}):
        one, other = before.get(name), after.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from differing(one, other, f"{place}{name}.")
        elif one != other or (name in before) != (name in after):
            yield Difference(f"{place}{name}", one, other)


def next_fires(trigger: Trigger, now: datetime, count: int = FIRES_SHOWN) -> tuple[PlannedFire, ...]:
    """The first fires of a schedule that begins now."""
    zone = zone_of(trigger)
    fires: list[PlannedFire] = []
    moment = None if isinstance(trigger, AfterTrigger) else trigger.first(now)
    while moment is not None and len(fires) < count:
        local = moment.astimezone(zone)
        fires.append(PlannedFire(moment, local, is_change_day(local.date(), zone)))
        moment = trigger.next_after(moment)
    return tuple(fires)


def zone_of(trigger: Trigger) -> tzinfo:
    """The zone whose clocks a trigger goes by; UTC if by none."""
    return zone_named(trigger.tz) if isinstance(trigger, CronTrigger | CalendarTrigger) else UTC


def is_change_day(day: date, zone: tzinfo) -> bool:
    """Whether the zone's clocks are changed on that day."""
    offset = offset_in(zone)
    return offset(_end_of(day - timedelta(days=1), zone)) != offset(_end_of(day, zone))


def _end_of(day: date, zone: tzinfo) -> datetime:
    """The last moment of a day: a change at midnight belongs to the day whose hours it takes or gives."""
    midnight = datetime.combine(day + timedelta(days=1), time(), zone)
    return midnight.astimezone(UTC) - timedelta(microseconds=1)


def summary(changes: Sequence[Change]) -> dict[str, int]:
    """How many schedules each step has."""
    counts = {step.value: sum(change.step is step for change in changes) for step in Step}
    return {step: count for step, count in counts.items() if count}
