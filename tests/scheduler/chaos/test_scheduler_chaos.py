"""A part of the seeds, and every bug that the simulation is for."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.scheduler.chaos.bugs import BUGS
from tests.scheduler.chaos.campaign import ledgers_on, play_all

SEEDS = range(5000, 5004)
MORE_SEEDS = 25
"""A change of the engine's statements moves what a seed does: then one of the next shows the bug."""


def test_p5_r1_r3_r5_no_death_loses_or_doubles_anything() -> None:
    """P5, R1, R3, R4, R5, R7: every fire has a row, every run an end, every effect is there once."""
    campaign = play_all(SEEDS)
    assert campaign.broken == {}
    assert campaign.kills >= len(SEEDS)
    assert campaign.late > 0, "processes that slept hand in what they have"


@pytest.mark.postgres
def test_p5_r1_r3_r5_no_death_loses_or_doubles_anything_on_postgresql(postgres_url: str) -> None:
    assert play_all(SEEDS[:2], ledgers_on(postgres_url)).broken == {}


@pytest.mark.parametrize(("bug", "seed"), BUGS, ids=[bug.__name__ for bug, _ in BUGS])
def test_the_simulation_finds(bug: Callable[[], AbstractContextManager[None]], seed: int) -> None:
    """R1, R3, R4, R5, R7: each taken out of the engine by itself."""
    with bug():
        campaign = play_all(range(seed, seed + MORE_SEEDS), until_broken=True)
    assert campaign.broken, f"{campaign.seeds} seeds, and nobody noticed"
