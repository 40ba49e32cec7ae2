"""What the scheduler needs from outside, and what it may conclude from it.

A clock tells what is due, never what is allowed (SAFETY R2). An office elects; being elected lets
this process try, and the ledger's fence row decides (R1).
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

from lockd_scheduler.mandates import Claimed


class Clock(Protocol):
    """The ledger's time, as well as this process knows it."""

    def now(self) -> datetime:
        """The moment in UTC. May jump, either way; only lateness depends on it."""

    def sync(self) -> None:
        """Ask the source again, if it is time to. Raises what the source raises."""


class Seat(Protocol):
    """A won election. Its token is greater than that of any earlier seat of the same source."""

    @property
    def token(self) -> int:
        """The office token, 1 <= token < 2**53."""

    @property
    def source(self) -> str:
        """Who counts the tokens: "local", or a lock service's cluster id. Two can't be compared."""

    @property
    def lost(self) -> bool:
        """Whether the seat is known to be lost. False promises nothing."""

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call back once, on any thread, when the seat is lost."""

    def resign(self) -> None:
        """Give the seat up, so that another need not wait for it to run out. Idempotent."""


class Office(Protocol):
    """Elects at most one seat at a time, as far as an election can promise that."""

    def campaign(self, wait: float) -> Seat | None:
        """Try for up to `wait` seconds to be elected; None if another is. Raises lockd.errors.Unavailable."""

    def close(self) -> None:
        """Let go of connections and files. Idempotent."""


class Runner(Protocol):
    """Starts attempts; it promises nothing about when, and nothing is lost if it forgets them."""

    def submit(self, claims: Sequence[Claimed], *, more: bool = False) -> None:
        """Queue attempts; `more`: others follow at once."""

    def queued(self) -> frozenset[int]:
        """The ids of attempts that it will still start."""

    def drop_queued(self) -> None:
        """Forget the attempts that were not started."""
