"""One tree of errors, grouped by what the caller may conclude.

    LockdError
      Rejected            the command was not applied, and a repeat as it stands won't be
        LockTimeout         not obtained in time; names the holder
        SessionExpired      the session is gone, and with it its leases
        NotHeld             that grant is no longer held
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

from typing import ClassVar


class LockdError(Exception):
    """Base of everything that a caller of lockd may catch."""


class Rejected(LockdError):
    """The command was not applied, and asking again in the same way won't help."""

    wire_code: ClassVar[str] = "ERR"


class LockTimeout(Rejected):
    """The lock was not obtained in time (`wait` ran out) or at once (`wait=0`).

    `lock` is its name; `holder` says who has it, as far as the server told, else "".
    """

    wire_code = "TIMEOUT"

    def __init__(self, message: str, *, lock: str = "", holder: str = "") -> None:
        super().__init__(message)
        self.lock = lock
        self.holder = holder


class SessionExpired(Rejected):
    """The session does not exist (any more): all its leases have ended."""

    wire_code = "NOSESSION"


class NotHeld(Rejected):
    """The named grant is not held."""

    wire_code = "NOTHELD"


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


class CorruptData(Exception):
    """Committed data on this disk is damaged (SAFETY D3). Never retried, never guessed at.

    The message says which file, at what offset, what was found, and what to do.
    """
