"""A disk that can be full: a small tmpfs in a mount namespace, which a process of ours keeps open.

Nodes enter that namespace before they start, so the mount is seen by nobody else and is gone with the keeper,
also when the tests are killed. No root is needed where a user may have namespaces.
A limit on file sizes (RLIMIT_FSIZE) is no stand-in: it gives EFBIG, which is not what a full disk says.
"""

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lockd.testing import tied

_KEEP = 'mount -t tmpfs -o "size=$1" tmpfs "$2" && echo mounted && exec cat'
_BALLAST = "ballast"


class SmallDisk:
    """A tmpfs at `path`, for those who enter."""

    def __init__(self, path: Path, keeper: "subprocess.Popen[str]") -> None:
        self.path = path
        self._keeper = keeper

    def within(self, command: list[str]) -> list[str]:
        """The command, run where the disk is mounted. The process id stays the same."""
        # Where it was, too: entering a mount namespace would leave it in the root.
        words = [_nsenter(), "--target", str(self._keeper.pid), "--mount", f"--wd={Path.cwd()}"]
        if os.geteuid() != 0:
            words += ["--user", "--preserve-credentials"]
        return [*words, "setpriv", "--pdeathsig", "KILL", *command]

    def fill(self, *, leave_bytes: int = 0) -> None:
        """Leave so much room, and no more, with a file that `make_room` removes."""
        stat = os.statvfs(self._from_here)
        free = stat.f_bavail * stat.f_frsize - leave_bytes
        assert free > 0, f"{self.path} has no room to take"
        with (self._from_here / _BALLAST).open("ab") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size + free)

    def make_room(self) -> None:
        (self._from_here / _BALLAST).unlink(missing_ok=True)

    @property
    def free_bytes(self) -> int:
        stat = os.statvfs(self._from_here)
        return stat.f_bavail * stat.f_frsize

    @property
    def _from_here(self) -> Path:
        return Path(f"/proc/{self._keeper.pid}/root{self.path}")


@contextlib.contextmanager
def small_disk(path: Path, *, size_bytes: int, room_bytes: int | None = None) -> Iterator[SmallDisk]:
    """A disk of that size at `path`, which is made; all but `room_bytes` of it is taken already.

    Raises OSError where that is not allowed.
    """
    path.mkdir(parents=True, exist_ok=True)
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    unshare = shutil.which("unshare")
    if unshare is None:
        raise OSError("unshare (of util-linux) is not here")
    command = [unshare, *rights, "--mount", "/bin/sh", "-c", _KEEP, "sh", str(size_bytes), str(path)]
    with subprocess.Popen(
        [sys.executable, "-S", "-E", str(tied.__file__), str(os.getpid()), *command],
        stdin=subprocess.PIPE,  # the keeper ends with this pipe, even where a user namespace unties it
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as keeper:
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        assert keeper.stderr is not None
        try:
            if keeper.stdout.readline() != "mounted\n":
                raise OSError(f"no tmpfs of our own: {keeper.stderr.read().strip()}")
            disk = SmallDisk(path.resolve(), keeper)
            if room_bytes is not None:
                disk.fill(leave_bytes=room_bytes)
            yield disk
        finally:
            keeper.stdin.close()
            keeper.wait()


@functools.cache
def why_not() -> str:
    """Why this machine gives us no small disk; "" when it does."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            with small_disk(Path(directory) / "disk", size_bytes=1024 * 1024) as disk:
                disk.fill()
                return "" if disk.free_bytes == 0 else f"{disk.free_bytes} bytes are left on a full disk"
        except OSError as error:
            return str(error)


def _nsenter() -> str:
    found = shutil.which("nsenter")
    if found is None:
        raise OSError("nsenter (of util-linux) is not here")
    return found
