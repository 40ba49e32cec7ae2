"""What a timer of the state stands for (SAFETY T1): one type for each kind of deadline."""

from typing import NamedTuple

from lockd.locks.queues import Lock, Request


class WaitOver(NamedTuple):
    """Timer: the WAIT of this request has passed."""

    request: Request


class OrphanOver(NamedTuple):
    """Timer: nobody asked for this request again within its session's TTL (G4)."""

    request: Request


class HoldOver(NamedTuple):
    """Timer: this grant is as old as its MAXHOLD (K7)."""

    request: Request


class DelayOver(NamedTuple):
    """Timer: the DELAY after an abnormal end of a lease on this lock has passed."""

    lock: Lock


class QuietOver(NamedTuple):
    """Timer: the quiet period after a restore has passed (G2)."""


Due = WaitOver | OrphanOver | HoldOver | DelayOver | QuietOver
