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
        status = self._driver.status()
        gauges: tuple[tuple[str, str, int], ...] = (
            ("lockd_raft_term", "Raft's current term.", status.term),
            ("lockd_raft_is_leader", "1 on the leader.", int(status.role == "leader")),
            ("lockd_raft_has_leader", "1 when this node knows a leader.", int(status.leader != NO_NODE)),
            ("lockd_raft_commit_index", "Highest log index known to be committed.", status.commit_index),
            ("lockd_raft_last_applied", "Highest log index applied to the state.", status.last_applied),
            ("lockd_raft_log_last_index", "Highest index in this node's log.", status.log_last),
            ("lockd_sessions", "Sessions that are open.", status.sessions),
            ("lockd_locks", "Locks that are held or waited for.", status.locks),
            ("lockd_revision", "The counter of lock events.", status.revision),
            (
                "lockd_calls_open",
                "Commands of this node's clients without an outcome.",
                self._driver.open_calls,
            ),
        )
        for name, text, value in gauges:
            yield GaugeMetricFamily(name, text, value=value)
        counters: tuple[tuple[str, str, int], ...] = (
            ("lockd_raft_leader_changes", "Leaders that this node has seen.", self._driver.leader_changes),
            ("lockd_grants", "Grants that this node has applied since its start.", self._driver.grants),
            ("lockd_disk_writes", "Writes handed to this node's log.", self._driver.disk_writes),
        )
        for name, text, value in counters:
            yield CounterMetricFamily(name, text, value=value)
