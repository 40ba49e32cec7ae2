"""Grants that are taken from their holders: who is told, and when the lock is passed on (SAFETY K7, P1)."""

from typing import Any

from lockd.locks.commands import (
    MAX_HOLD,
    AcknowledgeNotices,
    Acquire,
    Break,
    Changed,
    FreeRevoked,
    Granted,
    Notice,
    Operation,
    SessionOpened,
)
from lockd.locks.events import EventKind, LockEvent
from lockd.server import frames
from tests.server.cluster import TICK_MS, TTL_MS, Cluster

BROKEN = (Notice(1, "k", 1, "broken: stuck"),)


def held(cluster: Cluster, node: int = 1, operation: Operation | None = None) -> int:
    """Session s holds k, and session t waits for it; returns the token."""
    cluster.elect(1)
    cluster.open_session(node, "s")
    cluster.open_session(node, "t")
    grants: list[Any] = cluster.ask(node, operation or Acquire("k", 0, 0, ""), session="s")
    cluster.settle()
    assert isinstance(grants[0], Granted)
    return grants[0].token


def passed_on(outcomes: list[Any]) -> bool:
    return any(isinstance(outcome, Granted) for outcome in outcomes)


def test_k7_a_keepalive_through_a_node_that_lags_tells_what_the_leader_knows() -> None:
    """The follower hasn't applied the revocation when it passes the answer on: its client must learn it."""
    cluster = Cluster()
    token = held(cluster)
    waiting = cluster.acquire(1, "k", "t")
    cluster.isolate(3)  # it gets no entries from here on
    assert cluster.ask(1, Break("k", token, "stuck", now=False), session="") == []
    cluster.settle([1, 2])
    cluster.heal()
    cluster.holds_back = lambda _sender, receiver, frame: receiver == 3 and isinstance(frame, frames.Raft)
    renewed = cluster.keepalive(3, "s")
    cluster.settle()
    assert not cluster[3].driver.machine.revoked(), "it has caught up: the test shows nothing"
    assert renewed == [SessionOpened("s", TTL_MS, BROKEN)]
    assert not passed_on(waiting)


def test_k7_every_keepalive_tells_it_until_it_is_acknowledged() -> None:
    cluster = Cluster()
    token = held(cluster)
    waiting = cluster.acquire(1, "k", "t")
    cluster.ask(1, Break("k", token, "stuck", now=False), session="")
    cluster.settle()
    for _ in range(2):
        renewed = cluster.keepalive(2, "s")
        cluster.settle()
        assert renewed == [SessionOpened("s", TTL_MS, BROKEN)]
    assert not passed_on(waiting)
    acknowledged = cluster.ask(2, AcknowledgeNotices(1), session="s")
    cluster.settle()
    assert acknowledged == [Changed(1)]
    assert passed_on(waiting)
    renewed = cluster.keepalive(2, "s")
    cluster.settle()
    assert renewed == [SessionOpened("s", TTL_MS)]


def test_k7_a_renewal_that_waits_for_its_clearing_tells_it_too() -> None:
    cluster = Cluster()
    token = held(cluster)
    cluster.ask(1, Break("k", token, "stuck", now=False), session="")
    cluster.pass_ms(TTL_MS * 3 // 4)  # it is marked silent
    renewed = cluster.keepalive(2, "s")
    cluster.settle()
    assert renewed == [SessionOpened("s", TTL_MS, BROKEN)]


def test_p1_a_taken_lock_is_passed_on_when_the_ttl_has_run_since() -> None:
    """The holder renews, as one that is stuck in its work does, and acknowledges nothing."""
    cluster = Cluster()
    token = held(cluster)
    waiting = cluster.acquire(1, "k", "t")
    cluster.ask(1, Break("k", token, "stuck", now=False), session="")
    cluster.settle()
    began_ms = cluster.now_ms
    while not passed_on(waiting):
        assert cluster.now_ms - began_ms < 2 * TTL_MS, "it is never passed on"
        for session in ("s", "t"):
            cluster.keepalive(2, session)
        cluster.tick()
    assert TTL_MS <= cluster.now_ms - began_ms <= TTL_MS + 4 * TICK_MS
    assert cluster[1].logged(FreeRevoked) == [FreeRevoked((token,))]


def test_p1_a_new_leader_counts_the_ttl_anew() -> None:
    """Nobody knows when the last keepalive was answered that did not tell of it."""
    cluster = Cluster()
    token = held(cluster)
    waiting = cluster.acquire(1, "k", "t")
    cluster.ask(1, Break("k", token, "stuck", now=False), session="")
    cluster.pass_ms(TTL_MS // 2)
    cluster.isolate(1)
    cluster.elect(2)
    cluster.heal()
    began_ms = cluster.now_ms
    while not passed_on(waiting):
        assert cluster.now_ms - began_ms < 2 * TTL_MS, "it is never passed on"
        for session in ("s", "t"):
            cluster.keepalive(3, session)
        cluster.tick()
    assert cluster.now_ms - began_ms >= TTL_MS - TICK_MS


def test_k7_maxhold_takes_a_grant_that_is_renewed_for_ever() -> None:
    cluster = Cluster()
    token = held(cluster, operation=Acquire("k", 0, 0, "", max_hold_ms=2_000))
    for _ in range(2_000 // TICK_MS + 1):
        cluster.keepalive(3, "s")
        cluster.tick()
    renewed = cluster.keepalive(3, "s")
    cluster.settle()
    assert renewed == [SessionOpened("s", TTL_MS, (Notice(1, "k", token, MAX_HOLD),))]


def test_every_node_makes_the_events_of_what_it_applies() -> None:
    cluster = Cluster()
    told: dict[int, list[LockEvent]] = {1: [], 2: [], 3: []}
    for node, events in told.items():
        cluster[node].driver.history.subscribe(events.extend, lambda _: None)
    token = held(cluster)
    cluster.ask(1, Break("k", token, "stuck", now=True), session="")
    cluster.tick(2)
    assert [(event.revision, event.kind) for event in told[1]] == [
        (1, EventKind.ACQUIRED),
        (2, EventKind.BROKEN),
    ]
    assert told[1] == told[2] == told[3]


def test_c9_a_snapshot_that_is_installed_leaves_no_events() -> None:
    cluster = Cluster(snapshot_log_bytes=2_000)
    cluster.elect(1)
    gaps: list[int] = []
    cluster[3].driver.history.subscribe(lambda _: None, gaps.append)
    cluster.isolate(3)
    cluster.open_session(1, "s")
    for number in range(60):
        cluster.acquire(1, f"k{number}", "s")
    cluster.tick(2, [1, 2])
    cluster.heal()
    for _ in range(40):
        cluster.tick()
        if gaps:
            break
    history, machine = cluster[3].driver.history, cluster[3].driver.machine
    assert gaps == [0]
    assert history.revision == machine.revision == 60
    assert not history.reaches(0)
