"""Marks in this process's memory: for tests, and for a service that keeps its state there.

Each resource is a gate: writers of the installed token pass together, and an install first shuts
the gate to older ones and then waits until those inside have left.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

from lockd.errors import Unavailable
from lockd_storage.errors import NotInstalled
from lockd_storage.fencing import (
    INSTALL_SECONDS,
    Floor,
    HeldLease,
    Mark,
    check_deadline,
    judge_install,
    judge_write,
    lock_of,
    presented_fence,
    resource_of,
    writing_fence,
)
from lockd_storage.rejects import told

ADAPTER = "memory"


class MemoryFence:
    """A `FencePort` for threads of one process. Nothing survives it, so nothing outside relies on it.

    `cluster` pins the lockd cluster whose leases are taken; without it the first install of each
    resource does.
    """

    def __init__(self, *, cluster: str | None = None) -> None:
        self._cluster = cluster
        self._changed = Condition()
        self._marks: dict[str, Mark] = {}
        self._writing: Counter[tuple[str, int]] = Counter()  # by resource and token

    def install(
        self, lease: HeldLease, resource: str | None = None, *, timeout: float = INSTALL_SECONDS
    ) -> Mark:
        """See `FencePort.install`.

        The gate is shut before waiting, so a stream of overlapping older writers can't starve an
        install. After Unavailable it stays shut to both: install again.
        """
        resource = resource_of(lease, resource)
        with told(ADAPTER, resource):
            fence = presented_fence(lease, resource=resource, cluster=self._cluster)
            check_deadline(lease)
            with self._changed:
                mark = judge_install(
                    self._marks.get(resource),
                    floor=Floor(),
                    resource=resource,
                    lock=lock_of(lease, resource),
                    fence=fence,
                )
                self._marks[resource] = mark
                if not self._changed.wait_for(lambda: not self._older_inside(mark), timeout):
                    raise Unavailable(f"older writes to resource {resource!r} did not end in {timeout:g} s")
                # While this waited, a newer one may have shut the gate to us as well.
                judge_write(self._marks[resource], resource=resource, fence=fence)
            return mark

    def mark(self, resource: str) -> Mark | None:
        """See `FencePort.mark`."""
        with self._changed:
            return self._marks.get(resource)

    @contextmanager
    def write(self, lease: HeldLease, resource: str | None = None) -> Iterator[None]:
        """See `FencePort.write`. Yields nothing: what is written is the caller's own state."""
        resource = resource_of(lease, resource)
        with told(ADAPTER, resource):
            fence = writing_fence(lease, resource=resource, cluster=self._cluster)
            with self._changed:
                mark = self._marks.get(resource)
                judge_write(mark, resource=resource, fence=fence)
                check_deadline(lease)
                if mark is not None and self._older_inside(mark):
                    raise NotInstalled(
                        f"the install for resource {resource!r} has not returned", resource=resource
                    )
                self._writing[resource, fence.token] += 1
        try:
            yield
        finally:
            with self._changed:
                self._writing[resource, fence.token] -= 1
                self._writing += Counter()  # drops the zeros
                self._changed.notify_all()

    def check_invariants(self) -> None:
        """No writer is inside under a token above its resource's mark."""
        with self._changed:
            for (resource, token), writers in self._writing.items():
                assert writers > 0
                assert token <= self._marks[resource].token

    def _older_inside(self, mark: Mark) -> bool:
        return any(resource == mark.resource and token < mark.token for resource, token in self._writing)
