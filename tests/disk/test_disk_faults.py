"""Every fault at every place (SAFETY D1-D4, C9): faults.py tries them, this holds it to how many."""

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.disk import faults
from tests.disk.lives import STORIES
from tests.disk.memory import Operation

AT_LEAST = {
    faults.power_cuts: 2_500,
    faults.failing_syncs: 450,
    faults.full_disks: 550,
    faults.full_disks_and_power_cuts: 800,
    faults.torn_tails: 2_500,
    faults.flipped_bits: 9_000,
    faults.lost_sectors: 20,
    faults.damaged_arrivals: 400,
}


@pytest.mark.parametrize("campaign", faults.CAMPAIGNS, ids=lambda campaign: campaign.__name__)
def test_d1_d2_d3_d4_every_fault_ends_well(campaign: Callable[[], Iterator[str]]) -> None:
    tried = faults.tally(campaign)
    print(f"{tried.total()} fault states tried: {dict(tried)}")
    assert tried.total() >= AT_LEAST[campaign]


def test_d1_a_failed_sync_is_heard_of() -> None:
    tried = faults.tally(faults.failing_syncs)
    ended = sum(count for kind, count in tried.items() if kind.endswith("the log ends"))
    assert ended > 0.9 * tried.total()


def test_the_stories_take_every_kind_of_step() -> None:
    taken = {story: Counter(faults._history(play)) for story, play in STORIES.items()}
    assert all(set(Operation) - {Operation.REMOVE} <= set(steps) for steps in taken.values())
    for story in ("snapshot taken", "snapshot installed", "compaction"):
        assert taken[story][Operation.REMOVE] >= 3
