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

Every request is looked at a bounded number of times, whatever shape the graph has. Beyond
`Limits.deadlock_search_max` of them a wait is refused with LIMIT: apply must not stop for it (P6).
"""

from collections import OrderedDict, deque
from collections.abc import Iterator

from lockd.locks.commands import SEMAPHORE, SHARED, Refused
from lockd.locks.limits import over_limit
from lockd.locks.queues import Lock, Phase, Request
from lockd.locks.sessions import Session
from lockd.locks.state import LockState

HOPS_TOLD_MAX = 5

_Owner = tuple[str, str]
"""Session id and owner."""


class _Standing:
    """One request in the replay."""

    __slots__ = ("limit", "locks", "mode", "owner", "ready", "ticket", "weight")

    def __init__(
        self, owner: _Owner, locks: tuple[str, ...], mode: str, limit: int, weight: int, ticket: int
    ) -> None:
        self.owner = owner
        self.locks = locks
        self.mode = mode
        self.limit = limit
        self.weight = weight
        self.ticket = ticket
        self.ready = 0
        """In how many of its queues it stands first and would be let in."""


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
    """DEADLOCK if this owner would wait for these locks for ever; costs as much as it depends on.

    LIMIT if that is too much to be looked at.
    """
    if not owner or not _blocks_anyone(session, owner, names):
        return None
    asker = (session.id, owner)
    search = _Search(state)
    if not search.gather(names):
        what = "requests and locks that this wait with OWNER depends on"
        return over_limit(what, search.looked_at, state.limits.deadlock_search_max)
    if asker not in search.found:
        return None
    replay = _Replay(state, search.found, _Standing(asker, names, mode, limit, weight, state.tickets + 1))
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


class _Line:
    """Who holds a lock and who waits for it, read once from the front, as far as anyone depends on it."""

    def __init__(self, lock: Lock) -> None:
        self._holders = iter(lock.holders.values())
        self._waiters = iter(lock.waiters.values())
        self._next: Request | None = None

    def before(self, ticket: int) -> Iterator[Request]:
        """Those who were not read yet and stand before that ticket, the holders first."""
        yield from self._holders
        while True:
            waiter = self._next or next(self._waiters, None)
            if waiter is None or waiter.ticket >= ticket:
                self._next = waiter
                return
            self._next = None
            yield waiter


class _Search:
    """The owners that a wait depends on."""

    def __init__(self, state: LockState) -> None:
        self.found: dict[_Owner, None] = {}
        """In the order in which they were found."""
        self.looked_at = 0
        """The locks that those who were found hold and wait for, and requests of others."""
        self._state = state
        self._lines: dict[str, _Line] = {}

    def gather(self, names: tuple[str, ...]) -> bool:
        """Find whom a new wait for these locks depends on; False if that is too much to look at."""
        at_most = self._state.limits.deadlock_search_max
        todo = deque((name, self._state.tickets + 1) for name in names if name in self._state.locks)
        while todo:
            name, before = todo.popleft()
            line = self._lines.get(name)
            if line is None:
                line = self._lines[name] = _Line(self._state.locks[name])
            for request in line.before(before):
                who = (request.session, request.owner)
                if _takes_part(request) and who not in self.found:
                    self.found[who] = None
                    self._note_waits(who, todo)
                else:
                    self.looked_at += 1
                if self.looked_at > at_most:
                    return False
        return True

    def _note_waits(self, who: _Owner, todo: deque[tuple[str, int]]) -> None:
        for own in self._state.sessions[who[0]].owners[who[1]].values():
            self.looked_at += len(own.locks)
            if own.phase is Phase.WAITING:
                todo.extend((lock.name, own.ticket) for lock in own.locks)


class _Use:
    """How a lock is held in the replay."""

    __slots__ = ("holders", "shared", "used")

    def __init__(self) -> None:
        self.holders: dict[_Standing, None] = {}
        self.shared = 0
        self.used = 0

    def add(self, standing: _Standing) -> None:
        self.holders[standing] = None
        self.shared += standing.mode == SHARED
        self.used += standing.weight

    def remove(self, standing: _Standing) -> None:
        del self.holders[standing]
        self.shared -= standing.mode == SHARED
        self.used -= standing.weight

    def admits(self, standing: _Standing) -> bool:
        """As Lock.admits_as."""
        if not self.holders:
            return True
        if standing.limit:
            return self.used + standing.weight <= standing.limit
        return standing.mode == SHARED and self.shared == len(self.holders)


class _Replay:
    """What these owners hold and wait for, and how far they can get."""

    def __init__(self, state: LockState, owners: dict[_Owner, None], wish: _Standing) -> None:
        self._asker = wish.owner
        self._holds: dict[_Owner, list[_Standing]] = {}
        self._pending: dict[_Owner, dict[_Standing, None]] = {owner: {} for owner in owners}
        self._uses: dict[str, _Use] = {}
        # Linked lists inside, as Lock.waiters: a plain dict scans past those that have left its head.
        self._queues: dict[str, OrderedDict[_Standing, None]] = {}
        self._counted: dict[str, _Standing] = {}
        """The head of each queue that has counted this lock among those it is ready for."""
        waiting: list[_Standing] = []
        for owner in owners:
            for request in state.sessions[owner[0]].owners[owner[1]].values():
                if not _takes_part(request):
                    continue
                limit = request.lock.limit if request.mode == SEMAPHORE else 0
                standing = _Standing(
                    owner, request.names, request.mode, limit, request.weight, request.ticket
                )
                if request.phase is Phase.WAITING:
                    waiting.append(standing)
                else:
                    self._hold(standing)
        waiting.sort(key=lambda standing: standing.ticket)
        for standing in waiting:
            self._wait(standing)
        self._wait(wish)

    def _hold(self, standing: _Standing) -> None:
        self._holds.setdefault(standing.owner, []).append(standing)
        for name in standing.locks:
            use = self._uses.get(name)
            if use is None:
                use = self._uses[name] = _Use()
            use.add(standing)

    def _wait(self, standing: _Standing) -> None:
        self._pending[standing.owner][standing] = None
        for name in standing.locks:
            queue = self._queues.get(name)
            if queue is None:
                queue = self._queues[name] = OrderedDict()
            queue[standing] = None

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
                    self._uses[name].remove(standing)
                    looked.append(name)

    def _look_at(self, name: str, ended: deque[_Owner]) -> None:
        """As LockState.look_at."""
        queue = self._queues.get(name)
        while queue and self._is_ready(name, head := next(iter(queue))):
            for other in head.locks:
                del self._queues[other][head]
            self._hold(head)
            pending = self._pending[head.owner]
            del pending[head]
            if not pending:
                ended.append(head.owner)

    def _is_ready(self, name: str, head: _Standing) -> bool:
        """Whether the head of this queue is let in; one that asks for several stays ready for each."""
        use = self._uses.get(name)
        if use is not None and not use.admits(head):
            return False
        if self._counted.get(name) is not head:
            self._counted[name] = head
            head.ready += 1
        return head.ready == len(head.locks)

    # The cycle, for whoever is refused.

    def cycle(self, state: LockState) -> str:
        """Why the asker can't end: the shortest way from its wait back to itself."""
        came_from: dict[_Owner, tuple[_Owner, str]] = {}
        lines = {name: self._line(name) for name in self._queues}
        ahead: dict[str, _Standing | None] = {}
        todo = deque([self._asker])
        while todo and self._asker not in came_from:
            owner = todo.popleft()
            for standing in self._pending[owner]:
                for name in standing.locks:
                    other = ahead.pop(name, None) or next(lines[name], None)
                    while other is not None and other.ticket < standing.ticket:
                        if other.owner not in came_from and self._pending[other.owner]:
                            came_from[other.owner] = (owner, name)
                            todo.append(other.owner)
                        other = next(lines[name], None)
                    ahead[name] = other
        return self._told(state, came_from)

    def _line(self, name: str) -> Iterator[_Standing]:
        """Who holds the lock, and then who waits for it: each stands before all after it."""
        use = self._uses.get(name)
        if use is not None:
            yield from use.holders
        yield from self._queues[name]

    def _told(self, state: LockState, came_from: dict[_Owner, tuple[_Owner, str]]) -> str:
        steps: list[tuple[_Owner, str, _Owner]] = []
        owner = self._asker
        while owner in came_from and (owner != self._asker or not steps):
            before, name = came_from[owner]
            steps.append((before, name, owner))
            owner = before
        steps.reverse()
        told = ", ".join(
            f'{self._called(state, who)} waits for "{name}" behind {self._called(state, other)}'
            for who, name, other in steps[:HOPS_TOLD_MAX]
        )
        more = len(steps) - HOPS_TOLD_MAX
        return "this wait would never end: " + told + (f", and {more} more" if more > 0 else "")

    def _called(self, state: LockState, owner: _Owner) -> str:
        if owner == self._asker:
            return "this owner"
        session = state.sessions[owner[0]]
        return f'owner "{owner[1]}" of {session.label}'
