"""The pure core: deadlines, states, re-entry. Times are numbers that the test turns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockd.client.demand import Demand, LockMode
from lockd.client.lease import Grant, LeaseState, LeaseView, Trust, inherited_grant, margin
from lockd.client.session import ATTEMPTS_PER_TTL, Session
from lockd.errors import LeaseLost
from lockd.ids import ClusterId, Fence, FencingToken, Incarnation, SessionId

CLUSTER, INCARNATION = "c" * 32, "1" * 8


def a_session(*, sent_at: float = 100.0, ttl: float = 10.0) -> Session:
    return Session(SessionId("a" * 32), sent_at=sent_at, ttl=ttl)


def a_grant(session: Session, *, lock: str = "k", token: int = 7) -> Grant:
    fence = Fence(ClusterId(CLUSTER), Incarnation(INCARNATION), FencingToken(token))
    grant, tell = session.granted(Demand(locks=(lock,)), owner="thread-1", fence=fence)
    assert tell == []
    session.check_invariants()
    return grant


def end(session: Session, because: str = "the cluster said so") -> None:
    for tell in session.end(because):
        tell()
    session.check_invariants()


class Clock:
    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("ttl", "expected"), [(1.0, 0.1), (5.0, 0.1), (10.0, 0.2), (60.0, 1.2)])
def test_k1_the_margin_is_the_larger_of_a_fixed_part_and_two_percent(ttl: float, expected: float) -> None:
    assert margin(ttl) == pytest.approx(expected)


def test_k1_the_deadline_counts_from_before_the_request_was_sent() -> None:
    trust = Trust(sent_at=100.0, ttl=10.0)
    assert trust.deadline == pytest.approx(109.8)
    # The answer came 3 s after the question: they are the lease's loss, not the cluster's.
    assert trust.renewed(sent_at=105.0, ttl=10.0, now=108.0)
    assert trust.remaining(108.0) == pytest.approx(6.8)


def test_k1_held_compares_the_clock_and_is_no_flag() -> None:
    session = a_session()
    grant = a_grant(session)
    assert grant.state(109.7) is LeaseState.HELD
    assert grant.state(109.81) is LeaseState.LOST  # nobody told it anything
    with pytest.raises(LeaseLost):
        grant.check(109.81)


def test_k1_a_grant_starts_no_deadline_of_its_own() -> None:
    session = a_session()
    early = a_grant(session, token=7)
    late = a_grant(session, lock="l", token=8)  # answered at 109.7, say, after a wait or again
    assert late.remaining(109.7) == early.remaining(109.7) == pytest.approx(0.1)


def test_k3_a_renewal_that_is_answered_too_late_brings_nothing_back() -> None:
    """It was sent in time, but somebody may have asked in between and been told "lost" (S28)."""
    session = a_session()
    grant = a_grant(session)
    assert not session.renewed(sent_at=109.0, ttl=10.0, now=109.9)
    assert grant.state(109.9) is LeaseState.LOST


def test_a_late_answer_to_an_early_renewal_shortens_nothing() -> None:
    session = a_session()
    assert session.renewed(sent_at=104.0, ttl=10.0, now=104.1)
    assert session.renewed(sent_at=102.0, ttl=10.0, now=104.2)
    assert session.trust.deadline == pytest.approx(113.8)
    assert session.renew_at() == pytest.approx(104.0 + 10 / 3)


def test_k2_a_lost_connection_suspends_and_only_the_deadline_loses() -> None:
    session = a_session()
    grant = a_grant(session)
    session.suspend()
    assert grant.state(105.0) is LeaseState.SUSPENDED
    assert grant.remaining(105.0) == pytest.approx(4.8)
    assert session.renewed(sent_at=106.0, ttl=10.0, now=106.1)
    assert grant.state(107.0) is LeaseState.HELD
    session.suspend()
    assert grant.state(116.0) is LeaseState.LOST


def test_k2_one_attempt_is_shorter_than_a_third_of_the_ttl() -> None:
    assert ATTEMPTS_PER_TTL > 3


def test_k3_all_leases_of_a_session_end_with_it_and_each_is_told_once() -> None:
    session = a_session()
    grants = [a_grant(session, lock=f"k{token}", token=token) for token in (7, 8)]
    told: list[int] = []
    for grant in grants:
        grant.on_over(lambda token=grant.token: told.append(token))  # type: ignore[misc]
    end(session)
    end(session, "again")
    assert sorted(told) == [7, 8]
    assert all(grant.state(101.0) is LeaseState.LOST for grant in grants)
    assert "the cluster said so" in str(grants[0].lost_error())
    assert not session.may_be_relied_on(101.0)


def test_who_asks_late_is_told_at_once() -> None:
    session = a_session()
    grant = a_grant(session)
    end(session)
    told: list[str] = []
    grant.on_over(lambda: told.append("over"))
    assert told == ["over"]


def test_reentry_is_counted_and_only_the_last_leaving_releases() -> None:
    grant = a_grant(a_session())
    grant.enter(101.0)
    assert not grant.leave()
    assert grant.state(101.0) is LeaseState.HELD
    assert grant.leave()
    assert grant.release(101.0)
    assert grant.state(101.0) is LeaseState.RELEASED
    assert not grant.release(101.0)


def test_k3_a_lost_lease_is_not_entered_again() -> None:
    grant = a_grant(a_session())
    with pytest.raises(LeaseLost) as lost:
        grant.enter(120.0)
    assert (lost.value.lock, lost.value.token) == ("k", 7)


def test_a_released_lease_ends_with_its_entry_and_is_not_lost() -> None:
    session, clock = a_session(), Clock()
    grant = a_grant(session)
    outer, inner = LeaseView(grant, clock), LeaseView(grant, clock)
    grant.enter(clock())
    told: list[str] = []
    inner.on_lost(lambda: told.append("lost"))
    assert inner.leave()
    assert not inner.leave()
    assert (inner.state, inner.remaining(), inner.lost) == (LeaseState.RELEASED, 0.0, False)
    assert outer.state is LeaseState.HELD
    end(session)
    assert (outer.lost, inner.lost, told) == (True, False, [])


def test_an_entry_that_was_released_is_not_told_of_a_later_loss_though_nobody_has_it_any_more() -> None:
    session, clock = a_session(), Clock()
    grant = a_grant(session)
    told: list[str] = []

    def enter(name: str) -> LeaseView:
        grant.enter(clock())
        view = LeaseView(grant, clock)
        view.on_lost(lambda: told.append(name))
        return view

    enter("released").leave()
    enter("dropped")
    end(session)
    assert told == ["dropped"]


def test_a_view_tells_what_storage_needs() -> None:
    clock = Clock()
    lease = LeaseView(a_grant(a_session()), clock)
    assert (lease.lock, lease.token, lease.fence) == ("k", 7, f"{CLUSTER}/{INCARNATION}/7")
    assert (lease.cluster, lease.incarnation) == (CLUSTER, INCARNATION)
    assert lease.remaining() == pytest.approx(9.8)
    assert lease.assured(5.0)
    clock.now = 105.0
    assert not lease.assured(5.0)
    with pytest.raises(ValueError, match="no renewal can give"):
        lease.assured(9.9)


def test_requests_grow_within_a_session() -> None:
    session = a_session()
    assert [session.next_request() for _ in range(3)] == [1, 2, 3]


@given(
    ttl=st.floats(0.5, 100),
    steps=st.lists(st.tuples(st.floats(0, 30), st.floats(0, 30), st.booleans()), max_size=30),
)
def test_k1_k3_whatever_happens_the_cluster_outlasts_the_client(
    ttl: float, steps: list[tuple[float, float, bool]]
) -> None:
    """The server counts the TTL from when it took a renewal up, which is not before it was sent."""
    now = 0.0
    trust = Trust(sent_at=0.0, ttl=ttl)
    last_sent, was_lost = 0.0, False
    for pause, delay, is_answered in steps:
        now += pause
        was_lost = was_lost or trust.remaining(now) <= 0.0
        sent_at, now = now, now + delay
        if is_answered:
            last_sent = sent_at  # the cluster took it up at the earliest moment
            trust.renewed(sent_at=sent_at, ttl=ttl, now=now)
        was_lost = was_lost or trust.remaining(now) <= 0.0
        assert not (was_lost and trust.remaining(now) > 0.0), "a lost lease came back"
        assert now + trust.remaining(now) <= max(now, last_sent + ttl - margin(ttl)) + 1e-9


ENVIRONMENT = {"LOCKD_LOCK": "k", "LOCKD_FENCE": f"{CLUSTER}/{INCARNATION}/7", "LOCKD_TTL_MS": "9000"}


def test_a_child_of_lockd_run_has_the_lease_of_its_parent() -> None:
    lease = LeaseView(inherited_grant(ENVIRONMENT), Clock())
    assert (lease.lock, lease.token, lease.fence) == ("k", 7, ENVIRONMENT["LOCKD_FENCE"])
    assert lease.remaining() == pytest.approx(6.0 - 0.18)
    assert lease.state is LeaseState.HELD
    assert lease.mode is LockMode.EXCLUSIVE
    assert (
        LeaseView(inherited_grant({**ENVIRONMENT, "LOCKD_MODE": "shared"}), Clock()).mode is LockMode.SHARED
    )


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("LOCKD_LOCK", "", "LOCKD_LOCK not set"),
        ("LOCKD_FENCE", "", "LOCKD_FENCE not set"),
        ("LOCKD_FENCE", "7", "is not a fence"),
        ("LOCKD_TTL_MS", "ten", "not a whole number"),
        ("LOCKD_TTL_MS", "0", "not between"),
        ("LOCKD_MODE", "both", "not a valid LockMode"),
    ],
)
def test_a_wrong_environment_is_named(name: str, value: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        inherited_grant(ENVIRONMENT | {name: value})
