"""What an importer gives back for each schedule that it found, and the report on it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import yaml

from lockd_scheduler.errors import BadSchedule
from lockd_scheduler.files import job_specs, read_content
from lockd_scheduler.jobs import JobSpec
from lockd_scheduler.plans import zone_of
from lockd_scheduler.triggers import Trigger
from lockd_scheduler.triggers.zones import next_change, offset_in

FIRES_COMPARED_MAX = 20_000
SHOWN_MAX = 3

Series = Callable[[datetime], Iterator[datetime]]
"""The other side's fires after a moment, in order, in UTC."""


@dataclass
class Imported:
    """One schedule of the other side."""

    name: str
    origin: str
    """Where it stands there, for people."""
    words: dict[str, Any] | None
    """As a job of our file; None if it can't be said there."""
    notes: list[str] = field(default_factory=list)
    theirs: Series | None = None
    """How the other side would fire; None where it fires as we do, or nobody can say."""

    def to_json(self) -> dict[str, Any]:
        """As JSON, for the report."""
        return {
            "job": self.name,
            "origin": self.origin,
            "is_imported": self.words is not None,
            "notes": self.notes,
        }


def finish_import(found: Sequence[Imported], scope: str, *, now: datetime) -> None:
    """Check every job by the rules of our files, and add to its notes what will differ in a year from now."""
    for one in found:
        if one.words is None:
            continue
        try:
            spec = _spec_of(one, scope)
        except BadSchedule as error:
            one.words = None
            one.notes.append(f"not imported: {str(error).splitlines()[0]}")
            continue
        if one.theirs is not None:
            one.notes += differences(one.theirs, spec.trigger, now)


def to_yaml(found: Sequence[Imported], scope: str) -> str:
    """The file, with the jobs that can be said."""
    jobs = {one.name: one.words for one in found if one.words is not None}
    text: str = yaml.safe_dump(
        {"scheduler": scope, "jobs": jobs}, sort_keys=False, allow_unicode=True, width=100
    )
    return text


def free_name(wanted: str, taken: set[str]) -> str:
    """A job's name that is not taken yet; it is now."""
    printable = "".join(character if character.isprintable() else " " for character in wanted)
    name = printable.strip()[:150].strip() or "job"
    number = 1
    unique = name
    while unique in taken:
        number += 1
        unique = f"{name}-{number}"
    taken.add(unique)
    return unique


def differences(theirs: Series, ours: Trigger, now: datetime) -> list[str]:
    """In one line each, what fires on one side alone or twice within a year from now."""
    end = now + timedelta(days=366)
    spans = [(now, end)]
    if sum(1 for _ in islice(_until(theirs(now), end), FIRES_COMPARED_MAX)) == FIRES_COMPARED_MAX:
        spans = _around_changes(ours, now, end)
    found: list[str] = []
    zone = zone_of(ours)
    for start, stop in spans:
        old = list(islice(_until(theirs(start), stop), FIRES_COMPARED_MAX))
        new = list(islice(_until(_fires(ours, start), stop), FIRES_COMPARED_MAX))
        found += _told("fires by the old scheduler alone", sorted({*old} - {*new}), zone)
        found += _told("fires here alone", sorted({*new} - {*old}), zone)
    return found


def _told(what: str, fires: Sequence[datetime], zone: Any) -> list[str]:
    if not fires:
        return []
    shown = ", ".join(f"{fire.astimezone(zone):%a %Y-%m-%d %H:%M:%S %Z}" for fire in fires[:SHOWN_MAX])
    more = f" and {len(fires) - SHOWN_MAX} more" if len(fires) > SHOWN_MAX else ""
    return [f"{what}: {shown}{more}"]


def _around_changes(trigger: Trigger, now: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
    """Two days before to two days after each change of the clocks, for series too long to walk."""
    spans = []
    change = next_change(now, end, offset_in(zone_of(trigger)))
    while change is not None:
        spans.append((max(change - timedelta(days=2), now), change + timedelta(days=2)))
        change = next_change(change, end, offset_in(zone_of(trigger)))
    return spans


def _until(fires: Iterator[datetime], end: datetime) -> Iterator[datetime]:
    for fire in fires:
        if fire >= end:
            return
        yield fire


def _fires(trigger: Trigger, start: datetime) -> Iterator[datetime]:
    fire = trigger.next_after(start)
    while fire is not None:
        yield fire
        fire = trigger.next_after(fire)


def _spec_of(one: Imported, scope: str) -> JobSpec:
    _, jobs = read_content(one.origin, {"jobs": {one.name: one.words}})
    return job_specs(jobs, scope)[one.name]
