"""The users of the simulated cluster: they lock, hold, release, lose replies and try again.

Each client keeps its own account of what it may believe, by its own clock and by K1: a lease is
trusted from its grant until the deadline of the last answered renewal, less the margin. The
account is what P1 is checked against: two clients must never trust the same lock at once.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from lockd.locks.commands import (
    Acquire,
    Cancel,
    CloseSession,
    Granted,
    OpenSession,
    Operation,
    Outcome,
    Queued,
    Refused,
    Release,
    SessionOpened,
)
from tests.sim.clock import MILLISECOND, MachineClock
from tests.sim.world import SimNode, World

LOCKS = ("a", "b", "c")
TTL_MS = 2_000
MARGIN_MS = max(40, TTL_MS * 2 // 100)
REPLY_LOSS = 0.05
UNSURE = ("UNKNOWN", "UNAVAILABLE")


@dataclass
class Trust:
    """What all clients believe at one true moment: at most one may trust a lock (P1)."""

    world: World

    def __post_init__(self) -> None:
        self._holders: dict[str, Client] = {}

    def taken(self, lock: str, client: "Client", token: int) -> None:
        other = self._holders.get(lock)
        if other is not None and other is not client and other.trusts(lock):
            raise AssertionError(
                f"P1: {client.name} was granted {lock!r}, token {token}, "
                f"while {other.name} trusts its own lease"
            )
        self._holders[lock] = client

    def acknowledged(self, session: str, lock: str, token: int) -> None:
        self.world.invariants.on_grant(token, lock=lock, session=session)


class Client:
    """One process with one session at a time, which holds at most one lock at a time."""

    def __init__(self, world: World, trust: Trust, number: int) -> None:
        self.world = world
        self.name = f"client {number}"
        self.clock = MachineClock(world.schedule, world.random)
        self._trust = trust
        self._connection = number * 1_000_000
        self._session = ""
        self._deadline_ms = 0
        self._requests = 0
        self._held: tuple[str, int] | None = None
        self._wanted: tuple[str, int] | None = None
        self._generation = 0
        self._calls = 0

    def start(self) -> None:
        self._later(self.world.random.uniform(0, 500), self._open_session)

    def trusts(self, lock: str) -> bool:
        """Whether this client, asked now, would say that it holds `lock`."""
        return self._held is not None and self._held[0] == lock and self.clock.ms() < self._deadline_ms

    # One session's life.

    def _open_session(self) -> None:
        self._generation += 1
        self._held = self._wanted = None
        session = f"{self.world.random.getrandbits(128):032x}"
        sent = self.clock.ms()

        def opened(outcome: Outcome) -> None:
            if isinstance(outcome, SessionOpened):
                self._session = session
                self._requests = 0
                self._deadline_ms = sent + outcome.ttl_ms - MARGIN_MS
                self._keep_alive(self._generation)
                self._think()
            else:
                self._later(200, self._open_session)

        self._call(OpenSession(TTL_MS, self.name, ""), opened, session=session, on_silence=self._open_session)

    def _keep_alive(self, generation: int) -> None:
        if generation != self._generation:
            return
        if self.clock.ms() >= self._deadline_ms:
            self._lose()
            return
        sent = self.clock.ms()

        def renewed(outcome: Outcome) -> None:
            if generation != self._generation:
                return
            if isinstance(outcome, SessionOpened):
                self.world.met["renewals"] += 1
                self._deadline_ms = max(self._deadline_ms, sent + outcome.ttl_ms - MARGIN_MS)
            elif isinstance(outcome, Refused) and outcome.code == "NOSESSION":
                assert self.clock.ms() >= self._deadline_ms, (
                    f"T2: the session of {self.name} ended while the client could still trust it"
                )
                self._lose()

        node = self._pick_node()
        if node is not None:
            node.up.keepalive(
                user="u", session=self._session, on_outcome=self._over_the_wire(renewed, lambda: None)
            )
        # A try that stays without an answer is followed by the next one: TTL/5 leaves four.
        self._later(TTL_MS / 5, functools.partial(self._keep_alive, generation))

    def _lose(self) -> None:
        """The session is gone, and with it the lease (K2, K3): begin anew."""
        self.world.met["sessions lost"] += 1
        self._held = self._wanted = None
        self._later(self.world.random.uniform(0, 500), self._open_session)
        self._generation += 1

    # Locking.

    def _think(self) -> None:
        generation = self._generation
        pause = self.world.random.expovariate(1 / 150)
        self._later(pause, lambda: self._next_move(generation))

    def _next_move(self, generation: int) -> None:
        if generation != self._generation:
            return
        if self._held is not None:
            self._release(*self._held)
        elif self.world.random.random() < 0.03:
            self._close()
        else:
            self._requests += 1
            self._wanted = (self.world.random.choice(LOCKS), self._requests)
            self._acquire(self.world.random.choice((0, 300, 1500, -1)))

    def _acquire(self, wait_ms: int) -> None:
        """Ask, and ask again by the same request id until there is an answer (G3)."""
        assert self._wanted is not None
        wanted, generation = self._wanted, self._generation
        lock, request = wanted

        def is_current() -> bool:
            return generation == self._generation and self._wanted == wanted

        def again() -> None:
            if not is_current():
                return
            if self.world.random.random() < 0.1:
                self._cancel(lock, request, generation)
            else:
                self.world.met["requests repeated"] += 1
                self._acquire(wait_ms)

        def answered(outcome: Outcome) -> None:
            if isinstance(outcome, Granted):
                self._trust.acknowledged(outcome.session, lock, outcome.token)
            if is_current():
                self._on_answer(lock, outcome, again)

        self._call(Acquire(lock, 0, wait_ms, "", notify=True), answered, request=request, on_silence=again)

    def _on_answer(self, lock: str, outcome: Outcome, again: Callable[[], None]) -> None:
        match outcome:
            case Granted(token=token):
                self._on_granted(lock, token)
            case Queued():
                self.world.met["waits"] += 1
            case Refused(code=code) if code in UNSURE:
                self._later(100, again)
            case Refused(code="NOSESSION"):
                self._lose()
            case _:
                self._wanted = None
                self._think()

    def _on_granted(self, lock: str, token: int) -> None:
        self._wanted = None
        if self.clock.ms() >= self._deadline_ms:
            return  # the lease is over already; the keepalive will notice
        self._held = (lock, token)
        self._trust.taken(lock, self, token)
        self._think()

    def _release(self, lock: str, token: int) -> None:
        generation = self._generation
        self._held = None  # stop the work, then release (K6)

        def again() -> None:
            if generation == self._generation:
                self._release(lock, token)

        def released(outcome: Outcome) -> None:
            if generation != self._generation:
                return
            if isinstance(outcome, Refused) and outcome.code in UNSURE:
                self._later(100, again)
            else:
                self._think()

        self._call(Release(lock, token), released, on_silence=again)

    def _cancel(self, lock: str, request: int, generation: int) -> None:
        self.world.met["cancels"] += 1

        def cancelled(outcome: Outcome) -> None:
            if generation != self._generation:
                return
            if isinstance(outcome, Refused) and outcome.code in UNSURE:
                self._later(100, retry)
            else:
                self._wanted = None
                self._think()

        def retry() -> None:
            if generation == self._generation:
                self._cancel(lock, request, generation)

        self._wanted = None
        self._call(Cancel(lock), cancelled, request=request, on_silence=retry)

    def _close(self) -> None:
        self._generation += 1  # the session is given up: its keepalives and answers count no more
        self._call(CloseSession(), lambda _: self._open_session(), on_silence=self._open_session)

    # Calls.

    def _call(
        self,
        operation: Operation,
        on_outcome: Callable[[Outcome], None],
        *,
        on_silence: Callable[[], None],
        session: str = "",
        request: int = 0,
    ) -> None:
        """Send to some node; `on_silence` if no final answer comes in a while, or its node dies."""
        node = self._pick_node()
        if node is None:
            self._later(100, on_silence)
            return
        self._calls += 1
        connection = self._connection + self._calls
        life = node.life
        done = False

        def finish() -> bool:
            nonlocal done
            first, done = not done, True
            return first

        def answered(outcome: Outcome) -> None:
            if not done and (isinstance(outcome, Queued) or finish()):
                on_outcome(outcome)

        def broken() -> None:
            """The connection ends without an answer, and the node hears of that (G4)."""
            if finish():
                if node.life == life and node.running:
                    node.now_or_after_pause(functools.partial(node.up.connection_gone, connection))
                on_silence()

        def patience_over() -> None:
            waits = isinstance(operation, Acquire) and operation.wait_ms != 0
            if waits and not done and node.life == life and node.running:
                self._later(1_000, patience_over)  # it may stand in a queue
            else:
                broken()

        self._later(1_200, patience_over)
        node.up.submit(
            user="u",
            session=session or self._session,
            owner="",
            request=request,
            operation=operation,
            connection=connection,
            on_outcome=self._over_the_wire(answered, broken),
        )

    def _over_the_wire(
        self, arrive: Callable[[Outcome], None], lost: Callable[[], None]
    ) -> Callable[[Outcome], None]:
        """A reply takes its time, or is lost with its connection."""

        def reply(outcome: Outcome) -> None:
            delay = int(self.world.random.expovariate(1 / self.world.faults.delay_ms) * MILLISECOND)
            if self.world.random.random() < REPLY_LOSS:
                self.world.met["replies lost"] += 1
                self.world.schedule.after(delay, lost)
            else:
                self.world.schedule.after(delay, lambda: arrive(outcome))

        return reply

    def _pick_node(self) -> SimNode | None:
        running = [node for node in self.world.nodes.values() if node.running and not node.paused]
        return self.world.random.choice(running) if running else None

    def _later(self, ms: float, event: Callable[[], None]) -> None:
        self.world.schedule.after(self.clock.true_delay(ms), event)
