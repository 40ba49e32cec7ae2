"""What is on its way to the disk, and what waits for it (SAFETY C2, D1).

The disk takes writes in the order of their tickets and tells up to which of them it has them. With
each goes what rests on it: the entry that Raft may then count, messages, and whoever is to be told.
"""

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from lockd.disk.record import LogWrite
from lockd.ids import LogIndex, Term
from lockd.raft.messages import Message
from lockd.server.surroundings import Disk


@dataclass(frozen=True, slots=True)
class _Pending:
    ticket: int
    last: tuple[Term, LogIndex] | None
    messages: tuple[Message, ...]
    notify: tuple[Callable[[], None], ...]


class Writes:
    """The writes of one node, in their order."""

    def __init__(
        self,
        disk: Disk,
        *,
        persisted: Callable[[Term, LogIndex], None],
        send: Callable[[tuple[Message, ...]], None],
    ) -> None:
        """`persisted(term, index)` hears of the last entry of a write once that is durable."""
        self.count = 0
        """How many there have been."""
        self._disk = disk
        self._persisted = persisted
        self._send = send
        self._tickets = itertools.count(1)
        self._pending: deque[_Pending] = deque()

    def next_ticket(self) -> int:
        """For the write that is submitted next."""
        return next(self._tickets)

    def submit(
        self,
        write: LogWrite,
        *,
        last: tuple[Term, LogIndex] | None = None,
        messages: tuple[Message, ...] = (),
        notify: tuple[Callable[[], None], ...] = (),
    ) -> None:
        """Have it written. `last` is its last entry; the rest goes out once it is durable."""
        self.count += 1
        self._pending.append(_Pending(write.ticket, last, messages, notify))
        self._disk.submit(write)

    def send_after_all(self, messages: tuple[Message, ...]) -> None:
        """Send once everything written so far is durable: these rest on nothing newer."""
        if not messages:
            return
        if not self._pending:
            self._send(messages)
        else:
            newest = self._pending.pop()
            self._pending.append(replace(newest, messages=newest.messages + messages))

    def on_durable(self, ticket: int) -> None:
        """The disk has everything up to this ticket."""
        while self._pending and self._pending[0].ticket <= ticket:
            done = self._pending.popleft()
            if done.last is not None:
                self._persisted(*done.last)
            for notify in done.notify:
                notify()
            self._send(done.messages)
