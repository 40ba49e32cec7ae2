"""P1, P2: clients of all kinds while leaders are killed; and that what judges them sees what it must."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.nemesis.mixed import SHARES, run
from tests.nemesis.trust import Grant, check_exclusion, check_order

GRANT = Grant("thread", "c1", ("m1",), "exclusive", 0, 1, 5, asked_s=1.0, told_s=2.0, trusted_until_s=4.0)


def test_p1_p2_clients_of_all_kinds_while_leaders_are_killed(tmp_path: Path) -> None:
    report = run(tmp_path, clients=16, kills=2, kill_every=5.0, seed=1)
    assert report.grants.total() > 100
    assert set(report.grants) == set(SHARES), "each kind was granted something"
    assert {"exclusive", "shared", "semaphore"} == set(report.modes)


@pytest.mark.parametrize(
    "other",
    [
        replace(GRANT, client="c2"),
        replace(GRANT, client="c2", token=4, asked_s=2.5, told_s=3.0),
        replace(GRANT, client="c2", locks=("other",), token=4, asked_s=2.5, told_s=3.0),
    ],
)
def test_p2_a_token_that_comes_twice_or_late_is_seen(other: Grant) -> None:
    with pytest.raises(AssertionError, match="P2"):
        check_order([GRANT, other])


def test_p2_grants_that_were_asked_for_at_one_time_have_no_order() -> None:
    check_order([GRANT, replace(GRANT, token=4, asked_s=1.5, told_s=3.0)])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"token": 6, "told_s": 3.0}),
        ({"mode": "shared"}, {"token": 6, "told_s": 3.0}),
        ({}, {"token": 6, "told_s": 3.0, "mode": "shared"}),
        ({}, {"token": 6, "told_s": 3.0, "locks": ("m0", "m1")}),
        ({"mode": "semaphore", "limit": 2}, {"mode": "semaphore", "limit": 2, "weight": 2, "token": 6}),
    ],
)
def test_p1_two_that_exclude_each_other_are_seen(one: dict[str, object], other: dict[str, object]) -> None:
    with pytest.raises(AssertionError, match="P1"):
        check_exclusion([replace(GRANT, **one), replace(GRANT, client="c2", **other)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"token": 6, "told_s": 4.0, "trusted_until_s": 5.0}),
        ({"mode": "shared"}, {"mode": "shared", "token": 6}),
        ({}, {"token": 6, "locks": ("m2",)}),
        ({}, {"token": 6, "trusted_until_s": 1.0}),
        ({"mode": "semaphore", "limit": 3}, {"mode": "semaphore", "limit": 3, "weight": 2, "token": 6}),
    ],
)
def test_p1_two_that_do_not_are_let_pass(one: dict[str, object], other: dict[str, object]) -> None:
    check_exclusion([replace(GRANT, **one), replace(GRANT, client="c2", **other)])  # type: ignore[arg-type]
