"""What a job's function is given: which run this is, and how to write under its token."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Protocol
from urllib.parse import quote

from sqlalchemy.orm import Session

import lockd
from lockd_scheduler.attempts import FENCED_IDLE_SECONDS, Attempts, Started
from lockd_scheduler.bounds import Bounds, Stop
from lockd_scheduler.errors import AttemptFenced, RunCancelled, RunTimedOut
from lockd_scheduler.policies import Policy


class Says(Protocol):
    """Where what an attempt says is kept."""

    def write(self, stream: str, text: str) -> None:
        """Take a text; never waits for the database."""


class Run:
    """One attempt of one run, as its job sees it. Threads of the job may share it."""

    def __init__(
        self,
        *,
        scope: str,
        started: Started,
        policy: Policy,
        attempts: Attempts,
        now: Callable[[], datetime],
        bounds: Bounds,
        output: Says,
    ) -> None:
        claimed = started.claimed
        self.id = claimed.run_id
        self.job = claimed.job
        self.fire_at: datetime = claimed.fire_time
        """The nominal fire time in UTC, however late the run began."""
        self.attempt = claimed.number
        """1 for the first attempt of this run, 2 for the next."""
        self.token: tuple[int, int] = (claimed.office_token, claimed.ordinal)
        """The fencing token: (office token, ordinal within the office), compared in that order (R4)."""
        self.scope = scope
        """The scheduler's name."""
        self._started = started
        self._policy = policy
        self._attempts = attempts
        self._now = now
        self._bounds = bounds
        self._output = output
        self.lease: lockd.Lease | None = None
        """The lease on the job's `lock`, where it has one."""

    def __repr__(self) -> str:
        return f"<run {self.id} of {self.job!r} at {self.fire_at.isoformat()}, attempt {self.attempt}>"

    @property
    def key(self) -> str:
        """The fire's own name: the same for every attempt of this run, different for any other."""
        claimed = self._started.claimed
        moment = self.fire_at.isoformat().replace("+00:00", "Z")
        words = [self.scope, claimed.job, claimed.kind, moment, *([claimed.key] if claimed.key else [])]
        return "/".join(quote(word, safe=":.-") for word in words)

    @property
    def headers(self) -> dict[str, str]:
        """For calls that go out: `Idempotency-Key` of the fire, `Fencing-Token` of this attempt."""
        office_token, ordinal = self.token
        return {"Idempotency-Key": self.key, "Fencing-Token": f"{office_token}.{ordinal}"}

    @property
    def is_fenced(self) -> bool:
        """Whether this process knows that the attempt was ended by the office. False promises nothing."""
        return self._bounds.reason is Stop.FENCED

    @property
    def is_stopping(self) -> bool:
        """Whether the attempt is to end, for whatever reason: what `check` would raise for."""
        return self._bounds.reason is not None

    def check(self) -> None:
        """Raise if this attempt is to end, as far as this process knows.

        AttemptFenced: its result no longer counts. RunCancelled: somebody asked for its end.
        RunTimedOut: it has run for as long as it may.
        """
        match self._bounds.reason:
            case Stop.FENCED:
                raise AttemptFenced(f"{self!r} was ended by the office")
            case Stop.CANCELLED:
                raise RunCancelled(f"{self!r} is to be cancelled")
            case Stop.TIMED_OUT:
                raise RunTimedOut(f"{self!r} has run for as long as it may")

    def wait(self, seconds: float) -> None:
        """Sleep, but no longer than the attempt may go on; then raises as `check` does."""
        self._bounds.wait(seconds)
        self.check()

    def log(self, text: str) -> None:
        """Add a line to this attempt's output in the ledger; returns at once.

        What a function prints on a thread is the service's own output, and is not kept there.
        """
        self._output.write("log", f"{text}\n")

    @contextmanager
    def fenced_session(self, *, idle: float = FENCED_IDLE_SECONDS) -> Iterator[Session]:
        """A session on the ledger's database: what it writes and 'succeeded' commit together.

        The commit at its end is the run's final success; an error later in the job changes
        nothing about that. `idle`: seconds that PostgreSQL lets the transaction wait between statements.
        On SQLite it holds up the whole ledger while it is open. Raises AttemptFenced, with nothing
        written, if the attempt no longer counts, and OutcomeUnknown if the commit's reply was lost.
        """
        self.check()
        with self._attempts.fenced_session(self._started, self._policy, now=self._now, idle=idle) as session:
            yield session
