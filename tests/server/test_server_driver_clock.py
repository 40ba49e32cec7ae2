"""The state's clock and the leases at the leader (SAFETY T1, T2, T4)."""

from collections.abc import Callable

from lockd.ids import SessionId
from lockd.locks.commands import (
    Acquire,
    Batch,
    CloseSession,
    ExpireSessions,
    MarkSilent,
    OpenSession,
    Outcome,
    Queued,
    Refused,
)
from lockd.raft.messages import AppendEntriesReply
from lockd.server import frames
from lockd.server.leadership import EXPIRIES_PER_ENTRY, EXPIRIES_PER_SECOND
from tests.server.cluster import ELECTION_TIMEOUT_MS, TICK_MS, TTL_MS, Cluster

S = SessionId("s")


def led_by(node: int, *, size: int = 3) -> Cluster:
    cluster = Cluster(size)
    cluster.elect(node)
    return cluster


def depose(cluster: Cluster, old: int, new: int) -> None:
    """Another leader is elected while the old one is cut off; then all are together again."""
    cluster.isolate(old)
    cluster.elect(new)
    cluster.heal()
    cluster.tick()


def ms_until(cluster: Cluster, done: Callable[[], bool], *, at_most: int) -> int:
    start = cluster.now_ms
    while not done() and cluster.now_ms - start < at_most:
        cluster.tick()
    return cluster.now_ms - start


def stamps(cluster: Cluster, node: int, *, term: int) -> list[int]:
    return [batch.stamp_ms for of, batch in cluster[node].entries if of == term]


def write(cluster: Cluster, node: int) -> None:
    cluster.ask(node, CloseSession(), session="nobody")


def test_t1_a_new_leaders_stamps_go_on_from_the_states_clock_whatever_its_own_clock_says() -> None:
    cluster = led_by(1)
    assert abs(cluster[1].clock_ms() - cluster[2].clock_ms()) > 10**6
    cluster.pass_ms(3_000)
    write(cluster, 1)
    cluster.settle()
    before_ms = cluster[2].driver.machine.clock_ms
    assert before_ms == 3_000
    cluster.isolate(1)
    cluster.elect(2)
    cluster.pass_ms(200, only=(2, 3))
    write(cluster, 2)
    cluster.settle()
    assert stamps(cluster, 2, term=2)[-1] == before_ms + 200, "base + what this leader has counted"


def test_t1_nothing_is_stamped_before_the_leaders_no_op_is_applied() -> None:
    cluster = led_by(1)
    cluster.pass_ms(3_000)
    write(cluster, 1)
    cluster.settle()
    cluster.isolate(1)
    cluster.hold_back(AppendEntriesReply)
    cluster.elect(2)
    write(cluster, 2)
    write(cluster, 3)
    cluster.pass_ms(200, only=(2, 3))
    assert stamps(cluster, 2, term=2) == []
    cluster.hold_back()
    cluster.settle((2, 3))
    assert stamps(cluster, 2, term=2) == [3_000], "time before the no-op was applied is nobody's"


def test_t1_one_turn_adds_at_most_an_election_timeout() -> None:
    """A process that was paused for a minute wakes up; the clock must not jump by it, nor make up for it."""
    cluster = led_by(1)
    cluster.pass_ms(1_000)
    write(cluster, 1)
    cluster.settle()
    cluster.now_ms += 60_000
    write(cluster, 1)
    cluster.settle()
    cluster.pass_ms(200)
    write(cluster, 1)
    cluster.settle()
    first, second, third = stamps(cluster, 1, term=1)[-3:]
    assert second - first == ELECTION_TIMEOUT_MS
    assert third - second == 200


def test_t1_a_forwarded_command_is_stamped_by_the_leader_when_it_gets_there() -> None:
    cluster = led_by(1)
    cluster.hold_back(frames.Forward)
    write(cluster, 3)
    cluster.pass_ms(1_000)
    forwards = [frame for _, _, frame in cluster.sent if isinstance(frame, frames.Forward)]
    assert forwards
    cluster.hold_back()
    cluster.settle()
    assert stamps(cluster, 1, term=1)[-1] == 1_000
    assert list(frames.Forward.__struct_fields__) == ["commands"], "no stamp is passed on"


def test_t1_an_idle_leader_logs_an_empty_batch_when_a_timer_is_due_and_only_one() -> None:
    cluster = led_by(1)
    cluster.open_session(1, "s")
    cluster.open_session(2, "t")
    cluster.acquire(1, "lock", "s", request=1)
    outcomes = cluster.ask(2, Acquire("lock", 0, 700, ""), session="t", request=1)
    cluster.settle()
    count = len(cluster[1].entries)
    cluster.pass_ms(1_000)
    assert isinstance(outcomes[0], Queued)
    assert isinstance(outcomes[1], Refused)
    assert outcomes[1].code == "TIMEOUT"
    assert [batch for _, batch in cluster[1].entries[count:]] == [Batch(Batch.VERSION, 700, ())]


def test_t1_a_timer_that_found_the_log_full_fires_when_there_is_room() -> None:
    """C10 refuses proposals while too much is uncommitted; a due timer must not be forgotten for it."""
    cluster = led_by(1)
    cluster.open_session(1, "s", ttl_ms=60_000)
    cluster.acquire(1, "lock", "s", request=1)
    outcomes = cluster.ask(1, Acquire("lock", 0, 300, ""), session="s", request=2)
    cluster.settle()
    cluster.hold_back(AppendEntriesReply)
    cluster[1].fill_log()
    cluster.pass_ms(400)
    assert len(outcomes) == 1
    cluster.hold_back()
    cluster.pass_ms(2 * TICK_MS)
    assert isinstance(outcomes[-1], Refused)
    assert outcomes[-1].code == "TIMEOUT"


def test_t2_a_new_leader_gives_every_session_its_full_ttl_from_its_own_no_op() -> None:
    cluster = led_by(1)
    cluster.open_session(1, "s")
    cluster.pass_ms(TTL_MS * 2 // 5)  # too short for a mark of silence
    assert not cluster[1].logged(MarkSilent)
    depose(cluster, 1, 2)
    machine = cluster[2].driver.machine
    took = ms_until(cluster, lambda: machine.session(S) is None, at_most=3 * TTL_MS)
    assert TTL_MS - TICK_MS <= took <= TTL_MS + 4 * TICK_MS


def test_t2_silence_that_was_logged_shortens_what_the_next_leader_gives() -> None:
    cluster = led_by(1)
    cluster.open_session(1, "s")
    machine = cluster[2].driver.machine
    cluster.pass_ms(TTL_MS * 3 // 5)
    (mark,) = cluster[1].logged(MarkSilent)
    ((session, silent_ms),) = mark.silences
    assert session == "s"
    assert TTL_MS // 2 <= silent_ms <= TTL_MS // 2 + 2 * TICK_MS
    depose(cluster, 1, 2)
    took = ms_until(cluster, lambda: machine.session(S) is None, at_most=3 * TTL_MS)
    left = TTL_MS - silent_ms
    assert left - TICK_MS <= took <= left + 4 * TICK_MS


def test_t2_a_row_of_elections_does_not_stretch_a_dead_session_for_ever() -> None:
    """etcd#9888."""
    cluster = led_by(1)
    cluster.open_session(1, "s")
    machine = cluster[3].driver.machine
    leader, changes = 1, 0
    while machine.session(S) is not None:
        cluster.pass_ms(TTL_MS * 3 // 5)
        other = 3 - leader
        depose(cluster, leader, other)
        leader, changes = other, changes + 1
        assert changes < 10


def test_t4_after_an_election_dead_sessions_end_at_a_limited_rate() -> None:
    cluster = led_by(1)
    count = 3 * EXPIRIES_PER_SECOND
    for number in range(count):
        cluster.ask(1, OpenSession(TTL_MS, "", ""), session=f"s{number:04}")
    cluster.settle()
    assert cluster[1].driver.machine.stats.sessions == count
    depose(cluster, 1, 2)
    cluster.pass_ms(TTL_MS + 4_000)
    assert cluster[2].driver.machine.stats.sessions == 0
    expiries = [
        (batch.stamp_ms, len(command.operation.sessions))
        for _, batch in cluster[2].entries
        for command in batch.commands
        if isinstance(command.operation, ExpireSessions)
    ]
    assert max(ended for _, ended in expiries) <= EXPIRIES_PER_ENTRY
    for start_ms, _ in expiries:
        in_a_second = sum(ended for at_ms, ended in expiries if 0 <= at_ms - start_ms < 1_000)
        # A second's worth may have been saved up before.
        assert in_a_second <= 2 * EXPIRIES_PER_SECOND + EXPIRIES_PER_ENTRY


def test_t4_a_session_that_is_due_but_has_not_been_chosen_may_still_be_renewed() -> None:
    """The rate limit is no reason to end a session that has come back."""
    cluster = led_by(1)
    count = 3 * EXPIRIES_PER_SECOND
    for number in range(count):
        cluster.ask(1, OpenSession(TTL_MS, "", ""), session=f"s{number:04}")
    cluster.settle()
    machine = cluster[1].driver.machine
    ms_until(cluster, lambda: machine.stats.sessions < count, at_most=2 * TTL_MS)
    assert machine.stats.sessions > EXPIRIES_PER_SECOND
    last: list[Outcome] = cluster.keepalive(1, f"s{count - 1:04}")
    cluster.pass_ms(TTL_MS - 500)
    assert machine.session(SessionId(f"s{count - 1:04}")) is not None
    assert machine.stats.sessions == 1
    assert not isinstance(last[0], Refused)
