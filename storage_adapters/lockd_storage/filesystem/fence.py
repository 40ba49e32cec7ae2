"""`FileFence`: the two verbs for a directory, and reading what a block has changed as one."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lockd.errors import Unavailable
from lockd.ids import TOKEN_MAX, ClusterId
from lockd_storage.errors import WrongCluster
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
from lockd_storage.filesystem.changes import FileChanges, finish, unfinished
from lockd_storage.filesystem.folder import FenceFolder, Holding, explained, locked
from lockd_storage.rejects import told

ADAPTER = "file"


class FileFence:
    """The marks of one directory. A `FencePort`; cheap to make, safe to share between threads.

    All processes that write there are on this machine and have rights to its folder `.lockd`. `cluster`
    pins the lockd cluster whose leases are taken; without it the first install of each resource does.
    Raises NotFenceable for what is no directory of a local file system.
    """

    def __init__(self, directory: str | Path, *, cluster: str | None = None) -> None:
        self._folder = FenceFolder(Path(directory))
        self._cluster = cluster

    def install(
        self, lease: HeldLease, resource: str | None = None, *, timeout: float = INSTALL_SECONDS
    ) -> Mark:
        """Make the lease's token the mark of `resource`. See `FencePort.install`.

        The mark is raised first, which shuts out older writers, and on the disk before this returns.
        Then a block under way gets `timeout` seconds to end; Unavailable names the process it is in, and
        the mark stays where it is: install again. Changes that a crash has interrupted are carried out.
        Also raises CorruptData, see `lockd_storage.records`.
        """
        name = resource_of(lease, resource)
        give_up_at = time.monotonic() + timeout
        with told(ADAPTER, name):
            fence = presented_fence(lease, resource=name, cluster=self._cluster)
            check_deadline(lease)
            self._folder.make()
            with locked(self._folder.marks_lock_path, Holding.EXCLUSIVE, give_up_at=give_up_at):
                before = self._folder.read_mark(name)
                floor = self._folder.read_floor()
                mark = judge_install(
                    before, floor=floor, resource=name, lock=lock_of(lease, name), fence=fence
                )
                if mark != before:
                    with explained(self._folder.path):
                        self._folder.write_mark(mark)
            self._drain(name, give_up_at)
            # While this waited, a newer one may have shut us out as well.
            judge_write(self._standing(name), resource=name, fence=fence)
        return mark

    def mark(self, resource: str) -> Mark | None:
        """See `FencePort.mark`."""
        return self._folder.read_mark(resource)

    @contextmanager
    def write(self, lease: HeldLease, resource: str | None = None) -> Iterator[FileChanges]:
        """Yields `FileChanges`: write(path, data), open(path), delete(path). See `FencePort.write`.

        Nothing is visible before the block ends, and nothing at all when it ends with an error. One block
        of a resource is under way at a time; another waits for as long as its lease may be relied on. Two
        blocks of one resource inside each other, in one thread, wait for themselves.

        Also raises Unavailable (no room, no right; nothing was written) and OutcomeUnknown (the changes
        were decided, and the operating system stopped them half way: the next install or write goes on).
        """
        name = resource_of(lease, resource)
        with ExitStack() as held:
            with told(ADAPTER, name):
                fence = writing_fence(lease, resource=name, cluster=self._cluster)
                judge_write(self._standing(name), resource=name, fence=fence)  # before waiting for anybody
                check_deadline(lease)
                held.enter_context(self._turn(lease, name))
                # This one counts: whoever raises the mark from now on waits for us to leave.
                judge_write(self._standing(name), resource=name, fence=fence)
                check_deadline(lease)
                finish(self._folder, name)
            changes = FileChanges(self._folder, name)
            held.callback(changes.drop)
            yield changes
            with told(ADAPTER, name):
                changes.commit()

    @contextmanager
    def read(self, resource: str, *, timeout: float = INSTALL_SECONDS) -> Iterator[Path]:
        """The directory, while no block of the resource is under way or half done.

        Readers share; a writer waits for them, an install does not. Raises Unavailable after `timeout`
        seconds.
        """
        give_up_at = time.monotonic() + timeout
        self._folder.make()
        while True:
            with locked(self._folder.lock_path(resource), Holding.SHARED, give_up_at=give_up_at):
                if not unfinished(self._folder, resource):
                    yield self._folder.root
                    return
            self._finish(resource, give_up_at)

    def marks(self, prefix: str = "") -> list[Mark]:
        """The marks of all resources that begin so, by resource. Raises CorruptData."""
        return [mark for mark in self._folder.marks() if mark.resource.startswith(prefix)]

    def floor(self) -> Floor:
        """What is not installed here whatever the marks say; nothing at or under it is written either."""
        return self._folder.read_floor()

    def raise_floor(
        self, token: int, *, cluster: str | None = None, timeout: float = INSTALL_SECONDS
    ) -> list[Mark]:
        """Shut out all tokens up to this one, for good: the step after files were restored (SAFETY S2).

        The marks at or under it are removed, and returned. On return no write under them becomes visible
        any more; a holder that still lives has to acquire again. A floor is never lowered. With `cluster`
        no lease of another is installed from here on. Raises ValueError for what is no token, WrongCluster
        when the floor is of another, Unavailable as `install` does: call it again.
        """
        if not 1 <= token <= TOKEN_MAX:
            raise ValueError(f"a token is between 1 and 2**53-1, not {token}")
        give_up_at = time.monotonic() + timeout
        self._folder.make()
        with locked(self._folder.marks_lock_path, Holding.EXCLUSIVE, give_up_at=give_up_at):
            before = self._folder.read_floor()
            if cluster is not None and before.cluster not in (None, cluster):
                raise WrongCluster(f"this directory belongs to cluster {before.cluster}", resource="")
            owner = before.cluster if cluster is None else ClusterId(cluster)
            floor = Floor(max(token, before.token), owner)
            below = [mark for mark in self._folder.marks() if mark.token <= floor.token]
            with explained(self._folder.path):
                self._folder.write_floor(floor)  # from here on their writes are refused, marks or not
                for mark in below:
                    self._folder.remove_mark(mark.resource)
        for mark in below:
            self._drain(mark.resource, give_up_at)
        return below

    def _standing(self, resource: str) -> Mark | None:
        """The mark under which may be written: none at or under the floor counts (SAFETY S2)."""
        mark = self._folder.read_mark(resource)
        return None if mark is None or mark.token <= self._folder.read_floor().token else mark

    @contextmanager
    def _turn(self, lease: HeldLease, resource: str) -> Iterator[None]:
        """The lock of a resource's writers, waited for no longer than the lease may be relied on."""
        with ExitStack() as held:
            lock = locked(
                self._folder.lock_path(resource),
                Holding.EXCLUSIVE,
                give_up_at=time.monotonic() + lease.remaining(),
            )
            try:
                held.enter_context(lock)
            except Unavailable:
                check_deadline(lease)
                raise
            yield

    def _drain(self, resource: str, give_up_at: float) -> None:
        """Wait until no block is under way, and carry out what a crash has left."""
        with locked(self._folder.lock_path(resource), Holding.SHARED, give_up_at=give_up_at):
            left = unfinished(self._folder, resource)
        if left:
            self._finish(resource, give_up_at)

    def _finish(self, resource: str, give_up_at: float) -> None:
        with locked(self._folder.lock_path(resource), Holding.EXCLUSIVE, give_up_at=give_up_at):
            finish(self._folder, resource)
