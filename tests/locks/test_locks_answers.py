"""G3 and CANCEL: asking again is safe, and an id never holds twice."""

import pytest

from lockd.locks.commands import Granted, Queued, Refused
from lockd.locks.limits import Limits
from tests.locks.cluster_state import ClusterState


@pytest.fixture
def state() -> ClusterState:
    cluster = ClusterState()
    cluster.open("s1")
    cluster.open("s2")
    return cluster


def test_g3_a_retry_gets_the_same_grant(state: ClusterState) -> None:
    first = state.acquire("a", "s1", request=1).granted
    again = state.acquire("a", "s1", request=1, connection=2).granted
    assert (again.token, again.revision, again.repeat) == (first.token, first.revision, True)
    assert state.machine.token == 1


def test_g3_a_retry_of_a_refusal_gets_the_same_refusal_though_the_lock_is_free_now(
    state: ClusterState,
) -> None:
    state.acquire("a", "s1")
    busy = state.acquire("a", "s2", request=1, wait_ms=0).refused
    state.release("a", 1, "s1")
    assert state.acquire("a", "s2", request=1, wait_ms=0).refused == busy


def test_g3_a_retry_of_a_timed_out_wait_is_told_so_and_never_holds(state: ClusterState) -> None:
    state.acquire("a", "s1")
    waiter = state.acquire("a", "s2", request=1, wait_ms=500)
    state.pass_ms(500)
    assert waiter.refused.code == "TIMEOUT"
    state.release("a", 1, "s1")
    assert state.acquire("a", "s2", request=1).refused == waiter.refused
    assert state.holder_token("a") == 0


def test_g3_a_late_copy_after_the_release_is_refused(state: ClusterState) -> None:
    state.acquire("a", "s1", request=1)
    state.release("a", 1, "s1")
    assert state.acquire("a", "s1", request=1).refused.code == "NOTHELD"
    assert state.holder_token("a") == 0


def test_g3_a_retry_moves_a_wait_to_its_new_connection_and_frees_the_old(state: ClusterState) -> None:
    state.acquire("a", "s1")
    old = state.acquire("a", "s2", request=1, connection=1)
    new = state.acquire("a", "s2", request=1, connection=2)
    assert old.refused.code == "UNKNOWN"
    assert new.last == Queued("a", "s2", 0)
    state.release("a", 1, "s1")
    assert new.granted.token == 2
    assert len(old.outcomes) == 2


def test_g3_one_id_is_for_one_lock(state: ClusterState) -> None:
    state.acquire("a", "s1", request=1)
    assert state.acquire("b", "s1", request=1).refused.code == "ERR"
    assert state.cancel("b", "s1", 1).refused.code == "ERR"
    assert state.holder_token("a") == 1


def test_g3_request_0_is_not_remembered(state: ClusterState) -> None:
    state.acquire("a", "s1")
    state.release("a", 1, "s1")
    assert state.acquire("a", "s1").granted.token == 2


def test_g3_ids_of_sessions_are_apart(state: ClusterState) -> None:
    state.acquire("a", "s1", request=1)
    assert state.acquire("b", "s2", request=1).granted.token == 2


def test_g3_the_last_1024_answers_are_kept_and_the_floor_refuses_below() -> None:
    assert Limits().answers_per_session_kept == 1024
    state = ClusterState(Limits(answers_per_session_kept=4))
    state.open("s1")
    state.acquire("held", "s1", request=1)
    for request in range(2, 8):
        token = state.acquire("a", "s1", request=request).granted.token
        state.release("a", token, "s1")
    assert [state.acquire("a", "s1", request=n).refused.code for n in (4, 5, 6, 7)] == ["NOTHELD"] * 4
    assert "too old" in state.acquire("a", "s1", request=3).refused.text
    assert state.acquire("held", "s1", request=1).granted.token == 1, "kept while the grant lives"
    state.release("held", 1, "s1")
    assert "too old" in state.acquire("held", "s1", request=1).refused.text
    assert state.machine.stats.locks == 0


def test_g3_an_id_that_was_never_seen_is_refused_under_the_floor() -> None:
    state = ClusterState(Limits(answers_per_session_kept=2))
    state.open("s1")
    for request in (10, 20, 30):
        state.cancel("a", "s1", request)
    assert "too old" in state.acquire("a", "s1", request=9).refused.text
    assert "too old" in state.acquire("a", "s1", request=10).refused.text
    assert state.acquire("a", "s1", request=11).granted.token == 1, "others may still begin, in any order"


def test_g3_a_new_id_of_the_same_owner_ends_its_old_wait(state: ClusterState) -> None:
    state.acquire("a", "s1")
    old = state.acquire("a", "s2", owner="t", request=1)
    other_owner = state.acquire("a", "s2", owner="u", request=2)
    new = state.acquire("a", "s2", owner="t", request=3)
    assert "superseded by request 3" in old.refused.text
    assert other_owner.waits
    state.release("a", 1, "s1")
    assert isinstance(other_owner.last, Granted), "the new request stands at the end"
    assert new.waits
    assert state.acquire("a", "s2", owner="t", request=1).refused == old.refused


def test_g3_a_new_try_without_waiting_ends_the_old_wait_too(state: ClusterState) -> None:
    state.acquire("a", "s1")
    old = state.acquire("a", "s2", owner="t", request=1)
    assert state.acquire("a", "s2", owner="t", request=2, wait_ms=0).refused.code == "BUSY"
    assert old.refused.code == "ERR"
    assert state.machine.stats.waiters == 0


def test_g3_a_late_copy_of_an_older_id_does_not_end_the_newer_wait(state: ClusterState) -> None:
    state.acquire("a", "s1")
    newer = state.acquire("a", "s2", owner="t", request=6)
    assert "superseded by request 6" in state.acquire("a", "s2", owner="t", request=5).refused.text
    assert newer.waits
    state.release("a", 1, "s1")
    assert newer.granted.token == 2
    assert "superseded" in state.acquire("a", "s2", owner="t", request=4).refused.text, "nor queue behind it"


def test_k4_cancel_withdraws_a_wait(state: ClusterState) -> None:
    state.acquire("a", "s1")
    waiter = state.acquire("a", "s2", request=1)
    assert state.cancel("a", "s2", 1).count == 1
    assert isinstance(waiter.last, Refused), "the blocked caller is told"
    assert state.cancel("a", "s2", 1).count == 0
    state.release("a", 1, "s1")
    assert state.machine.stats.locks == 0


def test_k4_cancel_releases_the_grant_of_a_lost_answer(state: ClusterState) -> None:
    state.acquire("a", "s1", request=1)
    waiter = state.acquire("a", "s2", request=1)
    assert state.cancel("a", "s1", 1).count == 1
    assert waiter.granted.token == 2


def test_k4_a_cancelled_id_never_holds_even_when_its_acquire_comes_later(state: ClusterState) -> None:
    assert state.cancel("a", "s1", 7).count == 0
    assert "CANCEL" in state.acquire("a", "s1", request=7).refused.text
    assert state.holder_token("a") == 0


def test_cancel_needs_an_id_and_minds_whose_it_is(state: ClusterState) -> None:
    assert state.cancel("a", "s1", 0).refused.code == "ERR"
    assert state.cancel("a", "gone", 1).count == 0
    assert state.cancel("a", "s1", 1, user="bob").refused.code == "NOSESSION"
    assert state.cancel("a", "s1", -1).refused.code == "ERR"


PRIVATE = "8e0a7a3c-9d2b-4a55-b1f4-0d6f4f1c2b11"


def test_g3_a_ttl_request_is_found_by_its_uuid_whatever_session_id_the_retry_draws(
    state: ClusterState,
) -> None:
    first = state.acquire("a", "p1", ttl_ms=5_000, request=PRIVATE).granted
    again = state.acquire("a", "p2", ttl_ms=5_000, request=PRIVATE, connection=9).granted
    assert (first.session, first.ttl_ms, first.repeat) == ("p1", 5_000, False)
    assert (again.session, again.token, again.repeat) == ("p1", first.token, True)
    assert state.machine.stats.sessions == 3


def test_g3_a_uuid_belongs_to_its_user(state: ClusterState) -> None:
    state.acquire("a", "p1", ttl_ms=5_000, request=PRIVATE)
    stranger = state.acquire("a", "p2", ttl_ms=5_000, request=PRIVATE, user="bob", wait_ms=0)
    assert stranger.refused.code == "BUSY", "bob's own request, not ann's grant"
    assert state.cancel("a", "", PRIVATE, user="bob").count == 0
    assert state.holder_token("a") == 1


def test_g3_a_private_session_ends_with_its_lock_and_a_late_copy_is_refused(state: ClusterState) -> None:
    state.acquire("a", "p1", ttl_ms=5_000, request=PRIVATE)
    assert state.release("a", 1, "p1") == 1
    assert state.machine.session(state.acquire("b", "s1").granted.session) is not None  # type: ignore[arg-type]
    assert state.machine.stats.sessions == 2
    assert state.release("a", 1, "p1") == 0, "G7"
    assert state.acquire("a", "p2", ttl_ms=5_000, request=PRIVATE).refused.code == "NOTHELD"


def test_g3_a_uuid_is_remembered_for_one_longest_ttl_after_its_session_ended(state: ClusterState) -> None:
    longest_ms = Limits().ttl_ms_max
    state.acquire("a", "p1", ttl_ms=5_000, request=PRIVATE)
    state.pass_ms(7 * longest_ms)
    assert state.acquire("a", "p2", ttl_ms=5_000, request=PRIVATE).granted.token == 1, "it lives"
    state.close("p1")
    state.pass_ms(longest_ms - 1)
    assert state.acquire("a", "p3", ttl_ms=5_000, request=PRIVATE).refused.code == "NOTHELD"
    state.pass_ms(1)
    assert state.machine.stats.private_requests == 0, "forgotten"
    assert state.acquire("a", "p4", ttl_ms=5_000, request=PRIVATE).granted.session == "p4"
    state.pass_ms(longest_ms)
    assert state.holder_token("a") == 2, "begun anew, it is not forgotten with the first"
    assert state.acquire("a", "p5", ttl_ms=5_000, request=PRIVATE).granted.session == "p4"


def test_c10_the_oldest_uuids_that_are_over_are_forgotten_and_nobody_is_refused() -> None:
    """P6: whoever fills the memory of answers costs others no lock, and no request that lives."""
    state = ClusterState(Limits(private_answers_kept_max=3))
    state.acquire("mine", "p0", ttl_ms=5_000, request="live")
    for n in range(1, 6):
        state.acquire("a", f"p{n}", ttl_ms=5_000, request=f"u{n}", user="bob")
        assert state.close(f"p{n}", user="bob").count == 1
    assert state.machine.stats.private_requests == 4
    for known in ("u3", "u4", "u5"):
        assert state.acquire("a", "p9", ttl_ms=5_000, request=known, user="bob").refused.code == "NOTHELD"
    assert state.acquire("a", "p9", ttl_ms=5_000, request="u2", user="bob").granted.session == "p9"
    assert state.acquire("mine", "p8", ttl_ms=5_000, request="live").granted.session == "p0"


def test_c10_uuids_that_are_due_together_are_forgotten_over_several_entries() -> None:
    """After an idle hour one entry must not cost as much as all that ended in the hour before it."""
    state = ClusterState(Limits(private_answers_forgotten_per_entry=2))
    for n in range(5):
        state.cancel("a", "", f"u{n}")
    state.stamp_ms = Limits().ttl_ms_max
    left = []
    for _ in range(4):
        state.apply()
        left.append(state.machine.stats.private_requests)
    assert left == [3, 1, 0, 0]


def test_forgetting_a_uuid_wakes_nobody(state: ClusterState) -> None:
    """It happens with whatever entry comes next: an idle cluster writes none for it."""
    state.cancel("a", "", PRIVATE)
    assert state.machine.next_timer_ms() is None


def test_g3_a_refused_ttl_request_leaves_no_session_and_stays_refused(state: ClusterState) -> None:
    state.acquire("a", "s1")
    busy = state.acquire("a", "p1", ttl_ms=5_000, request=PRIVATE, wait_ms=0).refused
    state.release("a", 1, "s1")
    assert state.acquire("a", "p2", ttl_ms=5_000, request=PRIVATE, wait_ms=0).refused == busy
    assert state.machine.stats.sessions == 2


def test_k4_cancel_by_uuid_ends_a_private_session_and_forbids_a_later_copy(state: ClusterState) -> None:
    state.acquire("a", "p1", ttl_ms=5_000, request=PRIVATE)
    assert state.cancel("a", "", PRIVATE).count == 1
    assert state.machine.stats.sessions == 2
    other = "00000000-0000-4000-8000-000000000000"
    assert state.cancel("a", "", other).count == 0
    assert "CANCEL" in state.acquire("a", "p2", ttl_ms=5_000, request=other).refused.text


def test_g3_a_ttl_request_without_uuid_is_not_remembered(state: ClusterState) -> None:
    state.acquire("a", "p1", ttl_ms=5_000, request="")
    state.release("a", 1, "p1")
    assert state.machine.stats.private_requests == 0


def test_the_kinds_of_request_ids_are_not_mixed(state: ClusterState) -> None:
    assert state.acquire("a", "s1", request=PRIVATE).refused.code == "ERR"
    assert state.acquire("a", "p1", ttl_ms=5_000, request=3).refused.code == "ERR"
    assert state.acquire("a", "s1", request=-3).refused.code == "ERR"
    assert state.acquire("a", "s1", ttl_ms=5_000, request=PRIVATE).refused.code == "ERR", "an id in use"
    state.acquire("a", "p1", ttl_ms=5_000, request=PRIVATE)
    assert state.acquire("b", "p1").refused.code == "ERR", "a private session holds one lock"
