"""/metrics: what the process has counted, and how the ledger and the office stand when it is asked."""

from collections.abc import Callable, Iterator
from typing import Protocol

from prometheus_client import generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from lockd_scheduler.figures import Figures
from lockd_scheduler.web.queries import Queries

PHASES = ("standby", "taking", "active", "out")


class ProcessStanding(Protocol):
    """What is read of a `Standing`."""

    @property
    def phase(self) -> str: ...
    @property
    def queued(self) -> int: ...
    @property
    def underway(self) -> int: ...


class SchedulerMetrics(Collector):
    """Prometheus' text form. A ledger that does not answer is a figure too, and fails no scrape."""

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(
        self, queries: Queries, standing: Callable[[], ProcessStanding | None], figures: Figures
    ) -> None:
        self._queries = queries
        self._standing = standing
        self._figures = figures

    def render(self) -> bytes:
        """All of it; asks the ledger."""
        return generate_latest(self) + generate_latest(self._figures.registry)

    def collect(self) -> Iterator[Metric]:
        """The gauges."""
        now = self._standing()
        if now is not None:
            office = GaugeMetricFamily(
                "lockd_scheduler_office",
                "This process's part in the office: 1 for one of them.",
                labels=["phase"],
            )
            for phase in PHASES:
                office.add_metric([phase], float(phase == now.phase))
            yield office
            yield GaugeMetricFamily(
                "lockd_scheduler_attempts_queued", "Claimed here and not started.", value=now.queued
            )
            yield GaugeMetricFamily(
                "lockd_scheduler_attempts_underway", "Started here and not ended.", value=now.underway
            )
        try:
            live, notices, due = self._queries.live_figures()
        except SQLAlchemyError:
            yield GaugeMetricFamily(
                "lockd_scheduler_ledger_up", "1 if the ledger's database answers.", value=0
            )
            return
        yield GaugeMetricFamily("lockd_scheduler_ledger_up", "1 if the ledger's database answers.", value=1)
        runs = GaugeMetricFamily(
            "lockd_scheduler_runs_live", "Runs of all processes that have not ended.", labels=["state"]
        )
        for state, many in sorted(live.items()):
            runs.add_metric([state], many)
        yield runs
        yield GaugeMetricFamily(
            "lockd_scheduler_notices_pending", "Notices that have not reached the webhook.", value=notices
        )
        yield GaugeMetricFamily(
            "lockd_scheduler_overdue_seconds",
            "How long the oldest due fire has waited to be claimed; it grows when nobody is in office.",
            value=due,
        )
