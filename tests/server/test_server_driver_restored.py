"""G2: the first leader after a restore, and the one after it, keep to the quiet period and end it."""

import pytest

from lockd.locks.commands import Acquire, Granted, Refused
from tests.server.cluster import Cluster

QUIET_MS = 20_000


def restored_cluster() -> Cluster:
    """Three nodes whose state says that nothing may be granted yet."""
    cluster = Cluster()
    for member in cluster.members.values():
        member.driver.machine.state.begin_quiet_period(QUIET_MS)
    return cluster


@pytest.mark.parametrize("leaders", [(1,), (1, 3)])
def test_g2_waits_are_granted_when_the_quiet_period_is_over(leaders: tuple[int, ...]) -> None:
    """Without a command that would move the clock: the leader logs the end by itself."""
    cluster = restored_cluster()
    cluster.elect(1)
    cluster.open_session(2, "s1", ttl_ms=600_000)
    waiting = cluster.acquire(2, "a", "s1")
    at_once = cluster.ask(2, Acquire("b", 0, 0, ""), session="s1", request=9)
    for leader in leaders:
        cluster.elect(leader)
        cluster.pass_ms(QUIET_MS // 2 - 1_000)
    assert [type(outcome) for outcome in at_once] == [Refused]
    assert isinstance(at_once[0], Refused)
    assert at_once[0].code == "UNAVAILABLE"
    assert not any(isinstance(outcome, Granted) for outcome in waiting)
    assert all(member.driver.machine.grants_from_ms for member in cluster.members.values())
    cluster.pass_ms(QUIET_MS)
    assert isinstance(waiting[-1], Granted)
    assert not any(member.driver.machine.grants_from_ms for member in cluster.members.values())
    again = cluster.ask(2, Acquire("b", 0, 0, ""), session="s1", request=9)
    cluster.settle()
    assert isinstance(again[-1], Granted)
