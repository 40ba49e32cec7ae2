"""G4: a wait that nobody listens for is withdrawn, unless its id comes back in time."""

import pytest

from lockd.locks.commands import Acquire, Command, Granted, Origin, OriginGone, RegisterNode, RequestOrphaned
from tests.locks.cluster_state import BOOT, NODE, ClusterState

TTL_MS = 10_000


@pytest.fixture
def state() -> ClusterState:
    """s1 holds "a"; s2 and s3 are there to wait."""
    cluster = ClusterState()
    for session in ("s1", "s2", "s3"):
        cluster.open(session, ttl_ms=TTL_MS)
    cluster.acquire("a", "s1", connection=1)
    return cluster


def gone(connection: int, *, node: int = NODE, boot: int = BOOT) -> OriginGone:
    return OriginGone(node, boot, connection)


def register(node: int) -> RegisterNode:
    return RegisterNode(node, "0" * 32, "p:1", "c:1", "h:1", "0.1.0")


def test_g4_the_wait_of_a_gone_connection_is_withdrawn_after_its_sessions_ttl(state: ClusterState) -> None:
    waiter = state.acquire("a", "s2", request=1, connection=5)
    assert state.send(gone(5)).count == 1
    assert waiter.refused.code == "UNKNOWN", "should its node live after all: ask again"
    state.pass_ms(TTL_MS - 1)
    assert state.machine.inspect("a").queue_length == 1
    state.pass_ms(1)
    assert state.machine.inspect("a").queue_length == 0
    assert state.acquire("a", "s2", request=1).refused.code == "TIMEOUT", "and that id never holds"


def test_g4_the_same_id_in_time_takes_the_wait_over(state: ClusterState) -> None:
    state.acquire("a", "s2", request=1, connection=5)
    state.send(gone(5))
    state.pass_ms(TTL_MS - 1)
    again = state.acquire("a", "s2", request=1, node=2, connection=6)
    assert again.waits
    state.pass_ms(TTL_MS)
    state.release("a", 1, "s1")
    assert again.granted.token == 2
    state.pass_ms(2 * TTL_MS)
    assert state.holder_token("a") == 2, "reclaimed: no timer is left"


def test_g4_a_wait_without_id_cannot_come_back_and_goes_at_once(state: ClusterState) -> None:
    state.acquire("a", "s2", connection=5)
    state.acquire("a", "p1", ttl_ms=5_000, connection=5)
    state.send(gone(5))
    assert state.machine.inspect("a").queue_length == 0
    assert state.machine.stats.sessions == 3, "the private session went with its request"


def test_g4_a_grant_that_came_while_nobody_listened_is_released_unless_reclaimed(state: ClusterState) -> None:
    orphan = state.acquire("a", "s2", request=1, connection=5)
    last = state.acquire("a", "s3", request=1, connection=6)
    state.send(gone(5))
    state.pass_ms(TTL_MS // 2)
    state.release("a", 1, "s1")
    assert state.holder_token("a") == 2, "it keeps its place"
    assert not any(isinstance(outcome, Granted) for outcome in orphan.outcomes), "and nobody was told"
    state.pass_ms(TTL_MS // 2)
    assert last.granted.token == 3
    assert state.acquire("a", "s2", request=1).refused.code == "TIMEOUT"


def test_g4_a_grant_that_came_while_nobody_listened_is_kept_when_reclaimed(state: ClusterState) -> None:
    state.acquire("a", "s2", request=1, connection=5)
    state.send(gone(5))
    state.release("a", 1, "s1")
    again = state.acquire("a", "s2", request=1, connection=7).granted
    assert (again.token, again.repeat) == (2, True)
    state.pass_ms(3 * TTL_MS)
    assert state.holder_token("a") == 2


def test_g4_a_grant_that_was_answered_outlives_its_connection(state: ClusterState) -> None:
    """Losing the connection is not losing the lock (K2)."""
    state.acquire("b", "s2", request=1, connection=5)
    assert state.send(gone(5)).count == 0
    assert state.send(OriginGone(NODE, BOOT, 0)).count == 0
    state.pass_ms(3 * TTL_MS)
    assert state.holder_token("b") == 2


def test_g4_a_wait_that_times_out_as_an_orphan_is_answered_so_later(state: ClusterState) -> None:
    waiter = state.acquire("a", "s2", request=1, wait_ms=100, connection=5)
    state.send(gone(5))
    state.pass_ms(100)
    assert waiter.refused.code == "UNKNOWN", "told once"
    assert state.acquire("a", "s2", request=1).refused.code == "TIMEOUT"


def test_g4_a_dead_nodes_waits_are_orphaned_whatever_their_connection(state: ClusterState) -> None:
    for connection in (5, 6):
        state.acquire("a", "s2", owner=f"t{connection}", request=connection, node=2, connection=connection)
    alive = state.acquire("a", "s3", request=1, node=3)
    other_boot = state.acquire("a", "s3", owner="x", request=2, node=2, boot=BOOT + 1)
    assert state.send(OriginGone(2, BOOT, 0)).count == 2
    state.pass_ms(TTL_MS)
    assert alive.waits
    assert other_boot.waits
    assert state.machine.inspect("a").queue_length == 2


def test_g4_one_operation_of_a_connection_can_be_gone_alone(state: ClusterState) -> None:
    """Its caller was told UNKNOWN; a retry over the same connection, and its other waits, go on."""
    unheard = state.acquire("a", "s2", owner="x", request=1, connection=5)
    heard = state.acquire("a", "s2", owner="y", request=2, connection=5)
    told = OriginGone(NODE, BOOT, 5, operation=unheard.origin.operation)
    assert state.send(told).count == 1
    assert heard.waits
    again = state.acquire("a", "s2", owner="x", request=1, connection=5)
    assert state.send(told).count == 0, "it has come back"
    state.pass_ms(3 * TTL_MS)
    assert again.waits
    assert heard.waits


def test_g4_a_live_boot_is_spared(state: ClusterState) -> None:
    old = state.acquire("a", "s2", request=1, node=2, boot=1)
    new = state.acquire("a", "s2", owner="x", request=2, node=2, boot=2)
    assert state.send(OriginGone(2, 2, 0, boot_is_alive=True)).count == 1
    assert old.refused.code == "UNKNOWN"
    assert new.waits


def test_g4_a_node_that_registers_again_orphans_the_waits_of_its_earlier_boots(state: ClusterState) -> None:
    old = state.acquire("a", "s2", request=1, node=2, boot=1)
    other_node = state.acquire("a", "s3", request=1, node=3, boot=1)
    state.send(register(2), node=2, boot=2)
    assert old.refused.code == "UNKNOWN"
    assert other_node.waits
    assert state.machine.nodes[2].client_address == "c:1"
    state.pass_ms(TTL_MS)
    assert state.machine.inspect("a").queue_length == 1


def test_a_node_registers_itself_only(state: ClusterState) -> None:
    waiter = state.acquire("a", "s2", request=1, node=2, boot=1)
    assert state.send(register(2), node=3, boot=9).refused.code == "ERR"
    assert waiter.waits
    assert state.machine.nodes == {}


def test_g4_a_second_end_of_the_origin_does_not_prolong_the_first(state: ClusterState) -> None:
    state.acquire("a", "s2", request=1, connection=5)
    state.send(gone(5))
    state.pass_ms(TTL_MS - 1)
    assert state.send(OriginGone(NODE, BOOT, 0)).count == 0
    state.pass_ms(1)
    assert state.machine.inspect("a").queue_length == 0


def test_g4_a_grant_whose_answer_could_not_be_written_is_released_unless_asked_for(
    state: ClusterState,
) -> None:
    state.acquire("b", "s2", request=1, connection=5)
    assert state.send(RequestOrphaned("b", 5), session="s2", request=1).count == 1
    state.pass_ms(TTL_MS)
    assert state.holder_token("b") == 0
    assert state.acquire("b", "s2", request=1).refused.code == "TIMEOUT"


def test_g4_a_grant_whose_answer_could_not_be_written_is_kept_when_asked_for(state: ClusterState) -> None:
    state.acquire("b", "s2", request=1, connection=5)
    state.send(RequestOrphaned("b", 5), session="s2", request=1)
    assert state.acquire("b", "s2", request=1, connection=6).granted.token == 2
    state.pass_ms(3 * TTL_MS)
    assert state.holder_token("b") == 2


def test_p1_a_late_orphaning_does_not_touch_a_grant_that_was_reclaimed_elsewhere(state: ClusterState) -> None:
    """The retry's answer arrived; its client relies on the grant as long as it renews."""
    state.acquire("b", "s2", request=1, connection=5)
    state.acquire("b", "s2", request=1, connection=6)
    assert state.send(RequestOrphaned("b", 5), session="s2", request=1).count == 0
    assert state.send(RequestOrphaned("b", 6), session="s2", request=1, node=2).count == 0
    assert state.send(RequestOrphaned("b", 6), session="s2", request=1, boot=1).count == 0
    state.pass_ms(3 * TTL_MS)
    assert state.holder_token("b") == 2


def test_g4_an_unwritten_answer_to_a_request_without_id_ends_its_grant_at_once(state: ClusterState) -> None:
    state.acquire("b", "s2", connection=5)
    assert state.send(RequestOrphaned("b", 4), session="s2").count == 0
    assert state.send(RequestOrphaned("b", 5), session="s2").count == 1
    assert state.holder_token("b") == 0


def test_g4_of_two_requests_without_id_that_of_the_gone_connection_ends(state: ClusterState) -> None:
    older, newer = (
        state.send(Acquire("pool", 0, 0, "", limit=2), session="s2", connection=connection).granted.token
        for connection in (5, 6)
    )
    assert state.send(RequestOrphaned("pool", 5), session="s2").count == 1
    assert [holder.token for holder in state.machine.inspect("pool").holders] == [newer]
    assert older < newer


def test_g4_a_private_grant_that_nobody_heard_of_ends_with_its_session(state: ClusterState) -> None:
    uuid = "1d3a4f5e-0000-4000-8000-000000000001"
    state.acquire("b", "p1", ttl_ms=4_000, request=uuid, connection=5)
    assert state.send(RequestOrphaned("b", 5), session="p9", request=uuid).count == 1
    state.pass_ms(4_000)
    assert state.holder_token("b") == 0
    assert state.machine.stats.sessions == 3


def test_an_orphaning_of_another_user_or_lock_is_refused(state: ClusterState) -> None:
    state.acquire("b", "s2", request=1, connection=5)
    assert state.send(RequestOrphaned("b", 5), session="s2", request=1, user="bob").count == 0
    assert state.send(RequestOrphaned("c", 5), session="s2", request=1).count == 0
    assert state.send(RequestOrphaned("b", 5), session="none", request=1).count == 0
    assert state.send(RequestOrphaned("b", 5), session="s2", request=2).count == 0


def test_a_command_applied_twice_takes_one_place_in_the_queue(state: ClusterState) -> None:
    """A copy in the log, of one operation of one origin, is a retry of itself."""
    waiter = state.acquire("a", "s2", request=1, connection=5)
    origin = Origin(NODE, BOOT, 5, waiter.origin.operation)
    copy = next(r for r in state.machine.state.locks["a"].waiters.values())
    assert copy.origin == origin
    before = len(waiter.outcomes)
    state.apply(Command("ann", "s2", "", 1, origin, Acquire("a", 0, -1, "")))
    assert [type(outcome).__name__ for outcome in waiter.outcomes[before:]] == ["Queued"]
    assert state.machine.stats.waiters == 1
