"""C7, C8: nodes that join and leave, as far as the state knows them."""

import pytest

from lockd.locks.commands import AddMember, PromoteMember, RegisterNode, RemoveMember
from tests.locks.cluster_state import ClusterState


def register(node: int, *, instance: str = "a" * 32) -> RegisterNode:
    return RegisterNode(node, instance, f"h{node}:1", f"h{node}:2", f"h{node}:3", "0.1.0")


def test_a_node_joins_is_promoted_and_leaves() -> None:
    cluster = ClusterState()
    assert cluster.send(AddMember(4, "h:1", False)).count == 1
    assert cluster.machine.members == {4: ("h:1", False)}
    assert cluster.send(PromoteMember(4)).count == 1
    assert cluster.machine.members == {4: ("h:1", True)}
    cluster.send(register(4), node=4)
    assert cluster.send(RemoveMember(4)).count == 1
    assert cluster.machine.members == {}
    assert cluster.machine.nodes == {}
    assert cluster.machine.removed == {4: "a" * 32}
    assert cluster.send(RemoveMember(4)).count == 0


def test_c8_a_removed_id_is_never_used_again() -> None:
    cluster = ClusterState()
    cluster.send(RemoveMember(4))
    assert cluster.machine.removed == {4: ""}
    for operation in (AddMember(4, "h:1", True), PromoteMember(4)):
        objection = cluster.machine.objection_to(operation)
        assert objection == cluster.send(operation).refused
        assert objection.code == "ERR"
        assert "node 4 was removed" in objection.text
    assert "was removed" in cluster.send(register(4, instance="b" * 32), node=4).refused.text
    assert cluster.machine.nodes == {}
    assert cluster.machine.removed == {4: ""}


def test_c8_an_id_belongs_to_the_instance_that_registered_first() -> None:
    cluster = ClusterState()
    cluster.send(register(2), node=2)
    refused = cluster.send(register(2, instance="b" * 32), node=2).refused
    assert (refused.code, refused.text) == ("ERR", f"node 2 is instance {'a' * 32}, not {'b' * 32}")
    assert cluster.machine.nodes[2].instance == "a" * 32
    assert cluster.send(register(2), node=2).count == 1, "its next start"


@pytest.mark.parametrize("operation", [AddMember(0, "h:1", True), RemoveMember(-1), PromoteMember(2**31)])
def test_a_number_that_is_no_id_is_refused(operation: AddMember | RemoveMember | PromoteMember) -> None:
    cluster = ClusterState()
    assert "no id of a node" in cluster.send(operation).refused.text
    assert cluster.machine.removed == {}


@pytest.mark.parametrize(("address", "code"), [("", "ERR"), ("a\nb:1", "ERR"), ("x" * 301, "LIMIT")])
def test_p6_an_address_that_is_none_is_refused(address: str, code: str) -> None:
    cluster = ClusterState()
    assert cluster.send(AddMember(4, address, True)).refused.code == code
    assert cluster.machine.members == {}


def test_a_founder_needs_no_promotion() -> None:
    assert ClusterState().send(PromoteMember(1)).count == 0


def test_added_again_a_member_has_the_new_address() -> None:
    cluster = ClusterState()
    cluster.send(AddMember(4, "h:1", False))
    assert cluster.machine.objection_to(AddMember(4, "h:2", True)) is None
    cluster.send(AddMember(4, "h:2", True))
    assert cluster.machine.members == {4: ("h:2", True)}


def test_g4_waits_at_a_removed_node_are_orphans() -> None:
    """Of every boot. Their clients are told to ask again, elsewhere."""
    cluster = ClusterState()
    cluster.open("s1", ttl_ms=2_000)
    cluster.open("s2", ttl_ms=2_000)
    cluster.acquire("a", "s1")
    gone = cluster.acquire("a", "s2", request=1, node=4, boot=5)
    also = cluster.acquire("a", "s2", request=2, owner="t2", node=4, boot=6)
    stays = cluster.acquire("a", "s2", request=3, owner="t3", node=3)
    cluster.send(RemoveMember(4))
    assert gone.refused.code == also.refused.code == "UNKNOWN"
    assert stays.waits
    assert cluster.acquire("a", "s2", request=1, node=3).waits
    cluster.pass_ms(2_000)
    assert cluster.machine.inspect("a").queue_length == 2
