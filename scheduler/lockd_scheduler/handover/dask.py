"""Attempts as tasks of a Dask cluster.

    cron.hand_over(DaskEngine("tcp://scheduler:8786", jobs="jobs:cron"))

    $ dask worker tcp://scheduler:8786        # where jobs.py can be imported, with LOCKD_SCHEDULER_DB set

Dask runs a task again when the worker that had it has died; then the ledger refuses it, and the scheduler
decides by the job's `delivery`. A job may use Dask's own client for work that it spreads.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

try:
    from distributed import Client, fire_and_forget
except ModuleNotFoundError as error:
    raise ImportError('lockd_scheduler.handover.dask needs dask: pip install "lockd[dask]"') from error

from lockd_scheduler.errors import BadSchedule
from lockd_scheduler.handover import Message
from lockd_scheduler.handover.site import Sites
from lockd_scheduler.jobs import Job

if TYPE_CHECKING:
    from lockd_scheduler.cron import Cron

CONNECT_SECONDS = 10


class DaskEngine:
    """Hands attempts over to a Dask cluster."""

    name = "dask"

    def __init__(self, address: str, *, jobs: str, db: str | None = None) -> None:
        """`jobs`: the Cron as workers import it, like "package.jobs:cron".

        `address`: of Dask's scheduler. `db`: the ledger's URL as workers reach it, else
        LOCKD_SCHEDULER_DB there.
        """
        self.sites = Sites(db)
        self._address = address
        self._jobs = jobs
        self._client: Client | None = None

    def attach(self, scope: str, jobs: Mapping[str, Job[..., Any]]) -> None:
        """These are the jobs of that scheduler: `Cron.hand_over` says so."""
        self.sites.attach(scope, jobs)

    def send(self, message: Message, *, task_id: str, expires_seconds: float) -> None:  # noqa: ARG002
        """Give it to Dask's scheduler, which knows a task by its key: one that it still has stays one.

        So nothing piles up there, and no message need expire. Raises distributed's errors.
        """
        claimed = message["claimed"]
        key = f"lockd-attempt/{task_id}/{claimed['office_token']}.{claimed['ordinal']}"
        task = self._connected().submit(carry_attempt, self._jobs, dict(message), key=key, retries=0)
        fire_and_forget(task)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Let go of Dask's scheduler; what it was given goes on."""
        if self._client is not None:
            self._client.close()  # type: ignore[no-untyped-call]
            self._client = None

    def _connected(self) -> "Client":
        if self._client is not None and self._client.status != "running":
            self.close()
        if self._client is None:
            self._client = Client(  # type: ignore[no-untyped-call]
                self._address, timeout=CONNECT_SECONDS, set_as_default=False
            )
        return self._client


def carry_attempt(jobs: str, message: dict[str, Any]) -> str:
    """Carry an attempt in this worker: what Dask calls there."""
    engine = _cron(jobs).engines.get(DaskEngine.name)
    if not isinstance(engine, DaskEngine):
        raise BadSchedule(f"{jobs} hands nothing over to Dask: it has no cron.hand_over(DaskEngine(...))")
    return engine.sites.carry(message)


@lru_cache
def _cron(jobs: str) -> "Cron":
    from lockd_scheduler.loading import load_cron  # noqa: PLC0415 - the job file imports this module

    return load_cron(jobs)
