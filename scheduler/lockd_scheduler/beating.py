"""Beside a worker's attempts: heartbeats, ends in time, and looking for functions that had gone."""

import logging
import threading
import time
from collections.abc import Callable

from lockd_scheduler.parking import LOOK_SECONDS, look_for_gone
from lockd_scheduler.worker import LEDGER_ERRORS, Worker, first_line

logger = logging.getLogger("lockd_scheduler")

HEARTBEATS_PER_LOSS = 5
"""So many heartbeats fit into the silence after which an attempt counts as lost."""
ENFORCE_SECONDS = 1.0
"""How often the ledger is asked whether an attempt is to be cancelled, and time-outs are looked at."""


def beat_on(worker: Worker, is_over: threading.Event, *, lost_after_seconds: float) -> None:
    """Send heartbeats until it is over, whatever the database does meanwhile. Raises faults of ours."""
    heartbeat_seconds = lost_after_seconds / HEARTBEATS_PER_LOSS
    is_told = False
    next_heartbeat = time.monotonic() + heartbeat_seconds
    while not is_over.wait(min(ENFORCE_SECONDS, heartbeat_seconds)):
        try:
            if time.monotonic() >= next_heartbeat:
                worker.heartbeat()
                next_heartbeat = time.monotonic() + heartbeat_seconds
            worker.enforce()
            is_told = False
        except LEDGER_ERRORS as error:
            if not is_told:
                logger.warning("heartbeat not written, trying on: %s", first_line(error))
                is_told = True


def look_on(worker: Worker, is_over: threading.Event, *, is_active: Callable[[], bool]) -> None:
    """While in office, bring jobs back whose functions are there again, until it is over."""
    pause = ENFORCE_SECONDS
    while not is_over.wait(pause):
        if is_active():
            pause = LOOK_SECONDS
            try:
                look_for_gone(worker.attempts.engine, worker.scope, is_over, worker.clock.now)
            except LEDGER_ERRORS as error:
                logger.info("parked jobs are looked for later: %s", first_line(error))
