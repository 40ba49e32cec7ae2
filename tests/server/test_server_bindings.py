"""Which instance is which node (SAFETY C8), and that strangers can't fill the disk with it (C10)."""

from collections.abc import Callable

from lockd.ids import InstanceId, NodeId
from lockd.server.bindings import GUESTS_MAX, Bindings

MEMBERS = range(1, 4)
ONE, OTHER = InstanceId("1" * 32), InstanceId("2" * 32)


class Disk:
    def __init__(self) -> None:
        self.writes: list[tuple[NodeId, InstanceId]] = []
        self.syncs: list[Callable[[], None]] = []

    def write(self, node: NodeId, instance: InstanceId, on_durable: Callable[[], None]) -> None:
        self.writes.append((node, instance))
        self.syncs.append(on_durable)


def bindings(disk: Disk, *, registered: dict[int, InstanceId] | None = None) -> Bindings:
    return Bindings(
        {NodeId(2): ONE},
        write=disk.write,
        registered=(registered or {}).get,
        is_guest=lambda node: node not in MEMBERS,
    )


def test_c8_who_was_met_counts_before_who_has_registered() -> None:
    found = bindings(Disk(), registered={2: OTHER, 3: OTHER})
    assert [found.instance_of(NodeId(node)) for node in (1, 2, 3)] == [None, ONE, OTHER]


def test_c8_no_other_instance_is_taken_for_one_whose_binding_is_on_its_way() -> None:
    disk, bound = Disk(), list[NodeId]()
    found = bindings(disk)
    found.bind(NodeId(3), ONE, lambda: bound.append(NodeId(3)))
    assert found.instance_of(NodeId(3)) == ONE
    assert not bound
    disk.syncs.pop()()
    assert bound == [3]
    found.bind(NodeId(3), ONE, lambda: bound.append(NodeId(3)))  # durable: at once, and not again
    assert (bound, disk.writes) == ([3, 3], [(3, ONE)])


def test_c10_ids_that_are_no_members_are_bound_up_to_a_limit_and_members_always() -> None:
    found = bindings(Disk())
    for node in range(100, 100 + GUESTS_MAX):
        assert found.has_room_for(NodeId(node))
        found.bind(NodeId(node), OTHER, lambda: None)
    assert not found.has_room_for(NodeId(99))
    assert found.has_room_for(NodeId(100)), "it is bound already"
    assert found.has_room_for(NodeId(3))
