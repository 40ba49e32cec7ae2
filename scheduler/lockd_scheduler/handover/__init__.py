"""Handing attempts over to an engine, when one machine is not enough: Celery, or Dask.

The scheduler keeps the time, the ledger, the token and the retries; the engine runs one attempt, with its own
retries off. A message has the claim as JSON, and its task is called like the attempt. The worker's first
act is the guarded step claimed -> running, with a nonce of its own, then come heartbeats from there, then the
result (SAFETY R1, R3). So a message that comes twice, late, or from an office that is gone starts nothing:
the row has moved. A worker that is killed stops its heartbeats, and the attempt is lost like any other; the
engine's own redelivery is not needed, and does no harm.

In the scheduler's process such an attempt is only sent. One that nobody has started for a while is sent
again, with the same claim; a message expires by then, so that a full queue does not fill up with copies.

    app = Celery(broker="redis://broker")
    cron.hand_over(CeleryEngine(app))               # in the job file, which Celery's workers import too

    @cron.job("0 2 * * *", runner="celery")
    def nightly(run: Run): ...

Workers need the job file, the same version of lockd, and the ledger's URL: `db=`, or LOCKD_SCHEDULER_DB.
It never travels through the broker.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from lockd_scheduler.jobs import Job

Message = Mapping[str, Any]
"""{"scope", "claimed", "lost_after"}, as JSON."""


class JobEngine(Protocol):
    """Carries attempts in processes of its own. It may lose messages, and bring them more than once."""

    @property
    def name(self) -> str:
        """What jobs write as their `runner`."""

    def attach(self, scope: str, jobs: Mapping[str, Job[..., Any]]) -> None:
        """These are the jobs of that scheduler; said on both sides, when the job file is imported."""

    def send(self, message: Message, *, task_id: str, expires_seconds: float) -> None:
        """Give a message to the engine; raises what the engine raises. It need not come after it expires."""

    def close(self) -> None:
        """Let go of connections. Idempotent."""
