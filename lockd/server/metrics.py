"""A node's figures for Prometheus, read off the driver when they are asked for."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from lockd.ids import NO_NODE
from lockd.server.driver import Driver


class NodeMetrics(Collector):
    """One registry a node, so that several can live in one process."""

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def render(self) -> bytes:
        """Prometheus' text exposition format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        driver = self._driver
        raft, status = driver.raft, driver.status()
        gauges: tuple[tuple[str, str, int], ...] = (
            ("lockd_raft_term", "Raft's current term.", status.term),
            ("lockd_raft_is_leader", "1 on the leader.", int(status.role == "leader")),
            ("lockd_raft_has_leader", "1 when this node knows a leader.", int(status.leader != NO_NODE)),
            ("lockd_raft_commit_index", "Highest log index known to be committed.", status.commit_index),
            ("lockd_raft_last_applied", "Highest log index applied to the state.", status.last_applied),
            ("lockd_raft_log_last_index", "Highest index in this node's log.", status.log_last),
            ("lockd_raft_log_first_index", "Lowest index that this node keeps in memory.", raft.log.base + 1),
            (
                "lockd_snapshot_index",
                "The entry up to which this node's newest snapshot stands, 0 without one.",
                raft.snapshot.index if raft.snapshot else 0,
            ),
            ("lockd_members", "Nodes of the cluster, learners included.", len(status.members)),
            (
                "lockd_disk_full",
                "1 while this node's disk has no room (SAFETY D4).",
                int(driver.disk_is_full),
            ),
            ("lockd_sessions", "Sessions that are open.", status.sessions),
            ("lockd_locks", "Locks that are held or waited for.", status.locks),
            ("lockd_waiters", "Requests that wait.", status.waiters),
            ("lockd_revision", "The counter of lock events.", status.revision),
            (
                "lockd_calls_open",
                "Commands of this node's clients without an outcome, waits included.",
                driver.open_calls,
            ),
            ("lockd_reads_open", "Reads and renewals of its clients without an answer.", driver.open_reads),
        )
        for name, text, value in gauges:
            yield GaugeMetricFamily(name, text, value=value)
        counters: tuple[tuple[str, str, int], ...] = (
            ("lockd_raft_leader_changes", "Leaders that this node has seen.", driver.leader_changes),
            ("lockd_grants", "Grants that this node has applied since its start.", driver.grants),
            (
                "lockd_calls_refused",
                "Commands of clients that were refused because too many were open.",
                driver.calls_refused,
            ),
            ("lockd_disk_writes", "Writes handed to this node's log.", driver.disk_writes),
            (
                "lockd_snapshots_taken",
                "Snapshots that this node has taken of its state.",
                driver.checkpoints.taken,
            ),
            ("lockd_snapshots_sent", "Snapshots that have arrived at a follower.", driver.sending.sent),
            (
                "lockd_snapshots_received",
                "Snapshots that this node was caught up by.",
                driver.receiving.received,
            ),
        )
        for name, text, value in counters:
            yield CounterMetricFamily(name, text, value=value)
