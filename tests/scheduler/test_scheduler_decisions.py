"""The pure tables: states of runs, what follows an attempt, tenure, durations, policies."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockd_scheduler import BadSchedule
from lockd_scheduler.durations import format_duration, parse_duration
from lockd_scheduler.policies import Backoff, Delivery, Policy, jitter_of
from lockd_scheduler.runs import ATTEMPT_MOVES, ENDS, RUN_MOVES, State, after_attempt
from lockd_scheduler.tenure import Event, Phase, Tenure

ONCE = Policy(delivery=Delivery.AT_MOST_ONCE, retries=2)
LEAST = Policy(delivery=Delivery.AT_LEAST_ONCE, retries=0)


def test_no_final_state_has_a_way_out() -> None:
    for table in (ATTEMPT_MOVES, RUN_MOVES):
        assert not set(table) & (ENDS | {State.SKIPPED})


def test_r3_what_was_claimed_comes_to_run_or_is_cancelled_unbegun() -> None:
    """R3: nothing leads from claimed to an outcome without `running` in between."""
    assert ATTEMPT_MOVES[State.CLAIMED] == {State.RUNNING, State.CANCELLED}
    assert RUN_MOVES[State.CLAIMED] == {State.RUNNING, State.CANCELLED}


def test_a_known_failure_is_retried_as_often_as_asked() -> None:
    assert [after_attempt(State.FAILED, ONCE, attempt_number=number).state for number in (1, 2, 3)] == [
        State.CLAIMED,
        State.CLAIMED,
        State.FAILED,
    ]


def test_an_attempt_that_ended_at_its_time_out_is_a_known_failure() -> None:
    assert after_attempt(State.TIMED_OUT, ONCE, attempt_number=2).state is State.CLAIMED
    assert after_attempt(State.TIMED_OUT, ONCE, attempt_number=3).state is State.TIMED_OUT
    assert after_attempt(State.CANCELLED, ONCE, attempt_number=1).state is State.CANCELLED


def test_a_lost_attempt_is_tried_again_only_at_least_once() -> None:
    """R5's base: at_most_once is never started again once an attempt's outcome is unknown."""
    assert after_attempt(State.LOST, ONCE, attempt_number=1).state is State.LOST
    again = after_attempt(State.LOST, LEAST, attempt_number=70)
    assert again.state is State.CLAIMED
    assert again.retry_in == LEAST.backoff.most


def test_delays_double_up_to_the_longest() -> None:
    backoff = Backoff.parse("1m..1h")
    minutes = [backoff.delay(number) // timedelta(minutes=1) for number in (1, 2, 3, 7, 1000)]
    assert minutes == [1, 2, 4, 60, 60]
    assert Backoff.parse("5s").delay(9) == timedelta(seconds=5)


def test_a_tenure_goes_from_standby_over_taking_to_active_and_back() -> None:
    tenure = Tenure().after(Event.SEATED, token=7)
    assert tenure == Tenure(Phase.TAKING, 7)
    active = tenure.after(Event.FENCE_MOVED)
    assert active == Tenure(Phase.ACTIVE, 7)
    for event in (Event.FENCED, Event.SEAT_LOST, Event.LEDGER_SILENT):
        assert active.after(event) == tenure.after(event) == Tenure(Phase.STANDBY)


@given(st.lists(st.sampled_from(Event), max_size=12))
def test_r1_nobody_is_active_but_by_moving_the_fence(events: list[Event]) -> None:
    """R1: ACTIVE is reached only by FENCE_MOVED right after SEATED, and OUT is for good."""
    tenure = Tenure()
    for event in events:
        before = tenure
        tenure = tenure.after(event, token=3 if event is Event.SEATED else None)
        if tenure.phase is Phase.ACTIVE and before.phase is not Phase.ACTIVE:
            assert (before.phase, event) == (Phase.TAKING, Event.FENCE_MOVED)
        if before.phase is Phase.OUT:
            assert tenure.phase is Phase.OUT


@given(st.integers(0, 10**9).map(lambda ms: timedelta(milliseconds=ms)))
def test_a_duration_comes_back_from_its_text(length: timedelta) -> None:
    assert parse_duration(format_duration(length)) == length


@pytest.mark.parametrize(
    "text", ["", "5", "s", "1.5h", "-5s", "5 s", "1h 30m", "9" * 30 + "w", "999999999w", "36526d"]
)
def test_what_is_not_a_duration_is_refused(text: str) -> None:
    with pytest.raises(BadSchedule):
        parse_duration(text)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ({"overlap": "queue"}, "choose from: skip, queue_one, queue_all, replace, allow"),
        ({"timeout": "0s"}, "timeout='0s'"),
        ({"lock": ""}, "lock=''"),
        ({"keep": {"weeks": 3}}, '"runs" and "days"'),
        ({"keep": 5}, "keep=5: write it like"),
        ({"notify": "failed"}, "a list, like"),
        ({"notify": 3}, "a list, like"),
        ({"keep": {"runs": 0}}, "whole numbers from 1"),
        ({"keep": {"days": "90"}}, "whole numbers from 1"),
        ({"catch_up": "some"}, "choose from: none, latest, all"),
        ({"delivery": "exactly_once"}, "choose from: at_most_once, at_least_once"),
        ({"within": "6h"}, "catch_up"),
        ({"retries": -1}, "retries"),
        ({"backoff": "1h..1m"}, "shorter"),
    ],
)
def test_a_wrong_option_is_refused_by_name(words: dict[str, Any], hint: str) -> None:
    with pytest.raises(BadSchedule, match=hint):
        Policy.from_words(**words)


def test_a_policy_comes_back_from_json() -> None:
    policy = Policy.from_words(catch_up="latest", within="6h", retries=3, backoff="1m..1h")
    assert Policy.from_json(policy.to_json()) == policy
    whole = Policy.from_words(
        timeout="30m",
        jitter="90s",
        lock="reports",
        keep={"runs": 500, "days": 90},
        alert_if_late="15m",
        overlap="queue_one",
    )
    assert Policy.from_json(whole.to_json()) == whole


def test_a_new_word_is_no_change_of_a_schedule_that_does_not_use_it() -> None:
    """The definitions that 0.1.0 wrote stay equal to those that are written now."""
    assert Policy().to_json() == {
        "overlap": "skip",
        "catch_up": "none",
        "within": None,
        "delivery": "at_most_once",
        "retries": 0,
        "backoff": "10s..10m",
    }


def test_r6_jitter_is_a_delay_of_the_run_alone_and_always_the_same() -> None:
    policy = Policy.from_words(jitter="90s")
    delays = [jitter_of(policy, f"ops/tick/{number}") for number in range(200)]
    assert delays == [jitter_of(policy, f"ops/tick/{number}") for number in range(200)]
    assert all(timedelta() <= delay <= timedelta(seconds=90) for delay in delays)
    assert max(delays) - min(delays) > timedelta(seconds=60)
    assert jitter_of(Policy(), "ops/tick/1") == timedelta()
