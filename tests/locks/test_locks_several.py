"""G5: several locks in one request: all or nothing, one ticket, one token."""

import pytest

from lockd.locks.commands import WAIT_FOREVER, AcquireAll, ReleaseAll
from lockd.locks.limits import Limits
from tests.locks.cluster_state import Call, ClusterState


def opened(limits: Limits | None = None) -> ClusterState:
    cluster = ClusterState(limits)
    for session in ("s1", "s2", "s3", "s4"):
        cluster.open(session)
    return cluster


def ask(
    cluster: ClusterState, session: str, *names: str, wait_ms: int = WAIT_FOREVER, request: int = 0
) -> Call:
    return cluster.send(AcquireAll(names, wait_ms, ""), session=session, request=request)


def test_all_at_once_under_one_token() -> None:
    """P2."""
    cluster = opened()
    granted = ask(cluster, "s1", "b", "a").granted
    assert (granted.lock, granted.locks, granted.token) == ("a", ("a", "b"), 1)
    assert [cluster.holder_token(name) for name in "ab"] == [1, 1]
    assert [event.lock for event in cluster.machine.events] == ["a", "b"]
    assert granted.revision == cluster.machine.revision == 2
    assert cluster.acquire("a", "s2", wait_ms=0).refused.code == "BUSY"


def test_nothing_is_held_until_all_can_be() -> None:
    cluster = opened()
    held = cluster.acquire("b", "s1").granted
    both = ask(cluster, "s2", "a", "b")
    assert both.waits
    assert cluster.machine.inspect("a").status == "free"
    cluster.release("b", held.token, "s1")
    assert both.granted.locks == ("a", "b")


def test_g5_until_then_it_blocks_those_behind_it_in_every_queue() -> None:
    cluster = opened()
    held = cluster.acquire("b", "s1").granted
    both = ask(cluster, "s2", "a", "b", request=1)
    behind = cluster.acquire("a", "s3")
    assert behind.waits, "G5: it stands behind one that can't be granted yet"
    cluster.release("b", held.token, "s1")
    assert not both.waits
    assert behind.waits
    cluster.cancel("a", "s2", 1)
    assert behind.granted.lock == "a"


def test_g5_a_withdrawn_wait_lets_in_those_behind_it_in_every_queue() -> None:
    cluster = opened()
    cluster.acquire("c", "s1")
    ask(cluster, "s2", "a", "b", "c", request=1)
    behind = [cluster.acquire("a", "s3", owner="t"), cluster.acquire("b", "s4", owner="t")]
    assert all(call.waits for call in behind)
    cluster.cancel("b", "s2", 1)
    assert [call.granted.lock for call in behind] == ["a", "b"]


def test_g5_two_that_cross_are_served_one_after_the_other() -> None:
    cluster = opened()
    first = ask(cluster, "s1", "a", "b").granted
    second, third = ask(cluster, "s2", "b", "c"), ask(cluster, "s3", "c", "a")
    assert cluster.send(ReleaseAll(first.token), session="s1").count == 2
    assert second.granted.locks == ("b", "c")
    assert third.waits
    assert cluster.send(ReleaseAll(second.granted.token), session="s2").count == 2
    assert third.granted.locks == ("a", "c")


def test_one_of_several_can_be_given_back_alone() -> None:
    cluster = opened()
    granted = ask(cluster, "s1", "a", "b").granted
    waiter = cluster.acquire("a", "s2")
    assert cluster.release("a", granted.token, "s1") == 1
    assert waiter.granted.lock == "a"
    assert cluster.holder_token("b") == granted.token
    assert cluster.send(ReleaseAll(granted.token), session="s1").count == 1
    assert cluster.send(ReleaseAll(granted.token), session="s1").count == 0


def test_g7_a_stranger_cannot_release_all() -> None:
    cluster = opened()
    granted = ask(cluster, "s1", "a", "b").granted
    assert cluster.send(ReleaseAll(granted.token), session="s2").count == 0
    assert cluster.send(ReleaseAll(granted.token), session="s1", user="bob").refused.code == "NOSESSION"
    assert cluster.holder_token("a") == granted.token


def test_g3_a_retry_finds_its_grant_also_after_a_part_was_given_back() -> None:
    cluster = opened()
    granted = ask(cluster, "s1", "a", "b", request=1).granted
    cluster.release("a", granted.token, "s1")
    again = ask(cluster, "s1", "b", "a", request=1).granted
    assert (again.token, again.locks, again.repeat) == (granted.token, ("b",), True)
    assert ask(cluster, "s1", "c", request=1).refused.code == "ERR"


def test_the_end_of_a_session_frees_all_of_them() -> None:
    cluster = opened()
    ask(cluster, "s1", "a", "b")
    waiters = [cluster.acquire(name, "s2") for name in "ab"]
    cluster.close("s1")
    assert [call.granted.lock for call in waiters] == ["a", "b"]


@pytest.mark.parametrize(
    "names", [(), ("a", ""), ("a", "a"), tuple(f"n{n}" for n in range(101)), ("a", "\n")]
)
def test_p6_names_that_make_no_sense_are_refused(names: tuple[str, ...]) -> None:
    cluster = opened()
    assert ask(cluster, "s1", *names).refused.code in ("ERR", "LIMIT")
    assert cluster.machine.stats.locks == 0


def test_c10_a_full_queue_of_any_of_them_refuses() -> None:
    cluster = opened(Limits(waiters_per_lock_max=1))
    cluster.acquire("a", "s4")
    cluster.acquire("b", "s1")
    cluster.acquire("b", "s2")
    assert ask(cluster, "s3", "a", "b").refused.code == "LIMIT"
    assert cluster.machine.inspect("a").queue_length == 0


def test_g3_a_late_copy_is_one_in_any_of_the_locks() -> None:
    """The owner has asked for one of them since, and what it asked for then stays."""
    cluster = opened()
    cluster.acquire("b", "s1")
    newer = cluster.acquire("b", "s2", request=5)
    assert "superseded" in ask(cluster, "s2", "a", "b", request=4).refused.text
    assert newer.waits
    assert ask(cluster, "s2", "a", "b", request=6).waits
    assert "superseded" in newer.refused.text
