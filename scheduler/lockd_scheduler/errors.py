"""The scheduler's errors, grouped like lockd's by what the caller may conclude."""

from lockd.errors import LeaseLost, LockdError


class SchedulerError(LockdError):
    """Base of the scheduler's own errors."""


class BadSchedule(SchedulerError, ValueError):
    """A job, trigger, zone, duration or reference is wrong; the message says where and why."""


class NoLedger(SchedulerError):
    """The database has no ledger, or there is no such file."""


class OfficeLost(SchedulerError):
    """The office's fence row holds another token: step down; nothing was changed (SAFETY R1)."""


class OfficeTaken(SchedulerError):
    """Another process serves this database and this one was told to run alone."""


class ForeignOffice(SchedulerError):
    """The office was last held through another lock service, whose tokens can't be compared."""


class AttemptFenced(LeaseLost):
    """This attempt's row was moved by the office: stop, its result will not count (SAFETY R1)."""


class RunCancelled(SchedulerError):
    """Somebody has asked for the end of this run: stop."""


class RunTimedOut(SchedulerError):
    """This attempt has run for as long as its job's `timeout` allows: stop."""
