"""What a storage refused, as a metric and as a line in the log.

A refusal is rare and always news: either a holder was paused past its lease, which is what fences are
for, or something is set up wrongly. Each adapter passes its verbs through `told(...)`. A refusal is
counted where it is raised, in this process: a row about it in the database would be rolled back with
the write (research: pitfall 27).
"""

import logging
from types import TracebackType

from prometheus_client import Counter, Histogram

from lockd.errors import LeaseLost, LockdError, StaleToken
from lockd_storage.errors import (
    NotDurable,
    NotFenceable,
    NotInstalled,
    OutsideFence,
    WrongCluster,
    WrongLock,
    WrongMode,
)

REASONS: dict[type[LockdError], str] = {
    StaleToken: "stale",
    NotInstalled: "not_installed",
    WrongCluster: "wrong_cluster",
    WrongLock: "wrong_lock",
    WrongMode: "wrong_mode",
    OutsideFence: "outside_fence",
    NotFenceable: "not_fenceable",
    NotDurable: "not_durable",
    LeaseLost: "lease_lost",
}

REJECTS = Counter(
    "lockd_fence_rejects",
    "Installs and writes that a storage refused.",
    ("adapter", "resource", "reason"),
)
GAP = Histogram(
    "lockd_fence_reject_gap",
    "How far the mark was above a stale token: grants that the writer slept through.",
    ("adapter",),
    buckets=(1, 2, 5, 10, 100, 1_000, 100_000),
)

logger = logging.getLogger("lockd_storage")


class told:  # noqa: N801  reads as a word in a with statement, like contextlib's own
    """A block whose refusals are counted and logged once each, and go on unchanged.

    `adapter` and `resource` are labels. Of a resource like `orders:42` the label is `orders:*`, since a
    metric for each entity would never end.
    """

    __slots__ = ("_adapter", "_resource")

    def __init__(self, adapter: str, resource: str) -> None:
        self._adapter = adapter
        self._resource = resource

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if error is not None and isinstance(error, LockdError):
            tell(error, adapter=self._adapter, resource=self._resource)


def tell(refusal: LockdError, *, adapter: str, resource: str) -> None:
    """Count and log a refusal, unless that was done for this very error before."""
    reason = next((REASONS[kind] for kind in type(refusal).__mro__ if kind in REASONS), None)
    if reason is None or getattr(refusal, "_lockd_told", False):
        return
    refusal._lockd_told = True  # type: ignore[attr-defined]  # noqa: SLF001  nested blocks see the same error
    REJECTS.labels(adapter, family(resource), reason).inc()
    if isinstance(refusal, StaleToken):
        GAP.labels(adapter).observe(refusal.mark - refusal.presented)
        logger.warning(
            "write refused (%s): resource %r has been taken over by token %d while the holder of token %d"
            " still worked; nothing was written. Expected after a pause, a partition or a slow renewal; the"
            " holder should stop and acquire again",
            adapter,
            refusal.resource,
            refusal.mark,
            refusal.presented,
        )
    else:
        logger.warning("refused (%s, %s): %s", adapter, reason, refusal)


def family(resource: str) -> str:
    """The label of a resource: itself, or its part before the first colon and `:*`."""
    head, colon, _ = resource.partition(":")
    return f"{head}:*" if colon else resource
