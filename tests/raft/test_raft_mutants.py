"""What no other test noticed when it was taken out of the core; see tests/mutations."""

from tests.raft.single import ack_from, change_of, make_leader, make_node, propose, settle, step


def test_c7_a_leader_leaves_the_joint_mode_once_however_much_is_applied_meanwhile() -> None:
    """Left twice, the second entry would contradict the configuration on every node."""
    node = make_node()
    make_leader(node)
    step(node, ack_from(2, 1, 1))
    node.propose_change(change_of("v4 r2"))
    propose(node, b"already on its way")
    settle(node)
    step(node, ack_from(2, 1, 2))
    assert node.configuration.is_joint
    assert node.log.last_index == 4, "the third is the proposal, the fourth leaves"
    step(node, ack_from(3, 1, 3))
    assert node.last_applied == 3
    assert node.log.last_index == 4
