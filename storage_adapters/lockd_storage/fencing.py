"""The rule: a write counts only under the token last installed for its resource.

A lease can end while its holder still thinks it holds it, so the storage decides. It keeps one
mark for each resource, and there are two verbs (SAFETY S1):

    install   Right after acquiring and before any read, the holder raises the mark to its token,
              in a committed step of its own. Once that returns, no older holder's write becomes
              visible: writes under way have ended, and later ones are refused.
    write     The mark must equal the writer's token, and may not move until the write has
              committed. Only install moves a mark, so an unknown token above it is refused too.

If the mark rose with the first write instead, an old holder could still write after the new
one has read. Everything here is a function of its arguments; adapters that can't call it, because
their check is code inside the store, are held to it by the contract suite.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn, Protocol, TypeVar

from lockd.errors import LeaseLost, StaleToken
from lockd.ids import LOCK_NAME_BYTES_MAX, ClusterId, Fence
from lockd_storage.errors import NotInstalled, WrongCluster, WrongLock, WrongMode

RESOURCE_BYTES_MAX = LOCK_NAME_BYTES_MAX
INSTALL_SECONDS = 5.0

HandleT_co = TypeVar("HandleT_co", covariant=True)


class HeldLease(Protocol):
    """What an adapter needs to know of a lease. Every lease of `lockd.Client` satisfies it."""

    @property
    def lock(self) -> str:
        """The lock's name; also the resource, unless another is given."""
        ...

    @property
    def token(self) -> int:
        """The fencing token of this grant."""
        ...

    @property
    def fence(self) -> str:
        """`cluster/incarnation/token`."""
        ...

    @property
    def mode(self) -> str:
        """`exclusive`, `shared` or `semaphore`: what it may do here (SAFETY G10)."""
        ...

    def remaining(self) -> float:
        """Seconds for which the lease may still be relied on; 0 or less once it may not."""
        ...


@dataclass(frozen=True, slots=True)
class Mark:
    """What was last installed for a resource: by which lock, and under which fence."""

    resource: str
    lock: str
    fence: Fence

    @property
    def token(self) -> int:
        """The installed fencing token."""
        return self.fence.token


@dataclass(frozen=True, slots=True)
class Floor:
    """What a whole store refuses to have installed, whatever its marks say (SAFETY S2)."""

    token: int = 0
    """No token at or under it may be installed any more."""
    cluster: ClusterId | None = None
    """Once it is known, no lease of another cluster may install, nor where there is no mark yet."""


class FencePort(Protocol[HandleT_co]):
    """A store that keeps marks. One suite, tests/storage, holds every adapter to it.

    Not promised: that a holder whose lease has ended is refused before a newer one installs. Until
    then its token is still the mark, and nobody else is writing.
    """

    def install(
        self, lease: HeldLease, resource: str | None = None, *, timeout: float = INSTALL_SECONDS
    ) -> Mark:
        """Make the lease's token the mark of `resource` (default: the lock's name).

        On return the mark is durable as far as the store is, and no write under an older token
        becomes visible any more. Installing the same token again changes nothing and is fine, also
        after a lost reply. Older writes under way get `timeout` seconds to end.

        Raises StaleToken (a newer token is installed, or the store's floor is above), WrongCluster,
        WrongLock, LeaseLost, Unavailable (older writes did not end, or the store can't be reached:
        install again), OutcomeUnknown (the reply was lost: install again).
        """
        ...

    def mark(self, resource: str) -> Mark | None:
        """The mark of a resource now, or None. For people and tests: nothing may be decided by it."""
        ...

    def write(self, lease: HeldLease, resource: str | None = None) -> AbstractContextManager[HandleT_co]:
        """A block in which the mark equals the lease's token and can't move.

        Yields what to write with. What was written counts when the block is left without an error.

        Raises, at the latest when the block is left, StaleToken, NotInstalled,
        WrongCluster, and LeaseLost when the deadline has passed though nobody newer has come; nothing
        was written then.
        """
        ...


def resource_of(lease: HeldLease, resource: str | None) -> str:
    """The resource to check: as given, else the lock's name. Raises ValueError for an unusable one."""
    return usable_resource(lease.lock if resource is None else resource)


def lock_of(lease: HeldLease, resource: str) -> str:
    """Which lock guards the resource: of a lease of several locks the one that it is named like.

    Its token was drawn under all of them, so it stands in the order of each one's tokens.
    """
    # Only some leases have several: a header's, or a plain value of a test, need not say so.
    return resource if resource in getattr(lease, "locks", ()) else lease.lock


@lru_cache(maxsize=1024)
def usable_resource(name: str) -> str:
    """The name, if a resource may have it. Raises ValueError."""
    if not name or "\0" in name or len(name.encode()) > RESOURCE_BYTES_MAX:
        raise ValueError(f"a resource has 1 to {RESOURCE_BYTES_MAX} bytes and no NUL, not {name[:40]!r}")
    return name


def presented_fence(lease: HeldLease, *, resource: str, cluster: str | None) -> Fence:
    """The fence that a lease may install, if it belongs to `cluster` (None: any).

    Raises WrongCluster, WrongMode.
    """
    if lease.mode not in ("exclusive", "shared"):
        raise WrongMode(
            f"lock {lease.lock!r} is held as a {lease.mode}: such grants have no order, so nothing can be"
            " fenced with them (SAFETY G10)",
            resource=resource,
        )
    fence = _parse(lease.fence)
    if cluster is not None and fence.cluster != cluster:
        raise WrongCluster(
            f"lock {lease.lock!r} is held in cluster {fence.cluster}, and this fence is for {cluster}",
            resource=resource,
        )
    return fence


# A lease presents the same text for each of its transactions.
_parse = lru_cache(maxsize=1024)(Fence.parse)


def writing_fence(lease: HeldLease, *, resource: str, cluster: str | None) -> Fence:
    """As `presented_fence`, of a lease that may also write: an exclusive one (SAFETY G10)."""
    if lease.mode == "shared":
        raise WrongMode(
            f"lock {lease.lock!r} is shared: its holder may install and read, and must hold it exclusively"
            " to write (SAFETY G10)",
            resource=resource,
        )
    return presented_fence(lease, resource=resource, cluster=cluster)


def check_deadline(lease: HeldLease) -> None:
    """Raise LeaseLost once the lease may not be relied on (SAFETY S3: nothing begins after that)."""
    if lease.remaining() <= 0:
        raise LeaseLost(
            f"lock {lease.lock!r}: the lease with token {lease.token} has ended",
            lock=lease.lock,
            token=lease.token,
        )


def judge_install(mark: Mark | None, *, floor: Floor, resource: str, lock: str, fence: Fence) -> Mark:
    """The mark after an install, given the mark and the floor before it (SAFETY S1, S2).

    Equal to `mark` when that very grant was installed before. Raises WrongCluster, WrongLock,
    StaleToken.
    """
    if floor.cluster is not None and floor.cluster != fence.cluster:
        raise WrongCluster(
            f"this fence store belongs to cluster {floor.cluster}, not {fence.cluster}", resource=resource
        )
    if mark is not None:
        _same_cluster(mark, fence)
        if mark.lock != lock:
            raise WrongLock(
                f"resource {resource!r} is guarded by lock {mark.lock!r}, not by {lock!r}", resource=resource
            )
        if mark.fence == fence:
            return mark
    highest = max(floor.token, 0 if mark is None else mark.token)
    # A token is issued once (SAFETY P2), so an equal one of another incarnation is not this grant.
    if fence.token <= highest:
        refuse_stale(resource, presented=fence.token, mark=highest)
    return Mark(resource, lock, fence)


def judge_write(mark: Mark | None, *, resource: str, fence: Fence) -> None:
    """Return if a write under `fence` may go on while `mark` stays where it is (SAFETY S1, S2).

    Raises NotInstalled, WrongCluster, StaleToken.
    """
    if mark is None:
        raise NotInstalled(f"no token is installed for resource {resource!r}", resource=resource)
    _same_cluster(mark, fence)
    if fence.token > mark.token:
        raise NotInstalled(
            f"token {fence.token} is not installed for resource {resource!r}: the mark is {mark.token}",
            resource=resource,
        )
    if fence != mark.fence:
        refuse_stale(resource, presented=fence.token, mark=mark.token)


def refuse_stale(resource: str, *, presented: int, mark: int) -> NoReturn:
    """Raise the StaleToken that says what was presented where, and what stands there."""
    raise StaleToken(
        f"token {presented} is stale for resource {resource!r}: the mark is {mark}",
        resource=resource,
        presented=presented,
        mark=mark,
    )


def _same_cluster(mark: Mark, fence: Fence) -> None:
    if mark.fence.cluster != fence.cluster:
        raise WrongCluster(
            f"resource {mark.resource!r} belongs to cluster {mark.fence.cluster}, not {fence.cluster}",
            resource=mark.resource,
        )
