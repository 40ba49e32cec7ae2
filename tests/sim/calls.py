"""A caller's side of the network: which node it asks, and what becomes of question and answer."""

import functools
from collections.abc import Callable

from lockd.ids import LogIndex
from lockd.locks.commands import Acquire, Operation, Outcome, Queued
from tests.sim.clock import MILLISECOND, MachineClock
from tests.sim.node import SimNode
from tests.sim.world import World

REPLY_LOSS = 0.05
PATIENCE_MS = 1_200


class Caller:
    """One machine that asks nodes, each call over a connection of its own."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.name = f"client {number}"
        self.clock = MachineClock(world.schedule, world.random)
        self._connection = number * 1_000_000
        self._open: dict[int, tuple[SimNode, int]] = {}
        self._is_dead = False

    def die(self, *, unheard_by: SimNode | None) -> None:
        """The machine is gone for good; the nodes but one hear that its connections are."""
        self._is_dead = True
        for connection, (node, life) in self._open.items():
            if node is not unheard_by:
                _hang_up(node, life, connection)

    def later(self, ms: float, event: Callable[[], None]) -> None:
        self.world.schedule.after(self.clock.true_delay(ms), functools.partial(self._unless_dead, event))

    def _unless_dead(self, event: Callable[[], None]) -> None:
        if not self._is_dead:
            event()

    def pick_node(self) -> SimNode | None:
        running = [node for node in self.world.nodes.values() if node.running and not node.paused]
        return self.world.random.choice(running) if running else None

    def call(
        self,
        operation: Operation,
        on_outcome: Callable[[Outcome], None],
        *,
        on_silence: Callable[[], None],
        session: str,
        request: int | str = 0,
    ) -> None:
        """Ask some node; `on_silence` if no final answer comes in a while, or its node dies."""
        node = self.pick_node()
        if node is None:
            self.later(100, on_silence)
            return
        self._connection += 1
        connection, life = self._connection, node.life
        self._open[connection] = node, life
        history = self.world.history
        above = history.released_before(operation.lock) if isinstance(operation, Acquire) else 0

        def answered(outcome: Outcome, index: LogIndex) -> None:
            if connection not in self._open:
                return
            if not isinstance(outcome, Queued):
                del self._open[connection]
            history.on_answer(outcome, index, above=above)
            on_outcome(outcome)

        def broken() -> None:
            """The connection ends without an answer, and the node hears of that (G4)."""
            if self._open.pop(connection, None) is not None:
                _hang_up(node, life, connection)
                on_silence()

        def patience_over() -> None:
            waits = isinstance(operation, Acquire) and operation.wait_ms != 0
            if waits and connection in self._open and node.life == life and node.running:
                self.later(PATIENCE_MS, patience_over)  # it may stand in a queue
            else:
                broken()

        def reply(outcome: Outcome) -> None:
            index = LogIndex(node.up.machine.state.applied)
            self.over_the_wire(functools.partial(answered, outcome, index), broken)

        self.later(PATIENCE_MS, patience_over)
        node.up.submit(
            user="u",
            session=session,
            owner="",
            request=request,
            operation=operation,
            connection=connection,
            on_outcome=reply,
        )

    def over_the_wire(self, arrive: Callable[[], None], lost: Callable[[], None] = lambda: None) -> None:
        """A reply takes its time, or is lost with its connection."""
        delay = int(self.world.random.expovariate(1 / self.world.faults.delay_ms) * MILLISECOND)
        if self.world.random.random() < REPLY_LOSS:
            self.world.met["replies lost"] += 1
            arrive = lost
        self.world.schedule.after(delay, functools.partial(self._unless_dead, arrive))


def _hang_up(node: SimNode, life: int, connection: int) -> None:
    if node.life == life and node.running:
        node.now_or_after_pause(functools.partial(node.up.connection_gone, connection))
