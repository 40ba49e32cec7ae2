"""Fenced writes to the files of one directory, for processes of one machine.

    fence = FileFence("/srv/reports")
    with client.lock("reports") as lease:
        fence.install(lease)
        with fence.write(lease) as files:
            files.write("2026/11.csv", b"...")            # seen when the block is left without an error
            files.delete("2026/10.csv.part")

The marks are files in the folder `.lockd` of that directory. Promised: once `install` has returned, no
older holder's write becomes visible; a file is replaced whole or not at all, also over a crash or a
power cut; and the changes of one block happen all or not at all for whoever looks through the fence:
the next holder, and readers in `with fence.read("reports") as folder`. Who opens the files without the
fence sees each file whole, and may see some of a block's files before the others.

Not promised: that a holder whose process is stopped inside a block lets its successor in. Its install
ends with Unavailable, which names the process; ending it, even with kill -9, frees the lock. Refused
where it can be seen: network file systems, whose locks and renames are not those of one machine, and
paths into a directory within that has a fence of its own. Not covered: whoever writes to the directory
by other means.

Start reading at `fence`. `folder` is what lies in `.lockd` and how it is locked, `changes` how a block's
changes happen at once.
"""

try:
    import fcntl as _installed  # noqa: F401  the test is whether it can be imported
except ImportError as error:
    raise ImportError(
        "lockd_storage.filesystem needs flock, which this operating system lacks: Linux and macOS have it"
    ) from error

from lockd_storage.filesystem.changes import FileChanges
from lockd_storage.filesystem.fence import FileFence

__all__ = ["FileChanges", "FileFence"]
