"""Attempts as Celery tasks.

    app = Celery(broker="redis://broker")
    cron.hand_over(CeleryEngine(app))

    $ celery -A jobs worker        # jobs.py, with LOCKD_SCHEDULER_DB set

Its retries are off, and its tasks are acknowledged when they begin: whatever is lost after that, the
scheduler finds out by itself. Pools of processes and of threads will do.
"""

from collections.abc import Mapping
from typing import Any

try:
    from celery import Celery
except ModuleNotFoundError as error:
    raise ImportError('lockd_scheduler.handover.celery needs celery: pip install "lockd[celery]"') from error

from lockd_scheduler.handover import Message
from lockd_scheduler.handover.site import Sites
from lockd_scheduler.jobs import Job

TASK_NAME = "lockd_scheduler.attempt"


class CeleryEngine:
    """Hands attempts over to the workers of a Celery app; one for each app, for any number of Crons."""

    name = "celery"

    def __init__(self, app: Celery, *, db: str | None = None, queue: str | None = None) -> None:
        """`db`: the ledger's URL as workers reach it, else LOCKD_SCHEDULER_DB there. `queue`: the task's."""
        self._sites = sites = Sites(db)
        self._queue = queue

        def carry(message: Message) -> str:
            return sites.carry(message)

        self._task = app.task(
            carry,
            name=TASK_NAME,
            max_retries=0,
            acks_late=False,
            ignore_result=True,
            serializer="json",
        )

    def attach(self, scope: str, jobs: Mapping[str, Job[..., Any]]) -> None:
        """These are the jobs of that scheduler: `Cron.hand_over` says so."""
        self._sites.attach(scope, jobs)

    def send(self, message: Message, *, task_id: str, expires_seconds: float) -> None:
        """Put it into the broker's queue. Raises kombu's errors."""
        self._task.apply_async(
            args=[dict(message)], task_id=task_id, expires=expires_seconds, queue=self._queue, retry=False
        )

    def close(self) -> None:
        """Nothing to close: the app keeps its connections."""
