"""One seed from its first election to its last check."""

from collections import Counter
from dataclasses import dataclass
from unittest.mock import patch

import lockd.server.snapshots
from tests.linearizability.checker import Verdict
from tests.sim.clients import TTL_MS, Client, Holder, PrivateClient, Reader, Trust, Waiter
from tests.sim.clock import SECOND
from tests.sim.node import SimNode
from tests.sim.operators import Operator
from tests.sim.world import World

CLIENTS = 3
PRIVATE_CLIENTS = 2
FAULTS = (
    *("crash", "blackout", "stop", "restart", "restart", "isolate", "deafen", "heal", "heal", "pause"),
    *("full disk", "room again", "failed sync"),
)
CHUNK_BYTES = 500
"""So that a snapshot takes several messages."""
WAITERS = 3
FAULTY_SECONDS = 7
QUIET_SECONDS = 3.5
OPERATOR_SECONDS_MAX = 60
DRAIN_SECONDS = 4 * TTL_MS / 1_000
"""The node is called dead, its waits go a TTL later, and who is let in by that goes after another."""
LEADER_CHANGES_MIN = 2


@dataclass(frozen=True)
class Report:
    """What one seed met: a seed in which nothing happens proves nothing."""

    seed: int
    seconds: float
    """Simulated."""
    leader_changes: int
    met: Counter[str]

    @property
    def is_worth_counting(self) -> bool:
        met = self.met
        enough = self.leader_changes >= LEADER_CHANGES_MIN and bool(met["grants answered"] and met["reads"])
        return enough and not met["majorities lost"]

    def __str__(self) -> str:
        met = ", ".join(f"{count} {name}" for name, count in sorted(self.met.items()) if count)
        worth = "" if self.is_worth_counting else " (not counted: too little happened, or a majority is lost)"
        return f"seed {self.seed}{worth}: {self.leader_changes} leader changes, {met}"


class MajorityLost(Exception):
    """More disks are lost for good than P3 allows: safety was checked so far, and nothing can live on."""


def simulate(seed: int) -> Report:
    """Run one seed. Raises AssertionError, with the command that replays it, when a rule is broken."""
    world = World(seed)
    try:
        with patch.object(lockd.server.snapshots, "CHUNK_BYTES", CHUNK_BYTES):
            _run(world)
    except MajorityLost:
        world.met["majorities lost"] += 1
    except Exception as error:
        raise AssertionError(
            f"seed {seed} at {world.schedule.now / SECOND:.3f} s: {str(error) or type(error).__name__}\n"
            f"replay: python -m tests.sim --seed {seed}"
        ) from error
    return Report(seed, world.schedule.now / SECOND, world.invariants.terms_led - 1, world.met)


def _run(world: World) -> None:
    trust = Trust(world)
    world.start()
    callers: list[Client | Reader] = [Client(world, trust, number) for number in range(CLIENTS)]
    callers += [PrivateClient(world, trust, CLIENTS + number) for number in range(PRIVATE_CLIENTS)]
    callers.append(Reader(world, len(callers)))
    operator = Operator(world, 1_000)
    for caller in (*callers, operator):
        caller.start()
    world.run(1_500)
    _faulty_phase(world)
    Holder(world, trust, len(callers)).start()
    _quiet_phase(world, operator)
    if world.recorder.check() is Verdict.UNDECIDED:
        world.met["histories undecided"] += 1
    _drain_phase(world, callers)
    for node in world.running():
        node.note_snapshots()


def _faulty_phase(world: World) -> None:
    """Safety under faults, with the leader deposed as often as it takes."""
    random = world.random
    end = world.schedule.now + FAULTY_SECONDS * SECOND
    while world.schedule.now < end or world.invariants.terms_led <= LEADER_CHANGES_MIN:
        leader = world.leader()
        _break(world, leader if leader is not None and random.random() < 0.5 else _any_node(world))
        world.run(random.uniform(20, 1_500))
        members = world.members()
        if 2 * sum(node.running for node in members) <= len(members) and random.random() < 0.7:
            world.heal()
            for node in world.down():
                node.start()
        assert world.schedule.now < end * 20, "the faulty phase never saw enough leaders"


def _break(world: World, victim: SimNode) -> None:
    """One more fault, or the end of one."""
    random = world.random
    down = world.down()
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
        case "full disk" if victim.running:
            world.met["full disks"] += 1
            victim.disk.set_full(is_full=True)
        case "room again":
            _make_room(world)
        case "failed sync" if victim.running:
            victim.disk.next_sync_fails = True


def _make_room(world: World) -> None:
    for node in world.running():
        node.disk.set_full(is_full=False)


def _quiet_phase(world: World, operator: Operator) -> None:
    """Liveness: with the faults gone there is a leader, progress, one state, and the members wished for."""
    world.heal()
    world.faults.loss = world.faults.doubling = 0.0
    for node in world.nodes.values():
        node.resume()
    _make_room(world)
    operator.take_leave()
    granted = world.met["grants answered"]
    calm = world.schedule.now + int(QUIET_SECONDS * SECOND)
    while world.schedule.now < calm or operator.is_busy or not _are_members_settled(world):
        for node in world.down():  # one may have been about to stop
            node.start()
        world.run(500)
        voters = [world.nodes[voter] for voter in world.configuration().voters]
        if 2 * sum(not voter.is_gone for voter in voters) <= len(voters):
            raise MajorityLost
        assert world.schedule.now < calm + OPERATOR_SECONDS_MAX * SECOND, (
            f"a change of members never ends, or nobody leads: {world.configuration()}"
        )
    assert world.met["grants answered"] > granted, "nobody gets a lock after the faults are gone"
    applied = [node.up.raft.last_applied for node in world.members()]
    assert max(applied) - min(applied) < 50, f"nodes do not catch up: applied {sorted(applied)}"


def _are_members_settled(world: World) -> bool:
    """A member leads, all live, and who was added votes."""
    members = world.members()
    return (
        world.leader() in members
        and all(node.running for node in members)
        and not world.configuration().learners
    )


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
    if len(world.configuration().voters) <= 2 or world.random.random() < 0.5:
        world.run(world.random.uniform(0, 1_000))
        victim.start()
    world.run(DRAIN_SECONDS * 1_000)
    leader = world.leader()
    assert leader is not None, "no leader after one node is down"
    stats = leader.up.machine.stats
    assert (stats.sessions, stats.locks, stats.waiters) == (1, 1, 0), f"G4: left over for nobody: {stats}"
    assert leader.up.open_calls == 0, f"{leader.up.open_calls} calls are never settled"


def _any_node(world: World) -> SimNode:
    """A member; while none is up, anyone that can be started."""
    return world.random.choice([node for node in world.members() if not node.is_gone] or world.down())
