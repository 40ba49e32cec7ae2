"""Which due fires are run and which are skipped. Times are minutes and seconds after noon."""

from datetime import datetime, timedelta
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from lockd_scheduler.planner import FIRES_AT_ONCE_MAX, Plan, plan
from lockd_scheduler.policies import CatchUp, Overlap, Policy
from lockd_scheduler.runs import SkipReason
from lockd_scheduler.triggers import AtTrigger, EveryTrigger, Trigger
from tests.scheduler.harness import MINUTE, NOON, SECOND

ALLOW = Overlap.ALLOW


def told(planned: Plan) -> list[str]:
    """The rows as text: "mm:ss", then why it is skipped, then the end of a range."""
    lines = []
    for fire in planned.fires:
        words = [_offset(fire.time), *([fire.skipped.value] if fire.skipped else [])]
        words += [f"until {_offset(fire.until)}"] if fire.until else []
        words += ["waits"] if fire.waits else []
        lines.append(" ".join(words))
    return lines


def _offset(moment: datetime) -> str:
    seconds = int((moment - NOON).total_seconds())
    return f"{seconds // 60:02}:{seconds % 60:02}"


def after(
    elapsed: timedelta,
    every: timedelta,
    policy: Policy,
    *,
    first: timedelta = timedelta(),
    running: bool = False,
    waiting: bool = False,
    paused: timedelta | None = None,
) -> Plan:
    """The plan at noon + `elapsed` for a schedule that stands at noon + `first`."""
    return plan(
        EveryTrigger(every),
        policy,
        next_fire_at=NOON + first,
        now=NOON + elapsed,
        running=running,
        waiting=waiting,
        paused_until=None if paused is None else NOON + paused,
    )


def test_a_fire_at_its_time_is_run() -> None:
    planned = after(SECOND * 0, MINUTE, Policy())
    assert told(planned) == ["00:00"]
    assert planned.next_fire_at == NOON + MINUTE


def test_fires_within_a_change_of_office_are_on_time_whatever_the_policy() -> None:
    for catch_up in CatchUp:
        planned = after(SECOND * 8, SECOND * 2, Policy(overlap=ALLOW, catch_up=catch_up))
        assert told(planned) == ["00:00", "00:02", "00:04", "00:06", "00:08"]


def test_overlap_skip_runs_one_and_writes_down_the_others() -> None:
    assert told(after(SECOND * 4, SECOND * 2, Policy())) == ["00:00", "00:02 overlap", "00:04 overlap"]
    assert told(after(SECOND * 0, MINUTE, Policy(), running=True)) == ["00:00 overlap"]
    assert told(after(SECOND * 0, MINUTE, Policy(overlap=ALLOW), running=True)) == ["00:00"]


def test_catch_up_none_skips_what_is_over_a_minute_late_in_one_row() -> None:
    planned = after(MINUTE * 60 + SECOND * 30, MINUTE * 10, Policy())
    assert told(planned) == ["00:00 missed until 59:30", "60:00"]
    planned = after(MINUTE * 65, MINUTE * 10, Policy())
    assert told(planned) == ["00:00 missed until 64:00"]
    assert planned.next_fire_at == NOON + MINUTE * 70


def test_catch_up_latest_runs_the_newest_alone() -> None:
    policy = Policy(catch_up=CatchUp.LATEST)
    assert told(after(MINUTE * 65, MINUTE * 10, policy)) == ["00:00 missed until 60:00", "60:00"]
    assert told(after(MINUTE * 5, MINUTE * 10, policy)) == ["00:00"]
    assert told(after(MINUTE * 15, MINUTE * 10, policy)) == ["00:00 missed", "10:00"]
    # One that is on time is the newest.
    assert told(after(MINUTE * 60, MINUTE * 10, policy)) == ["00:00 missed until 60:00", "60:00"]


def test_catch_up_all_runs_all_and_the_window_bounds_it() -> None:
    policy = Policy(overlap=ALLOW, catch_up=CatchUp.ALL)
    assert told(after(MINUTE * 25, MINUTE * 10, policy)) == ["00:00", "10:00", "20:00"]
    windowed = Policy(overlap=ALLOW, catch_up=CatchUp.ALL, within=MINUTE * 20)
    assert told(after(MINUTE * 45, MINUTE * 10, windowed)) == ["00:00 window until 25:00", "30:00", "40:00"]


def test_the_window_bounds_latest_too() -> None:
    policy = Policy(catch_up=CatchUp.LATEST, within=MINUTE * 3)
    planned = after(MINUTE * 65, MINUTE * 10, policy)
    assert told(planned) == ["00:00 window until 62:00"]
    assert planned.next_fire_at == NOON + MINUTE * 70


def test_a_long_outage_goes_in_portions() -> None:
    policy = Policy(overlap=ALLOW, catch_up=CatchUp.ALL)
    planned = after(MINUTE * 60, SECOND, policy)
    assert len(planned.fires) == FIRES_AT_ONCE_MAX
    assert planned.next_fire_at == NOON + SECOND * FIRES_AT_ONCE_MAX


def test_a_one_shot_ends_its_schedule() -> None:
    planned = plan(AtTrigger(NOON), Policy(), next_fire_at=NOON, now=NOON, running=False)
    assert (told(planned), planned.next_fire_at) == (["00:00"], None)
    late = plan(AtTrigger(NOON), Policy(), next_fire_at=NOON, now=NOON + MINUTE * 5, running=False)
    assert (told(late), late.next_fire_at) == (["00:00 missed"], None)
    policy = Policy(catch_up=CatchUp.LATEST)
    kept = plan(AtTrigger(NOON), policy, next_fire_at=NOON, now=NOON + MINUTE * 5, running=False)
    assert (told(kept), kept.next_fire_at) == (["00:00"], None)


def test_queue_one_lets_one_wait_and_queue_all_lets_all() -> None:
    one, every = Policy(Overlap.QUEUE_ONE), Policy(Overlap.QUEUE_ALL)
    assert told(after(SECOND * 4, SECOND * 2, one)) == ["00:00", "00:02 waits", "00:04 overlap"]
    assert told(after(SECOND * 0, MINUTE, one, running=True)) == ["00:00 waits"]
    assert told(after(SECOND * 0, MINUTE, one, running=True, waiting=True)) == ["00:00 overlap"]
    assert told(after(SECOND * 4, SECOND * 2, every, running=True, waiting=True)) == [
        "00:00 waits", "00:02 waits", "00:04 waits"
    ]  # fmt: skip


def test_replace_runs_the_newest_alone_and_ends_what_runs() -> None:
    replace = Policy(Overlap.REPLACE)
    assert not after(SECOND * 0, MINUTE, replace).replaces
    several = after(SECOND * 4, SECOND * 2, replace)
    assert told(several) == ["00:00 replaced", "00:02 replaced", "00:04"]
    assert not several.replaces, "nothing ran before"
    running = after(SECOND * 4, SECOND * 2, replace, running=True)
    assert told(running) == ["00:00 replaced", "00:02 replaced", "00:04 waits"]
    assert running.replaces


def test_what_fell_into_a_pause_is_one_row_whatever_is_caught_up() -> None:
    policy = Policy(ALLOW, CatchUp.ALL)
    planned = after(MINUTE * 5, MINUTE, policy, paused=MINUTE * 4 + SECOND * 30)
    assert told(planned) == ["00:00 paused until 04:30", "05:00"]
    still = after(MINUTE * 5, MINUTE * 4, policy, paused=MINUTE * 5)
    assert told(still) == ["00:00 paused until 05:00"]
    assert still.next_fire_at == NOON + MINUTE * 8


@settings(max_examples=300, deadline=None)
@given(
    every=st.integers(1, 4000).map(lambda seconds: timedelta(seconds=seconds)),
    late=st.integers(0, 400_000).map(lambda ms: timedelta(milliseconds=ms)),
    catch_up=st.sampled_from(CatchUp),
    overlap=st.sampled_from(Overlap),
    within=st.none() | st.integers(1, 300).map(lambda seconds: timedelta(seconds=seconds)),
    paused=st.none() | st.integers(-10, 500).map(lambda seconds: timedelta(seconds=seconds)),
    live=st.sampled_from([(False, False), (True, False), (True, True)]),
)
def test_p5_every_due_fire_is_in_exactly_one_row(
    every: timedelta,
    late: timedelta,
    catch_up: CatchUp,
    overlap: Overlap,
    within: timedelta | None,
    paused: timedelta | None,
    live: tuple[bool, bool],
) -> None:
    """P5: whatever the policy, nothing that is due goes without a row, and nothing has two."""
    policy = Policy(overlap, catch_up, None if catch_up is CatchUp.NONE else within)
    trigger: Trigger = EveryTrigger(every)
    first = trigger.first(NOON)
    assert first is not None
    now = first + late
    covered: list[datetime] = []
    upcoming: datetime | None = first
    while upcoming is not None and upcoming <= now:
        planned = plan(
            trigger,
            policy,
            next_fire_at=upcoming,
            now=now,
            running=live[0],
            waiting=live[1],
            paused_until=None if paused is None else min(first + paused, now),
        )
        assert planned.fires
        assert sum(not fire.skipped for fire in planned.fires) <= 1 or overlap in (
            Overlap.ALLOW,
            Overlap.QUEUE_ALL,
            Overlap.QUEUE_ONE,
        )
        for fire in planned.fires:
            one: datetime | None = fire.time
            while one is not None and (one < fire.until if fire.until else one == fire.time):
                covered.append(one)
                one = trigger.next_after(one)
        upcoming = planned.next_fire_at
    expected = [first + number * every for number in range(late // every + 1)]
    assert covered == expected
    assert all(earlier < later for earlier, later in pairwise(covered))


def test_a_skip_says_why_and_a_run_does_not() -> None:
    planned = after(MINUTE * 60, MINUTE, Policy())
    assert [fire.skipped for fire in planned.fires] == [SkipReason.MISSED, None, SkipReason.OVERLAP]
