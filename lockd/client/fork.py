"""What a forked child must know of its parent's clients: they are not its own (SAFETY K5).

The child has a copy of every client, and of the sockets and the loop beneath it, which are shared
with the parent. It must neither use nor close them. So each client forgets its engine in the
child, each engine's leases are lost there, and the engine is kept unused to the child's end.
"""

import os
from typing import Protocol
from weakref import WeakSet


class Forkable(Protocol):
    """A client, or its engine."""

    def after_fork(self) -> object:
        """In the child: forget what is the parent's. Returns what must not be collected there."""
        ...


FORKED = "this process is a fork of the one that held it"

_clients: WeakSet[Forkable] = WeakSet()
_parents: list[object] = []


def watch(client: Forkable) -> None:
    """Have its `after_fork` called in every child of this process."""
    _clients.add(client)


def _in_child() -> None:
    _parents.extend([client.after_fork() for client in list(_clients)])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
