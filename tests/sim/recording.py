"""What clients did with locks and were told, in true time, for the linearizability checker (P1, P2).

An acquire of which no answer is known may have been granted, and that grant may have ended by
itself; so may one that was asked for again and refused then: nobody listened meanwhile (G4). One that
was refused at once never was granted. A grant that was answered ends by its
release, or, once its client could no longer trust it, by its expiry.
"""

from dataclasses import dataclass

from tests.linearizability import locks
from tests.linearizability.checker import Operation, Verdict, check
from tests.sim.clock import Schedule

CHECK_SECONDS_MAX = 5.0


@dataclass
class _Acquired:
    lock: str
    called: float
    was_asked_again: bool = False
    answered: float | None = None
    token: int = 0
    expires_from: float | None = None
    """From then on its session may have ended."""
    release_called: float | None = None
    release_answered: float | None = None


class Recorder:
    """The history of one seed. An acquisition is known by the name of its request."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._acquired: dict[str, _Acquired] = {}
        self._inspections: list[Operation[locks.Call, locks.Answer]] = []

    def acquires(self, request: str, lock: str) -> None:
        """It is asked for; for the first time, or again."""
        known = self._acquired.get(request)
        if known is None:
            self._acquired[request] = _Acquired(lock, self._schedule.now)
        else:
            known.was_asked_again = True

    def granted(self, request: str, token: int) -> None:
        acquired = self._acquired[request]
        acquired.answered, acquired.token = self._schedule.now, token

    def refused(self, request: str) -> None:
        """It is over without a grant that is known of."""
        if not self._acquired[request].was_asked_again:
            del self._acquired[request]

    def expires(self, request: str, *, since: float | None = None) -> None:
        """The grant may have ended by itself after `since`, without it at any time."""
        acquired = self._acquired[request]
        if acquired.expires_from is None:
            acquired.expires_from = max(acquired.called, since or acquired.called)

    def releases(self, request: str) -> None:
        """It is released; for the first time, or again."""
        acquired = self._acquired[request]
        if acquired.release_called is None:
            acquired.release_called = self._schedule.now

    def released(self, request: str) -> None:
        self._acquired[request].release_answered = self._schedule.now

    def saw(self, lock: str, token: int | None, *, called: float) -> None:
        """A read that began at `called` has found this holder."""
        self._inspections.append(
            Operation(locks.Inspect(lock), locks.Seen(token), called, self._schedule.now)
        )

    def check(self) -> Verdict:
        """Whether one order explains all of it. Raises AssertionError if none does."""
        operations = list(self._inspections)
        for request, each in self._acquired.items():
            operations += _operations(request, each)
        finding = check(locks.Locks(), operations, seconds_max=CHECK_SECONDS_MAX)
        assert finding.verdict is not Verdict.NOT_LINEARIZABLE, (
            f"P1, P2: what clients were told of lock {finding.part!r} is not linearizable"
        )
        return finding.verdict


def _operations(request: str, acquired: _Acquired) -> list[Operation[locks.Call, locks.Answer]]:
    lock, was_answered = acquired.lock, acquired.answered is not None
    grant = locks.Granted(acquired.token) if was_answered else None
    found: list[Operation[locks.Call, locks.Answer]] = [
        Operation(locks.Acquire(lock, request), grant, acquired.called, acquired.answered)
    ]
    if acquired.release_called is not None:
        release = locks.Release(lock, request)
        found.append(Operation(release, None, acquired.release_called, acquired.release_answered))
    expires_from = acquired.expires_from if was_answered else acquired.called
    if expires_from is not None:
        found.append(Operation(locks.Expire(lock, request), None, expires_from, None))
    return found
