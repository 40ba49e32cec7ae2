"""P1, K7, G10: grants that are taken from their holders, by BREAK and MAXHOLD; DELAY; what is told of it."""

import pytest

from lockd.ids import SessionId
from lockd.locks.commands import (
    MAX_HOLD,
    WAIT_FOREVER,
    AcknowledgeNotices,
    Acquire,
    AcquireAll,
    Break,
    ChangeMeta,
    ExpireSessions,
    FreeRevoked,
    Notice,
    ReleaseAll,
)
from lockd.locks.events import EventKind
from lockd.locks.leases import LeaseBook
from lockd.locks.limits import Limits
from lockd.locks.machine import LockMachine
from tests.locks.cluster_state import Call, ClusterState


def opened(limits: Limits | None = None) -> ClusterState:
    cluster = ClusterState(limits)
    for session in ("s1", "s2", "s3"):
        cluster.open(session, ttl_ms=10_000)
    return cluster


def break_it(cluster: ClusterState, token: int, *, now: bool = False, lock: str = "a") -> int:
    return cluster.send(Break(lock, token, "stuck", now=now), user="admin").count


def kinds(cluster: ClusterState) -> list[tuple[EventKind, str]]:
    return [(event.kind, event.reason) for event in cluster.machine.events]


def broken(cluster: ClusterState) -> tuple[int, Call]:
    """A revoked grant of s1, and s2 behind it."""
    token = cluster.acquire("a", "s1", request=1).granted.token
    waiter = cluster.acquire("a", "s2")
    assert break_it(cluster, token) == 1
    return token, waiter


def test_p1_a_broken_lease_keeps_others_out_while_its_holder_may_trust_it() -> None:
    cluster = opened()
    token, waiter = broken(cluster)
    assert kinds(cluster) == [(EventKind.BREAKING, "broken: stuck")]
    assert waiter.waits
    assert cluster.acquire("a", "s3", wait_ms=0).refused.code == "BUSY"
    view = cluster.machine.inspect("a")
    assert [holder.ending for holder in view.holders] == ["broken: stuck"]
    assert cluster.machine.validate("a", token) == "superseded"


def test_k7_the_holder_is_told_until_it_acknowledges_and_then_it_is_passed_on() -> None:
    cluster = opened()
    token, waiter = broken(cluster)
    told = (Notice(1, "a", token, "broken: stuck"),)
    assert cluster.machine.notices(SessionId("s1")) == told
    assert cluster.send(AcknowledgeNotices(0), session="s1").count == 0
    assert waiter.waits
    assert cluster.send(AcknowledgeNotices(1), session="s1").count == 1
    assert waiter.granted.token > token
    assert (EventKind.BROKEN, "broken: stuck") in kinds(cluster)
    assert cluster.machine.notices(SessionId("s1")) == ()


def test_nobody_acknowledges_for_another() -> None:
    cluster = opened()
    _, waiter = broken(cluster)
    assert cluster.send(AcknowledgeNotices(9), session="s2").count == 0
    assert cluster.send(AcknowledgeNotices(9), session="s1", user="bob").refused.code == "NOSESSION"
    assert waiter.waits


@pytest.mark.parametrize("end", ["release", "release all", "cancel", "close", "expiry", "ttl"])
def test_p1_or_it_is_passed_on_when_it_cannot_be_trusted_any_more(end: str) -> None:
    cluster = opened()
    token, waiter = broken(cluster)
    match end:
        case "release":
            assert cluster.release("a", token, "s1") == 1
        case "release all":
            assert cluster.send(ReleaseAll(token), session="s1").count == 1
        case "cancel":
            assert cluster.cancel("a", "s1", 1).count == 1
        case "close":
            cluster.close("s1")
        case "expiry":
            cluster.send(ExpireSessions(("s1",)), user="")
        case "ttl":
            assert cluster.send(FreeRevoked((token, 99)), user="").count == 1
            assert len(cluster.machine.notices(SessionId("s1"))) == 1, "K7: it still has to be told"
    assert waiter.granted.token > token
    assert (EventKind.BROKEN, "broken: stuck") in kinds(cluster)
    assert cluster.machine.revoked() == []


def test_p1_the_leader_counts_a_whole_ttl_from_the_revocation() -> None:
    cluster = opened()
    book = LeaseBook(0, cluster.machine.lease_sessions())
    token = cluster.acquire("a", "s1").granted.token
    break_it(cluster, token)
    book.learn(cluster.machine.lease_changes, 3_000)
    assert book.choose_freed(12_999, 10) == ()
    assert book.choose_freed(13_000, 10) == (token,)


def test_p1_a_new_leader_counts_it_anew() -> None:
    cluster = opened()
    token, _ = broken(cluster)
    book = LeaseBook(50_000, cluster.machine.lease_sessions(), cluster.machine.revoked())
    assert book.choose_freed(59_999, 10) == ()
    assert book.choose_freed(60_000, 10) == (token,)


def test_a_choice_that_is_lost_is_made_again_and_one_that_is_applied_is_not() -> None:
    cluster = opened()
    token, _ = broken(cluster)
    book = LeaseBook(0, cluster.machine.lease_sessions(), cluster.machine.revoked())
    assert book.choose_freed(10_000, 10) == (token,)
    assert book.choose_freed(10_001, 10) == ()
    assert book.choose_freed(12_000, 10) == (token,)
    cluster.send(FreeRevoked((token,)), user="")
    book.learn(cluster.machine.lease_changes, 12_000)
    assert book.choose_freed(99_000, 10) == ()


def test_break_now_passes_on_at_once_and_tells_all_the_same() -> None:
    cluster = opened()
    token = cluster.acquire("a", "s1").granted.token
    waiter = cluster.acquire("a", "s2")
    assert break_it(cluster, token, now=True) == 1
    assert [kind for kind, _ in kinds(cluster)] == [EventKind.BROKEN, EventKind.ACQUIRED]
    assert waiter.granted.token > token
    assert cluster.machine.notices(SessionId("s1")) == (Notice(1, "a", token, "broken: stuck"),)


def test_break_now_hurries_one_that_is_revoked_already() -> None:
    cluster = opened()
    token, waiter = broken(cluster)
    assert break_it(cluster, token) == 0
    assert break_it(cluster, token, now=True) == 1
    assert waiter.granted.token > token


def test_break_of_what_is_not_held_changes_nothing() -> None:
    cluster = opened()
    token = cluster.acquire("a", "s1").granted.token
    assert break_it(cluster, token + 1) == 0
    assert break_it(cluster, token, lock="b") == 0
    assert cluster.send(Break("a", token, "x" * 257, now=False)).refused.code == "LIMIT"
    assert cluster.machine.validate("a", token) == "current"


def test_g3_a_retry_does_not_get_a_revoked_grant() -> None:
    cluster = opened()
    broken(cluster)
    assert cluster.acquire("a", "s1", request=1).refused.code == "NOTHELD"


def test_a_broken_grant_of_several_locks_is_broken_whole() -> None:
    cluster = opened()
    token = cluster.send(AcquireAll(("a", "b"), 0, ""), session="s1").granted.token
    waiters = [cluster.acquire(name, "s2") for name in "ab"]
    break_it(cluster, token, lock="b")
    assert cluster.machine.notices(SessionId("s1")) == (Notice(1, "b", token, "broken: stuck"),)
    cluster.send(AcknowledgeNotices(1), session="s1")
    assert [waiter.granted.lock for waiter in waiters] == ["a", "b"]


def test_k7_max_hold_revokes_a_grant_that_is_renewed_for_ever() -> None:
    cluster = opened()
    token = cluster.send(Acquire("a", 0, 0, "", max_hold_ms=30_000), session="s1").granted.token
    waiter = cluster.acquire("a", "s2")
    cluster.pass_ms(29_999)
    assert cluster.machine.validate("a", token) == "current"
    cluster.pass_ms(1)
    assert cluster.machine.notices(SessionId("s1")) == (Notice(1, "a", token, MAX_HOLD),)
    assert waiter.waits, "P1"
    cluster.send(AcknowledgeNotices(1), session="s1")
    assert waiter.granted.token > token


def test_k7_the_time_that_a_request_waits_is_not_held_against_it() -> None:
    cluster = opened()
    first = cluster.acquire("a", "s1").granted.token
    second = cluster.send(Acquire("a", 0, 60_000, "", max_hold_ms=1_000), session="s2")
    cluster.pass_ms(20_000)
    cluster.release("a", first, "s1")
    token = second.granted.token
    cluster.pass_ms(999)
    assert cluster.machine.validate("a", token) == "current"
    cluster.pass_ms(1)
    assert cluster.machine.validate("a", token) == "superseded"


def delayed(cluster: ClusterState) -> int:
    return cluster.send(Acquire("a", 0, 0, "", delay_ms=15_000), session="s1").granted.token


@pytest.mark.parametrize("end", ["expiry", "break now", "acknowledged"])
def test_a_delay_follows_an_abnormal_end(end: str) -> None:
    cluster = opened()
    token = delayed(cluster)
    waiter = cluster.acquire("a", "s2")
    if end == "expiry":
        cluster.send(ExpireSessions(("s1",)), user="")
    else:
        break_it(cluster, token, now=end == "break now")
        cluster.send(AcknowledgeNotices(1), session="s1")
    assert waiter.waits
    view = cluster.machine.inspect("a")
    assert (view.status, view.delay_ms, view.queue_length) == ("free", 15_000, 1)
    refused = cluster.acquire("a", "s3", wait_ms=0).refused
    assert refused.code == "BUSY"
    assert "DELAY" in refused.text
    cluster.pass_ms(14_999)
    assert waiter.waits
    cluster.pass_ms(1)
    assert waiter.granted.token > token


@pytest.mark.parametrize("end", ["release", "close", "cancel"])
def test_no_delay_follows_a_clean_end(end: str) -> None:
    cluster = opened()
    wish = Acquire("a", 0, 0, "", delay_ms=15_000)
    token = cluster.send(wish, session="s1", request=1).granted.token
    waiter = cluster.acquire("a", "s2")
    match end:
        case "release":
            cluster.release("a", token, "s1")
        case "close":
            cluster.close("s1")
        case _:
            cluster.cancel("a", "s1", 1)
    assert waiter.granted.token > token


def test_a_lock_in_its_delay_is_forgotten_after_it() -> None:
    cluster = opened()
    delayed(cluster)
    cluster.send(ExpireSessions(("s1",)), user="")
    assert cluster.machine.stats.locks == 1
    cluster.pass_ms(15_000)
    assert cluster.machine.stats.locks == 0


def test_c9_a_lock_in_its_delay_keeps_no_limit_that_nobody_asks_for_any_more() -> None:
    """What is saved with such a limit could not be read again."""
    cluster = opened()
    break_it(cluster, delayed(cluster), now=True)
    cluster.send(Acquire("a", 0, WAIT_FOREVER, "", limit=3), session="s2", request=1)
    assert cluster.machine.inspect("a").limit == 3
    cluster.cancel("a", "s2", 1)
    assert cluster.machine.inspect("a").limit == 0
    again = LockMachine.from_snapshot(b"".join(cluster.machine.snapshot()))
    assert again.inspect("a") == cluster.machine.inspect("a")


def test_metadata_can_be_changed_by_the_holder_alone() -> None:
    cluster = opened()
    token = cluster.acquire("a", "s1", meta='"old"').granted.token
    assert cluster.send(ChangeMeta("a", token, '"new"'), session="s1").count == 1
    assert kinds(cluster) == [(EventKind.META, "")]
    assert cluster.machine.events[0].meta == '"new"'
    assert cluster.send(ChangeMeta("a", token, '"x"'), session="s2").count == 0
    assert cluster.send(ChangeMeta("a", token + 1, '"x"'), session="s1").count == 0
    assert cluster.send(ChangeMeta("a", token, "x" * 5_000), session="s1").refused.code == "LIMIT"
    break_it(cluster, token)
    assert cluster.send(ChangeMeta("a", token, '"x"'), session="s1").count == 0
    (holder,) = cluster.machine.inspect("a").holders
    assert holder.meta == '"new"'


def told(cluster: ClusterState) -> tuple[Notice, ...]:
    return cluster.machine.notices(SessionId("s1"))


def test_c10_notices_that_nobody_acknowledges_are_bounded() -> None:
    cluster = opened(Limits(notices_per_session_max=3))
    for _ in range(10):
        token = cluster.acquire("a", "s1").granted.token
        break_it(cluster, token, now=True)
    assert [notice.number for notice in told(cluster)] == [8, 9, 10]


def test_c10_notices_are_bounded_as_soon_as_their_grants_have_ended() -> None:
    cluster = opened(Limits(notices_per_session_max=2))
    tokens = [cluster.acquire(name, "s1").granted.token for name in "abcd"]
    for name, token in zip("abcd", tokens, strict=True):
        cluster.send(Break(name, token, "drill", False))
    assert len(told(cluster)) == 4, "K7: nobody is left in the dark while its grant keeps others out"
    cluster.send(FreeRevoked((tokens[2], tokens[0], tokens[3])), user="")
    assert [notice.token for notice in told(cluster)] == [tokens[1], tokens[3]]
    cluster.send(AcknowledgeNotices(4), session="s1")
    assert told(cluster) == ()


def test_k7_a_holder_that_cancels_a_revoked_grant_need_not_be_told() -> None:
    cluster = opened()
    token = cluster.acquire("a", "s1", request=1).granted.token
    break_it(cluster, token)
    assert cluster.cancel("a", "s1", 1).count == 1
    assert told(cluster) == ()
    assert cluster.machine.validate("a", token) == "free"


def test_an_older_grant_is_superseded_while_the_delay_of_a_later_one_runs() -> None:
    cluster = opened()
    older = delayed(cluster)
    cluster.release("a", older, "s1")
    break_it(cluster, delayed(cluster), now=True)
    assert cluster.machine.inspect("a").status == "free"
    assert cluster.machine.validate("a", older) == "superseded"


def test_g6_those_acknowledged_together_are_passed_on_by_their_tokens() -> None:
    cluster = opened()
    tokens = {name: cluster.acquire(name, "s1").granted.token for name in "abc"}
    for name in "bac":
        cluster.send(Break(name, tokens[name], "drill", False))
    cluster.send(AcknowledgeNotices(3), session="s1")
    assert [event.token for event in cluster.machine.events] == sorted(tokens.values())


def test_every_event_has_a_revision_of_its_own() -> None:
    cluster = opened()
    seen: list[int] = []
    token = 0
    for step in range(6):
        if step % 2:
            cluster.release("a", token, "s1")
        else:
            token = cluster.acquire("a", "s1").granted.token
        seen += [event.revision for event in cluster.machine.events]
    assert seen == list(range(1, 7))
    assert cluster.machine.revision == 6


def test_validate_tells_what_has_become_of_a_grant() -> None:
    cluster = opened()
    first = cluster.acquire("a", "s1").granted.token
    waiter = cluster.acquire("a", "s2")
    assert cluster.machine.validate("a", first) == "current"
    cluster.release("a", first, "s1")
    assert cluster.machine.validate("a", first) == "superseded"
    assert cluster.machine.validate("a", waiter.granted.token) == "current"
    cluster.release("a", waiter.granted.token, "s2")
    assert cluster.machine.validate("a", first) == "free"
    assert cluster.machine.validate("never", 1) == "free"
