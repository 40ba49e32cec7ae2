"""A new cluster: whose it is stands in the log before anything that is granted in it (SAFETY C8, P6)."""

from lockd.locks.commands import CreateCluster, Granted, OpenSession
from tests.server.cluster import Cluster


def test_c8_the_first_command_of_the_log_is_the_clusters_id_whoever_has_asked_before() -> None:
    """A grant names its cluster: one that no cluster was named for would end the node that answers it."""
    cluster = Cluster()
    cluster.ask(1, OpenSession(600_000, "s", ""), session="s")
    here = cluster.acquire(1, "here", "s")
    there = cluster.acquire(2, "there", "s")
    cluster.elect(1)
    cluster.tick(5)
    first = cluster[1].entries[0][1].commands[0]
    assert isinstance(first.operation, CreateCluster)
    assert len(cluster[1].logged(CreateCluster)) == 1
    assert isinstance(here[-1], Granted)
    assert isinstance(there[-1], Granted)
