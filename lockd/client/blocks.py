"""What entering and leaving a `with client.lock(...)` block means, for sync and async alike."""

import logging
from typing import Final, Literal

from lockd.client.lease import LeaseState, LeaseView, OnLost
from lockd.errors import LeaseLost, LockdError

log = logging.getLogger("lockd.client")

OnLostName = Literal["raise", "cancel", "flag"]
ENDED_ELSEWHERE: Final = "the cluster had ended it before it was released"


class Exit:
    """The end of one block: noted before the release, judged after it."""

    def __init__(self, lease: LeaseView, on_lost: OnLost) -> None:
        self._lease = lease
        self._on_lost = on_lost
        self._state = lease.state
        self._ended_elsewhere = False

    def released(self, outcome: "bool | LockdError") -> None:
        """What the release came to. One that is not answered costs the next holder a TTL, no more."""
        if isinstance(outcome, LockdError):
            log.warning("lock %r was not released, and ends with its session: %s", self._lease.lock, outcome)
        elif not outcome and self._state in (LeaseState.HELD, LeaseState.SUSPENDED):
            self._ended_elsewhere = True

    def error(self) -> LeaseLost | None:
        """What the block has to raise if its body raised nothing."""
        if self._on_lost is OnLost.FLAG:
            return None
        if self._ended_elsewhere:
            return self._lease.grant.lost_error(ENDED_ELSEWHERE)
        return self._lease.grant.lost_error() if self._state is LeaseState.LOST else None
