"""What a storage refused, as a metric and as a line in the log.

A refusal is rare and always news: either a holder was paused past its lease, which is what fences are
for, or something is set up wrongly. Each adapter passes its verbs through `told(...)`. A refusal is
counted where it is raised, in this process: a row about it in the database would be rolled back with
the write (research: pitfall 27).

The metrics are in prometheus_client's default registry. A service that has a page for Prometheus shows
them there already; one that has none adds it with `prometheus_client.make_asgi_app()` or
`start_http_server(port)`. Importing this counts and logs nothing.
"""

import logging
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from prometheus_client import REGISTRY, Counter, Histogram

from lockd.errors import LeaseLost, LockdError, StaleToken
from lockd_storage.errors import (
    MalformedToken,
    NotDurable,
    NotFenceable,
    NotInstalled,
    OutsideFence,
    WrongCluster,
    WrongLock,
    WrongMode,
)

REASONS: dict[type[LockdError], tuple[str, str]] = {
    StaleToken: (
        "stale",
        "Expected after a pause, a partition or a slow renewal; the holder should stop and acquire again",
    ),
    NotInstalled: (
        "not_installed",
        "The holder must call install(lease) right after acquiring, before it reads",
    ),
    WrongCluster: (
        "wrong_cluster",
        "Look which cluster each side is set to; after a move, `lockd fences adopt` is the step",
    ),
    WrongLock: ("wrong_lock", "Two locks can't guard one resource: let both programs lock under one name"),
    WrongMode: ("wrong_mode", "Only an exclusive lease writes: look how the program takes its lock"),
    OutsideFence: (
        "outside_fence",
        "Some program writes here without holding the lock: find it, or fence it",
    ),
    NotFenceable: ("not_fenceable", "The program's own set-up is at fault, and no other holder"),
    NotDurable: ("not_durable", "Look at the store's replicas; installs go on once they are back"),
    LeaseLost: (
        "lease_lost",
        "Its time was over before it wrote. If this repeats, give the lock a longer ttl, or look for pauses",
    ),
    MalformedToken: ("malformed", "The caller sends something else than a lock's fence"),
}
"""For each refusal its label, and what the person who reads the log does about it."""

FAMILIES_MAX = 100
OTHER_FAMILIES = "(other)"
"""The label of every further family, since names may come from outside (SAFETY P6)."""

MetricT = TypeVar("MetricT", Counter, Histogram)


def _once(name: str, make: Callable[[], MetricT]) -> MetricT:
    """The metric of that name: a module that is loaded again goes on counting where it was."""
    found = REGISTRY._names_to_collectors.get(name)  # noqa: SLF001  the registry has no public look-up
    return make() if found is None else found  # type: ignore[return-value]  # made below, by an earlier load


REJECTS = _once(
    "lockd_fence_rejects_total",
    lambda: Counter(
        "lockd_fence_rejects",
        "Installs and writes that a storage refused.",
        ("adapter", "resource", "reason"),
    ),
)
GAP = _once(
    "lockd_fence_reject_gap",
    lambda: Histogram(
        "lockd_fence_reject_gap",
        "How far the mark was above a stale token: grants of the whole cluster in between.",
        ("adapter",),
        buckets=(1, 2, 5, 10, 100, 1_000, 100_000),
    ),
)

logger = logging.getLogger("lockd_storage")
_families: set[str] = set()


class told:  # noqa: N801  reads as a word in a with statement, like contextlib's own
    """A block whose refusals are counted and logged once each, and go on unchanged.

    `adapter` and `resource` are labels. Of a resource like `orders:42` or `orders/42` the label is
    `orders:*` or `orders/*`, since a metric for each entity would never end.
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
    known = next((REASONS[kind] for kind in type(refusal).__mro__ if kind in REASONS), None)
    if known is None or getattr(refusal, "_lockd_told", False):
        return
    refusal._lockd_told = True  # type: ignore[attr-defined]  # noqa: SLF001  nested blocks see the same error
    reason, advice = known
    REJECTS.labels(adapter, _label(resource), reason).inc()
    if isinstance(refusal, StaleToken):
        GAP.labels(adapter).observe(refusal.mark - refusal.presented)
        logger.warning(
            "refused (%s, stale): resource %r has been taken over under token %d, and the holder of token %d"
            " still came; nothing of that was written. %s",
            adapter,
            refusal.resource,
            refusal.mark,
            refusal.presented,
            advice,
        )
    else:
        logger.warning("refused (%s, %s) for resource %r: %s. %s", adapter, reason, resource, refusal, advice)


def family(resource: str) -> str:
    """What resources are counted under: the name, or its part to the first colon or slash, and `*`."""
    for at, character in enumerate(resource):
        if character in ":/":
            return f"{resource[: at + 1]}*"
    return resource


def _label(resource: str) -> str:
    name = family(resource)
    if name not in _families:
        if len(_families) >= FAMILIES_MAX:
            return OTHER_FAMILIES
        _families.add(name)
    return name
