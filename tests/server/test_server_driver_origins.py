"""Nobody listens any more: waits are withdrawn through the log (SAFETY G4)."""

from lockd.locks.commands import (
    WAIT_FOREVER,
    Acquire,
    Granted,
    OriginGone,
    Outcome,
    Queued,
    Refused,
    RegisterNode,
    Release,
    RequestOrphaned,
)
from lockd.server import frames
from tests.server.cluster import ELECTION_TIMEOUT_MS, TICK_MS, Cluster

LONG_MS = 60_000
"""The holder's TTL: it stays."""
SHORT_MS = 3_000
"""The waiter's: its wait goes when nobody has asked for it again for so long."""
GONE_MS = 3 * ELECTION_TIMEOUT_MS
"""After this silence a leader says that a node is gone."""
SLACK_MS = 4 * TICK_MS


def with_waiter(at: int, *, size: int = 3, request: int = 1) -> tuple[Cluster, list[Outcome]]:
    """Node 1 leads; a session that is kept alive waits for a lock over connection 7 of a node."""
    cluster = Cluster(size)
    cluster.elect(1)
    cluster.open_session(1, "holder", LONG_MS)
    cluster.open_session(1, "waiter", SHORT_MS)
    (granted,) = cluster.acquire(1, "lock", "holder", request=1)
    assert isinstance(granted, Granted)
    outcomes = cluster.acquire(at, "lock", "waiter", request=request, connection=7)
    assert outcomes == [Queued("lock", "waiter", 0)]
    return cluster, outcomes


def waiters(cluster: Cluster, node: int = 2) -> int:
    return cluster[node].driver.machine.stats.waiters


def pass_alive(cluster: Cluster, ms: int, *, leader: int = 1, only: tuple[int, ...] | None = None) -> None:
    """Let time pass while both sessions are renewed at the leader."""
    for _ in range(0, ms, 500):
        for session in ("holder", "waiter"):
            cluster.keepalive(leader, session)
        cluster.pass_ms(500, only)


def test_g4_the_wait_of_a_gone_connection_ends_a_ttl_later() -> None:
    cluster, _ = with_waiter(2)
    pass_alive(cluster, 2 * SHORT_MS)
    assert waiters(cluster) == 1
    cluster[2].driver.connection_gone(7)
    pass_alive(cluster, SHORT_MS - 500)
    assert waiters(cluster) == 1
    pass_alive(cluster, 1_000)
    assert waiters(cluster) == 0
    assert cluster[1].driver.machine.stats.sessions == 2, "the session itself is none the worse"


def test_g4_the_same_request_over_another_connection_keeps_its_place() -> None:
    cluster, _ = with_waiter(2)
    cluster[2].driver.connection_gone(7)
    pass_alive(cluster, SHORT_MS - 500)
    again = cluster.acquire(3, "lock", "waiter", request=1, connection=9)
    pass_alive(cluster, 2 * SHORT_MS)
    assert again == [Queued("lock", "waiter", 0)]
    assert waiters(cluster) == 1
    cluster.ask(1, Release("lock", 1), session="holder")
    cluster.settle()
    assert isinstance(again[-1], Granted)


def test_g4_a_wait_without_a_name_ends_at_once_with_its_connection() -> None:
    cluster, _ = with_waiter(2, request=0)
    cluster[2].driver.connection_gone(7)
    cluster.settle()
    assert waiters(cluster) == 0


def test_g4_a_gone_connection_is_told_even_when_leaders_change_on_the_way() -> None:
    cluster, _ = with_waiter(2, request=0)
    cluster.isolate(1)
    cluster[2].driver.connection_gone(7)
    cluster.settle()
    cluster.lose(lambda *_: True)
    cluster.elect(3)
    cluster.heal()
    cluster.pass_ms(500)
    assert waiters(cluster) == 0


def test_g4_a_wait_that_begins_after_its_connection_has_gone_is_withdrawn_all_the_same() -> None:
    """The command was refused by a node that doesn't lead, and comes to the log after the news."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.open_session(1, "holder", LONG_MS)
    cluster.acquire(1, "lock", "holder", request=1)
    cluster.hold_back(frames.Forward)
    outcomes = cluster.ask(2, Acquire("lock", 0, WAIT_FOREVER, ""), session="holder", connection=7)
    cluster.settle()
    (held,) = [frame for _, _, frame in cluster.sent if isinstance(frame, frames.Forward)][-1:]
    cluster.lose(lambda _sender, _receiver, frame: frame is held)
    cluster.hold_back()
    cluster[2].driver.connection_gone(7)
    cluster.settle()
    assert cluster[1].logged(OriginGone)
    origins = tuple(command.origin for command in held.commands)
    cluster[2].driver.on_frame(cluster.nodes[0], frames.ForwardRefused(origins))
    cluster.tick(2)
    assert outcomes[0] == Queued("lock", "holder", 0)
    assert waiters(cluster) == 0


def test_g4_a_wait_that_begins_after_its_caller_was_told_unknown_is_withdrawn() -> None:
    """The command was under way while leaders changed. A retry would take the wait over again."""
    cluster = Cluster()
    cluster.elect(1)
    cluster.open_session(1, "holder", LONG_MS)
    cluster.open_session(1, "waiter", SHORT_MS)
    cluster.acquire(1, "lock", "holder", request=1)
    cluster.hold_back(frames.Forward)
    outcomes = cluster.ask(3, Acquire("lock", 0, WAIT_FOREVER, ""), session="waiter", request=1, connection=7)
    cluster.settle()
    cluster.elect(2)
    cluster.elect(1)
    assert [isinstance(outcome, Refused) and outcome.code for outcome in outcomes] == ["UNKNOWN"]
    cluster.hold_back()
    cluster.settle()
    assert waiters(cluster) == 1
    pass_alive(cluster, SHORT_MS + 1_000)
    assert waiters(cluster) == 0


def test_g4_the_leader_withdraws_the_waits_of_a_dead_node() -> None:
    cluster, _ = with_waiter(3)
    alive = (1, 2)
    pass_alive(cluster, GONE_MS - 500, only=alive)
    assert not cluster[1].logged(OriginGone)
    pass_alive(cluster, 500 + SHORT_MS - 500, only=alive)
    assert cluster[1].logged(OriginGone) == [OriginGone(3, 0, 0, boot_is_alive=True)], "said once"
    assert waiters(cluster) == 1
    pass_alive(cluster, 1_000, only=alive)
    assert waiters(cluster) == 0


def test_g4_a_new_leader_takes_that_over() -> None:
    cluster, _ = with_waiter(5, size=5)
    pass_alive(cluster, GONE_MS - 500, only=(1, 2, 3, 4))
    assert not cluster[1].logged(OriginGone)
    cluster.isolate(1, 5)
    cluster.elect(2)
    pass_alive(cluster, GONE_MS + SHORT_MS + 1_000, leader=2, only=(2, 3, 4))
    assert waiters(cluster) == 0


def test_g4_a_node_that_was_called_dead_and_lives_tells_its_clients_to_ask_again() -> None:
    cluster, outcomes = with_waiter(3)
    pass_alive(cluster, GONE_MS + 500, only=(1, 2))
    cluster.pass_ms(500)
    assert isinstance(outcomes[-1], Refused)
    assert outcomes[-1].code == "UNKNOWN"
    again = cluster.acquire(3, "lock", "waiter", request=1, connection=8)
    pass_alive(cluster, 2 * SHORT_MS)
    assert again == [Queued("lock", "waiter", 0)]
    assert waiters(cluster) == 1


def test_g4_a_node_that_restarts_withdraws_what_its_last_boot_listened_for() -> None:
    """Too quickly for any leader to miss it: a node registers at each start, with its new boot."""
    cluster, _ = with_waiter(3)
    cluster[3].restart()
    pass_alive(cluster, SHORT_MS - 500)
    registered = [operation for operation in cluster[1].logged(RegisterNode) if operation.node == 3]
    assert len(registered) == 2
    assert not cluster[1].logged(OriginGone)
    assert waiters(cluster) == 1
    pass_alive(cluster, 1_500)
    assert waiters(cluster) == 0


def test_g4_that_a_node_is_dead_is_the_word_of_one_leader_and_dropped_with_it() -> None:
    cluster, _ = with_waiter(3)
    cluster.isolate(1)
    cluster[1].fill_log()
    cluster[1].driver.leadership.turn_ms_max = LONG_MS  # type: ignore[union-attr]
    cluster.now_ms += GONE_MS
    cluster.tick(1, only=(1,))
    assert cluster[1].driver.open_calls > 0
    cluster.lose(lambda *_: True)
    cluster.elect(2)
    cluster.heal()
    pass_alive(cluster, 1_000, leader=2)
    assert not cluster[1].leads()
    assert not cluster[2].logged(OriginGone)
    assert waiters(cluster) == 1


def test_g4_an_answer_that_could_not_be_written_is_withdrawn_however_often_leaders_change() -> None:
    cluster, outcomes = with_waiter(2)
    cluster.ask(1, Release("lock", 1), session="holder")
    cluster.settle()
    assert isinstance(outcomes[-1], Granted)
    cluster.isolate(1)
    cluster.ask(2, RequestOrphaned("lock", 7), session="waiter", request=1, connection=7)
    cluster.settle()
    cluster.lose(lambda *_: True)
    cluster.elect(3)
    cluster.heal()
    pass_alive(cluster, SHORT_MS + 2_000, leader=3)
    assert cluster[3].driver.machine.inspect("lock").status == "free"
