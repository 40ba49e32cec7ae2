"""One seed from its first election to its last check."""

from collections import Counter
from dataclasses import dataclass

from lockd.ids import NodeId
from tests.sim.clients import TTL_MS, Client, Holder, PrivateClient, Reader, Trust, Waiter
from tests.sim.world import SimNode, World

CLIENTS = 3
PRIVATE_CLIENTS = 2
FAULTS = ("crash", "blackout", "stop", "restart", "isolate", "deafen", "heal", "heal", "pause")
WAITERS = 3
FAULTY_SECONDS = 7
QUIET_SECONDS = 3.5
DRAIN_SECONDS = 4 * TTL_MS / 1_000
"""The node is called dead, its waits go a TTL later, and who is let in by that goes after another."""
LEADER_CHANGES_MIN = 2


@dataclass(frozen=True)
class Report:
    """What one seed met: a seed in which nothing happens proves nothing."""

    seed: int
    leader_changes: int
    met: Counter[str]

    def __str__(self) -> str:
        met = ", ".join(f"{count} {name}" for name, count in sorted(self.met.items()))
        return f"seed {self.seed}: {self.leader_changes} leader changes, {met}"


def simulate(seed: int) -> Report:
    """Run one seed. Raises AssertionError, with the command that replays it, when a rule is broken."""
    world = World(seed)
    try:
        _run(world)
    except Exception as error:
        raise AssertionError(
            f"seed {seed} at {world.schedule.now / 1e6:.3f} s: {str(error) or type(error).__name__}\n"
            f"replay: python -m tests.sim --seed {seed}"
        ) from error
    return Report(seed, world.invariants.terms_led - 1, world.met)


def _run(world: World) -> None:
    trust = Trust(world)
    world.start()
    callers: list[Client | Reader] = [Client(world, trust, number) for number in range(CLIENTS)]
    callers += [PrivateClient(world, trust, CLIENTS + number) for number in range(PRIVATE_CLIENTS)]
    callers.append(Reader(world, len(callers)))
    for caller in callers:
        caller.start()
    world.run(1_500)
    _faulty_phase(world)
    Holder(world, trust, len(callers)).start()
    _quiet_phase(world)
    _drain_phase(world, callers)


def _faulty_phase(world: World) -> None:
    """Safety under faults, with the leader deposed as often as it takes."""
    random = world.random
    end = world.schedule.now + FAULTY_SECONDS * 1_000_000
    while world.schedule.now < end or world.invariants.terms_led <= LEADER_CHANGES_MIN:
        leader = world.leader()
        _break(world, leader if leader is not None and random.random() < 0.5 else _any_node(world))
        world.run(random.uniform(20, 1_500))
        down = [node for node in world.nodes.values() if not node.running]
        if len(down) > len(world.voters) // 2 and random.random() < 0.7:
            world.heal()
            for node in down:
                node.start()
        assert world.schedule.now < end * 20, "the faulty phase never saw enough leaders"


def _break(world: World, victim: SimNode) -> None:
    """One more fault, or the end of one."""
    random = world.random
    down = [node for node in world.nodes.values() if not node.running]
    match random.choice(FAULTS):
        case "crash" if victim.running:
            victim.crash()
        case "blackout":
            world.black_out()
        case "stop" if victim.running and not victim.paused:
            victim.stop()
        case "restart" if down:
            random.choice(down).start()
        case "isolate":
            world.isolate(victim.node_id, one_way=False)
        case "deafen":
            world.isolate(victim.node_id, one_way=True)
        case "heal":
            world.heal()
        case "pause" if victim.running and not victim.paused:
            victim.pause(random.uniform(50, 4_000))


def _quiet_phase(world: World) -> None:
    """Liveness: with the faults gone there is a leader, progress, and one state."""
    world.heal()
    world.faults.loss = world.faults.doubling = 0.0
    for node in world.nodes.values():
        if not node.running:
            node.start()
    granted = world.met["grants answered"]
    world.run(QUIET_SECONDS * 1_000)
    assert world.leader() is not None, "no leader after the faults are gone"
    assert world.met["grants answered"] > granted, "nobody gets a lock after the faults are gone"
    applied = {node.up.raft.last_applied for node in world.nodes.values()}
    assert max(applied) - min(applied) < 50, f"nodes do not catch up: applied {sorted(applied)}"


def _drain_phase(world: World, callers: list[Client | Reader]) -> None:
    """G4: when all clients but one die at once, and a node with them, nothing is left of theirs.

    The one that lives holds a lock for which others wait without end: their waits must be
    withdrawn, for it will never come to them.
    """
    waiters = [Waiter(world, len(callers) + number) for number in range(1, WAITERS + 1)]
    for waiter in waiters:
        waiter.start()
    world.run(300)
    victim = _any_node(world)
    for caller in (*callers, *waiters):
        caller.die(unheard_by=victim)
    victim.crash()
    if len(world.voters) == 1 or world.random.random() < 0.5:
        world.run(world.random.uniform(0, 1_000))
        victim.start()
    world.run(DRAIN_SECONDS * 1_000)
    leader = world.leader()
    assert leader is not None, "no leader after one node is down"
    stats = leader.up.machine.stats
    assert (stats.sessions, stats.locks, stats.waiters) == (1, 1, 0), f"G4: left over for nobody: {stats}"
    assert leader.up.open_calls == 0, f"{leader.up.open_calls} calls are never settled"


def _any_node(world: World) -> SimNode:
    return world.nodes[NodeId(world.random.choice(world.voters))]
