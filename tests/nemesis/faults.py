"""What can be done to a cluster, by name. Each fault is a context: it is done on entering, undone on leaving.

    with FAULTS["leader that cannot hear"](cluster, random.Random(seed)) as what:
        print(what)             # "node 2 (leader) hears nobody; bytes are held"

They may be nested. Undone means that the cause is gone, not that the cluster has recovered: see
`NemesisCluster.recover` and `leader`.
"""

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

from tests.nemesis import clocks
from tests.nemesis.cluster import OBSERVE_S, NemesisCluster, NemesisNode
from tests.nemesis.network import ANYONE, CLIENTS, NODES, Disturbance, Effect, Group, only

Fault = Callable[[NemesisCluster, random.Random], AbstractContextManager[str]]

STORM_ROUNDS = 4
REPLACING_S_MAX = 5.0
SLOW_S_MIN, SLOW_S_MAX = 0.02, 0.2


# Processes.


@contextlib.contextmanager
def kill_leader(cluster: NemesisCluster, draw: random.Random) -> Iterator[str]:
    """kill -9; started again at the end."""
    with _killed(_leader(cluster, draw)) as what:
        yield what


@contextlib.contextmanager
def kill_follower(cluster: NemesisCluster, draw: random.Random) -> Iterator[str]:
    with _killed(_follower(cluster, draw)) as what:
        yield what


@contextlib.contextmanager
def kill_all(cluster: NemesisCluster, _: random.Random) -> Iterator[str]:
    """kill -9 of all at once, and at once started again."""
    cluster.kill()
    cluster.start()
    yield "all nodes are killed and started"


@contextlib.contextmanager
def stop_leader(cluster: NemesisCluster, draw: random.Random) -> Iterator[str]:
    """SIGTERM: an orderly end."""
    node = _leader(cluster, draw)
    node.stop()
    try:
        yield f"{_name(node)} is stopped in order"
    finally:
        _start(node)


@contextlib.contextmanager
def pause_leader(cluster: NemesisCluster, draw: random.Random) -> Iterator[str]:
    """SIGSTOP, then SIGCONT."""
    with _paused(_leader(cluster, draw)) as what:
        yield what


@contextlib.contextmanager
def pause_follower(cluster: NemesisCluster, draw: random.Random) -> Iterator[str]:
    with _paused(_follower(cluster, draw)) as what:
        yield what


@contextlib.contextmanager
def restart_storm(cluster: NemesisCluster, draw: random.Random) -> Iterator[str]:
    """Nodes are killed and started one after the other, ready or not."""
    nodes = [draw.choice(list(cluster)) for _ in range(STORM_ROUNDS * len(cluster.nodes))]
    for node in nodes:
        node.kill()
        node.start()
    yield f"nodes {', '.join(str(node.node_id) for node in nodes)} are killed and started"


@contextlib.contextmanager
def clock_jump(cluster: NemesisCluster, draw: random.Random) -> Iterator[str]:
    """A node comes back with its monotonic clock months away from where it was."""
    node = draw.choice(list(cluster))
    node.kill()
    before = node.clock_shift_s
    node.clock_shift_s = draw.randrange(clocks.SHIFT_S_MAX)
    node.start()
    yield f"{_name(node)} restarts with its clock moved by {node.clock_shift_s - before} s"


@contextlib.contextmanager
def hand_over(cluster: NemesisCluster, draw: random.Random) -> Iterator[str]:
    """The leader is told to let another lead. Nobody waits to hear whether it did."""
    leader = _leader(cluster, draw)
    heir = draw.choice([node for node in cluster if node is not leader])
    with contextlib.suppress(OSError):
        leader.ask("CLUSTER.TRANSFER", heir.node_id, timeout=OBSERVE_S)
    yield f"{_name(leader)} hands over to node {heir.node_id}"


@contextlib.contextmanager
def replace_node(cluster: NemesisCluster, draw: random.Random) -> Iterator[str]:
    """A node's disk is lost, and another takes its place while whatever else happens goes on.

    A replacement that has not come to its end in time goes on with the next one of these, and at the
    end with `NemesisCluster.recover`: nobody else's disk is lost before.
    """
    running = [node for node in cluster if node.is_running]
    if cluster.replacement is None and len(running) > 1:
        cluster.begin_to_replace(draw.choice(running))
    replacement = cluster.replacement
    yield f"{replacement}" if replacement else "nobody can be replaced"
    cluster.go_on_replacing(at_most_s=REPLACING_S_MAX)


# The network.


@contextlib.contextmanager
def cut_off_leader(cluster: NemesisCluster, draw: random.Random) -> Iterator[str]:
    """Nobody hears it and it hears nobody; its clients too, or only its peers."""
    with _cut_off(cluster, _leader(cluster, draw), draw) as what:
        yield what


@contextlib.contextmanager
def cut_off_follower(cluster: NemesisCluster, draw: random.Random) -> Iterator[str]:
    with _cut_off(cluster, _follower(cluster, draw), draw) as what:
        yield what


@contextlib.contextmanager
def no_quorum(cluster: NemesisCluster, draw: random.Random) -> Iterator[str]:
    """No node reaches any other; clients reach all."""
    effect = _hold_or_lose(draw)
    with cluster.network.disturbed(Disturbance(NODES, NODES, effect)):
        yield f"no node reaches another; bytes are {_PARTICIPLE[effect]}"


@contextlib.contextmanager
def deaf_leader(cluster: NemesisCluster, draw: random.Random) -> Iterator[str]:
    """It is heard by its peers, and hears none of them."""
    with _deaf(cluster, _leader(cluster, draw), draw) as what:
        yield what


@contextlib.contextmanager
def mute_leader(cluster: NemesisCluster, draw: random.Random) -> Iterator[str]:
    """It hears its peers, and is heard by none of them."""
    with _mute(cluster, _leader(cluster, draw), draw) as what:
        yield what


@contextlib.contextmanager
def deaf_follower(cluster: NemesisCluster, draw: random.Random) -> Iterator[str]:
    with _deaf(cluster, _follower(cluster, draw), draw) as what:
        yield what


@contextlib.contextmanager
def mute_follower(cluster: NemesisCluster, draw: random.Random) -> Iterator[str]:
    with _mute(cluster, _follower(cluster, draw), draw) as what:
        yield what


@contextlib.contextmanager
def slow_links(cluster: NemesisCluster, draw: random.Random) -> Iterator[str]:
    """Everything from and to one node is late, each way by as much."""
    node = draw.choice(list(cluster))
    late = draw.uniform(SLOW_S_MIN, SLOW_S_MAX)
    itself = only(node.node_id)
    with cluster.network.disturbed(
        Disturbance(itself, ANYONE, Effect.DELAY, late), Disturbance(ANYONE, itself, Effect.DELAY, late)
    ):
        yield f"{_name(node)}: bytes are {late * 1000:.0f} ms late each way"


@contextlib.contextmanager
def reset_connections(cluster: NemesisCluster, draw: random.Random) -> Iterator[str]:
    """Every connection of the peers, or of the clients, or of both is reset."""
    whose, sources = draw.choice([("peers'", NODES), ("clients'", CLIENTS), ("all", ANYONE)])
    count = cluster.network.reset(sources)
    yield f"{count} connections are reset: {whose}"


@contextlib.contextmanager
def cut_off_client(cluster: NemesisCluster, draw: random.Random) -> Iterator[str]:
    """One client hears of no node, and may not reach any: its leases end by its clock, then the cluster's."""
    clients = sorted(str(party) for party in cluster.network.speakers() if CLIENTS(party))
    client = draw.choice(clients) if clients else ""
    effect = _hold_or_lose(draw)
    there, back = only(client), NODES
    disturbances = [Disturbance(back, there, effect)]
    if draw.random() < 0.5:
        disturbances.append(Disturbance(there, back, effect))
    with cluster.network.disturbed(*disturbances):
        ways = "reaches nobody" if len(disturbances) == 2 else "hears nobody"
        yield f"client {client} {ways}; bytes are {_PARTICIPLE[effect]}"


FAULTS: Mapping[str, Fault] = {
    "leader killed": kill_leader,
    "follower killed": kill_follower,
    "all killed": kill_all,
    "leader stopped": stop_leader,
    "leader handed over": hand_over,
    "leader paused": pause_leader,
    "follower paused": pause_follower,
    "restart storm": restart_storm,
    "clock jump": clock_jump,
    "node replaced": replace_node,
    "leader cut off": cut_off_leader,
    "follower cut off": cut_off_follower,
    "no quorum": no_quorum,
    "leader deaf": deaf_leader,
    "leader mute": mute_leader,
    "follower deaf": deaf_follower,
    "follower mute": mute_follower,
    "slow links": slow_links,
    "connections reset": reset_connections,
    "client cut off": cut_off_client,
}
"""Everything that needs no disk of its own: for that see `tests.nemesis.disks`."""


def possible_faults() -> tuple[dict[str, Fault], dict[str, str]]:
    """Those that this machine can do, and why it can't do the others."""
    impossible = {"clock jump": reason} if (reason := clocks.why_not()) else {}
    return {name: fault for name, fault in FAULTS.items() if name not in impossible}, impossible


# Their parts.

_PARTICIPLE = {Effect.HOLD: "held", Effect.LOSE: "lost"}


@contextlib.contextmanager
def _killed(node: NemesisNode) -> Iterator[str]:
    name = _name(node)
    node.kill()
    try:
        yield f"{name} is killed"
    finally:
        _start(node)


@contextlib.contextmanager
def _paused(node: NemesisNode) -> Iterator[str]:
    pid = node.pid
    node.freeze()
    try:
        yield f"{_name(node)} is paused"
    finally:
        if node.is_running and node.pid == pid:
            node.thaw()


@contextlib.contextmanager
def _cut_off(cluster: NemesisCluster, node: NemesisNode, draw: random.Random) -> Iterator[str]:
    effect = _hold_or_lose(draw)
    whom, others = draw.choice([("its peers", NODES), ("its peers and clients", ANYONE)])
    itself: Group = only(node.node_id)
    with cluster.network.disturbed(Disturbance(itself, others, effect), Disturbance(others, itself, effect)):
        yield f"{_name(node)} is cut off from {whom}; bytes are {_PARTICIPLE[effect]}"


@contextlib.contextmanager
def _deaf(cluster: NemesisCluster, node: NemesisNode, draw: random.Random) -> Iterator[str]:
    effect = _hold_or_lose(draw)
    with cluster.network.disturbed(Disturbance(NODES, only(node.node_id), effect)):
        yield f"{_name(node)} hears no peer; bytes are {_PARTICIPLE[effect]}"


@contextlib.contextmanager
def _mute(cluster: NemesisCluster, node: NemesisNode, draw: random.Random) -> Iterator[str]:
    effect = _hold_or_lose(draw)
    with cluster.network.disturbed(Disturbance(only(node.node_id), NODES, effect)):
        yield f"no peer hears {_name(node)}; bytes are {_PARTICIPLE[effect]}"


def _hold_or_lose(draw: random.Random) -> Effect:
    return draw.choice([Effect.HOLD, Effect.LOSE])


def _leader(cluster: NemesisCluster, draw: random.Random) -> NemesisNode:
    """Who leads now; when nobody says so, any that runs: it would have to be a leader to be found."""
    return cluster.leader_now() or _any_running(cluster, draw)


def _follower(cluster: NemesisCluster, draw: random.Random) -> NemesisNode:
    leader = cluster.leader_now()
    others = [node for node in cluster if node is not leader and node.is_running]
    return draw.choice(others) if others else _any_running(cluster, draw)


def _any_running(cluster: NemesisCluster, draw: random.Random) -> NemesisNode:
    return draw.choice([node for node in cluster if node.is_running] or list(cluster))


def _start(node: NemesisNode) -> None:
    if not node.is_running:
        node.start()


def _name(node: NemesisNode) -> str:
    return f"node {node.node_id}"
