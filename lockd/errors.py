"""One tree of errors, grouped by what the caller may conclude.

    LockdError
      Rejected            the command was not applied, and a repeat as it stands won't be
        LockTimeout         not obtained in time; tells who holds it, and for how long
        Deadlock            it would have waited for itself; the text names the cycle
        LimitMismatch       the semaphore has another limit; the text names both
        SessionExpired      the session is gone, and with it its leases
        NotHeld             that grant is no longer held
        WatchGone           the past that was asked for is forgotten: list, and watch from there
        LimitExceeded       a limit, named
        AccessDenied        not authenticated, or not allowed
      Unavailable         nothing was applied; the same call may succeed later
      OutcomeUnknown      it may or may not have been applied: ask again with the same request id
      LeaseLost           the work must stop: the lease can no longer be relied on
      StaleToken          storage refused: someone newer has installed
    CorruptData           not in the tree of retryable things: a disk is damaged

`wire_code` is the first word of a RESP error; docs/PROTOCOL.md has the table of RESP error,
Python exception, exit status and HTTP status.
"""

from typing import Any, ClassVar


class LockdError(Exception):
    """Base of everything that a caller of lockd may catch. May be pickled, and copied, with all it says."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own would make it anew from the message alone, without what an error must be given.
        return _as_it_was, (type(self), self.args), self.__dict__


class Rejected(LockdError):
    """The command was not applied, and asking again in the same way won't help."""

    wire_code: ClassVar[str] = "ERR"


class LockTimeout(Rejected):
    """The lock was not obtained in time (`wait` ran out) or at once (`wait=0`).

    What follows is as far as the server told. Of several holders it is the one that has held the
    lock for longest.
    """

    wire_code = "TIMEOUT"

    def __init__(
        self,
        message: str,
        *,
        lock: str = "",
        holder: str = "",
        owner: str = "",
        meta: Any = None,
        held_ms: int = 0,
        queue_length: int = 0,
    ) -> None:
        super().__init__(message)
        self.lock = lock
        """Its name; of several locks the one that was not to be had."""
        self.holder = holder
        """Who has it: the name or the public number of the session; "" when that is not known."""
        self.owner = owner
        """Which owner of that session, e.g. a thread or a task; "" for none."""
        self.meta = meta
        """The holder's metadata, parsed; None for none."""
        self.held_ms = held_ms
        self.queue_length = queue_length
        """How many others waited."""


class Deadlock(Rejected):
    """Waiting for this lock would never have ended: its holders wait for this owner (SAFETY G8).

    The message names the cycle. Nothing else has changed: what the owner holds, it still holds.
    """

    wire_code = "DEADLOCK"


class LimitMismatch(Rejected):
    """The semaphore is in use with another limit (or is a lock without one). The message names both."""

    wire_code = "MISMATCH"


class SessionExpired(Rejected):
    """The session does not exist (any more): all its leases have ended."""

    wire_code = "NOSESSION"


class NotHeld(Rejected):
    """The named grant is not held."""

    wire_code = "NOTHELD"


class WatchGone(Rejected):
    """The node no longer has the events that a watch was to go on from. List, and watch from there."""

    wire_code = "GONE"


class LimitExceeded(Rejected):
    """A limit would be exceeded; the message names it."""

    wire_code = "LIMIT"


class AccessDenied(Rejected):
    """The user is not authenticated (NOAUTH) or lacks the right (NOPERM)."""

    wire_code = "NOPERM"


class Unavailable(LockdError):
    """Nothing was appended anywhere: no leader, or a node that is stopping. Try again."""

    wire_code: ClassVar[str] = "UNAVAILABLE"


class OutcomeUnknown(LockdError):
    """The command was appended or passed on, and its outcome is not known."""

    wire_code: ClassVar[str] = "UNKNOWN"


class LeaseLost(LockdError):
    """The lease ended, or can no longer be relied on. Stop the work it protected."""

    def __init__(self, message: str, *, lock: str = "", token: int = 0) -> None:
        super().__init__(message)
        self.lock = lock
        self.token = token


class StaleToken(LockdError):
    """A storage refused a write: its mark has moved on to another token (SAFETY P4)."""

    def __init__(self, message: str, *, resource: str, presented: int, mark: int) -> None:
        super().__init__(message)
        self.resource = resource
        self.presented = presented
        self.mark = mark


def _as_it_was(kind: type[LockdError], args: tuple[Any, ...]) -> LockdError:
    return kind.__new__(kind, *args)


class CorruptData(Exception):
    """Committed data on this disk is damaged (SAFETY D3). Never retried, never guessed at.

    The message says which file, at what offset, what was found, and what to do.
    """
