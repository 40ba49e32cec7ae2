"""Sessions: whose they are, what ends with them, and that private ones start at the grant."""

import pytest

from lockd.ids import SessionId
from lockd.locks.commands import (
    AcquireAll,
    Changed,
    ClearSilent,
    CreateCluster,
    ExpireSessions,
    Granted,
    MarkSilent,
    OpenSession,
    Release,
    SessionOpened,
)
from lockd.locks.events import LeaseChange, LeaseEvent
from lockd.locks.limits import Limits
from tests.locks.cluster_state import ClusterState


@pytest.fixture
def state() -> ClusterState:
    return ClusterState()


def expire(*sessions: str) -> ExpireSessions:
    return ExpireSessions(sessions)


def test_a_session_is_opened_with_its_ttl_between_floor_and_ceiling(state: ClusterState) -> None:
    limits = Limits()
    assert limits.ttl_ms_max == 3_600_000
    assert state.open("s1", ttl_ms=5_000).last == SessionOpened("s1", 5_000)
    assert state.open("s2", ttl_ms=1).last == SessionOpened("s2", limits.ttl_ms_min)
    assert state.open("s3", ttl_ms=10**18).last == SessionOpened("s3", limits.ttl_ms_max)
    assert state.open("s4", ttl_ms=-5).last == SessionOpened("s4", limits.ttl_ms_min)


def test_sessions_have_public_numbers_that_count_up(state: ClusterState) -> None:
    for name in ("z", "a", "m"):
        state.open(name)
    state.close("a")
    state.open("b")
    numbers = {view.id: view.number for view in state.machine.lease_sessions()}
    assert numbers == {"b": 4, "m": 3, "z": 1}
    assert list(numbers) == sorted(numbers), "T2: in one order on every node"


def test_opening_twice_is_answered_again_and_another_user_is_refused(state: ClusterState) -> None:
    state.open("s1", ttl_ms=5_000)
    assert state.open("s1", ttl_ms=9_000).last == SessionOpened("s1", 5_000)
    assert state.open("s1", user="bob").refused.code == "ERR"
    assert state.open("").refused.code == "ERR"


def test_a_session_belongs_to_its_user(state: ClusterState) -> None:
    """G11: every command carries who asked."""
    state.open("s1")
    state.acquire("a", "s1", request=1)
    assert state.acquire("b", "s1", user="bob").refused.code == "NOSESSION"
    assert state.close("s1", user="bob").refused.code == "NOSESSION"
    assert state.cancel("a", "s1", 1, user="bob").refused.code == "NOSESSION"
    assert state.send(ClearSilent(), session="s1", user="bob").refused.code == "NOSESSION"
    assert state.send(Release("a", 1), session="s1", user="bob").refused.code == "NOSESSION"
    assert state.holder_token("a") == 1


def test_commands_of_a_session_that_is_gone(state: ClusterState) -> None:
    assert state.acquire("a", "gone").refused.code == "NOSESSION"
    assert state.close("gone").count == 0
    assert state.release("a", 1, "gone") == 0
    assert state.send(ClearSilent(), session="gone").refused.code == "NOSESSION"


def test_closing_frees_locks_in_sorted_order(state: ClusterState) -> None:
    """G6: lessor.Revoke sorts its keys, or replicas differ."""
    state.open("s1")
    state.open("s2")
    for lock in ("c", "a", "b"):
        state.acquire(lock, "s1")
    waiters = {lock: state.acquire(lock, "s2") for lock in ("b", "c", "a")}
    assert state.close("s1").count == 1
    assert [waiters[lock].granted.token for lock in ("a", "b", "c")] == [4, 5, 6]
    assert state.close("s1").count == 0


def test_a_waiter_of_an_ended_session_is_told_at_once(state: ClusterState) -> None:
    """etcd#11456: a blocked Lock must not hang, or succeed, when its own lease has expired."""
    state.open("s1")
    state.open("s2")
    state.acquire("a", "s1")
    waiter = state.acquire("a", "s2")
    state.send(expire("s2"), user="")
    assert waiter.refused.code == "NOSESSION"
    state.release("a", 1, "s1")
    assert state.machine.stats.locks == 0


def test_an_ending_session_grants_nothing_to_itself(state: ClusterState) -> None:
    state.open("s1")
    state.open("s2")
    state.acquire("a", "s1", owner="t1")
    own = state.acquire("a", "s1", owner="t2")
    other = state.acquire("a", "s2")
    state.send(expire("s1"), user="")
    assert own.refused.code == "NOSESSION"
    assert other.granted.token == 2, "P2: no token is spent on a session that ends"


def test_t1_expiry_is_a_command_and_ends_what_is_left_of_the_choice_sorted(state: ClusterState) -> None:
    for session in ("s3", "s1", "s2"):
        state.open(session)
    state.acquire("a", "s2")
    state.acquire("b", "s1")
    state.pass_ms(10 * 86_400_000)
    assert state.machine.stats.sessions == 3, "T1: no passing of time ends a session"
    waits = [state.acquire(lock, "s3", owner=lock) for lock in ("a", "b")]
    assert state.send(expire("s2", "gone", "s1", "s1"), user="").last == Changed(2)
    assert [call.granted.token for call in waits] == [4, 3], "b first, since s1 ends before s2"


def test_the_ttl_of_a_private_session_starts_at_the_grant(state: ClusterState) -> None:
    state.open("s1")
    state.acquire("a", "s1")
    waiter = state.acquire("a", "p1", ttl_ms=4_000)
    assert [(v.id, v.lease_running) for v in state.machine.lease_sessions()] == [("p1", False), ("s1", True)]
    assert state.machine.lease_changes == []
    state.release("a", 1, "s1")
    assert waiter.granted == Granted("a", "p1", 2, 3, 4_000, repeat=True, locks=("a",))
    assert state.machine.lease_changes == [LeaseChange(LeaseEvent.BEGAN, SessionId("p1"), 4_000)]
    view = state.machine.session(SessionId("p1"))
    assert view is not None
    assert view.lease_running


def test_a_private_session_that_gets_nothing_leaves_nothing(state: ClusterState) -> None:
    state.open("s1")
    state.acquire("a", "s1")
    waiter = state.acquire("a", "p1", ttl_ms=4_000, wait_ms=100)
    state.pass_ms(100)
    assert waiter.refused.code == "TIMEOUT"
    assert state.machine.stats.sessions == 1
    assert state.machine.lease_changes == [LeaseChange(LeaseEvent.ENDED, SessionId("p1"), 4_000)]


def test_a_private_session_can_be_closed_and_expired(state: ClusterState) -> None:
    for end in ("close", "expire"):
        state.acquire("a", f"p-{end}", ttl_ms=4_000)
        if end == "close":
            state.close("p-close")
        else:
            state.send(expire("p-expire"), user="")
        assert state.holder_token("a") == 0


def test_the_lease_book_learns_what_began_and_ended(state: ClusterState) -> None:
    state.open("s1", ttl_ms=5_000)
    assert state.machine.lease_changes == [LeaseChange(LeaseEvent.BEGAN, SessionId("s1"), 5_000)]
    state.acquire("a", "p1", ttl_ms=2_000)
    assert state.machine.lease_changes == [LeaseChange(LeaseEvent.BEGAN, SessionId("p1"), 2_000)]
    state.release("a", 1, "p1")
    assert state.machine.lease_changes == [LeaseChange(LeaseEvent.ENDED, SessionId("p1"), 2_000)]
    state.send(expire("s1"), user="")
    assert state.machine.lease_changes == [LeaseChange(LeaseEvent.ENDED, SessionId("s1"), 5_000)]


def test_t2_a_silence_is_marked_and_cleared_through_the_log(state: ClusterState) -> None:
    state.open("s1", ttl_ms=5_000)
    assert state.send(MarkSilent((("s1", 3_000), ("gone", 1))), user="").count == 1
    assert next(state.machine.lease_sessions()).silent_ms == 3_000
    assert state.send(ClearSilent(), session="s1").last == SessionOpened("s1", 5_000)
    assert state.machine.lease_changes == [LeaseChange(LeaseEvent.CLEARED, SessionId("s1"), 5_000)]
    assert next(state.machine.lease_sessions()).silent_ms == 0


def test_a_marked_silence_stays_within_the_ttl(state: ClusterState) -> None:
    state.open("s1", ttl_ms=5_000)
    state.send(MarkSilent((("s1", 10**12),)), user="")
    assert next(state.machine.lease_sessions()).silent_ms == 5_000
    state.send(MarkSilent((("s1", -7),)), user="")
    assert next(state.machine.lease_sessions()).silent_ms == 0


def test_c8_the_first_cluster_identity_stays(state: ClusterState) -> None:
    assert state.send(CreateCluster("c" * 32, "1" * 8), user="").count == 1
    assert state.send(CreateCluster("d" * 32, "2" * 8), user="").count == 0
    assert (state.machine.cluster, state.machine.incarnation) == ("c" * 32, "1" * 8)


def test_limits_are_named_when_they_refuse() -> None:
    state = ClusterState(Limits(sessions_max=2, waiters_per_lock_max=1, requests_per_session_max=3))
    state.open("s1")
    state.open("s2")
    refused = state.open("s3").refused
    assert (refused.code, refused.text) == ("LIMIT", "sessions: 3, at most 2")
    assert state.acquire("a", "p1", ttl_ms=1_000).refused.text == "sessions: 3, at most 2"
    state.acquire("a", "s1")
    state.acquire("a", "s2")
    assert state.acquire("a", "s2", owner="t").refused.text == "waiters of a lock: 2, at most 1"
    state.acquire("b", "s1")
    state.acquire("c", "s1")
    assert state.acquire("d", "s1").refused.text == "locks held and waited for in a session: 4, at most 3"


def test_c10_a_request_for_several_locks_counts_for_each_of_them() -> None:
    """A session with 100,000 requests for 100 locks each held what nobody had counted."""
    state = ClusterState(Limits(requests_per_session_max=3))
    state.open("s1")
    text = "locks held and waited for in a session: 4, at most 3"
    assert state.send(AcquireAll(("a", "b", "c", "d"), 0, ""), session="s1").refused.text == text
    token = state.send(AcquireAll(("a", "b"), 0, ""), session="s1").granted.token
    assert state.send(AcquireAll(("c", "d"), 0, ""), session="s1").refused.text == text
    state.release("b", token, "s1")
    assert state.send(AcquireAll(("c", "d"), 0, ""), session="s1").granted.locks == ("c", "d")
    assert state.acquire("e", "s1").refused.code == "LIMIT"


@pytest.mark.parametrize(
    ("lock", "code"),
    [
        ("", "ERR"),
        ("a" * 512, ""),
        ("a" * 513, "LIMIT"),
        ("é" * 256, ""),
        ("é" * 257, "LIMIT"),
        ("line\nbreak", "ERR"),
        ("c1 \x85 control", "ERR"),
        ("\x7f", "ERR"),
        ("half a pair \ud800", "ERR"),
        ("two words, 'quotes' and ünïcödé ✓", ""),
    ],
)
def test_lock_names(state: ClusterState, lock: str, code: str) -> None:
    state.open("s1")
    outcome = state.acquire(lock, "s1").last
    assert (outcome.code if not isinstance(outcome, Granted) else "") == code  # type: ignore[union-attr]


def test_names_are_compared_as_they_are_written(state: ClusterState) -> None:
    """G6: no case or Unicode folding: composed and decomposed é are two locks."""
    state.open("s1")
    for name in ("é", "e\u0301", "E", "e"):
        assert isinstance(state.acquire(name, "s1", wait_ms=0).last, Granted)


def test_other_texts_have_limits_too(state: ClusterState) -> None:
    state.open("s1")
    assert state.acquire("a", "s1", meta="x" * 4097).refused.code == "LIMIT"
    assert state.acquire("a", "s1", owner="x" * 257).refused.code == "LIMIT"
    assert state.acquire("a", "p" * 65, ttl_ms=1_000).refused.code == "LIMIT"
    assert state.acquire("a", "p1", ttl_ms=1_000, request="x" * 129).refused.code == "LIMIT"
    assert state.acquire("a", "s1", wait_ms=10**15).refused.code == "LIMIT"
    assert state.acquire("a", "s1", wait_ms=-2).refused.code == "ERR"
    assert state.acquire("a", "s1", ttl_ms=-2).refused.code == "ERR"
    assert state.send(OpenSession(1_000, "n" * 257, ""), session="s9").refused.code == "LIMIT"
    assert state.send(OpenSession(1_000, "a\tb", ""), session="s9").refused.code == "ERR"
    assert state.send(OpenSession(1_000, "n", "m" * 4097), session="s9").refused.code == "LIMIT"
    assert state.acquire("a", "s1", meta='{"text":\n "é"}', owner="x" * 256).granted.token == 1
