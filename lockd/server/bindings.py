"""Which instance is which node: what this node has bound to the ids of its peers (SAFETY C8).

An id is bound to the first instance that introduces itself under it, and durably before that may
speak. Whom this node has never met is known by what it registered in the log.
"""

from collections.abc import Callable, Mapping

from lockd.ids import InstanceId, NodeId

GUESTS_MAX = 64
"""Ids that are bound and no member's: a leader that was added while this node was away is one until
its appends arrive. More than that are not a cluster's nodes (C10)."""


class Bindings:
    """The bindings of one node, in memory and on their way to the disk."""

    def __init__(
        self,
        durable: Mapping[NodeId, InstanceId],
        *,
        write: Callable[[NodeId, InstanceId, Callable[[], None]], None],
        registered: Callable[[NodeId], InstanceId | None],
        is_guest: Callable[[NodeId], bool],
    ) -> None:
        """`write` makes one durable, then calls back; a guest is neither a member nor removed."""
        self._bound = dict(durable)
        self._durable = set(durable)
        self._write = write
        self._registered = registered
        self._is_guest = is_guest

    def instance_of(self, node: NodeId) -> InstanceId | None:
        """Whom this node has met under that id; or, if none, who has registered."""
        return self._bound.get(node) or self._registered(node)

    def has_room_for(self, node: NodeId) -> bool:
        """Whether the id may be bound, if it isn't: not when there are enough guests already."""
        if node in self._bound or not self._is_guest(node):
            return True
        return sum(map(self._is_guest, self._bound)) < GUESTS_MAX

    def bind(self, node: NodeId, instance: InstanceId, on_bound: Callable[[], None]) -> None:
        """Bind a peer whose id is free or bound to this very instance; `on_bound` once it is durable."""

        def now_durable() -> None:
            self._durable.add(node)
            on_bound()

        if node in self._durable:
            on_bound()
        else:
            self._bound[node] = instance  # from here on no other instance is taken for it
            self._write(node, instance, now_durable)
