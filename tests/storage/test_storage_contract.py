"""What every adapter does alike (SAFETY S1, S2): one suite, run over each of them."""

from contextlib import ExitStack
from threading import Event, Thread

import pytest

from lockd.errors import LeaseLost, StaleToken, Unavailable
from lockd_storage import NotInstalled, WrongCluster, WrongLock, WrongMode
from lockd_storage.memory import MemoryFence
from tests.storage.leases import OTHER_CLUSTER, OTHER_INCARNATION, GivenLease
from tests.storage.stores import Store

STILL_WAITING_SECONDS = 0.3


def write(store: Store, lease: GivenLease, resource: str | None = None) -> None:
    with store.fence.write(lease, resource) as handle:
        store.add(handle, lease)


def test_the_installed_token_writes_as_often_as_it_likes(store: Store) -> None:
    lease = GivenLease(33)
    mark = store.fence.install(lease)
    assert (mark.resource, mark.lock, str(mark.fence)) == ("orders", "orders", lease.fence)
    assert store.fence.mark("orders") == mark
    write(store, lease)
    write(store, lease)
    assert store.lines() == [33, 33]


def test_s1_an_older_token_is_refused_before_the_newer_one_has_written(store: Store) -> None:
    old, new = GivenLease(33), GivenLease(34)
    store.fence.install(old)
    write(store, old)
    store.fence.install(new)
    with pytest.raises(StaleToken) as refused:
        write(store, old)
    assert (refused.value.resource, refused.value.presented, refused.value.mark) == ("orders", 33, 34)
    assert store.lines() == [33]


def test_s1_installing_again_changes_nothing_and_is_fine(store: Store) -> None:
    lease = GivenLease(33)
    first = store.fence.install(lease)
    write(store, lease)
    assert store.fence.install(lease) == first
    write(store, lease)
    assert store.lines() == [33, 33]


def test_s1_installing_again_while_its_own_write_is_open_does_not_wait(sharing_store: Store) -> None:
    store = sharing_store
    lease = GivenLease(33)
    store.fence.install(lease)
    with store.fence.write(lease) as handle:
        store.fence.install(lease, timeout=0.05)
        store.add(handle, lease)
    assert store.lines() == [33]


def test_s2_without_a_mark_a_write_is_refused(store: Store) -> None:
    with pytest.raises(NotInstalled) as refused:
        write(store, GivenLease(33))
    assert refused.value.resource == "orders"
    assert store.lines() == []
    assert store.fence.mark("orders") is None


def test_s2_a_token_above_the_mark_is_refused_and_moves_nothing(store: Store) -> None:
    store.fence.install(GivenLease(33))
    with pytest.raises(NotInstalled):
        write(store, GivenLease(2**53 - 1))
    mark = store.fence.mark("orders")
    assert mark is not None
    assert mark.token == 33
    assert store.lines() == []


def test_s2_a_lease_of_several_locks_installs_under_the_lock_that_a_resource_is_named_like(
    store: Store,
) -> None:
    store.fence.install(GivenLease(33, lock="stock"))
    both = GivenLease(34, lock="orders", locks=("orders", "stock"))
    assert store.fence.install(both, "stock").lock == "stock"
    with pytest.raises(StaleToken):
        store.fence.install(GivenLease(33, lock="stock"))
    assert store.fence.install(GivenLease(35, lock="stock")).lock == "stock"
    with pytest.raises(WrongLock):
        store.fence.install(GivenLease(36, lock="orders"), "stock")


def test_s2_an_older_token_is_not_installed(store: Store) -> None:
    store.fence.install(GivenLease(34))
    with pytest.raises(StaleToken) as refused:
        store.fence.install(GivenLease(33))
    assert (refused.value.presented, refused.value.mark) == (33, 34)
    write(store, GivenLease(34))


def test_s2_another_cluster_neither_installs_nor_writes(store: Store) -> None:
    store.fence.install(GivenLease(33))
    stranger = GivenLease(34, cluster=OTHER_CLUSTER)
    with pytest.raises(WrongCluster):
        store.fence.install(stranger)
    with pytest.raises(WrongCluster):
        write(store, GivenLease(33, cluster=OTHER_CLUSTER))
    assert store.lines() == []


def test_s2_a_pinned_cluster_is_checked_before_anything_is_installed(store: Store) -> None:
    pinned = store.pinned(OTHER_CLUSTER)
    with pytest.raises(WrongCluster):
        pinned.install(GivenLease(33))
    assert pinned.mark("orders") is None


def test_s2_a_lock_of_another_name_does_not_install(store: Store) -> None:
    store.fence.install(GivenLease(33))
    with pytest.raises(WrongLock):
        store.fence.install(GivenLease(34, lock="invoices"), "orders")
    write(store, GivenLease(33))


def test_s2_the_same_number_of_another_incarnation_is_another_grant(store: Store) -> None:
    store.fence.install(GivenLease(33))
    twin = GivenLease(33, incarnation=OTHER_INCARNATION)
    with pytest.raises(StaleToken):
        store.fence.install(twin)
    with pytest.raises(StaleToken):
        write(store, twin)
    store.fence.install(GivenLease(34, incarnation=OTHER_INCARNATION))
    with pytest.raises(StaleToken):
        write(store, GivenLease(33))
    assert store.lines() == []


def test_resources_have_marks_of_their_own(store: Store) -> None:
    orders, entity = GivenLease(33), GivenLease(34)
    store.fence.install(orders)
    store.fence.install(entity, "orders:42")
    write(store, orders)
    write(store, entity, "orders:42")
    assert store.lines() == [33, 34]


@pytest.mark.parametrize("name", ["", "x" * 513, "a\0b"])
def test_unusable_resource_names_are_refused(store: Store, name: str) -> None:
    with pytest.raises(ValueError, match="resource"):
        store.fence.install(GivenLease(33), name)


def test_names_and_tokens_up_to_their_limits_are_kept_exactly(store: Store) -> None:
    resource = "a'b\"c%d\\é:" + "x" * 500
    for token in (2**53 - 2, 2**53 - 1):
        store.fence.install(GivenLease(token, lock=resource))
    with pytest.raises(StaleToken):
        write(store, GivenLease(2**53 - 2, lock=resource))
    write(store, GivenLease(2**53 - 1, lock=resource))
    assert store.lines() == [2**53 - 1]


def test_s3_nothing_begins_after_the_deadline(store: Store) -> None:
    lease = GivenLease(33)
    store.fence.install(lease)
    lease.seconds = 0.0
    with pytest.raises(LeaseLost):
        write(store, lease)
    with pytest.raises(LeaseLost):
        store.fence.install(lease)
    assert store.lines() == []


def test_a_late_writer_learns_who_is_newer(store: Store) -> None:
    old = GivenLease(33)
    store.fence.install(old)
    store.fence.install(GivenLease(34))
    old.seconds = -5.0
    with pytest.raises(StaleToken) as refused:
        write(store, old)
    assert refused.value.mark == 34


def test_s1_install_waits_for_the_older_write_and_then_sees_it(holding_store: Store) -> None:
    store = holding_store
    old, new = GivenLease(33), GivenLease(34)
    store.fence.install(old)
    seen: list[list[int]] = []

    def install() -> None:
        store.fence.install(new, timeout=20)
        seen.append(store.lines())

    thread = Thread(target=install)
    with store.fence.write(old) as handle:
        store.add(handle, old)
        thread.start()
        thread.join(STILL_WAITING_SECONDS)
        assert thread.is_alive(), "install returned while an older write was open"
    thread.join(20)
    assert seen == [[33]]
    with pytest.raises(StaleToken):
        write(store, old)


def test_s1_a_write_that_is_open_during_an_install_is_refused_at_its_end(sending_store: Store) -> None:
    store = sending_store
    old, new = GivenLease(33), GivenLease(34)
    store.fence.install(old)

    def write_and_be_overtaken() -> None:
        with store.fence.write(old) as handle:
            store.add(handle, old)
            store.fence.install(new)

    with pytest.raises(StaleToken) as refused:
        write_and_be_overtaken()
    assert refused.value.mark == 34
    assert store.lines() == []
    write(store, new)
    assert store.lines() == [34]


def test_holders_of_one_token_write_side_by_side(sharing_store: Store) -> None:
    store = sharing_store
    lease = GivenLease(33)
    store.fence.install(lease)
    with ExitStack() as both:
        for _ in range(2):
            store.add(both.enter_context(store.fence.write(lease)), lease)
    assert store.lines() == [33, 33]


def test_memory_install_is_refused_by_time_and_keeps_the_gate_shut() -> None:
    fence = MemoryFence()
    old, new = GivenLease(33), GivenLease(34)
    fence.install(old)
    with fence.write(old):
        with pytest.raises(Unavailable):
            fence.install(new, timeout=0.01)
        fence.check_invariants()
        with pytest.raises(StaleToken), fence.write(old):
            pytest.fail("an older writer came in")
        with pytest.raises(NotInstalled), fence.write(new):
            pytest.fail("the newer writer came in beside the older one")
    fence.install(new)
    with fence.write(new):
        fence.check_invariants()


def test_memory_install_that_was_overtaken_while_it_waited_says_so() -> None:
    fence = MemoryFence()
    fence.install(GivenLease(33))
    refused: list[int] = []
    waiting = Event()

    def install_34() -> None:
        waiting.set()
        try:
            fence.install(GivenLease(34), timeout=20)
        except StaleToken as error:
            refused.append(error.mark)

    thread = Thread(target=install_34)
    with fence.write(GivenLease(33)):
        thread.start()
        assert waiting.wait(20)
        while (mark := fence.mark("orders")) is None or mark.token != 34:
            pass
        with pytest.raises(Unavailable):
            fence.install(GivenLease(35), timeout=0.01)
    thread.join(20)
    assert refused == [35]


def test_g10_a_shared_lease_shuts_out_an_earlier_writer_and_writes_nothing(store: Store) -> None:
    writer, reader = GivenLease(33), GivenLease(34, mode="shared")
    store.fence.install(writer)
    write(store, writer)
    store.fence.install(reader)
    with pytest.raises(StaleToken):
        write(store, writer)
    with pytest.raises(WrongMode, match="exclusively"):
        write(store, reader)
    assert store.lines() == [33]


def test_g10_a_semaphore_neither_installs_nor_writes(store: Store) -> None:
    store.fence.install(GivenLease(33))
    for refused in (store.fence.install, lambda lease: write(store, lease)):
        with pytest.raises(WrongMode, match="no order"):
            refused(GivenLease(34, mode="semaphore"))
    mark = store.fence.mark("orders")
    assert mark is not None
    assert mark.token == 33
