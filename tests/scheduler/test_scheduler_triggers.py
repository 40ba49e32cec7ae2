"""When schedules fire, above all where the clocks change."""

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from apscheduler.triggers.cron import CronTrigger as TheirCronTrigger
from hypothesis import given, settings
from hypothesis import strategies as st

from lockd_scheduler import BadSchedule
from lockd_scheduler.triggers import (
    AtTrigger,
    CalendarTrigger,
    CronTrigger,
    EveryTrigger,
    Trigger,
    hashed_slot,
    read_schedule,
    trigger_from_json,
)
from tests.scheduler.plain_cron import plain_fires

# Rules of every kind: north and south, half an hour (Lord Howe), two hours (Troll), changes at
# midnight (Beirut, Cairo, Havana, Santiago), negative DST (Dublin, Casablanca), and none.
ZONES = [
    "Europe/Berlin",
    "America/New_York",
    "Europe/Dublin",
    "Australia/Lord_Howe",
    "Antarctica/Troll",
    "Africa/Casablanca",
    "Africa/Cairo",
    "Asia/Beirut",
    "America/Havana",
    "America/Santiago",
    "Asia/Kolkata",
    "UTC",
]


def fires(trigger: Trigger, start: str, end: str) -> list[str]:
    """The fires in [start, end) as UTC texts."""
    moment, stop = (datetime.fromisoformat(text).replace(tzinfo=UTC) for text in (start, end))
    found = []
    fire = trigger.first(moment)
    while fire is not None and fire < stop:
        found.append(fire.strftime("%m-%d %H:%M:%S").removesuffix(":00"))
        fire = trigger.next_after(fire)
    return found


@pytest.mark.parametrize(
    ("zone", "expression", "start", "end", "expected"),
    [
        # Spring forward, Berlin 2026-03-29 02:00 -> 03:00 (01:00 UTC).
        ("Europe/Berlin", "30 2 * * *", "2026-03-28", "2026-03-31",
         ["03-28 01:30", "03-29 01:00", "03-30 00:30"]),
        ("Europe/Berlin", "0,30 2,3 * * *", "2026-03-29", "2026-03-29T12:00", ["03-29 01:00", "03-29 01:30"]),
        ("Europe/Berlin", "*/30 2 * * *", "2026-03-29", "2026-03-29T12:00", []),
        ("Europe/Berlin", "0 * * * *", "2026-03-29", "2026-03-29T03:00",
         ["03-29 00:00", "03-29 01:00", "03-29 02:00"]),
        # Fall back, Berlin 2026-10-25 03:00 -> 02:00 (01:00 UTC): fixed once, real time twice.
        ("Europe/Berlin", "30 2 * * *", "2026-10-24T12:00", "2026-10-26", ["10-25 00:30"]),
        ("Europe/Berlin", "*/30 2 * * *", "2026-10-25", "2026-10-25T12:00",
         ["10-25 00:00", "10-25 00:30", "10-25 01:00", "10-25 01:30"]),
        # New York 2026-03-08 02:00 -> 03:00 (07:00 UTC), 2026-11-01 02:00 -> 01:00 (06:00 UTC).
        ("America/New_York", "15 2 * * *", "2026-03-08", "2026-03-08T23:00", ["03-08 07:00"]),
        ("America/New_York", "30 1 * * *", "2026-11-01", "2026-11-01T23:00", ["11-01 05:30"]),
        ("America/New_York", "59 1-2 * * *", "2026-11-01", "2026-11-01T23:00",
         ["11-01 05:59", "11-01 07:59"]),
        # Six fields follow the same rule: their seconds come first.
        ("Europe/Berlin", "10 30 2 * * *", "2026-03-29", "2026-03-29T23:00", ["03-29 01:00"]),
        ("Europe/Berlin", "10 30 2 * * *", "2026-10-25", "2026-10-25T23:00", ["10-25 00:30:10"]),
        # Lord Howe changes by half an hour: 02:00 -> 02:30 on 2026-10-04 (15:30 UTC the day before).
        ("Australia/Lord_Howe", "15 2 * * *", "2026-10-03T12:00", "2026-10-04T00:00", ["10-03 15:30"]),
        ("Australia/Lord_Howe", "*/20 3 * * *", "2026-10-03T12:00", "2026-10-04T00:00",
         ["10-03 16:00", "10-03 16:20", "10-03 16:40"]),
        # Cairo skips midnight itself: 2026-04-24 00:00 -> 01:00 (22:00 UTC the day before).
        ("Africa/Cairo", "0 0 * * *", "2026-04-23T12:00", "2026-04-24T12:00", ["04-23 22:00"]),
    ],
)  # fmt: skip
def test_where_the_clocks_change(
    zone: str, expression: str, start: str, end: str, expected: list[str]
) -> None:
    assert fires(CronTrigger(expression, zone), start, end) == expected


@pytest.mark.parametrize(
    "zone", ["Europe/Berlin", "Europe/London", "Europe/Lisbon", "Europe/Helsinki", "America/New_York"]
)
def test_r6_the_first_of_april_at_midnight_is_not_lost(zone: str) -> None:
    """R6: APScheduler 3.11's CronTrigger skips this whole month; ours must not be built on it."""
    tz = ZoneInfo(zone)
    march, may = datetime(2026, 3, 2, tzinfo=tz), datetime(2026, 5, 1, tzinfo=tz)
    theirs = TheirCronTrigger.from_crontab("0 0 1 * *", timezone=tz).get_next_fire_time(None, march)
    assert theirs == may, "APScheduler was repaired: R6's reason has gone"
    april = CronTrigger("0 0 1 * *", zone).next_after(march)
    assert april == datetime(2026, 4, 1, tzinfo=tz).astimezone(UTC)


FIELDS = st.tuples(
    st.sampled_from(["*", "0", "30", "*/7", "5,35", "10-20", "59"]),
    st.sampled_from(["*", "0", "1", "2", "3", "0-3", "*/2", "1,2,3", "23"]),
    st.sampled_from(["*", "*", "*", "1", "*/2", "28-31"]),
    st.sampled_from(["*", "*", "3,10", "3-4"]),
    st.sampled_from(["*", "*", "0", "sun", "1-5", "7"]),
).map(" ".join)


@settings(max_examples=120, deadline=None)
@given(
    expression=FIELDS,
    zone=st.sampled_from(ZONES),
    dst=st.sampled_from(["once", "once", "wall", "elapsed"]),
    year=st.integers(2020, 2035),
    month=st.sampled_from([3, 4, 9, 10, 11]),
    day=st.integers(1, 28),
)
def test_every_fire_is_that_of_a_walk_over_the_minutes(
    expression: str, zone: str, dst: str, year: int, month: int, day: int
) -> None:
    """No fire lost, none doubled: against an evaluation that walks each minute of some days."""
    start = datetime(year, month, day, tzinfo=UTC)
    end = start + timedelta(days=5)
    trigger = CronTrigger(expression, zone, dst=dst)
    found = []
    fire = trigger.next_after(start)
    while fire is not None and fire < end:
        found.append(fire)
        fire = trigger.next_after(fire)
    assert found == plain_fires(expression, ZoneInfo(zone), start, end, dst=dst)


def test_the_series_is_the_same_wherever_it_is_entered() -> None:
    trigger = CronTrigger("*/20 1-3 * * *", "Europe/Berlin")
    start, end = datetime(2026, 10, 24, tzinfo=UTC), datetime(2026, 10, 26, tzinfo=UTC)
    series = set(plain_fires("*/20 1-3 * * *", ZoneInfo("Europe/Berlin"), start, end))
    moment = start
    while moment < end - timedelta(hours=24):
        following = trigger.next_after(moment)
        assert following == min(fire for fire in series if fire > moment)
        moment += timedelta(minutes=7, microseconds=13)


def test_intervals_are_counted_from_the_epoch() -> None:
    trigger = EveryTrigger(timedelta(seconds=30), timedelta(seconds=7))
    assert fires(trigger, "2026-06-01T12:00", "2026-06-01T12:01") == ["06-01 12:00:07", "06-01 12:00:37"]
    daily = EveryTrigger(timedelta(days=1))
    assert fires(daily, "2026-03-28", "2026-03-30") == ["03-28 00:00", "03-29 00:00"]


def test_a_hashed_slot_depends_on_the_name_alone_and_spreads() -> None:
    hour = timedelta(hours=1)
    assert hashed_slot("ops/a", hour) == hashed_slot("ops/a", hour)
    slots = {hashed_slot(f"ops/job-{number}", hour) for number in range(100)}
    assert len(slots) > 90
    assert all(timedelta() <= slot < hour for slot in slots)
    assert hashed_slot("ops/a", timedelta(seconds=1)) == timedelta()


def test_a_one_shot_that_has_passed_still_begins_there() -> None:
    moment = datetime(2026, 1, 1, 9, 0, tzinfo=ZoneInfo("Asia/Tokyo"))
    trigger = AtTrigger(moment)
    assert trigger.first(datetime(2026, 6, 1, tzinfo=UTC)) == datetime(2026, 1, 1, 0, 0, tzinfo=UTC)
    assert trigger.next_after(moment) is None


@pytest.mark.parametrize(
    "trigger",
    [
        CronTrigger("0 2 * * mon", "Europe/Berlin"),
        EveryTrigger(timedelta(minutes=90), timedelta(seconds=5)),
        AtTrigger(datetime(2026, 1, 1, tzinfo=UTC)),
        CronTrigger("H H(1-5) * * *", "Asia/Beirut", dst="elapsed", slot="ops/nightly"),
        CronTrigger("@daily", "Asia/Beirut", dst="wall"),
        CalendarTrigger(months=1, start=date(2026, 1, 31), at=time(2, 30), tz="Europe/Berlin"),
    ],
)
def test_a_trigger_comes_back_from_its_definition(trigger: Trigger) -> None:
    again = trigger_from_json(trigger.to_json())
    assert again.to_json() == trigger.to_json()
    moment = datetime(2025, 12, 1, tzinfo=UTC)
    assert again.first(moment) == trigger.first(moment)


# Berlin: 02:00 -> 03:00 on 03-29 (01:00 UTC), 03:00 -> 02:00 on 10-25 (01:00 UTC).
@pytest.mark.parametrize(
    ("dst", "spring", "autumn"),
    [
        ("once", ["03-28 01:30", "03-29 01:00", "03-30 00:30"], ["10-25 00:30", "10-26 01:30"]),
        ("wall", ["03-28 01:30", "03-30 00:30"], ["10-25 00:30", "10-25 01:30", "10-26 01:30"]),
        ("elapsed", ["03-28 01:30", "03-29 01:30", "03-30 01:30"], ["10-25 01:30", "10-26 01:30"]),
    ],
)
def test_what_half_past_two_means_on_the_days_of_change(
    dst: str, spring: list[str], autumn: list[str]
) -> None:
    trigger = CronTrigger("30 2 * * *", "Europe/Berlin", dst=dst)
    assert fires(trigger, "2026-03-28", "2026-03-31") == spring
    assert fires(trigger, "2026-10-25", "2026-10-27") == autumn


def test_macros_are_the_lines_that_cron_knows_them_as() -> None:
    for macro, line in {"@daily": "0 0 * * *", "@weekly": "0 0 * * 0", "@Hourly": "0 * * * *"}.items():
        assert CronTrigger(macro, "Europe/Berlin").to_json() == CronTrigger(line, "Europe/Berlin").to_json()
    assert read_schedule("@every 90s").to_json() == EveryTrigger(timedelta(seconds=90)).to_json()


def test_a_hash_is_a_value_of_its_field_that_depends_on_the_name_alone() -> None:
    lines = {CronTrigger("H H * * *", slot=f"ops/{number}").expression for number in range(200)}
    assert len(lines) > 180
    assert (
        CronTrigger("H 3 * * *", slot="ops/a").expression == CronTrigger("h 3 * * *", slot="ops/a").expression
    )
    for number in range(100):
        second, minute, hour, day, month, weekday = CronTrigger(
            "H H(10-19) H/6 H H H", slot=f"ops/{number}"
        ).expression.split()
        assert 0 <= int(second) <= 59
        assert 10 <= int(minute) <= 19
        assert hour in {f"{start}-23/6" for start in range(6)}
        assert 1 <= int(day) <= 28
        assert 1 <= int(month) <= 12
        assert 0 <= int(weekday) <= 6


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("H * * * *", "no job"),
        ("@reboot", "no time"),
        ("@fortnightly", "@daily"),
        ("@every", "@every 5m"),
        ("@every 5 minutes", "@every 5m"),
        ("@every 5x", "duration"),
        ("0 2 * *", "4 fields"),
        ("0 25 * * *", "Bad hour"),
        ("0 0 31 2 *", "day-of-month"),
    ],
)
def test_a_wrong_line_is_told_what_is_wrong(line: str, told: str) -> None:
    with pytest.raises(BadSchedule, match=told):
        read_schedule(line)


@pytest.mark.parametrize("field", ["H(50-70)", "H(9-3)", "H/0", "H/61"])
def test_a_hash_outside_its_field_is_refused(field: str) -> None:
    with pytest.raises(BadSchedule, match="minute"):
        CronTrigger(f"{field} * * * *", slot="ops/a")


def test_a_calendar_interval_passes_over_short_months_and_fires_once_where_clocks_change() -> None:
    monthly = CalendarTrigger(months=1, start=date(2025, 12, 31), at=time(12))
    assert fires(monthly, "2026-01-01", "2026-09-01") == [
        "01-31 12:00", "03-31 12:00", "05-31 12:00", "07-31 12:00", "08-31 12:00"
    ]  # fmt: skip
    second_day = CalendarTrigger(days=2, start=date(2026, 3, 27), at=time(2, 30), tz="Europe/Berlin")
    assert fires(second_day, "2026-03-26", "2026-04-01") == ["03-27 01:30", "03-29 01:00", "03-31 00:30"]
    autumn = CalendarTrigger(days=1, start=date(2026, 10, 24), at=time(2, 30), tz="Europe/Berlin")
    assert fires(autumn, "2026-10-24", "2026-10-27") == ["10-24 00:30", "10-25 00:30", "10-26 01:30"]
    leap = CalendarTrigger(months=12, start=date(2024, 2, 29))
    first = leap.first(datetime(2024, 3, 1, tzinfo=UTC))
    assert first == datetime(2028, 2, 29, tzinfo=UTC)


@given(
    months=st.integers(0, 14),
    days=st.integers(0, 40),
    start=st.dates(date(2019, 1, 1), date(2027, 1, 1)),
    since=st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)),  # noqa: DTZ001 - its zone is added
)
def test_a_calendar_interval_is_that_of_a_walk_over_the_days(
    months: int, days: int, start: date, since: datetime
) -> None:
    if (months == 0) == (days == 0):
        with pytest.raises(BadSchedule):
            CalendarTrigger(months=months, days=days, start=start)
        return
    trigger = CalendarTrigger(months=months, days=days, start=start)
    found = trigger.next_after(since.replace(tzinfo=UTC))
    day = max(since.date() + timedelta(days=1), start)
    while not (
        (day - start).days % days == 0
        if days
        else day.day == start.day and (12 * (day.year - start.year) + day.month - start.month) % months == 0
    ):
        day += timedelta(days=1)
    assert found == datetime.combine(day, time(), UTC)


@pytest.mark.parametrize(
    ("expression", "zone"),
    [
        ("61 * * * *", "UTC"),
        ("* * *", "UTC"),
        ("", "UTC"),
        ("* * * * * * *", "UTC"),
        ("H 3 * * *", "UTC"),
        ("\uff10 2 * * *", "UTC"),
        ("0 0 30 2 *", "UTC"),
        ("0 0 * 2 MON#6", "UTC"),
        ("0 2 * * *", "Europe/Atlantis"),
        ("0 2 * * *", "../../etc/passwd"),
        ("0 2 * * *", ""),
    ],
)
def test_what_is_not_a_schedule_is_refused(expression: str, zone: str) -> None:
    with pytest.raises(BadSchedule):
        CronTrigger(expression, zone)


@pytest.mark.parametrize("expression", ["* * * * *", "0 0 1 1 *", "0 0 29 2 *", "* * * * * *"])
@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Pacific/Kiritimati"])
def test_a_schedule_ends_with_the_calendar(expression: str, zone: str) -> None:
    """Beyond what a date can express there is no fire, and no error."""
    trigger = CronTrigger(expression, zone)
    last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert trigger.next_after(last) is None
    first = trigger.first(datetime(1, 1, 1, tzinfo=UTC))
    assert first is not None
    assert first.year < 10
    assert EveryTrigger(timedelta(days=1)).next_after(last) is None
