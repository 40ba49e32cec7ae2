"""What an acquisition asks for, as words; and what can't be asked for."""

import pytest

from lockd.client.demand import Demand, LockMode


def a_lock(
    name: str = "k",
    *,
    wait: float | None = None,
    meta: dict[str, object] | None = None,
    shared: bool = False,
    max_hold: float | None = None,
    delay: float | None = None,
) -> Demand:
    return Demand.of_lock(name, wait=wait, meta=meta, shared=shared, max_hold=max_hold, delay=delay)


def semaphore(*, limit: int = 3, weight: int = 1) -> Demand:
    return Demand.of_semaphore("s", limit=limit, weight=weight, wait=0, meta=None, max_hold=None)


def test_a_lock_says_all_that_was_asked_for() -> None:
    demand = a_lock(wait=1.5, meta={"job": 1}, max_hold=60, delay=0.25)
    assert demand.words(("SESSION", "s"), owner="task-1", request=7) == (
        *("LOCK.ACQUIRE", "k", "SESSION", "s", "OWNER", "task-1", "REQUEST", 7, "WAIT", 1500, "NOTIFY"),
        *("META", '{"job":1}', "MAXHOLD", 60_000, "DELAY", 250),
    )
    assert a_lock(shared=True, wait=0).words(("TTL", 1), owner="", request="u")[-2:] == ("MODE", "shared")
    at_once = a_lock(wait=0).words(("TTL", 5000), owner="", request="u")
    assert at_once == ("LOCK.ACQUIRE", "k", "TTL", 5000, "REQUEST", "u")
    assert a_lock().words(("TTL", 1), owner="", request="u")[-3:] == ("WAIT", "FOREVER", "NOTIFY")


def test_a_semaphore_says_its_limit_and_weight() -> None:
    assert semaphore(weight=2).words(("SESSION", "s"), owner="o", request=1)[-4:] == ("LIMIT", 3, "WEIGHT", 2)


def test_several_locks_are_named_once_each_at_the_end() -> None:
    demand = Demand.of_all(["b", "a", "b"], wait=2, meta=None)
    assert (demand.locks, demand.lock) == (("a", "b"), "a")
    assert demand.words(("SESSION", "s"), owner="o", request=1) == (
        *("LOCK.ACQUIREALL", "SESSION", "s", "OWNER", "o", "REQUEST", 1, "WAIT", 2000, "NOTIFY"),
        *(2, "a", "b"),
    )


def test_what_an_owner_may_enter_again_is_the_same_locks_in_the_same_mode() -> None:
    assert a_lock().reentry == a_lock(wait=3, max_hold=9).reentry
    several = Demand.of_all(["a", "b"], wait=None, meta=None)
    assert several.reentry == Demand.of_all(["b", "a"], wait=None, meta=None).reentry
    different = [
        a_lock(),
        a_lock(shared=True),
        a_lock("l"),
        several,
        Demand.of_all(["k"], wait=None, meta=None),
    ]
    assert len({demand.reentry for demand in different}) == len(different)
    assert semaphore().reentry is None


def test_modes_are_their_words() -> None:
    assert [f"{mode}" for mode in LockMode] == ["exclusive", "shared", "semaphore"]


def test_what_cannot_be_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match="not empty"):
        a_lock("")
    for wait in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="wait is in seconds"):
            a_lock(wait=wait)
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="max_hold is in seconds"):
            a_lock(max_hold=seconds)
        with pytest.raises(ValueError, match="delay is in seconds"):
            a_lock(delay=seconds)
    with pytest.raises(ValueError, match="exclusive locks"):
        a_lock(shared=True, delay=1)
    for weight, limit in ((0, 3), (4, 3), (1, 0)):
        with pytest.raises(ValueError, match="between 1 and the limit"):
            semaphore(limit=limit, weight=weight)
    with pytest.raises(ValueError, match="at least one"):
        Demand.of_all([], wait=None, meta=None)
    with pytest.raises(TypeError, match="a list of names"):
        Demand.of_all("ab", wait=None, meta=None)
    with pytest.raises(ValueError, match="not empty"):
        a_lock().named("")
