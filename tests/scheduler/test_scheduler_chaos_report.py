"""`cron.chaos`: a user's own jobs at each place where the active process may die."""

from typing import Any

import pytest

from lockd_scheduler import BadSchedule, Cron, Run
from lockd_scheduler.testing import Hole

PLACES = [hole.value for hole in Hole]


@pytest.fixture
def cron() -> Cron:
    cron = Cron("ops")

    @cron.job("0 2 * * *", name="once", delivery="at_most_once")
    def once() -> None: ...

    @cron.every("1h", name="surely", delivery="at_least_once")
    async def surely(run: Run) -> None: ...

    return cron


@pytest.mark.parametrize(
    ("place", "once", "surely"),
    [
        ("office", ("succeeded", 1), ("succeeded", 1)),
        ("claim", ("succeeded", 1), ("succeeded", 1)),
        ("start", ("lost", 0), ("succeeded", 1)),
        ("effect", ("lost", 1), ("succeeded", 2)),
        ("finish", ("succeeded", 1), ("succeeded", 1)),
    ],
)
def test_r5_what_each_delivery_makes_of_a_death(cron: Cron, place: str, once: Any, surely: Any) -> None:
    """R5: at_most_once is never begun again once the outcome is unknown; at_least_once always ends."""
    report = cron.chaos(kill_after=place)
    assert (report["once"].state, report["once"].calls) == once
    assert (report["surely"].state, report["surely"].calls) == surely
    assert len(report.verdicts) == 4, "both jobs, under both choices"
    other = next(one for one in report.verdicts if one.job == "once" and not one.is_own_choice)
    assert (other.state, other.calls) == surely


def test_r3_one_that_wakes_after_its_lease_moves_nothing(cron: Cron) -> None:
    """R1, R3: what it had claimed it can't start; what it had begun it ends late."""
    assert [cron.chaos(pause_after=place)["once"].calls for place in PLACES] == [1, 1, 1, 1, 1]
    slept = cron.chaos(pause_after="start")["surely"]
    assert (slept.state, slept.calls, slept.attempts, slept.late) == (
        "succeeded", 2, ("lost", "succeeded"), "succeeded")  # fmt: skip
    assert cron.chaos(pause_after="claim")["surely"].calls == 1


def test_the_report_is_text_that_a_person_reads(cron: Cron) -> None:
    assert str(cron.chaos(pause_after="effect")).splitlines() == [
        "the active process slept past its lease after: effect",
        "* once  at_most_once: lost, called once; a late result (succeeded) moved nothing",
        "  once  at_least_once: succeeded, called 2 times; a late result (succeeded) moved nothing",
        "  surely  at_most_once: lost, called once; a late result (succeeded) moved nothing",
        "* surely  at_least_once: succeeded, called 2 times; a late result (succeeded) moved nothing",
    ]


@pytest.mark.parametrize(
    "words", [{}, {"kill_after": "lunch"}, {"kill_after": "claim", "pause_after": "claim"}]
)
def test_a_place_that_is_not_there_is_refused(cron: Cron, words: dict[str, str]) -> None:
    with pytest.raises(BadSchedule, match="office, claim, start, effect, finish"):
        cron.chaos(**words)
