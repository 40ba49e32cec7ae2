"""G5, G10: shared locks and semaphores: who may hold together, in which order, and how they are refused."""

import pytest

from lockd.locks.commands import (
    EXCLUSIVE,
    SEMAPHORE,
    SHARED,
    WAIT_FOREVER,
    Acquire,
    Refused,
)
from lockd.locks.limits import Limits
from tests.locks.cluster_state import Call, ClusterState

SESSIONS = tuple(f"s{number}" for number in range(1, 7))


def opened(limits: Limits | None = None) -> ClusterState:
    cluster = ClusterState(limits)
    for session in SESSIONS:
        cluster.open(session)
    return cluster


def ask(
    cluster: ClusterState,
    session: str,
    *,
    mode: str = EXCLUSIVE,
    limit: int = 0,
    weight: int = 1,
    wait_ms: int = WAIT_FOREVER,
    request: int = 0,
) -> Call:
    wish = Acquire("a", 0, wait_ms, "", mode=mode, limit=limit, weight=weight)
    return cluster.send(wish, session=session, request=request)


def share(cluster: ClusterState, session: str) -> Call:
    return ask(cluster, session, mode=SHARED)


def test_shared_grants_live_together_each_with_a_token_of_its_own() -> None:
    """P2, G10."""
    cluster = opened()
    first, second = share(cluster, "s1").granted, share(cluster, "s2").granted
    assert (first.mode, second.mode) == (SHARED, SHARED)
    assert second.token == first.token + 1
    assert first.is_fencing
    view = cluster.machine.inspect("a")
    assert (view.mode, [holder.session_number for holder in view.holders]) == (SHARED, [1, 2])


def test_g5_shared_requests_do_not_overtake_a_waiting_exclusive_one() -> None:
    cluster = opened()
    reader = share(cluster, "s1").granted
    writer = ask(cluster, "s2")
    late = share(cluster, "s3")
    assert writer.waits
    assert late.waits
    assert ask(cluster, "s4", mode=SHARED, wait_ms=0).refused.code == "BUSY"
    cluster.release("a", reader.token, "s1")
    assert late.waits
    cluster.release("a", writer.granted.token, "s2")
    assert late.granted.token > writer.granted.token


def test_g5_one_release_lets_in_all_shared_ones_up_to_the_next_exclusive() -> None:
    cluster = opened()
    writer = ask(cluster, "s1").granted
    calls = [share(cluster, "s2"), share(cluster, "s3"), ask(cluster, "s4"), share(cluster, "s5")]
    cluster.release("a", writer.token, "s1")
    assert [call.waits for call in calls] == [False, False, True, True]


def test_g5_a_withdrawn_exclusive_wait_lets_in_those_behind_it() -> None:
    cluster = opened()
    share(cluster, "s1")
    cluster.send(Acquire("a", 0, 500, ""), session="s2", request=7)
    late = share(cluster, "s3")
    cluster.cancel("a", "s2", 7)
    assert late.granted.mode == SHARED


def test_a_semaphore_is_held_by_weight_and_does_not_fence() -> None:
    cluster = opened()
    heavy = ask(cluster, "s1", limit=3, weight=2).granted
    assert (heavy.mode, heavy.limit, heavy.weight, heavy.is_fencing) == (SEMAPHORE, 3, 2, False)
    ask(cluster, "s2", limit=3)
    refused = ask(cluster, "s3", limit=3, wait_ms=0).refused
    assert refused.code == "BUSY"
    assert "3 of 3 units" in refused.text
    view = cluster.machine.inspect("a")
    assert (view.mode, view.limit, view.used) == (SEMAPHORE, 3, 3)


def test_g5_a_heavy_waiter_is_not_overtaken_by_a_light_one() -> None:
    cluster = opened()
    first = ask(cluster, "s1", limit=3).granted
    ask(cluster, "s2", limit=3)
    heavy = ask(cluster, "s3", limit=3, weight=2)
    light = ask(cluster, "s4", limit=3)
    assert heavy.waits
    assert light.waits
    cluster.release("a", first.token, "s1")
    assert heavy.granted.weight == 2
    assert light.waits


def test_of_several_holders_a_refusal_names_who_has_held_longest() -> None:
    cluster = ClusterState()
    for session in SESSIONS:
        cluster.open(session, name=f"name of {session}")
    share(cluster, "s2")
    cluster.pass_ms(100)
    share(cluster, "s1")
    waiting = ask(cluster, "s3", wait_ms=300)
    busy = ask(cluster, "s4", wait_ms=0).refused
    assert (busy.holder, busy.held_ms, busy.queue_length) == ("name of s2", 100, 1)
    cluster.pass_ms(300)
    late = waiting.refused
    assert (late.code, late.holder, late.held_ms, late.queue_length) == ("TIMEOUT", "name of s2", 400, 0)


@pytest.mark.parametrize(("was", "asks"), [(3, 4), (3, 0), (0, 3)])
def test_g5_the_limit_is_fixed_until_nobody_holds_or_waits(was: int, asks: int) -> None:
    cluster = opened()
    held = ask(cluster, "s1", limit=was).granted
    refused = ask(cluster, "s2", limit=asks).refused
    assert refused.code == "MISMATCH"
    for size in (was, asks):
        assert (f"{size}" if size else "without LIMIT") in refused.text or "no LIMIT" in refused.text
    waiting = ask(cluster, "s3", limit=was, weight=max(was, 1))
    cluster.release("a", held.token, "s1")
    assert ask(cluster, "s2", limit=asks).refused.code == "MISMATCH"
    cluster.release("a", waiting.granted.token, "s3")
    assert ask(cluster, "s2", limit=asks).granted.limit == asks


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        (Acquire("a", 0, 0, "", mode="upgrade"), "neither exclusive nor shared"),
        (Acquire("a", 0, 0, "", mode=SHARED, limit=2), "has no mode"),
        (Acquire("a", 0, 0, "", weight=2), "WEIGHT is more than LIMIT"),
        (Acquire("a", 0, 0, "", limit=2, weight=3), "WEIGHT is more than LIMIT"),
        (Acquire("a", 0, 0, "", weight=0), "WEIGHT 0"),
        (Acquire("a", 0, 0, "", limit=-1), "negative"),
        (Acquire("a", 0, 0, "", mode=SHARED, delay_ms=1), "DELAY is for exclusive"),
        (Acquire("a", 0, 0, "", limit=2, delay_ms=1), "DELAY is for exclusive"),
        (Acquire("a", 0, 0, "", limit=10**9), "LIMIT: 1000000000, at most"),
        (Acquire("a", 0, 0, "", max_hold_ms=10**12), "MAXHOLD"),
        (Acquire("a", 0, 0, "", delay_ms=10**12), "DELAY"),
    ],
)
def test_p6_what_makes_no_sense_is_refused_and_changes_nothing(wish: Acquire, says: str) -> None:
    cluster = opened()
    refused: Refused = cluster.send(wish, session="s1", request=1).refused
    assert refused.code in ("ERR", "LIMIT")
    assert says in refused.text
    assert cluster.send(Acquire("a", 0, 0, ""), session="s1", request=1).granted.token == 1


def test_an_owner_may_hold_several_units() -> None:
    cluster = opened()
    tokens = {ask(cluster, "s1", limit=3, request=number).granted.token for number in (1, 2, 3)}
    assert len(tokens) == 3
    assert ask(cluster, "s1", limit=3, wait_ms=0, request=4).refused.code == "BUSY"
