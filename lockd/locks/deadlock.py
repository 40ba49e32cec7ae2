"""Whether a wait could ever end: deadlock between owners (SAFETY G8).

An owner is blocked while any of its waits is pending; one that isn't can run to its end and give
back what it holds. The asker's wait is refused when it could not end even if all who can run to
their end did so: exactly then, by Holt's reduction of the resource graph. Since every wait is checked
when it begins, a deadlock has the asker in it, and only owners on whom it depends matter:

    1. Nobody waits behind the asker: no deadlock. This is nearly always so, and costs O(1).
    2. Gather the owners that the asker's wait depends on: those that hold the lock or stand in its
       queue, those that their waits depend on, and so on. The asker isn't among them: no deadlock.
    3. Replay: whoever isn't blocked ends; queues move on by their own rules (G5); until nobody is
       left, or nobody can move. The asker is left: refuse, and name the cycle.

A grant or a wait without an owner takes no part, nor does a revoked grant or a DELAY, which end by
themselves.
"""

from collections import deque
from collections.abc import Iterable

from lockd.locks.commands import SHARED, Refused
from lockd.locks.queues import Lock, Phase, Request
from lockd.locks.sessions import Session
from lockd.locks.state import LockState

HOPS_TOLD_MAX = 5

_Owner = tuple[str, str]
"""Session id and owner."""


class _Standing:
    """One request in the replay."""

    __slots__ = ("limit", "locks", "mode", "owner", "weight")

    def __init__(self, owner: _Owner, locks: tuple[str, ...], *, mode: str, limit: int, weight: int) -> None:
        self.owner = owner
        self.locks = locks
        self.mode = mode
        self.limit = limit
        self.weight = weight


def deadlock_of(
    state: LockState,
    session: Session,
    owner: str,
    names: tuple[str, ...],
    *,
    mode: str,
    limit: int,
    weight: int,
) -> Refused | None:
    """DEADLOCK if this owner would wait for these locks for ever; costs as much as it depends on."""
    if not owner or not _blocks_anyone(session, owner, names):
        return None
    asker = (session.id, owner)
    wish = _Standing(asker, names, mode=mode, limit=limit, weight=weight)
    owners = _depends_on(state, names)
    if asker not in owners:
        return None
    replay = _Replay(state, owners, wish)
    if replay.asker_ends():
        return None
    return Refused("DEADLOCK", replay.cycle(state), lock=names[0])


def _blocks_anyone(session: Session, owner: str, names: tuple[str, ...]) -> bool:
    """Whether somebody waits behind this owner: for what it holds, or after it in a queue."""
    for request in session.owners.get(owner, {}).values():
        for lock in request.locks:
            if request.is_granted and (lock.waiters or lock.name in names):
                return True
            if request.phase is Phase.WAITING and next(reversed(lock.waiters)) != request.ticket:
                return True
    return False


def _takes_part(request: Request) -> bool:
    return bool(request.owner) and request.phase is not Phase.REVOKED


def _depends_on(state: LockState, names: tuple[str, ...]) -> dict[_Owner, None]:
    """The owners that a wait of the asker for these locks depends on, in the order they were found."""
    found: dict[_Owner, None] = {}
    seen: dict[str, int] = {}
    """Up to which ticket the queue of each lock has been looked at."""
    todo: deque[tuple[Lock, int]] = deque()

    def look(lock: Lock | None, before: int) -> None:
        if lock is not None and seen.get(lock.name, -1) < before:
            todo.append((lock, before))

    for name in names:
        look(state.locks.get(name), state.tickets + 1)
    while todo:
        lock, before = todo.popleft()
        after = seen.get(lock.name, -1)
        if after >= before:
            continue
        seen[lock.name] = before
        for request in _ahead(lock, after, before):
            who = (request.session, request.owner)
            if who in found:
                continue
            found[who] = None
            for own in state.sessions[request.session].owners[request.owner].values():
                if own.phase is Phase.WAITING:
                    for other in own.locks:
                        look(other, own.ticket)
    return found


def _ahead(lock: Lock, after: int, before: int) -> Iterable[Request]:
    """Who takes part and holds the lock, or waits for it with a ticket from `after` to under `before`."""
    if after < 0:
        yield from filter(_takes_part, lock.holders.values())
    for ticket, request in lock.waiters.items():
        if ticket >= before:
            break
        if ticket >= after and _takes_part(request):
            yield request


class _Replay:
    """What these owners hold and wait for, and how far they can get."""

    def __init__(self, state: LockState, owners: dict[_Owner, None], wish: _Standing) -> None:
        self._asker = wish.owner
        self._holds: dict[_Owner, list[_Standing]] = {}
        self._pending: dict[_Owner, dict[_Standing, None]] = {owner: {} for owner in owners}
        self._holders: dict[str, dict[_Standing, None]] = {}
        self._queues: dict[str, dict[_Standing, None]] = {}
        waiting: list[tuple[int, _Standing]] = []
        for owner in owners:
            for request in state.sessions[owner[0]].owners[owner[1]].values():
                if not _takes_part(request):
                    continue
                standing = _Standing(
                    owner,
                    request.names,
                    mode=request.mode,
                    limit=request.lock.limit,
                    weight=request.weight,
                )
                if request.phase is Phase.WAITING:
                    waiting.append((request.ticket, standing))
                else:
                    self._hold(standing)
        waiting.sort(key=lambda pair: pair[0])
        for _, standing in waiting:
            self._wait(standing)
        self._wait(wish)

    def _hold(self, standing: _Standing) -> None:
        self._holds.setdefault(standing.owner, []).append(standing)
        for name in standing.locks:
            self._holders.setdefault(name, {})[standing] = None

    def _wait(self, standing: _Standing) -> None:
        self._pending[standing.owner][standing] = None
        for name in standing.locks:
            self._queues.setdefault(name, {})[standing] = None

    def asker_ends(self) -> bool:
        """Let everyone end who can; whether the asker is among them."""
        ended = deque(owner for owner, pending in self._pending.items() if not pending)
        looked = deque(self._queues)
        while True:
            while looked:
                self._look_at(looked.popleft(), ended)
            if not self._pending[self._asker]:
                return True
            if not ended:
                return False
            for standing in self._holds.pop(ended.popleft(), ()):
                for name in standing.locks:
                    del self._holders[name][standing]
                    looked.append(name)

    def _look_at(self, name: str, ended: deque[_Owner]) -> None:
        """As LockState.look_at."""
        queue = self._queues.get(name, {})
        while (head := next(iter(queue), None)) is not None and self._can_grant(head):
            for other in head.locks:
                del self._queues[other][head]
            self._hold(head)
            pending = self._pending[head.owner]
            del pending[head]
            if not pending:
                ended.append(head.owner)

    def _can_grant(self, head: _Standing) -> bool:
        return all(
            next(iter(self._queues[name])) is head and not self._is_in_the_way(name, head)
            for name in head.locks
        )

    def _is_in_the_way(self, name: str, wanted: _Standing) -> bool:
        holders = self._holders.get(name)
        if not holders:
            return False
        if wanted.limit:
            return sum(holder.weight for holder in holders) + wanted.weight > wanted.limit
        return not (wanted.mode == SHARED and all(holder.mode == SHARED for holder in holders))

    # The cycle, for whoever is refused.

    def cycle(self, state: LockState) -> str:
        """Why the asker can't end: the shortest way from its wait back to itself."""
        came_from: dict[_Owner, tuple[_Owner, str]] = {}
        todo = deque([self._asker])
        while todo and self._asker not in came_from:
            owner = todo.popleft()
            for standing in self._pending[owner]:
                for name in standing.locks:
                    for other in self._before(name, standing):
                        if other not in came_from and self._pending[other]:
                            came_from[other] = (owner, name)
                            todo.append(other)
        steps: list[tuple[_Owner, str, _Owner]] = []
        owner = self._asker
        while owner in came_from and (owner != self._asker or not steps):
            before, name = came_from[owner]
            steps.insert(0, (before, name, owner))
            owner = before
        told = ", ".join(
            f'{self._called(state, who)} waits for "{name}" behind {self._called(state, other)}'
            for who, name, other in steps[:HOPS_TOLD_MAX]
        )
        more = len(steps) - HOPS_TOLD_MAX
        return "this wait would never end: " + told + (f", and {more} more" if more > 0 else "")

    def _before(self, name: str, standing: _Standing) -> Iterable[_Owner]:
        yield from (holder.owner for holder in self._holders.get(name, ()))
        for waiter in self._queues[name]:
            if waiter is standing:
                return
            yield waiter.owner

    def _called(self, state: LockState, owner: _Owner) -> str:
        if owner == self._asker:
            return "this owner"
        session = state.sessions[owner[0]]
        return f'owner "{owner[1]}" of {session.label}'
