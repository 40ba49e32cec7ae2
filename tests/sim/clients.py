"""The users of the simulated cluster: they lock, hold, release, lose replies and try again.

Each client keeps its own account of what it may believe, by its own clock and by K1: a lease is
trusted from its grant until the deadline of the last answered renewal, less the margin. The
account is what P1 is checked against: two clients must never trust the same lock at once.
"""

import functools
from dataclasses import dataclass

from lockd.locks.commands import (
    Acquire,
    Cancel,
    CloseSession,
    Granted,
    OpenSession,
    Outcome,
    Queued,
    Refused,
    Release,
    SessionOpened,
)
from tests.sim.calls import Caller
from tests.sim.world import World

LOCKS = ("a", "b", "c")
KEPT = "kept"
"""A lock that one client holds to the end."""
TTL_MS = 2_000
MARGIN_MS = max(40, TTL_MS * 2 // 100)
UNSURE = ("UNKNOWN", "UNAVAILABLE")
NEVER_GRANTED = ("BUSY", "TIMEOUT")


@dataclass
class Trust:
    """What all clients believe at one true moment: at most one may trust a lock (P1)."""

    world: World

    def __post_init__(self) -> None:
        self._holders: dict[str, Client] = {}

    def check(self, lock: str, client: "Client", token: int) -> None:
        """The client may have begun to trust its lease. A late answer alone starts no trust (K1)."""
        if not client.trusts(lock):
            return
        other = self._holders.get(lock)
        if other is not None and other is not client and other.trusts(lock):
            raise AssertionError(
                f"P1: {client.name} trusts its lease of {lock!r}, token {token}, "
                f"while {other.name} trusts its own"
            )
        self._holders[lock] = client


class Client(Caller):
    """One process with one session at a time, which holds at most one lock at a time."""

    BUSY = 0.1
    """How often it is too busy to renew in time."""

    def __init__(self, world: World, trust: Trust, number: int) -> None:
        super().__init__(world, number)
        self._trust = trust
        self._session = ""
        self._deadline_ms = 0
        """Until then the lease is trusted (K1)."""
        self._hopes_until_ms = 0
        """Until then a session that is not trusted may yet be renewed."""
        self._requests = 0
        self._held: tuple[str, int] | None = None
        self._held_by = ""
        """The request that it was granted to."""
        self._wanted: tuple[str, int | str] | None = None
        self._generation = 0

    def start(self) -> None:
        self.later(self.world.random.uniform(0, 500), self._begin)

    def trusts(self, lock: str) -> bool:
        """Whether this client, asked now, would say that it holds `lock`."""
        return self._held is not None and self._held[0] == lock and self.clock.ms() < self._deadline_ms

    # One session's life.

    def _begin(self) -> None:
        self._generation += 1
        self._held = self._wanted = None
        session = self._draw_id()
        sent = self.clock.ms()

        def opened(outcome: Outcome) -> None:
            if isinstance(outcome, SessionOpened):
                self._requests = 0
                self._live_in(session, trusted_until_ms=sent + outcome.ttl_ms - MARGIN_MS)
                self._think()
            else:
                self.later(200, self._begin)

        self.call(OpenSession(TTL_MS, self.name, ""), opened, session=session, on_silence=self._begin)

    def _draw_id(self) -> str:
        return f"{self.world.random.getrandbits(128):032x}"

    def _live_in(self, session: str, *, trusted_until_ms: int) -> None:
        self._session = session
        self._deadline_ms = trusted_until_ms
        self._hopes_until_ms = self.clock.ms() + TTL_MS
        self._keep_alive(self._generation)

    def _keep_alive(self, generation: int) -> None:
        if generation != self._generation:
            return
        sent = self.clock.ms()
        if sent >= max(self._deadline_ms, self._hopes_until_ms):
            self._lose()
            return

        def renewed(outcome: Outcome) -> None:
            if generation != self._generation:
                return
            if isinstance(outcome, SessionOpened):
                assert outcome.session == self._session, f"T3: {self.name} was told of another's session"
                self.world.met["renewals"] += 1
                self._deadline_ms = max(self._deadline_ms, sent + outcome.ttl_ms - MARGIN_MS)
                self._hopes_until_ms = self._deadline_ms
                if self._held is not None:
                    self._trust.check(self._held[0], self, self._held[1])
            elif isinstance(outcome, Refused) and outcome.code == "NOSESSION":
                assert self.clock.ms() >= self._deadline_ms, (
                    f"T2: the session of {self.name} ended while the client could still trust it"
                )
                self._lose()

        def answer(outcome: Outcome) -> None:
            self.over_the_wire(functools.partial(renewed, outcome))

        node = self.pick_node()
        if node is not None:
            node.up.keepalive(user="u", session=self._session, on_outcome=answer)
        # A try that stays without an answer is followed by the next one: TTL/5 leaves four. Now and
        # then the process is busy for so long that the leader logs its silence (T2).
        is_busy = self.world.random.random() < self.BUSY
        share = self.world.random.uniform(0.5, 0.9) if is_busy else 0.2
        self.later(TTL_MS * share, functools.partial(self._keep_alive, generation))

    def _lose(self) -> None:
        """The session is gone, and with it the lease (K2, K3): begin anew."""
        self.world.met["sessions lost"] += 1
        if self._held is not None:
            self._may_have_expired(self._held_by)
        self._held = self._wanted = None
        self._generation += 1
        self.later(self.world.random.uniform(0, 500), self._begin)

    # Locking.

    def _think(self) -> None:
        generation = self._generation
        pause = self.world.random.expovariate(1 / 150)
        self.later(pause, lambda: self._next_move(generation))

    def _next_move(self, generation: int) -> None:
        if generation != self._generation:
            return
        if self._held is not None:
            self._release(*self._held)
        elif self.world.random.random() < 0.03:
            self._close()
        else:
            self._wanted = (self.world.random.choice(LOCKS), self._next_request())
            self._acquire(self.world.random.choice((0, 300, 1500, -1)))

    def _next_request(self) -> int | str:
        self._requests += 1
        return self._requests

    def _acquire(self, wait_ms: int) -> None:
        """Ask, and ask again by the same request id until there is an answer (G3)."""
        assert self._wanted is not None
        wanted, generation = self._wanted, self._generation
        lock, request = wanted
        name = self._name_of(request)
        self.world.recorder.acquires(name, lock)
        sent = self.clock.ms()

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
            if not is_current():
                return
            match outcome:
                case Granted():
                    self.world.recorder.granted(name, outcome.token)
                    self._on_granted(outcome, sent, name)
                case Queued():
                    self.world.met["waits"] += 1
                case Refused(code=code) if code in UNSURE:
                    self.later(100, again)
                case Refused(code="NOSESSION"):
                    self._lose()
                case _:
                    # Others may say of an earlier try that its grant is over.
                    if isinstance(outcome, Refused) and outcome.code in NEVER_GRANTED:
                        self.world.recorder.refused(name)
                    self._wanted = None
                    self._think()

        operation, session = self._asked(lock, wait_ms)
        self.call(operation, answered, session=session, request=request, on_silence=again)

    def _asked(self, lock: str, wait_ms: int) -> tuple[Acquire, str]:
        return Acquire(lock, 0, wait_ms, "", notify=True), self._session

    def _name_of(self, request: int | str) -> str:
        """A request of a private session has a name for itself."""
        return request if isinstance(request, str) else f"{self._session}:{request}"

    def _may_have_expired(self, name: str) -> None:
        """K1: the lease may be over since the client could trust it no more, and not before."""
        over_for = self.clock.true_delay(self.clock.ms() - self._deadline_ms)
        self.world.recorder.expires(name, since=self.world.schedule.now - over_for)

    def _on_granted(self, granted: Granted, sent_ms: int, name: str) -> None:
        del sent_ms  # this lease began with its session
        self._wanted = None
        if self.clock.ms() >= self._deadline_ms:
            self.world.recorder.expires(name)
            return  # the lease is over already; the keepalive will notice
        self._hold(granted, name)

    def _hold(self, granted: Granted, name: str) -> None:
        self._held, self._held_by = (granted.lock, granted.token), name
        self.world.met["grants answered"] += 1
        self._trust.check(granted.lock, self, granted.token)
        self._think()

    def _release(self, lock: str, token: int) -> None:
        generation, name = self._generation, self._held_by
        if self.clock.ms() >= self._deadline_ms:
            self._may_have_expired(name)
        self._held = None  # stop the work, then release (K6)
        self._ask_to_release(lock, token, generation, name)

    def _ask_to_release(self, lock: str, token: int, generation: int, name: str) -> None:
        self.world.recorder.releases(name)

        def again() -> None:
            if generation == self._generation:
                self._ask_to_release(lock, token, generation, name)

        def released(outcome: Outcome) -> None:
            if isinstance(outcome, Refused) and outcome.code in UNSURE:
                self.later(100, again)
                return
            self.world.recorder.released(name)
            self.world.history.on_released(lock, token)
            if generation == self._generation:
                self._think()

        self.call(Release(lock, token), released, session=self._session, on_silence=again)

    def _cancel(self, lock: str, request: int | str, generation: int) -> None:
        self.world.met["cancels"] += 1

        def cancelled(outcome: Outcome) -> None:
            if generation != self._generation:
                return
            if isinstance(outcome, Refused) and outcome.code in UNSURE:
                self.later(100, retry)
            else:
                self._think()

        def retry() -> None:
            if generation == self._generation:
                self._cancel(lock, request, generation)

        self._wanted = None
        self.call(Cancel(lock), cancelled, session=self._session, request=request, on_silence=retry)

    def _close(self) -> None:
        self._generation += 1  # the session is given up: its keepalives and answers count no more
        self.call(CloseSession(), lambda _: self._begin(), session=self._session, on_silence=self._begin)


class PrivateClient(Client):
    """Takes each lock in a private session with a TTL, as a script does with LOCK.ACQUIRE ... TTL."""

    def _begin(self) -> None:
        self._generation += 1
        self._session = ""
        self._held = self._wanted = None
        self._deadline_ms = self._hopes_until_ms = 0
        self._think()

    def _next_request(self) -> str:
        return self._draw_id()

    def _asked(self, lock: str, wait_ms: int) -> tuple[Acquire, str]:
        return Acquire(lock, TTL_MS, wait_ms, "", notify=True), self._draw_id()

    def _on_granted(self, granted: Granted, sent_ms: int, name: str) -> None:
        """K1: an answer that waited, or is a repeat, starts no deadline; the next renewal does."""
        self._wanted = None
        fresh = not granted.repeat
        self._live_in(granted.session, trusted_until_ms=sent_ms + granted.ttl_ms - MARGIN_MS if fresh else 0)
        self._hold(granted, name)

    def _release(self, lock: str, token: int) -> None:
        self._generation += 1  # the session ends with its grant
        super()._release(lock, token)
        self._deadline_ms = 0


class Reader(Caller):
    """Asks for barriers: what is read after one must be as new as anything that anyone knew (C6)."""

    def start(self) -> None:
        self.later(self.world.random.expovariate(1 / 200), self._read)

    def _read(self) -> None:
        self.start()
        node = self.pick_node()
        if node is None:
            return
        life, known, called = node.life, self.world.history.acknowledged, self.world.schedule.now
        name = self.world.random.choice(LOCKS)

        def done(refusal: Refused | None) -> None:
            if refusal is None:
                assert node.life == life, "C6: a read was answered in another life"
                applied = node.up.machine.state.applied
                assert applied >= known, f"C6: node {node.node_id} reads at {applied}, and {known} was known"
                self.world.met["reads"] += 1
                lock = node.up.machine.state.locks.get(name)
                holder = next(iter(lock.holders.values()), None) if lock is not None else None
                self.world.recorder.saw(name, holder.token if holder is not None else None, called=called)

        node.up.read(done)


class Holder(Client):
    """Holds one lock, and keeps it until the end."""

    BUSY = 0.0

    def _next_move(self, generation: int) -> None:
        if generation == self._generation and self._held is None:
            self._wanted = (KEPT, self._next_request())
            self._acquire(-1)


class Waiter(Caller):
    """Waits for the kept lock for ever, in a private session: its connection alone keeps it there."""

    def start(self) -> None:
        private, request = (f"{self.world.random.getrandbits(128):032x}" for _ in range(2))
        self.call(
            Acquire(KEPT, TTL_MS, -1, ""),
            lambda _: None,
            on_silence=self.start,
            session=private,
            request=request,
        )
