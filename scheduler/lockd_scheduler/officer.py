"""The duties of the office, one turn at a time: campaign, take office, claim, find the lost.

`turn` does one step and says how long the next may wait. It keeps no thread and never sleeps beyond
the campaign's wait, so that a test can turn it by hand. A database error ends a turn, not the
officer; only the fence row ends a tenure for certain (SAFETY R1).
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from lockd.errors import Unavailable
from lockd_scheduler.errors import OfficeLost
from lockd_scheduler.figures import Figures
from lockd_scheduler.jobs import JobSpec
from lockd_scheduler.ledger import Ledger
from lockd_scheduler.mandates import Mandate
from lockd_scheduler.ports import Clock, Office, Runner, Seat
from lockd_scheduler.tenure import Event, Phase, Tenure
from lockd_scheduler.worker import LEDGER_ERRORS, first_line

logger = logging.getLogger("lockd_scheduler")

POLL_SECONDS = 1.0
"""The longest pause between two looks at the ledger while active."""
CAMPAIGN_SECONDS = 1.0
TEND_EVERY = timedelta(seconds=0.5)
"""The lost are looked for so often, and not at every turn."""
TEND_EVERY_BUSY = timedelta(seconds=2)
"""While more is due than one turn claims: that goes first."""
TELL_LATE_EVERY = timedelta(seconds=5)
PRUNE_EVERY = timedelta(seconds=10)
ERRORS_BEFORE_STEPPING_DOWN = 8
"""With the pauses between them about 10 s; then another process should try."""


@dataclass
class Officer:
    """One process's part in the office of one scheduler name."""

    ledger: Ledger
    office: Office
    specs: Mapping[str, JobSpec]
    clock: Clock
    runner: Runner
    holder: str
    lost_after: timedelta
    figures: Figures = field(default_factory=Figures)
    wake: Callable[[], None] = lambda: None
    """Called on any thread when the next turn should come at once."""

    tenure: Tenure = field(default_factory=Tenure, init=False)
    _seat: Seat | None = field(default=None, init=False)
    _mandate: Mandate | None = field(default=None, init=False)
    _errors: int = field(default=0, init=False)
    _recheck: bool = field(default=False, init=False)
    _in_trouble: bool = field(default=False, init=False)
    _tended_at: datetime = field(default=datetime.min.replace(tzinfo=UTC), init=False)
    _tell_late_next: datetime | None = field(default=None, init=False)
    _told_late_to: int = field(default=0, init=False)
    _prune_next: datetime | None = field(default=None, init=False)
    _pruned_to: int = field(default=0, init=False)
    _none_lost_before: datetime | None = field(default=None, init=False)
    """After an outage of the ledger the attempts that live get the time to say so (R1)."""

    def turn(self) -> float:
        """Do the next thing. Returns how many seconds the turn after it may wait."""
        try:
            pause = self._duty()
        except OfficeLost as error:
            logger.warning("stepping down scope=%s: %s", self.ledger.scope, error)
            self._step_down(Event.FENCED)
            return 0.0
        except (*LEDGER_ERRORS, Unavailable) as error:
            return self._trouble(error)
        if self._errors:
            logger.info("answers again after errors=%d scope=%s", self._errors, self.ledger.scope)
            self._errors = 0
        return pause

    def stop(self) -> None:
        """Claim nothing any more and give up the seat. What runs goes on."""
        self._step_down(Event.STOP)

    def take_seat(self, seat: Seat) -> None:
        """Be elected: with the next turn this process takes office."""
        self._seat = seat
        self._mandate = Mandate(self.ledger.scope, seat.source, seat.token, self.holder)
        self.tenure = self.tenure.after(Event.SEATED, token=seat.token)
        seat.on_lost(self.wake)

    def _duty(self) -> float:
        match self.tenure.phase:
            case Phase.STANDBY:
                seat = self.office.campaign(CAMPAIGN_SECONDS)
                if seat is not None:
                    self.take_seat(seat)
                return 0.0
            case Phase.TAKING:
                return self._take_office()
            case Phase.ACTIVE:
                return self._work()
            case Phase.OUT:
                return POLL_SECONDS

    def _take_office(self) -> float:
        mandate = self._held_mandate()
        self.clock.sync()
        self.ledger.take_office(mandate, now=self.clock.now())
        self.ledger.keep_schedules(mandate, self.specs, now=self.clock.now())
        self.tenure = self.tenure.after(Event.FENCE_MOVED)
        self._recheck = True
        logger.info("active scope=%s token=%d holder=%s", mandate.scope, mandate.token, self.holder)
        return 0.0

    def _work(self) -> float:
        assert self._seat is not None
        if self._seat.lost:
            logger.warning("seat lost scope=%s token=%s", self.ledger.scope, self.tenure.token)
            self._step_down(Event.SEAT_LOST)
            return 0.0
        mandate = self._held_mandate()
        self.clock.sync()
        now = self.clock.now()
        if self._recheck:
            # After taking office, and after an unknown commit of ours: what is claimed and in
            # nobody's hands is claimed again.
            self.runner.submit(self.ledger.take_over(mandate, keep=self.runner.queued(), now=now))
            self._recheck = False
        batch = self.ledger.claim_due(mandate, now=now)
        self.figures.claimed(len(batch.claimed), skipped=batch.skipped)
        is_more_due = batch.next_due is not None and batch.next_due <= now
        self.runner.submit(batch.claimed, more=is_more_due)
        if abs(now - self._tended_at) >= (TEND_EVERY_BUSY if is_more_due else TEND_EVERY):
            self._tended_at = now
            self._mark_lost(mandate, now)
            self._tell_late(mandate, now)
            self._prune(mandate, now)
        if batch.next_due is None:
            return POLL_SECONDS
        until_due = (batch.next_due - self.clock.now()).total_seconds()
        return min(max(until_due, 0.0), POLL_SECONDS)

    def _mark_lost(self, mandate: Mandate, now: datetime) -> None:
        if self._in_trouble:
            self._in_trouble = False
            self._none_lost_before = now + self.lost_after
        if self._none_lost_before is not None and now < self._none_lost_before:
            return
        lost = self.ledger.mark_lost(mandate, silent_since=now - self.lost_after, now=now)
        if lost:
            logger.warning("attempts lost scope=%s count=%d", mandate.scope, lost)

    def _tell_late(self, mandate: Mandate, now: datetime) -> None:
        if self._tell_late_next is None or now >= self._tell_late_next:
            self._tell_late_next = now + TELL_LATE_EVERY
            self._told_late_to = self.ledger.tell_late(mandate, after_id=self._told_late_to, now=now)

    def _prune(self, mandate: Mandate, now: datetime) -> None:
        if self._prune_next is None or now >= self._prune_next:
            self._prune_next = now + PRUNE_EVERY
            self._pruned_to = self.ledger.prune(mandate, after_id=self._pruned_to, now=now)

    def _trouble(self, error: Exception) -> float:
        self._errors += 1
        self._recheck = self._in_trouble = True
        if self._errors == 1:
            logger.warning("trying on scope=%s: %s", self.ledger.scope, first_line(error))
        if self._errors >= ERRORS_BEFORE_STEPPING_DOWN and self.tenure.token is not None:
            logger.warning("stepping down, the ledger is silent scope=%s", self.ledger.scope)
            self._step_down(Event.LEDGER_SILENT)
        return float(min(0.1 * 2 ** (self._errors - 1), 2.0))

    def _step_down(self, event: Event) -> None:
        self.tenure = self.tenure.after(event)
        self.runner.drop_queued()
        seat, self._seat, self._mandate = self._seat, None, None
        if seat is not None:
            seat.resign()

    def _held_mandate(self) -> Mandate:
        assert self._mandate is not None
        assert self._mandate.token == self.tenure.token
        return self._mandate
