"""Sends the attempts of jobs that an engine runs, and leaves the others to this process."""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from lockd_scheduler.attempts import Attempts
from lockd_scheduler.handover import JobEngine
from lockd_scheduler.jobs import Job
from lockd_scheduler.mandates import Claimed
from lockd_scheduler.ports import Runner

logger = logging.getLogger("lockd_scheduler")

RESEND_SECONDS = 60.0
"""After so long an attempt that nobody has started is sent again; then after twice that, and so on."""
RESEND_MOST_SECONDS = 3600.0
TROUBLE_SECONDS = 2.0


@dataclass
class _Sending:
    """An attempt that an engine is to carry."""

    claimed: Claimed
    engine: JobEngine
    due: float
    """When it is to be sent, or sent again, by the monotonic clock."""
    times: int = 0


class HandingOver:
    """A Runner: attempts of an engine's jobs go to the engine, the others to `here`."""

    def __init__(
        self,
        here: Runner,
        *,
        scope: str,
        jobs: Mapping[str, Job[..., Any]],
        engines: Mapping[str, JobEngine],
        attempts: Attempts,
        lost_after: timedelta,
    ) -> None:
        self._here = here
        self._scope = scope
        self._jobs = jobs
        self._engines = engines
        self._attempts = attempts
        self._lost_after = lost_after
        self._changed = threading.Condition()
        self._sendings: dict[int, _Sending] = {}
        self._is_open = self._is_closed = False

    def submit(self, claims: Sequence[Claimed], *, more: bool = False) -> None:
        """Queue attempts, here or for their engines; returns at once."""
        now, here = time.monotonic(), []
        sendings: dict[int, _Sending] = {}
        for claimed in claims:
            engine = self._engine_of(claimed.job)
            if engine is None:
                here.append(claimed)
            else:
                sendings[claimed.attempt_id] = _Sending(claimed, engine, now)
        self._here.submit(here, more=more)
        if not sendings:
            return
        with self._changed:
            self._sendings |= sendings
            if not self._is_open:
                self._is_open = True
                threading.Thread(target=self._send_on, name="lockd-scheduler-send", daemon=True).start()
            self._changed.notify_all()

    def queued(self) -> frozenset[int]:
        """The ids of attempts that it will still start, or send, or that may be on their way."""
        with self._changed:
            return self._here.queued() | frozenset(self._sendings)

    def drop_queued(self) -> None:
        """Forget them all: the next active one claims them anew, and what was sent starts nothing then."""
        self._here.drop_queued()
        with self._changed:
            self._sendings.clear()

    def close(self) -> None:
        """Send nothing any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for engine in self._engines.values():
            engine.close()

    def _engine_of(self, job: str) -> JobEngine | None:
        known = self._jobs.get(job)
        return None if known is None else self._engines.get(known.spec.kind)

    def _send_on(self) -> None:
        is_told = False
        while (due := self._next_due()) is not None:
            try:
                self._forget_begun([one for one in due if one.times])
                for sending in due:
                    self._send(sending)
                is_told = False
            except Exception as error:  # noqa: BLE001 - an engine raises what it likes; the ledger too
                if not is_told:
                    logger.warning("attempts not handed over, trying on: %r", error)
                    is_told = True
                with self._changed:
                    for sending in due:
                        sending.due = max(sending.due, time.monotonic() + TROUBLE_SECONDS)

    def _next_due(self) -> list[_Sending] | None:
        """Wait for those that are to be sent now; None once this is closed."""
        with self._changed:
            while not self._is_closed:
                now = time.monotonic()
                due = [sending for sending in self._sendings.values() if sending.due <= now]
                if due:
                    return due
                soonest = min((one.due for one in self._sendings.values()), default=None)
                self._changed.wait(None if soonest is None else soonest - now)
            return None

    def _forget_begun(self, sent: list[_Sending]) -> None:
        if not sent:
            return
        ids = [sending.claimed.attempt_id for sending in sent]
        begun = set(ids) - self._attempts.not_begun(ids)
        with self._changed:
            for attempt_id in begun:
                self._sendings.pop(attempt_id, None)

    def _send(self, sending: _Sending) -> None:
        claimed = sending.claimed
        with self._changed:
            if self._sendings.get(claimed.attempt_id) is not sending:
                return
        again = min(RESEND_SECONDS * 2**sending.times, RESEND_MOST_SECONDS)
        message = {
            "scope": self._scope,
            "claimed": claimed.to_json(),
            "lost_after": self._lost_after.total_seconds(),
        }
        sending.engine.send(message, task_id=f"{self._scope}/{claimed.attempt_id}", expires_seconds=again)
        sending.times += 1
        sending.due = time.monotonic() + again
        logger.info(
            "attempt sent job=%s run=%d engine=%s times=%d",
            claimed.job,
            claimed.run_id,
            sending.engine.name,
            sending.times,
        )
