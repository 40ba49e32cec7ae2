"""For tests of code that uses lockd: servers to test with, and faults, without a sleep.

    def test_the_report_stops(lockd_server, lockd_client):          # fixtures of the pytest plugin
        with lockd_client.lock("report", on_lost="flag") as lease:
            lockd_server.expire(lease)                              # or clock.advance, break_lease, pause
            assert lease.lost

`running_server` gives a server in this process: the real one in memory, whose clock stands still until
the test turns it; its clients go by the same clock, so a lease ends when the test says so.
`running_cluster` gives three real processes, to be killed, paused and cut off. What ends a test with
either leaves nothing behind. Neither promises durability, and the first no speed that means anything.

docs/TESTING_YOUR_CODE.md has complete examples. Start reading with `server` and `cluster`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lockd.testing.clock import Clock
    from lockd.testing.cluster import Cluster, running_cluster
    from lockd.testing.nodes import Node
    from lockd.testing.server import Server, running_server
else:

    def __getattr__(name: str) -> object:
        """Import a module with the first use of its names: pytest imports this package in every run."""
        from importlib import import_module  # noqa: PLC0415 - see above

        for module in ("clock", "server", "nodes", "cluster"):
            if name in __all__ and hasattr(found := import_module(f"{__name__}.{module}"), name):
                return getattr(found, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["Clock", "Cluster", "Node", "Server", "running_cluster", "running_server"]
