"""Two hundred seeds of the whole cluster; see the package's text for what is checked."""

import pytest

from tests.sim.run import LEADER_CHANGES_MIN, simulate

SEEDS = 200


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_rule_holds_and_the_seed_is_worth_running(seed: int) -> None:
    """P1 to P3, T1 to T3, C6, G4, election safety, log matching, state machine safety, under faults."""
    report = simulate(seed)
    assert report.leader_changes >= LEADER_CHANGES_MIN
    assert report.met["grants answered"] > 0
    assert report.met["reads"] > 0
