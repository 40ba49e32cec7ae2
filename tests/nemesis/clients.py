"""Clients that lock, hold, look and release until they are told to stop, and write down every call.

Each is a thread with a `lockd.Client` of its own, so with a session of its own, and a name by which the
network knows it.
"""

import contextlib
import itertools
import math
import random
import threading
from collections.abc import Iterator, Sequence

import lockd
from lockd.client import clock
from lockd.client.threads import Lease
from tests.nemesis.history import History, Kind, Operation, Outcome, Tenure

LOCKS = ("a", "b", "c")
KEPT = "kept"
"""A lock that some of the clients hold for long: they are the ones that faults meet while they hold."""
KEEPS = 0.5
"""How often one of those takes it."""
KEEP_S_MEAN = 1.0
WAITS_S = (0.0, 0.3, 2.0)
HOLD_S_MEAN = 0.02
CLOSES = 0.01
"""How often a client ends its session while it holds a lock."""
LOOKS = 0.2
TTL_S = 2.0


class Locker(threading.Thread):
    """One client. `failure` is what ended it, if anything did."""

    def __init__(
        self, name: str, endpoints: str, history: History, *, seed: int, is_keeper: bool = False
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._is_keeper = is_keeper
        self.failure: BaseException | None = None
        self.grants = 0
        self._requests = itertools.count(1)
        self._endpoints = endpoints
        self._history = history
        self._random = random.Random(f"{seed} {name}")
        self._done = threading.Event()
        self._client = self._new_client()

    def stop(self) -> None:
        """Release, close and end. Does not wait: `join` does."""
        self._done.set()

    def run(self) -> None:
        try:
            while not self._done.is_set():
                keeps = self._is_keeper and self._random.random() < KEEPS
                lock = KEPT if keeps else self._random.choice(LOCKS)
                if self._random.random() < LOOKS:
                    self._look(lock)
                else:
                    self._hold(lock, self._random.choice(WAITS_S))
            self._client.close()
        except BaseException as error:  # noqa: BLE001 - raised by `running_lockers`, on the test's thread
            self.failure = error

    def _new_client(self) -> lockd.Client:
        return lockd.Client(self._endpoints, ttl=TTL_S, name=self.name)

    # One thing at a time.

    def _look(self, lock: str) -> None:
        invoked = clock.now()
        try:
            seen = self._client.inspect(lock)
        except lockd.LockdError:
            return  # a read that failed says nothing
        token = seen.holders[0].token if seen.holders else 0
        holder = f"held by {seen.holders[0].name}" if seen.holders else "free"
        self._note(Kind.INSPECT, Outcome.SEEN, lock, "", token, invoked, holder)

    def _hold(self, lock: str, wait_s: float) -> None:
        request = f"{self.name}/{next(self._requests)}"
        lease = self._acquire(lock, request, wait_s)
        if lease is None:
            return
        trusted_from = clock.now()
        ended: list[float] = []
        lease.on_lost(lambda: ended.append(clock.now()))
        self._done.wait(self._random.expovariate(1 / (KEEP_S_MEAN if lock == KEPT else HOLD_S_MEAN)))
        closes = self._random.random() < CLOSES
        # It is trusted until the clock says no, it is told of the end, or it lets go: whichever is first.
        let_go = clock.now()
        until = min([let_go, lease.grant.trust.deadline, *ended])
        if until > trusted_from:
            self._history.trusted(Tenure(self.name, lock, lease.token, trusted_from, until))
        if closes:
            self._note(Kind.END, Outcome.UNKNOWN, lock, request, lease.token, let_go)
            self._client.close()
            self._client = self._new_client()
        elif until < let_go:
            self._note(Kind.END, Outcome.UNKNOWN, lock, request, lease.token, until)
            assert lease.lost, f"{lease} was lost, and is not"
            lease.release()
        else:
            self._release(lease, request, let_go)

    def _acquire(self, lock: str, request: str, wait_s: float) -> Lease | None:
        invoked, session = clock.now(), self._session()
        lease = self._try_to_acquire(lock, request, wait_s, invoked)
        if session not in ("", self._session()):
            # Its first answer may have been a grant that was lost, as was the session after it.
            self._note(Kind.ACQUIRE, Outcome.UNKNOWN, lock, f"{request}, first session", 0, invoked)
        return lease

    def _try_to_acquire(self, lock: str, request: str, wait_s: float, invoked: float) -> Lease | None:
        try:
            lease = self._client.acquire(lock, wait=wait_s)
        except lockd.LockTimeout as error:
            # Without a word of the cluster it may have been granted, and was withdrawn then.
            told = wait_s == 0 or "did not say" not in str(error)
            outcome = Outcome.BUSY if told else Outcome.UNKNOWN
            self._note(Kind.ACQUIRE, outcome, lock, request, 0, invoked, f"wait {wait_s}: {error}")
        except lockd.Unavailable as error:
            self._note(Kind.ACQUIRE, Outcome.REFUSED, lock, request, 0, invoked, str(error))
        except (lockd.OutcomeUnknown, lockd.SessionExpired) as error:
            self._note(Kind.ACQUIRE, Outcome.UNKNOWN, lock, request, 0, invoked, repr(error))
        else:
            self.grants += 1
            self._note(Kind.ACQUIRE, Outcome.GRANTED, lock, request, lease.token, invoked)
            return lease
        return None

    def _session(self) -> str:
        """The client's session, "" while it has none."""
        runtime = self._client._runtime
        session = None if runtime is None else runtime.engine._keeper.session
        return "" if session is None else session.id

    def _release(self, lease: Lease, request: str, invoked: float) -> None:
        deadline = lease.grant.trust.deadline
        try:
            was_held = lease.release()
        except lockd.OutcomeUnknown:
            was_held = False
        else:
            assert was_held or clock.now() >= deadline, (
                f"T2: {self.name} was told that token {lease.token} of {lease.lock!r} was over "
                f"{deadline - clock.now():.3f} s before its deadline"
            )
        # After its deadline the session may have ended, with the lock, before the release came.
        sure = was_held and clock.now() < deadline
        kind, outcome = (Kind.RELEASE, Outcome.RELEASED) if sure else (Kind.END, Outcome.UNKNOWN)
        self._note(kind, outcome, lease.lock, request, lease.token, invoked)

    def _note(
        self,
        kind: Kind,
        outcome: Outcome,
        lock: str,
        request: str,
        token: int,
        invoked: float,
        told: str = "",
    ) -> None:
        returned = math.inf if outcome is Outcome.UNKNOWN else clock.now()
        self._history.add(Operation(self.name, kind, outcome, lock, request, token, invoked, returned, told))


@contextlib.contextmanager
def running_lockers(endpoints: str, history: History, *, count: int, seed: int) -> Iterator[Sequence[Locker]]:
    """So many clients, named c1, c2, ...; stopped at the end. Raises what made one of them fail."""
    lockers = [
        Locker(f"c{number}", endpoints, history, seed=seed, is_keeper=number % 2 == 0)
        for number in range(1, count + 1)
    ]
    for locker in lockers:
        locker.start()
    try:
        yield lockers
    finally:
        for locker in lockers:
            locker.stop()
        for locker in lockers:
            locker.join()
    for locker in lockers:
        if locker.failure is not None:
            raise locker.failure
