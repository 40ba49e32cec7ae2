"""A server for tests, in this process: the real thing in memory, with a clock that the test turns."""

import contextlib
from collections.abc import Callable, Iterator

from lockd.client import clock as clients_clock
from lockd.client.aio import AsyncClient
from lockd.client.clock import TurnedClock
from lockd.client.lease import LeaseView
from lockd.client.sync import Client
from lockd.locks.commands import Break, ExpireSessions
from lockd.locks.views import LockView
from lockd.testing.clock import Clock
from lockd.testing.followers import tell_all
from lockd.testing.memory import MemoryNode
from lockd.testing.patience import PATIENCE_SECONDS
from lockd.testing.threads import LoopThread

_AN_AGE_MS = 366 * 24 * 3600 * 1000


class Server:
    """One lockd node on 127.0.0.1, on a thread of its own. See `running_server`.

    Any client of this process that connects to `endpoint`, whoever made it, goes by `clock`, and so
    do its leases. Methods are called from any thread; in an async test, `await asyncio.to_thread(...)`
    those that wait for what the test's own event loop is to do.
    """

    def __init__(self) -> None:
        self._turned = TurnedClock()
        self._thread = LoopThread("lockd-testing")
        self._clients: list[Client] = []
        self._node = self._thread.call(lambda: MemoryNode(self._turned))
        self._thread.run(self._node.start())
        self.clock = Clock(self._turned, self._pass)
        """Time of the server and its clients."""
        self.endpoint = f"127.0.0.1:{self._node.listener.port}"
        """For clients: host:port."""
        self._names = (self.endpoint, f"localhost:{self._node.listener.port}")
        for name in self._names:
            clients_clock.turn_for(name, self._turned)

    def __repr__(self) -> str:
        return f"<lockd.testing server at {self.endpoint}>"

    # Clients.

    def client(self, *, ttl: float = 10.0, name: str = "") -> Client:
        """A client of this server, which is closed with it."""
        client = Client(self.endpoint, ttl=ttl, name=name)
        self._clients.append(client)
        return client

    def async_client(self, *, ttl: float = 10.0, name: str = "") -> AsyncClient:
        """A client of this server for the event loop that uses it: `async with` closes it."""
        return AsyncClient(self.endpoint, ttl=ttl, name=name)

    # What is so.

    def is_held(self, name: str) -> bool:
        """Whether anybody holds the lock, as far as the server knows."""
        return bool(self._inspect(name).holders)

    def waiters(self, name: str) -> int:
        """How many requests wait for the lock."""
        return self._inspect(name).queue_length

    def clients(self) -> int:
        """How many connections there are."""
        return self._thread.call(lambda: self._node.listener.clients)

    def wait_for(self, condition: Callable[[], object], *, timeout: float = PATIENCE_SECONDS) -> None:
        """Return once the condition holds: `server.wait_for(lambda: server.waiters("k") == 2)`.

        It is looked at on the server's thread whenever the server has done something, so let it ask
        about the server alone. Raises TimeoutError after `timeout` seconds of real time, and what the
        condition raises.
        """
        try:
            self._thread.run(self._node.reach(condition), timeout)
        except TimeoutError:
            raise TimeoutError(f"what the test waits for has not come within {timeout} s") from None

    # Faults.

    def expire(self, held: LeaseView | str) -> None:
        """End the session of this lease, or of whoever holds the lock of that name, as if its TTL had run.

        The lock is free at once, and passed on. When this returns the holder knows: its lease is lost.
        Two exceptions: a client on the calling thread's own event loop knows when that loop goes on; and
        for those of other processes all connections are dropped, so that they connect again and learn of
        it then. Raises LookupError when nobody holds that.
        """

        def expire() -> None:
            sessions = self._sessions_of(held)
            self._node.decide(ExpireSessions(sessions))
            self._node.listener.cut_off("a test has ended a session")

        self._thread.call(expire)
        tell_all(self._turned, lambda each, then: each.ask_what_is_left(then))

    def break_lease(self, held: LeaseView | str, *, reason: str) -> None:
        """Take the lock from this lease, or from whoever holds the lock of that name, as LOCK.BREAK does.

        The holder is told the reason; the lock is passed on when it has stopped and says so, or a TTL
        later. Otherwise as `expire`.
        """

        def break_now() -> None:
            for lock, token in self._grants_of(held):
                self._node.decide(Break(lock, token, reason, now=False))
            self._node.listener.cut_off("a test has broken a lease")

        self._thread.call(break_now)
        tell_all(self._turned, lambda each, then: each.ask_what_is_left(then))

    def disconnect(self) -> None:
        """Drop every connection. Clients connect again; sessions, leases and waits go on."""
        self._thread.call(lambda: self._node.listener.cut_off("a test has dropped it"))

    def pause(self) -> None:
        """Answer nothing from now on, as a process that is stopped; connections stay. Idempotent.

        Time may pass meanwhile (`clock.advance`): clients lose their leases by their own clocks. The
        server itself lives through none of it, as a process that was paused does. Until `resume`,
        everything else here raises RuntimeError.
        """
        self._thread.pause()

    def resume(self) -> None:
        """Go on after `pause`. Idempotent."""
        self._thread.resume()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """`pause`, and `resume` at the end of the block."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    # The end.

    def close(self) -> None:
        """End the clients that came from here, then the server. Whatever it held is gone."""
        self.resume()
        for client in self._clients:
            client.close()
        try:
            self._thread.run(self._node.stop())
        finally:
            for name in self._names:
                clients_clock.turn_no_more(name)
            self._thread.stop()
            # Nobody turns the clock any more: a client that is still there would trust its lease for ever.
            self._turned.ms += _AN_AGE_MS
            tell_all(self._turned, lambda each, then: each.clock_was_turned(then), and_wait=False)

    def _pass(self, ms: int) -> bool:
        """Let time pass on the server; tell whether it can answer."""
        if self._thread.is_paused:
            self._turned.ms += ms
            return False
        self._thread.call(lambda: self._node.advance(ms))
        return True

    def _inspect(self, name: str) -> LockView:
        return self._thread.call(lambda: self._node.driver.machine.inspect(name))

    def _sessions_of(self, held: LeaseView | str) -> tuple[str, ...]:
        machine = self._node.driver.machine
        if isinstance(held, LeaseView):
            if machine.session(held.grant.session) is None:
                raise LookupError(f"{held!r} has no session here")
            return (held.grant.session,)
        numbers = {holder.session_number for holder in machine.inspect(held).holders}
        found = machine.sessions(count=machine.stats.sessions)
        sessions = tuple(session.id for session in found if session.number in numbers)
        if not sessions:
            raise LookupError(f"nobody holds {held!r}")
        return sessions

    def _grants_of(self, held: LeaseView | str) -> list[tuple[str, int]]:
        lock = held.lock if isinstance(held, LeaseView) else held
        tokens = [holder.token for holder in self._node.driver.machine.inspect(lock).holders]
        if isinstance(held, LeaseView):
            tokens = [token for token in tokens if token == held.token]
        if not tokens:
            raise LookupError(f"nobody holds {held!r}")
        return [(lock, token) for token in tokens]


@contextlib.contextmanager
def running_server() -> Iterator[Server]:
    """A server inside `with`: it listens on a free port of 127.0.0.1, keeps nothing, and is gone after.

    The lock machine, Raft, the protocol and the limits are those of a real node; there is one node,
    and its disk is memory. Its clock stands still until the test turns it.
    """
    server = Server()
    try:
        yield server
    finally:
        server.close()
