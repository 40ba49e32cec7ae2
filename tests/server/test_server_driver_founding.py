"""A new cluster: whose it is stands in the log before anything that is granted in it (SAFETY C8, P6)."""

from lockd.locks.commands import CreateCluster, Granted, OpenSession, Refused
from lockd.server.port import Backup
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


def test_c8_no_copy_is_made_of_a_state_that_is_no_clusters_yet() -> None:
    """Its header would name no cluster, and every reader would call it damaged."""
    cluster = Cluster()
    ready: list[Backup | Refused] = []
    cluster[1].driver.checkpoints.backup(ready.append)
    assert ready == [Refused("UNAVAILABLE", "the cluster is being founded: there is nothing to save yet")]
    cluster.elect(1)
    cluster[1].driver.checkpoints.backup(ready.append)
    cluster.tick(5)
    assert isinstance(ready[-1], Backup)
