"""What a process of the scheduler has done since its start, for Prometheus.

Counted where it happens; read by /metrics. Each set has a registry of its own, so that several schedulers
can live in one process, and a bounded number of series, however many jobs there are.
"""

import threading

from prometheus_client import CollectorRegistry, Counter, Histogram

JOBS_MAX = 200
"""So many jobs have series of their own; the others share one."""
OTHER = "other"

_LATENESS_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600)


class Figures:
    """Counters and a histogram. Safe on any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._jobs: set[str] = set()
        self._lock = threading.Lock()
        self._claimed = Counter(
            "lockd_scheduler_attempts_claimed",
            "Attempts that this process has claimed in office.",
            registry=self.registry,
        )
        self._skipped = Counter(
            "lockd_scheduler_fires_skipped",
            "Rows of skipped fires that this process has written in office.",
            registry=self.registry,
        )
        self._ended = Counter(
            "lockd_scheduler_attempts_ended",
            "Attempts that ended in this process, by job and state.",
            ("job", "state"),
            registry=self.registry,
        )
        self._lateness = Histogram(
            "lockd_scheduler_start_lateness_seconds",
            "From the fire time of a scheduled run to the start of its first attempt here.",
            buckets=_LATENESS_SECONDS,
            registry=self.registry,
        )
        self._notices = Counter(
            "lockd_scheduler_notices",
            "Tries to send a notice to the webhook, by what came of them: sent, failed.",
            ("outcome",),
            registry=self.registry,
        )

    def claimed(self, attempts: int, *, skipped: int) -> None:
        """A claim transaction has made so many attempts, and rows of skipped fires."""
        self._claimed.inc(attempts)
        self._skipped.inc(skipped)

    def started(self, lateness_seconds: float) -> None:
        """The first attempt of a scheduled run has started."""
        self._lateness.observe(max(lateness_seconds, 0.0))

    def ended(self, job: str, state: str) -> None:
        """An attempt has ended, as the ledger has it."""
        self._ended.labels(self._label(job), state).inc()

    def tried(self, outcome: str) -> None:
        """A notice was "sent", or has "failed" and will be tried again."""
        self._notices.labels(outcome).inc()

    def _label(self, job: str) -> str:
        with self._lock:
            if job not in self._jobs and len(self._jobs) >= JOBS_MAX:
                return OTHER
            self._jobs.add(job)
            return job
