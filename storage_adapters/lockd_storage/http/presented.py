"""The leases that a request presents, as a handler uses them."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from lockd_storage.errors import MalformedToken, OutsideFence
from lockd_storage.fencing import usable_resource
from lockd_storage.http.header import HEADER, PresentedFence, parse_header

REQUEST_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class PresentedLease:
    """A `HeldLease` made of a header, for the adapter that the handler writes through.

    The service can't know the holder's deadline, and need not: the mark decides. `remaining()` is what
    is left of the request's own time, which the service sets. Adapters bound with it how long a
    transaction may idle, and begin none afterwards, so that a request that stands still can't keep
    the next holder waiting for ever (SAFETY S3, S5).
    """

    lock: str
    """The resource it is presented for, as that is what an adapter checks unless told otherwise."""
    fence: str
    token: int
    mode: str
    lock_name: str
    """The name of the lock that it belongs to, as far as the caller said. Only an install needs it."""
    ends_at: float
    """On this process's monotonic clock."""

    def remaining(self) -> float:
        """Seconds that are left of the request's time."""
        return self.ends_at - time.monotonic()


class PresentedLeases:
    """What a request presents. In `request.state.fences`, and so in ASGI's `scope["state"]["fences"]`."""

    def __init__(self, fences: Iterable[PresentedFence], *, ends_at: float) -> None:
        self._fences = {each.resource: each for each in fences}
        self._ends_at = ends_at

    @classmethod
    def of_header(cls, values: Iterable[str], *, seconds: float = REQUEST_SECONDS) -> "PresentedLeases":
        """Those of the header's lines, for a request that may take so long. Raises MalformedToken."""
        lines = list(values)
        return cls(parse_header(lines) if lines else (), ends_at=time.monotonic() + seconds)

    def __bool__(self) -> bool:
        return bool(self._fences)

    def lease(self, resource: str) -> PresentedLease:
        """The lease presented for a resource. Raises OutsideFence, if there is none."""
        found = self._fences.get(resource, self._fences.get(None))
        if found is None:
            others = ", ".join(repr(name) for name in self._fences)
            instead = f"for {others} alone" if others else "none"
            raise OutsideFence(
                f"resource {resource!r} is written under a lock, and the request presents {instead}: send"
                f" `{HEADER}` with the fence of its holder",
                resource=resource,
            )
        return PresentedLease(
            lock=resource,
            fence=str(found.fence),
            token=found.fence.token,
            mode=found.mode,
            lock_name=resource if found.lock is None else found.lock,
            ends_at=self._ends_at,
        )

    def is_for(self, resource: str) -> bool:
        """Whether a lease is presented for that resource."""
        return resource in self._fences or None in self._fences

    def has_token(self, token: int) -> bool:
        """Whether one of them has that token."""
        return any(each.fence.token == token for each in self._fences.values())


def resource_in_path(name: str) -> str:
    """A resource that came in a URL. Raises MalformedToken for one that can't be."""
    if "\ufffd" in name:
        raise MalformedToken("the resource in the path is not UTF-8")
    try:
        return usable_resource(name)
    except ValueError as error:
        raise MalformedToken(str(error)) from None
