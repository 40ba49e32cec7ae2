"""G2, C8: what a restored cluster goes on from."""

import pytest

from lockd.errors import CorruptData
from lockd.ids import TOKEN_MAX, LogIndex
from lockd.locks.commands import WAIT_FOREVER, AddMember, Granted, OriginGone
from lockd.locks.fingerprint import fingerprint
from lockd.locks.machine import LockMachine
from lockd.locks.restore import Clients, RestoreRefused, restored_state, restored_token
from tests.locks.cluster_state import ClusterState
from tests.locks.random_commands import RandomLog
from tests.locks.test_locks_replay import TIGHT
from tests.locks.test_locks_snapshot import busy_cluster

TAKEN_S = 1_790_000_000
PER_SECOND = 2**20


def backup() -> bytes:
    return b"".join(busy_cluster().machine.snapshot())


def restored(
    data: bytes,
    *,
    later_s: int = 60,
    node: int = 1,
    incarnation: str = "2" * 8,
    clients: Clients = Clients.MAY_RUN,
) -> ClusterState:
    """A cluster that goes on from the restored state."""
    pieces = restored_state(
        data,
        now_unix_s=TAKEN_S + later_s,
        taken_unix_s=TAKEN_S,
        incarnation=incarnation,
        node=node,
        instance="f" * 32,
        peer_address="new:1",
        former_nodes=(1, 2, 3),
        clients=clients,
    )
    cluster = ClusterState()
    cluster.machine = LockMachine.from_snapshot(b"".join(pieces))
    cluster.machine.check_invariants()
    cluster.index = cluster.machine.applied
    cluster.stamp_ms = cluster.machine.clock_ms
    return cluster


def after_the_quiet_period(cluster: ClusterState) -> ClusterState:
    cluster.pass_ms(cluster.machine.grants_from_ms - cluster.stamp_ms)
    return cluster


def test_nothing_that_was_granted_is_left() -> None:
    machine = restored(backup()).machine
    assert machine.stats.sessions == machine.stats.locks == machine.stats.waiters == 0
    assert machine.stats.private_requests == 0
    assert machine.cluster == "c" * 32
    assert machine.incarnation == "2" * 8


def test_tokens_are_beyond_any_of_before() -> None:
    data = backup()
    saved = LockMachine.from_snapshot(data).token
    cluster = after_the_quiet_period(restored(data))
    cluster.open("s9")
    token = cluster.acquire("a", "s9").granted.token
    assert token > max(saved + 2**32, (TAKEN_S + 60) * PER_SECOND)


@pytest.mark.parametrize("saved", [0, 5, TAKEN_S * PER_SECOND - 2**32, TAKEN_S * PER_SECOND + 99, 2**52])
@pytest.mark.parametrize("later_s", [0, 1, 4_000, 90_000])
def test_two_restores_of_one_backup_never_issue_the_same_tokens(saved: int, later_s: int) -> None:
    """Whichever of the two rules counts, now and a second later: a second is worth 2^20 tokens."""
    first = restored_token(saved, now_unix_s=TAKEN_S + later_s, taken_unix_s=TAKEN_S)
    second = restored_token(saved, now_unix_s=TAKEN_S + later_s + 1, taken_unix_s=TAKEN_S)
    assert second >= first + PER_SECOND
    assert first >= max(saved + 2**32, (TAKEN_S + later_s) * PER_SECOND)
    assert second <= TOKEN_MAX


def test_a_clock_before_the_backup_is_refused() -> None:
    with pytest.raises(RestoreRefused, match="3 s earlier than the backup's"):
        restored(backup(), later_s=-3)
    assert restored(backup(), later_s=0).machine.token >= TAKEN_S * PER_SECOND


def test_tokens_never_reach_2_to_53() -> None:
    most = 2**33 - 2**12  # unix seconds: the year 2242
    for saved, now_s in ((TOKEN_MAX, TAKEN_S), (TOKEN_MAX - 2**32, TAKEN_S), (0, most), (0, 2**60)):
        with pytest.raises(RestoreRefused, match="they end at 9007199254740991"):
            restored_token(saved, now_unix_s=now_s, taken_unix_s=TAKEN_S)
    assert restored_token(0, now_unix_s=most - 1, taken_unix_s=TAKEN_S) <= TOKEN_MAX - 2**32


def test_nothing_is_granted_until_the_longest_ttl_has_passed() -> None:
    cluster = restored(backup())
    machine = cluster.machine
    assert machine.grants_from_ms == machine.clock_ms + TIGHT.ttl_ms_max
    assert machine.next_timer_ms() == machine.grants_from_ms
    cluster.open("s8", ttl_ms=4_000)
    cluster.open("s9", ttl_ms=4_000)
    first = cluster.acquire("a", "s8")
    second = cluster.acquire("a", "s9")
    private = cluster.acquire("b", "p9", ttl_ms=2_000, wait_ms=WAIT_FOREVER, request="u1")
    assert first.waits
    assert second.waits
    cluster.pass_ms(machine.grants_from_ms - machine.clock_ms - 1)
    assert first.waits
    assert private.waits
    assert machine.lease_changes == []
    cluster.pass_ms(1)
    assert first.granted.token < private.granted.token
    assert second.waits
    assert machine.grants_from_ms == 0
    assert machine.next_timer_ms() is None
    assert cluster.acquire("c", "s9").granted.token


def test_a_request_that_does_not_wait_is_unavailable_and_may_be_sent_again() -> None:
    """UNAVAILABLE says that nothing has changed: its id is as good as new, and so is the owner's wait."""
    cluster = restored(backup())
    cluster.open("s9")
    wait = cluster.acquire("a", "s9", owner="t1", request=1)
    for call in (
        cluster.acquire("a", "s9", owner="t1", request=2, wait_ms=0),
        cluster.acquire("b", "s9", request=3, wait_ms=0),
        cluster.acquire("b", "p9", request="u1", ttl_ms=1_000, wait_ms=0),
    ):
        assert call.refused.code == "UNAVAILABLE"
        assert f"another {TIGHT.ttl_ms_max} ms" in call.refused.text
    assert wait.waits
    after_the_quiet_period(cluster)
    assert wait.granted.token
    assert cluster.acquire("b", "s9", request=3, wait_ms=0).granted.token
    assert cluster.acquire("c", "p9", request="u1", ttl_ms=1_000, wait_ms=0).granted.token


def test_waits_end_in_the_quiet_period_as_they_would_in_any_other() -> None:
    cluster = restored(backup())
    cluster.open("s8", ttl_ms=1_000)
    cluster.open("s9", ttl_ms=1_000)
    short = cluster.acquire("a", "s8", wait_ms=600)
    orphan = cluster.acquire("a", "s9", request=1, connection=5)
    to_the_end = cluster.acquire("b", "s9", wait_ms=TIGHT.ttl_ms_max, request=2)
    cluster.send(OriginGone(1, 77, 5), user="")
    cluster.pass_ms(600)
    assert short.refused.code == "TIMEOUT"
    assert "restored" in short.refused.text
    cluster.pass_ms(400)
    assert cluster.acquire("a", "s9", request=1).refused.code == "TIMEOUT"
    assert orphan.refused.code == "UNKNOWN"
    assert cluster.machine.inspect("a").queue_length == 0
    cluster.close("s8")
    # Due at the same ms: the quiet period ends first.
    after_the_quiet_period(cluster)
    assert to_the_end.granted.token


def test_one_entry_over_the_end_fires_in_the_order_of_deadlines() -> None:
    """G6: a leader that logs nothing for a while changes nothing but the time of it."""
    cluster = restored(backup())
    cluster.open("s8", ttl_ms=1_000)
    before = cluster.acquire("a", "s8", wait_ms=TIGHT.ttl_ms_max - 1)
    after = cluster.acquire("b", "s8", wait_ms=TIGHT.ttl_ms_max + 1)
    cluster.pass_ms(10 * TIGHT.ttl_ms_max)
    assert before.refused.code == "TIMEOUT"
    assert after.granted.token


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_asked_in_the_quiet_period_nothing_is_granted(seed: int) -> None:
    """Over random entries, some of them made anew from a snapshot; after it grants go on."""
    machine, log = restored(backup()).machine, RandomLog(seed)
    token, until_ms = machine.token, machine.grants_from_ms
    for index in range(machine.applied + 1, machine.applied + 400):
        batch = log.next_batch(machine.state)
        completions = machine.apply(LogIndex(index), batch)
        machine.check_invariants()
        if machine.clock_ms < until_ms:
            assert not any(isinstance(completion.outcome, Granted) for completion in completions)
            assert machine.token == token
            assert machine.next_timer_ms() is not None
        if index % 10 == 0:
            again = LockMachine.from_snapshot(b"".join(machine.snapshot()))
            assert fingerprint(again.state) == fingerprint(machine.state)
            machine = again
    assert machine.token > token


def test_the_quiet_period_outlives_a_snapshot() -> None:
    cluster = restored(backup())
    cluster.open("s9")
    wait = cluster.acquire("a", "s9")
    cluster.machine = LockMachine.from_snapshot(b"".join(cluster.machine.snapshot()))
    cluster.pass_ms(TIGHT.ttl_ms_max - 1)
    assert wait.waits
    cluster.pass_ms(1)
    assert wait.granted.token


def test_an_operator_who_stopped_all_clients_need_not_wait() -> None:
    cluster = restored(backup(), clients=Clients.ARE_STOPPED)
    assert cluster.machine.grants_from_ms == 0
    cluster.open("s9")
    assert cluster.acquire("a", "s9").granted.token


def test_c8_only_the_restoring_node_is_left() -> None:
    """The ids of all before are used up; that of the node itself has a new instance."""
    cluster = restored(backup())
    machine = cluster.machine
    assert list(machine.nodes) == list(machine.members) == [1]
    assert machine.nodes[1].instance == "f" * 32
    assert machine.members[1] == ("new:1", True)
    assert machine.removed == {2: "b" * 32, 3: "", 4: "", 5: ""}
    assert "was removed" in cluster.send(AddMember(2, "old:1", True), user="").refused.text
    assert cluster.send(AddMember(6, "new:6", True), user="").count == 1


def test_c8_another_id_than_before_leaves_none_of_before() -> None:
    machine = restored(backup(), node=7).machine
    assert list(machine.nodes) == [7]
    assert machine.removed == {1: "a" * 32, 2: "b" * 32, 3: "", 4: "", 5: ""}


@pytest.mark.parametrize(("node", "why"), [(5, "node 5 was removed.*as 1"), (0, "no id"), (2**31, "no id")])
def test_c8_a_removed_id_is_not_restored(node: int, why: str) -> None:
    with pytest.raises(RestoreRefused, match=why):
        restored(backup(), node=node)


def test_the_incarnation_is_a_new_one() -> None:
    with pytest.raises(RestoreRefused, match="incarnation"):
        restored(backup(), incarnation="1" * 8)


def test_a_restored_state_can_be_saved_and_restored_again() -> None:
    once = restored(backup())
    again = restored(b"".join(once.machine.snapshot()), incarnation="3" * 8, node=6, later_s=61)
    assert again.machine.token >= once.machine.token + 2**32
    assert sorted(again.machine.removed) == [1, 2, 3, 4, 5]


def test_a_damaged_backup_is_corrupt_data() -> None:
    with pytest.raises(CorruptData):
        restored(backup()[:-1])
