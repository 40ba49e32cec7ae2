"""Exit statuses, and which error becomes which. docs/PROTOCOL.md has the table."""

import enum
import errno
import os
from collections.abc import Mapping
from typing import Any, Final

import click

from lockd.errors import (
    CorruptData,
    LeaseLost,
    LimitExceeded,
    LockTimeout,
    NotHeld,
    OutcomeUnknown,
    Rejected,
    SessionExpired,
    Unavailable,
)


class ExitStatus(enum.IntEnum):
    """What a script may conclude. `run` has its own, for its child may end with any of the others."""

    DONE = 0
    NOT_OBTAINED = 1
    USAGE = 2
    """Wrong usage or configuration, or not allowed: the same again won't help."""
    UNAVAILABLE = 3
    """The cluster did not answer, or its answer was lost: asking again may help."""
    LEASE_LOST = 4
    """That grant or session is over."""
    INTERNAL = 70
    """A fault in lockd itself; EX_SOFTWARE of sysexits.h."""
    RUN_NOT_OBTAINED = 121
    RUN_UNAVAILABLE = 122
    RUN_LEASE_LOST = 123
    RUN_NOT_EXECUTABLE = 126
    """As in a shell: the command was found and can't be executed."""
    RUN_NOT_FOUND = 127
    """As in a shell."""
    SIGNALLED = 128
    """Plus the signal's number, as in a shell."""
    INTERRUPTED = 130


_STATUSES: Final[tuple[tuple[type[Exception], ExitStatus], ...]] = (
    (LockTimeout, ExitStatus.NOT_OBTAINED),
    (LimitExceeded, ExitStatus.NOT_OBTAINED),
    (SessionExpired, ExitStatus.LEASE_LOST),
    (NotHeld, ExitStatus.LEASE_LOST),
    (LeaseLost, ExitStatus.LEASE_LOST),
    (Rejected, ExitStatus.USAGE),
    (Unavailable, ExitStatus.UNAVAILABLE),
    (OutcomeUnknown, ExitStatus.UNAVAILABLE),
    (CorruptData, ExitStatus.USAGE),
    (click.ClickException, ExitStatus.USAGE),
)
"""The first row that fits counts."""

_WITH_CHILD: Final = frozenset({"run", "elect"})
_OF_RUN: Final[Mapping[ExitStatus, ExitStatus]] = {
    ExitStatus.NOT_OBTAINED: ExitStatus.RUN_NOT_OBTAINED,
    ExitStatus.UNAVAILABLE: ExitStatus.RUN_UNAVAILABLE,
    ExitStatus.LEASE_LOST: ExitStatus.RUN_LEASE_LOST,
}


class RefusedError(click.ClickException):
    """What was asked for can't be done as asked. One line."""


class NotChangedError(click.ClickException):
    """The cluster has refused a change of itself: its state is in the way, not how it was asked."""


class DamagedFileError(click.ClickException):
    """A file that was to be read is damaged: used whole or not at all."""


class NotExecutedError(click.ClickException):
    """The command of `lockd run` can't be executed."""

    def __init__(self, command: str, number: int) -> None:
        """`number` is the operating system's errno."""
        super().__init__(f"{command}: {os.strerror(number)}")
        is_missing = number == errno.ENOENT
        self.status = ExitStatus.RUN_NOT_FOUND if is_missing else ExitStatus.RUN_NOT_EXECUTABLE


def status_of(error: Exception, *, command: str) -> ExitStatus:
    """The exit status that `error` ends `lockd <command>` with."""
    if isinstance(error, NotExecutedError):
        return error.status
    if isinstance(error, NotChangedError | DamagedFileError):
        return ExitStatus.NOT_OBTAINED
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            return _OF_RUN.get(status, status) if command in _WITH_CHILD else status
    return ExitStatus.INTERNAL


def facts_of(error: Exception) -> dict[str, Any]:
    """What an error knows besides its text, for --json."""
    match error:
        case LockTimeout():
            return {
                "lock": error.lock,
                "holder": error.holder,
                "owner": error.owner,
                "meta": error.meta,
                "held_ms": error.held_ms,
                "queue_length": error.queue_length,
            }
        case LeaseLost():
            return {"lock": error.lock, "token": error.token}
        case _:
            return {}
