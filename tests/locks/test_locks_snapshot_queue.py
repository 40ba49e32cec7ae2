"""SAFETY G5, C9: a queue comes out of a snapshot in the order in which it went in."""

import pytest

from tests.locks.cluster_state import ClusterState
from tests.locks.test_locks_snapshot import reloaded

SESSIONS = ("s1", "s2", "s3", "s4")


@pytest.mark.parametrize("order", [("s4", "s2", "s3"), ("s2", "s3", "s4"), ("s3", "s4", "s2")])
def test_g5_who_came_first_is_first_after_a_snapshot_whatever_session_is_older(
    order: tuple[str, ...],
) -> None:
    cluster = ClusterState()
    for session in SESSIONS:
        cluster.open(session)
    token, holder = cluster.acquire("a", "s1").granted.token, "s1"
    calls = {session: cluster.acquire("a", session, wait_ms=60_000) for session in order}
    reloaded(cluster)
    for count, session in enumerate(order, start=1):
        assert cluster.release("a", token, holder) == 1
        assert {name for name, call in calls.items() if not call.waits} == {*order[:count]}
        token, holder = calls[session].granted.token, session
