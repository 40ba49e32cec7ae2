"""Which waits came in where, so that the end of a connection or a node can be acted on (SAFETY G4)."""

from collections.abc import Iterable

from lockd.locks.queues import Request


class WaitsByOrigin:
    """The waiting requests that somebody listens for, by node, boot and connection."""

    __slots__ = ("_nodes",)

    def __init__(self) -> None:
        self._nodes: dict[int, dict[int, dict[int, dict[int, Request]]]] = {}

    def add(self, request: Request) -> None:
        origin = request.origin
        boots = self._nodes.setdefault(origin.node, {})
        connections = boots.setdefault(origin.boot, {})
        connections.setdefault(origin.connection, {})[request.ticket] = request

    def remove(self, request: Request) -> None:
        """Take out a request that is in, and what is empty then."""
        origin = request.origin
        boots = self._nodes[origin.node]
        connections = boots[origin.boot]
        waits = connections[origin.connection]
        del waits[request.ticket]
        if not waits:
            del connections[origin.connection]
            if not connections:
                del boots[origin.boot]
                if not boots:
                    del self._nodes[origin.node]

    def of_connection(self, node: int, boot: int, connection: int) -> list[Request]:
        """By ticket, as are the others: the order must not depend on how the index was built (G6)."""
        return _by_ticket([self._nodes.get(node, {}).get(boot, {}).get(connection, {})])

    def of_boot(self, node: int, boot: int) -> list[Request]:
        return _by_ticket(self._nodes.get(node, {}).get(boot, {}).values())

    def of_node(self, node: int) -> list[Request]:
        """Those of every boot of the node."""
        return _by_ticket(
            waits for connections in self._nodes.get(node, {}).values() for waits in connections.values()
        )

    def of_other_boots(self, node: int, boot: int) -> list[Request]:
        """Those of every boot of the node but this one."""
        boots = self._nodes.get(node, {})
        return _by_ticket(
            waits for other, connections in boots.items() if other != boot for waits in connections.values()
        )

    def all(self) -> list[Request]:
        return _by_ticket(
            waits
            for boots in self._nodes.values()
            for connections in boots.values()
            for waits in connections.values()
        )


def _by_ticket(groups: Iterable[dict[int, Request]]) -> list[Request]:
    return [
        request
        for _, request in sorted((ticket, request) for group in groups for ticket, request in group.items())
    ]
