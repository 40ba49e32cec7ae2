"""Every zone of the IANA database, over every change of its clocks from 2020 to 2035 (SAFETY R6).

The judge walks the minutes and shares no code with the triggers: no fire lost, none doubled. Zones whose
clocks agree all that time are tried once; between changes nothing but plain arithmetic is left, which
test_scheduler_triggers tries at random.
"""

from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

import pytest

from lockd_scheduler.triggers import CronTrigger
from tests.scheduler.plain_cron import offset_changes, plain_fires

START, END = datetime(2020, 1, 1, tzinfo=UTC), datetime(2036, 1, 1, tzinfo=UTC)
BEFORE, AFTER = timedelta(hours=3), timedelta(hours=5)
PARTS = 8

FIXED = ("45 0-23 * * *", "0 0-23/2 * * *", "0 0 * * *", "30 2 * * 0")
REAL = ("*/20 * * * *", "10 */2 * * *")


@cache
def zones() -> tuple[str, ...]:
    """One name for each way in which clocks are set in these years."""
    days = [START + timedelta(days=number) for number in range((END - START).days)]
    found: dict[tuple[timedelta | None, ...], str] = {}
    for name in sorted(available_timezones()):
        zone = ZoneInfo(name)
        found.setdefault(tuple(day.astimezone(zone).utcoffset() for day in days), name)
    return tuple(found.values())


def fires(trigger: CronTrigger, start: datetime, end: datetime) -> list[datetime]:
    found = []
    fire = trigger.next_after(start)
    while fire is not None and fire < end:
        found.append(fire)
        fire = trigger.next_after(fire)
    return found


def check(name: str, dst: str, lines: tuple[str, ...]) -> int:
    """Compare over every change of the zone; how many fires that were."""
    zone = ZoneInfo(name)
    seen = 0
    for change in offset_changes(zone, START, END):
        start, end = change - BEFORE, change + AFTER
        for line in lines:
            expected = plain_fires(line, zone, start, end, dst=dst)
            assert fires(CronTrigger(line, name, dst=dst), start, end) == expected, (name, dst, line, change)
            seen += len(expected)
    return seen


@pytest.mark.parametrize("part", range(PARTS))
def test_r6_no_fire_is_lost_or_doubled_where_any_zone_changes_its_clocks(part: int) -> None:
    assert sum(check(name, "once", FIXED + REAL) for name in zones()[part::PARTS]) > 0


@pytest.mark.parametrize("dst", ["wall", "elapsed"])
def test_the_other_rules_in_zones_of_every_kind(dst: str) -> None:
    kinds = ("Europe/Berlin", "Europe/Dublin", "Australia/Lord_Howe", "Antarctica/Troll", "Africa/Cairo")
    assert sum(check(name, dst, ("45 0-23 * * *", "0 0 * * *")) for name in kinds) > 0


def test_the_zones_are_many() -> None:
    assert len(zones()) > 60
