"""What a storage says no with, beside `StaleToken`, `LeaseLost`, `Unavailable` and `OutcomeUnknown`.

All but `NotDurable` are `Rejected`: nothing was written, and the same call again won't help. What
will is said with each.
"""

from lockd.errors import Rejected, Unavailable


class NotInstalled(Rejected):
    """The lease's token is not the mark of its resource, because it was never installed there.

    A store without the mark fails closed (SAFETY S2). Call `install(lease)` right after acquiring.
    """

    def __init__(self, message: str, *, resource: str) -> None:
        super().__init__(message)
        self.resource = resource


class WrongCluster(Rejected):
    """The resource, or the adapter, belongs to another lockd cluster than the lease does."""

    def __init__(self, message: str, *, resource: str) -> None:
        super().__init__(message)
        self.resource = resource


class WrongLock(Rejected):
    """The resource is guarded by a lock of another name.

    Leases of two locks don't exclude each other, so one of them must not write here.
    """

    def __init__(self, message: str, *, resource: str) -> None:
        super().__init__(message)
        self.resource = resource


class WrongMode(Rejected):
    """The lease is not of a mode that may do this (SAFETY G10).

    An exclusive lease installs and writes. A shared one installs, which shuts out exclusive writers
    of before, and writes nothing: others hold it too. A semaphore's does neither: its tokens have
    no order.
    """

    def __init__(self, message: str, *, resource: str) -> None:
        super().__init__(message)
        self.resource = resource


class NotFenceable(Rejected):
    """This session, connection or engine can't be held to a fence: the message says why.

    In AUTOCOMMIT mode no transaction holds the mark; an open transaction may have read before the
    check; a second database or a two-phase commit would not be covered by it.
    """


class OutsideFence(Rejected):
    """A write to a guarded table, key or object came from outside a fence, or under another resource's.

    Wrap it in `fenced(...)` with a lease of the resource that guards it (SAFETY S6).
    """

    def __init__(self, message: str, *, resource: str) -> None:
        super().__init__(message)
        self.resource = resource


class MalformedToken(Rejected, ValueError):
    """What was presented as a fencing token, in a header or the like, is none. The message says why."""


class NotDurable(Unavailable):
    """The mark was raised, and fewer copies of the store than asked for have confirmed it.

    A failover could lose it, and older tokens would be let in again (SAFETY S7). Don't write;
    install again, once the missing copies are back.
    """

    def __init__(self, message: str, *, resource: str) -> None:
        super().__init__(message)
        self.resource = resource
