"""Two jobs to start from: `lockd-scheduler serve examples/jobs.py`."""

import logging

from lockd_scheduler import Cron, Run

log = logging.getLogger(__name__)
cron = Cron("example")


@cron.job("0 2 * * *", tz="Europe/Berlin", catch_up="latest", within="6h")
def nightly(run: Run) -> None:
    """Every night at two, once, also when clocks change; a night that was missed is made up for."""
    log.info("the books of %s are closed under token %s", run.fire_at.date(), run.token)


@cron.every("30s", offset="H", delivery="at_least_once")
def heartbeat(run: Run) -> None:
    """Every 30 seconds, at a moment that depends on the job's name alone."""
    log.info("alive at %s", run.fire_at)
